"""GGUF files that danlu writes: read back by transformers with the same tokens and the same logits."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import gguf
import numpy
import pytest
import torch
from probes import logits_of, random_adapter, random_prefix, token_batch
from sentencepieces import sentencepiece_tokenizer
from tiny import build_model

from danlu.core.errors import ModelError
from danlu.models.adapters import attach
from danlu.models.gguf import read_model
from danlu.models.gguf_config import complete, llama3
from danlu.models.gguf_export.architectures import architectures
from danlu.models.gguf_export.metadata import rope_factors
from danlu.models.gguf_export.write import TEXTS, export_gguf
from danlu.models.gguf_header import read_fields
from danlu.models.gguf_tokens import pre_tokenizers
from danlu.models.loading import load_model, load_tokenizer
from danlu.models.runs import plain_model
from danlu.verbs.export import export as export_verb

pytestmark = pytest.mark.model
CHECKED = ("llama", "qwen2", "qwen3")


def written(folder: Path, target: Path, kind: str = "f32", **options: Any) -> Path:
    export_gguf(plain_model(str(folder)), target, kind=kind, **options)
    return target / f"{target.name}-{kind}.gguf"


def original(folder: Path) -> Any:
    return load_model(folder, device="cpu")


@pytest.mark.parametrize("family", CHECKED)
def test_transformers_reads_the_same_logits(tiny_models: dict[str, Path], tmp_path: Path, family: str) -> None:
    """Without danlu's reader, where the file says all: qwen3's width of heads is the one thing it overlooks."""
    from transformers import AutoModelForCausalLM

    folder = tiny_models[family]
    if family == "qwen3":
        folder = build_model("qwen3", tmp_path / "usual", head_dim=128)
    file = written(folder, tmp_path / "out")
    found = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32).eval()
    ids = token_batch()
    torch.testing.assert_close(logits_of(found, ids), logits_of(original(folder), ids), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", CHECKED)
@pytest.mark.parametrize("kind", ["f16", "bf16", "q8_0", "q4_0"])
def test_rounded_weights_answer_as_the_same_weights_rounded(
    tiny_models: dict[str, Path], tmp_path: Path, family: str, kind: str
) -> None:
    """The expected numbers are rounded here, from the formulas of the format, not by danlu."""
    file = written(tiny_models[family], tmp_path / "out", kind)
    model = original(tiny_models[family])
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.dim() > 1:
                longer = kind == "q4_0" and name.split(".")[-2] in ("embed_tokens", "lm_head")
                value.copy_(by_formula(value, "q8_0" if longer else kind))
    ids = token_batch()
    torch.testing.assert_close(logits_of(read_model(file), ids), logits_of(model, ids), atol=1e-4, rtol=1e-4)


def by_formula(value: torch.Tensor, kind: str) -> torch.Tensor:
    """Blocks of 32 share a float16 scale: largest / 127 with 8 bits, signed largest / -8 with 4."""
    if kind in ("f16", "bf16"):
        return value.to(torch.float16 if kind == "f16" else torch.bfloat16).float()
    blocks = value.double().reshape(-1, 32)
    largest = blocks.gather(1, blocks.abs().argmax(1, keepdim=True))
    if kind == "q8_0":
        scale = largest.abs() / 127
        steps = torch.round(blocks / scale)
    else:
        scale = largest / -8
        steps = torch.clamp(torch.floor(blocks / scale + 8.5), 0, 15) - 8
    return (steps * scale.to(torch.float16).double()).float().reshape(value.shape)


def test_vectors_stay_long_and_short_rows_too(tmp_path: Path) -> None:
    file = written(build_model("llama", tmp_path / "odd", intermediate_size=88), tmp_path / "out", "q8_0")
    kinds = {item.name: item.tensor_type.name for item in gguf.GGUFReader(file).tensors}
    assert kinds["blk.0.attn_norm.weight"] == "F32"
    assert kinds["blk.0.ffn_down.weight"] == "F16"
    assert kinds["blk.0.ffn_up.weight"] == "Q8_0"


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}}),
        (
            "llama",
            {
                "head_dim": 64,
                "max_position_embeddings": 131072,
                "rope_parameters": {
                    "rope_type": "llama3",
                    "factor": 8.0,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 8192,
                    "rope_theta": 500000.0,
                },
            },
        ),
        (
            "qwen2",
            {
                "rope_parameters": {
                    "rope_type": "yarn",
                    "factor": 4.0,
                    "original_max_position_embeddings": 512,
                    "rope_theta": 10000.0,
                }
            },
        ),
        ("llama", {"attention_bias": True, "mlp_bias": True, "head_dim": 24}),
        ("qwen2", {"tie_word_embeddings": True}),
        ("qwen3", {"vocab_size": 450}),
    ],
    ids=["linear", "llama3", "yarn", "biases", "tied", "spare rows"],
)
def test_variants(tmp_path: Path, family: str, changes: dict[str, Any]) -> None:
    folder = build_model(family, tmp_path / "base", **changes)
    found = load_model(written(folder, tmp_path / "out"), device="cpu")
    assert found.dtype == torch.float32
    ids = token_batch()
    torch.testing.assert_close(logits_of(found, ids), logits_of(original(folder), ids), atol=1e-5, rtol=1e-5)
    said = {name: value for name, value in changes.items() if name != "vocab_size"}
    assert {name: getattr(found.config, name) for name in said} == said


def experts(folder: Path, **changes: Any) -> Path:
    """A tiny Qwen3 with four experts in each layer."""
    from tiny import SIZES, build_tokenizer
    from transformers import AutoModelForCausalLM, Qwen3MoeConfig

    own = {"head_dim": 24, "moe_intermediate_size": 32, "num_experts": 4, "num_experts_per_tok": 2}
    config = Qwen3MoeConfig(**{**SIZES, **own, "norm_topk_prob": True, **changes})
    with torch.random.fork_rng():
        torch.manual_seed(5)
        AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["f32", "q8_0"])
def test_experts(tmp_path: Path, kind: str) -> None:
    folder = experts(tmp_path / "base")
    file = written(folder, tmp_path / "out", kind)
    kinds = {item.name: item.tensor_type.name for item in gguf.GGUFReader(file).tensors}
    assert kinds["blk.1.ffn_gate_inp.weight"] == "F32"
    assert kinds["blk.1.ffn_up_exps.weight"] == kind.upper()
    if kind == "f32":
        ids = token_batch()
        torch.testing.assert_close(logits_of(load_model(file), ids), logits_of(original(folder), ids))
    with pytest.raises(ModelError, match="experts in every layer"):
        written(experts(tmp_path / "other", mlp_only_layers=[0]), tmp_path / "no")


def test_mistral_is_written_as_llama(tiny_models: dict[str, Path], tmp_path: Path, capsys: Any) -> None:
    import shutil

    folder = Path(shutil.copytree(tiny_models["llama"], tmp_path / "base"))
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": 64}
    (folder / "config.json").write_text(json.dumps(config))
    file = written(folder, tmp_path / "out")
    assert "attends to the last 64 tokens" in capsys.readouterr().err
    assert read_fields(file)["general.architecture"] == "llama"


@pytest.mark.parametrize("pre", sorted({kind.name for kind in pre_tokenizers().values()}))
def test_how_texts_are_split(tiny_models: dict[str, Path], tmp_path: Path, pre: str) -> None:
    """The file names the splitter, and whoever reads it gets the same tokens."""
    import shutil

    kind = pre_tokenizers()[pre]
    folder = Path(shutil.copytree(tiny_models["llama"], tmp_path / "base"))
    core = json.loads((folder / "tokenizer.json").read_text())
    steps: list[dict[str, Any]] = []
    for step in kind.steps:
        split = {"type": "Split", "pattern": {"Regex": step}, "behavior": "Isolated", "invert": False}
        steps += {"digits": [{"type": "Digits", "individual_digits": True}], "words": []}.get(step, [split])
    words = "words" in kind.steps
    steps.append({"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": words})
    core["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": steps}
    core["model"]["ignore_merges"] = kind.whole_words
    (folder / "tokenizer.json").write_text(json.dumps(core))
    file = written(folder, tmp_path / "out")
    assert read_fields(file)["tokenizer.ggml.pre"] == pre
    before, after = load_tokenizer(folder), load_tokenizer(file)
    assert [after.encode(text) for text in TEXTS] == [before.encode(text) for text in TEXTS]
    assert after.chat_template == before.chat_template
    assert after.special_tokens_map.items() >= {"eos_token": before.eos_token, "bos_token": before.bos_token}.items()


def test_an_added_token_beyond_the_byte_alphabet(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    """transformers' own reader cuts such a token into pieces."""
    import shutil

    folder = Path(shutil.copytree(tiny_models["llama"], tmp_path / "base"))
    tokenizer = load_tokenizer(folder)
    tokenizer.add_tokens(["<｜end▁of 句子｜>"], special_tokens=True)
    tokenizer.save_pretrained(folder)
    model = original(folder)
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(folder)
    after = load_tokenizer(written(folder, tmp_path / "out"))
    text = "a<｜end▁of 句子｜>b"
    assert after.encode(text) == tokenizer.encode(text)
    assert len(after.encode(text)) == 3


def test_sentencepiece(tmp_path: Path) -> None:
    tokenizer = sentencepiece_tokenizer()
    folder = build_model("llama", tmp_path / "base", vocab_size=len(tokenizer) + 3)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    tokenizer.save_pretrained(folder)
    file = written(folder, tmp_path / "out")
    fields = read_fields(file)
    assert fields["tokenizer.ggml.model"] == "llama"
    assert fields["tokenizer.ggml.token_type"][:4] == [2, 3, 3, 6]
    after = load_tokenizer(file)
    for text in (*TEXTS, "[INST] 丹炉? [/INST] A furnace.</s>  [INST]", "</s>x</s> y"):
        assert after.encode(text) == tokenizer.encode(text)
        assert after.decode(after.encode(text)) == tokenizer.decode(tokenizer.encode(text))


@pytest.mark.parametrize(
    ("scheme", "begins", "asked"),
    [("always", False, True), ("never", False, False), ("first", True, False), ("first", False, None)],
)
def test_the_space_before_texts(scheme: str, begins: bool, asked: bool | None, tmp_path: Path) -> None:
    """What llama.cpp would do behind special tokens decides; a conversation that it would read otherwise is refused."""
    tokenizer = sentencepiece_tokenizer(scheme=scheme)
    tokenizer.chat_template = ("{{ bos_token }}" if begins else "") + tokenizer.chat_template
    folder = build_model("llama", tmp_path / "base", vocab_size=len(tokenizer))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    tokenizer.save_pretrained(folder)
    if asked is None:
        with pytest.raises(ModelError, match="as other tokens"):
            written(folder, tmp_path / "out")
        return
    file = written(folder, tmp_path / "out")
    assert read_fields(file)["tokenizer.ggml.add_space_prefix"] is asked
    talk = "<s>[INST] 丹炉? [/INST]A furnace.</s>[INST] Why?"
    assert load_tokenizer(file).encode(talk) == tokenizer.encode(talk)


def test_every_end_of_an_answer_is_kept(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    import shutil

    folder = Path(shutil.copytree(tiny_models["llama"], tmp_path / "base"))
    path = folder / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token_id": [0, 1, 2]}))
    file = written(folder, tmp_path / "out")
    assert load_model(file).generation_config.eos_token_id == [0, 1, 2]
    assert (tmp_path / "out" / "Modelfile").read_text().count("PARAMETER stop") == 3


@pytest.mark.parametrize(("adds", "begins", "asked"), [(True, True, True), (True, False, False), (False, True, False)])
def test_bos_is_written_as_it_was_trained(adds: bool, begins: bool, asked: bool, tmp_path: Path) -> None:
    """llama.cpp writes BOS before a conversation whenever the file asks for it, whatever the template does."""
    tokenizer = sentencepiece_tokenizer()
    folder = build_model("llama", tmp_path / "base", vocab_size=len(tokenizer))
    if adds:
        tokenizer.add_bos_token = True
    tokenizer.chat_template = ("{{ bos_token }}" if begins else "") + tokenizer.chat_template
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    tokenizer.save_pretrained(folder)
    assert (load_tokenizer(folder).encode("a")[0] == tokenizer.bos_token_id) is adds
    file = written(folder, tmp_path / "out")
    assert read_fields(file)["tokenizer.ggml.add_bos_token"] is asked
    told = (tmp_path / "out" / "Modelfile").read_text()
    assert ("<s>" in told) is (begins and not asked)


def test_what_a_file_cannot_say_is_refused(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    import shutil

    folder = Path(shutil.copytree(tiny_models["llama"], tmp_path / "base"))
    core = json.loads((folder / "tokenizer.json").read_text())
    core["pre_tokenizer"] = {"type": "Whitespace"}
    (folder / "tokenizer.json").write_text(json.dumps(core))
    with pytest.raises(ModelError, match="splits texts in a way that has no name"):
        written(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    random_prefix(load_model(tiny_models["llama"])).save(tmp_path / "prefix", base=str(tiny_models["llama"]))
    with pytest.raises(ModelError, match="a GGUF file has no place for it"):
        export_gguf(plain_model(str(tiny_models["llama"]), [str(tmp_path / "prefix")]), tmp_path / "out")
    dynamic = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    with pytest.raises(ModelError, match="of the kind 'dynamic'"):
        written(build_model("llama", tmp_path / "dynamic", rope_parameters=dynamic), tmp_path / "out")


def test_other_families_are_refused_by_name(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=400)).save_pretrained(tmp_path / "gpt2")
    from tiny import build_tokenizer

    build_tokenizer().save_pretrained(tmp_path / "gpt2")
    with pytest.raises(ModelError, match=r"gpt2 model cannot be written as GGUF.*qwen2, qwen3, qwen3_moe\."):
        written(tmp_path / "gpt2", tmp_path / "out")


def test_glm_is_an_experiment(tiny_models: dict[str, Path], tmp_path: Path, capsys: Any) -> None:
    file = written(tiny_models["glm"], tmp_path / "out")
    assert "Experimental: nothing here reads a chatglm GGUF file back" in capsys.readouterr().err
    assert json.loads((tmp_path / "out" / "danlu_export.json").read_text())["checks"]["reload_difference"] is None
    assert "not compared" in (tmp_path / "out" / "README.md").read_text()
    tensors = {item.name: item.data for item in gguf.GGUFReader(file).tensors}
    weights = original(tiny_models["glm"]).state_dict()
    assert numpy.array_equal(tensors["blk.1.ffn_up.weight"], weights["model.layers.1.mlp.gate_up_proj.weight"].numpy())
    assert read_fields(file)["chatglm.rope.dimension_count"] == 8
    assert not architectures()["glm"].read_back


def test_a_wrong_file_is_noticed(tiny_models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("danlu.models.gguf_export.tensors.interleaved", lambda value, heads: value)
    with pytest.raises(ModelError, match="does not answer as the model in memory"):
        written(tiny_models["llama"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_run_with_the_verb(tiny_models: dict[str, Path], tmp_path: Path, capsys: Any) -> None:
    folder = tmp_path / "lora"
    random_adapter(load_model(tiny_models["llama"]), folder)
    said = {"method": "lora", "base": {"name": "tiny", "path": str(tiny_models["llama"])}}
    (folder / "manifest.json").write_text(json.dumps(said))
    report = export_verb(run=str(folder), output_dir=str(tmp_path / "out"), export_format="gguf", gguf_type="f32")
    expected = attach(load_model(tiny_models["llama"]), folder)
    ids = token_batch()
    found = load_model(tmp_path / "out" / "out-f32.gguf")
    torch.testing.assert_close(logits_of(found, ids), logits_of(expected, ids), atol=1e-4, rtol=1e-4)
    assert report.dtype == "f32"
    assert report.merged == (str(folder),)
    assert "out-f32.gguf" in capsys.readouterr().out


def test_other_families_are_left_as_transformers_reads_them() -> None:
    """Without rotary positions, or with several kinds of them, nothing is added."""
    from transformers import Gemma3TextConfig, GPT2Config

    for config, name in ((GPT2Config(), "gpt2"), (Gemma3TextConfig(), "gemma3")):
        before = config.to_dict()
        fields = {
            "general.architecture": name,
            f"{name}.rope.scaling.type": "linear",
            f"{name}.rope.scaling.factor": 8.0,
        }
        assert complete(config, fields, (), None).to_dict() == before


def test_a_model_of_plain_text(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    import shutil

    folder = Path(shutil.copytree(tiny_models["llama"], tmp_path / "base"))
    (folder / "chat_template.jinja").unlink()
    file = written(folder, tmp_path / "out")
    assert load_tokenizer(file).chat_template is None
    assert (tmp_path / "out" / "Modelfile").read_text().splitlines()[1:] == ["FROM ./out-f32.gguf"]


def test_how_llama3_stretches_is_found_again() -> None:
    rope = {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    config = type("Config", (), {"rope_parameters": rope, "head_dim": 128})()
    factors = rope_factors(config)
    assert factors is not None
    assert math.isclose(max(factors), 32)
    found = llama3([float(numpy.float32(value)) for value in factors], 500000.0, 8192)
    assert found == {name: value for name, value in rope.items() if name != "rope_theta"}
    with pytest.raises(ModelError, match="cannot read"):
        llama3([1.0, 1.0, 8.0, 8.0], 10000.0, 8192)
