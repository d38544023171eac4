"""Conversion of the ChatGLM2 layout and back: equal answers, the same bits, whole or absent."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from chatglm2 import reference_logits, stored_weights, write_checkpoint
from pieces import make_tokenizer_model
from probes import random_adapter
from tiny import build_tokenizer

from danlu.cli.main import main
from danlu.core.errors import ModelError, RunError, UsageError
from danlu.models import shards
from danlu.models.adapters import attach
from danlu.models.chatglm.tensors import Made
from danlu.models.export import export
from danlu.models.loading import load_model, load_tokenizer, model_folder
from danlu.models.runs import plain_model
from danlu.verbs.convert import convert
from danlu.verbs.export import export as export_verb

pytestmark = pytest.mark.model

HEAD = "transformer.output_layer.weight"
NAMELESS = {"_name_or_path": "/home/somebody/model"}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of three .bin files with a tokenizer and code files. Read only."""
    folder = write_checkpoint(tmp_path_factory.mktemp("chatglm2") / "tiny", shards=3)
    build_tokenizer().save_pretrained(folder)
    for name in ("configuration_chatglm.py", "modeling_chatglm.py"):
        (folder / name).write_text("raise SystemExit('code of a model folder was run')\n")
    (folder / "generation_config.json").write_text(json.dumps({"_from_model_config": True, "eos_token_id": 2}))
    return folder


def ids(length: int = 40) -> torch.Tensor:
    return torch.randint(3, 400, (2, length), generator=torch.Generator().manual_seed(1))


def logits(model: Any, length: int = 40) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=ids(length)).logits


def close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    assert expected.std() > 0.5
    return bool((found - expected).abs().max() < 1e-4)


VARIANTS: list[dict[str, Any]] = [
    {},
    {"multi_query_attention": False},
    {"multi_query_group_num": 4},
    {"kv_channels": 16},
    {"rope_ratio": 16},
    {"rope_ratio": 16, "_name_or_path": "THUDM/chatglm3-6b-32k"},
    {"rope_ratio": 500, "_name_or_path": "THUDM/glm-4-9b-chat"},
    {"layernorm_epsilon": 1e-3},
]


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_variants_answer_as_the_reference(variant: dict[str, Any], tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model", **variant)
    assert close(logits(load_model(folder), 100), reference_logits(folder, ids(100)))


def test_the_two_meanings_of_rope_ratio_differ(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model", rope_ratio=16, **NAMELESS)
    with pytest.raises(ModelError, match="--family chatglm2-32k"):
        load_model(folder)
    expected = reference_logits(folder, ids(100))  # no ChatGLM2 by name: the base is scaled
    assert close(logits(load_model(folder, family="chatglm3-32k"), 100), expected)
    assert not close(logits(load_model(folder, family="chatglm2-32k"), 100), expected)


def test_load_model_checks_the_family(original: Path) -> None:
    assert load_model(original, family="chatglm2").config.model_type == "glm"
    assert load_model(original, family="glm").config.model_type == "glm"
    with pytest.raises(ModelError, match="is a chatglm2 model, not llama"):
        load_model(original, family="llama")
    converted = model_folder(original)
    with pytest.raises(ModelError, match="is a chatglm2 model, not chatglm3"):
        load_model(converted, family="chatglm3")


def test_it_is_converted_once(original: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = model_folder(original)
    monkeypatch.setattr("danlu.models.chatglm.convert.convert", lambda *_, **__: pytest.fail("converted twice"))
    assert model_folder(original) == first
    assert load_tokenizer(original).get_vocab() == build_tokenizer().get_vocab()
    assert not list(first.glob("*.py"))


@pytest.mark.parametrize("family", ["chatglm2", "chatglm3"])
def test_the_original_tokenizer_is_converted(family: str, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model", padded_vocab_size=512, _name_or_path=f"THUDM/{family}-6b")
    make_tokenizer_model(folder, family)
    tokenizer = load_tokenizer(folder)
    assert tokenizer("炼丹")["input_ids"][:2] == tokenizer.convert_tokens_to_ids(["[gMASK]", "sop"])
    assert tokenizer.chat_template
    ends = {"chatglm2": 2, "chatglm3": [2, *tokenizer.convert_tokens_to_ids(["<|user|>", "<|observation|>"])]}
    assert load_model(folder).generation_config.eos_token_id == ends[family]
    export(plain_model(str(folder)), tmp_path / "back", original=True)
    assert (tmp_path / "back" / "tokenizer.model").read_bytes() == (folder / "tokenizer.model").read_bytes()
    config = (tmp_path / "back" / "tokenizer_config.json").read_text()
    assert config == (folder / "tokenizer_config.json").read_text()
    assert not (tmp_path / "back" / "tokenizer.json").exists()


def test_a_damaged_tokenizer_is_refused_before_the_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_checkpoint(tmp_path / "model")
    (folder / "tokenizer.model").write_text("version https://git-lfs.github.com/spec/v1")
    monkeypatch.setattr(shards, "_write_file", lambda *_: pytest.fail("weights were written"))
    with pytest.raises(ModelError, match="pointer of Git LFS"):
        load_model(folder)


def test_a_folder_without_a_tokenizer_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_checkpoint(tmp_path / "model", padded_vocab_size=151552, hidden_size=8, rope_ratio=500)
    (folder / "tokenizer.model").write_text("IQ== 0")  # GLM-4 has another kind of tokenizer under this name
    assert load_model(folder, family="glm4").config.rope_parameters["rope_theta"] == 5e6
    assert "no tokenizer that can be converted" in " ".join(capsys.readouterr().err.split())
    with pytest.raises(ModelError, match="has no tokenizer"):
        load_tokenizer(folder)


def test_a_changed_folder_is_converted_again(original: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(original, tmp_path / "tiny"))
    first = model_folder(folder)
    os.utime(folder / "pytorch_model-00001-of-00003.bin", ns=(1, 1))
    assert model_folder(folder) != first


def test_the_first_generation_is_not_taken_for_the_second(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model")
    (folder / "config.json").write_text(json.dumps({"model_type": "chatglm", "inner_hidden_size": 128}))
    assert model_folder(folder) == folder


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_precision_is_kept_or_changed(dtype: torch.dtype, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "half", dtype=dtype)
    model = load_model(folder)
    assert model.dtype == dtype
    name = "transformer.encoder.layers.1.mlp.dense_4h_to_h.weight"
    assert torch.equal(model.state_dict()["model.layers.1.mlp.down_proj.weight"], stored_weights(folder)[name])
    convert(folder, tmp_path / "wide", dtype="float32")
    assert load_model(tmp_path / "wide").dtype == torch.float32


def test_convert_for_good(original: Path, tmp_path: Path) -> None:
    target = convert(original, tmp_path / "kept", max_shard_size="60MB", family="chatglm2")
    assert close(logits(load_model(target)), reference_logits(original, ids()))
    convert(original, target, max_shard_size=5e-5)
    assert len(list(target.glob("model-*-of-*.safetensors"))) > 2
    assert close(logits(load_model(target)), reference_logits(original, ids()))
    record = json.loads((target / "danlu_conversion.json").read_text())
    assert (record["source"], record["family"]) == (str(original), "chatglm2")
    with pytest.raises(ModelError, match="nothing to convert"):
        convert(target, tmp_path / "again")
    with pytest.raises(RunError, match="not empty"):
        convert(original, original)
    with pytest.raises(UsageError, match="max_shard_size"):
        convert(original, tmp_path / "again", max_shard_size="big")


def test_the_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_checkpoint(tmp_path / "model", rope_ratio=16, **NAMELESS)
    words = ["convert", str(folder), str(tmp_path / "out"), "--max_shard_size", "60KB", "--dtype", "bfloat16"]
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    words[4] = "0.00006"
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 1
    assert "--family chatglm2-32k" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    with pytest.raises(SystemExit) as ended:
        main([*words, "--family", "chatglm3-32k"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "out")
    model = load_model(tmp_path / "out", family="chatglm3")
    assert model.dtype == torch.bfloat16
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1


def test_nothing_of_the_folder_is_run(original: Path) -> None:
    """Its code files would stop the process."""
    assert load_model(original) is not None
    assert load_tokenizer(original) is not None


def test_one_tensor_is_in_memory_at_a_time(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each tensor that is written was written before the next one is built, and no file is read as a whole."""
    events: list[str] = []
    build, checked, load = Made.build, shards._checked, torch.load
    monkeypatch.setattr(Made, "build", lambda self, read: events.append(f"read {self.name}") or build(self, read))
    monkeypatch.setattr(
        shards, "_checked", lambda entry, value: events.append(f"write {entry.name}") or checked(entry, value)
    )

    def mapped(*arguments: Any, **options: Any) -> Any:
        assert options["mmap"] is True
        assert options["weights_only"] is True
        return load(*arguments, **options)

    monkeypatch.setattr(torch, "load", mapped)
    opened: list[str] = []
    handle = shards._opened
    monkeypatch.setattr(shards, "_opened", lambda path: opened.append(path.name) or handle(path))
    convert(original, tmp_path / "out")
    assert len(opened) == 3 + 3 + 1, "once for names and shapes, once for the weights, once for the frequencies"
    reads, writes = events[0::2], events[1::2]
    assert len(reads) > 20
    assert [event.removeprefix("read ") for event in reads] == [event.removeprefix("write ") for event in writes]


def test_old_pickles_and_safetensors_are_read(original: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    expected = reference_logits(original, ids())
    state = stored_weights(original)
    for kind in ("old", "safe"):
        folder = tmp_path / kind
        folder.mkdir()
        shutil.copyfile(original / "config.json", folder / "config.json")
        if kind == "old":
            torch.save(state, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
        else:
            save_file(state, folder / "model.safetensors")
        assert close(logits(load_model(folder)), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({HEAD: None}, "1 weights are missing, for instance .*output_layer"),
        ({"transformer.prefix_encoder.embedding.weight": torch.zeros(2, 2)}, "no place in a"),
        ({HEAD: torch.zeros(2, 2)}, r"has the shape \(2, 2\)"),
        ({HEAD: torch.zeros(400, 32, dtype=torch.int8)}, "holds I8 numbers"),
    ],
    ids=["missing", "prefix", "shape", "quantised"],
)
def test_weights_that_do_not_fit_are_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model")
    state = {**stored_weights(folder), **change}
    torch.save({name: tensor for name, tensor in state.items() if tensor is not None}, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=message):
        load_model(folder)
    assert not [path for path in (tmp_path / "danlu-cache" / "models").iterdir() if path.is_dir()]


def test_damaged_files_are_named(original: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(original, tmp_path / "tiny"))
    path = folder / "pytorch_model-00002-of-00003.bin"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ModelError, match=r"00002-of-00003\.bin: the weight file cannot be read"):
        load_model(folder)
    path.unlink()
    with pytest.raises(ModelError, match="00002-of-00003.bin is missing"):
        load_model(folder)


KILLED = """
import os, signal, sys
from danlu.models import shards
from danlu.models.loading import model_folder
wait = shards._checked
count = iter(range(100))
shards._checked = lambda *given: os.kill(os.getpid(), signal.SIGKILL) if next(count) == 9 else wait(*given)
model_folder(sys.argv[1])
"""


def test_a_killed_conversion_leaves_nothing_that_is_used(original: Path, tmp_path: Path) -> None:
    cache = tmp_path / "danlu-cache" / "models"
    ended = subprocess.run([sys.executable, "-c", KILLED, str(original)], check=False, timeout=120)
    assert ended.returncode == -signal.SIGKILL
    assert [path.name.endswith(".tmp") for path in cache.iterdir() if path.is_dir()] == [True]
    assert close(logits(load_model(original)), reference_logits(original, ids()))
    assert [path for path in cache.iterdir() if path.is_dir()] == [model_folder(original)]


def test_a_full_disk_leaves_nothing(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shards, "_write_file", full)
    with pytest.raises(RunError, match="prepared in the cache"):
        load_model(original)
    with pytest.raises(RunError, match="No space left"):
        convert(original, tmp_path / "out")
    assert not list(tmp_path.glob("**/*.tmp"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("legacy", [False, True], ids=["safetensors", "bin"])
@pytest.mark.parametrize("change", [{}, {"multi_query_attention": False}], ids=["grouped", "by-head"])
def test_back_in_the_original_layout(change: dict[str, Any], legacy: bool, tmp_path: Path) -> None:
    """Untouched, every bit and every key is the original's; the half precision of the frequencies too."""
    folder = write_checkpoint(tmp_path / "tiny", dtype=torch.float16, **change)
    build_tokenizer().save_pretrained(folder)
    (folder / "modeling_chatglm.py").write_text("")
    report = export(plain_model(str(folder)), tmp_path / "out", original=True, legacy_bin=legacy, shard_size=3e-5)
    written, expected = stored_weights(tmp_path / "out"), stored_weights(folder)
    assert written.keys() == expected.keys()
    assert all(torch.equal(written[name], expected[name]) for name in expected)
    assert {tensor.dtype for tensor in written.values()} == {torch.float16}
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == json.loads(
        (folder / "config.json").read_text()
    )
    assert len([name for name in report.files if name.endswith(".bin" if legacy else ".safetensors")]) > 2
    assert (tmp_path / "out" / "modeling_chatglm.py").is_file()
    assert report.reload_difference < 1e-5


def test_an_adapter_is_merged_into_the_original_layout(
    original: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    random_adapter(load_model(original), tmp_path / "lora")
    export_verb(
        model_name_or_path=str(original),
        adapter_name_or_path=str(tmp_path / "lora"),
        output_dir=str(tmp_path / "out"),
        export_format="original",
    )
    assert "copy them" not in capsys.readouterr().err
    expected = logits(attach(load_model(original), tmp_path / "lora"))
    assert close(reference_logits(tmp_path / "out", ids()), expected)
    assert not close(reference_logits(original, ids()), expected)
    assert (tmp_path / "out" / "generation_config.json").read_text().count("_from_model_config") == 1
    lineage = json.loads((tmp_path / "out" / "danlu_export.json").read_text())
    assert lineage["format"] == "original"
    assert "pipeline" not in (tmp_path / "out" / "README.md").read_text().split("## Use")[1]
    assert close(logits(load_model(tmp_path / "out")), expected)


def test_what_has_no_original_form_is_refused(original: Path, tiny_models: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="did not begin with a folder in the layout of ChatGLM2"):
        export(plain_model(str(tiny_models["glm"])), tmp_path / "out", original=True)
    prompt = tmp_path / "prompt"
    prompt.mkdir()
    (prompt / "adapter_config.json").write_text(json.dumps({"peft_type": "PROMPT_TUNING"}))
    (prompt / "adapter_model.safetensors").touch()
    with pytest.raises(ModelError, match="cannot be merged, so it cannot be written in the original layout"):
        export(plain_model(str(original), [str(tmp_path / "prompt")]), tmp_path / "out", original=True)
    with pytest.raises(UsageError, match="template and export_format=original exclude"):
        export_verb(
            model_name_or_path=str(original), output_dir=str(tmp_path / "out"), export_format="original", template="x"
        )


def test_an_original_that_has_moved_is_missed_by_name(
    original: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path(shutil.copytree(original, tmp_path / "tiny"))
    kept = convert(copy, tmp_path / "kept")
    shutil.rmtree(copy)
    export(plain_model(str(kept)), tmp_path / "out", original=True)
    assert "configuration_chatglm.py, modeling_chatglm.py, tokenizer.model" in capsys.readouterr().err
    written, expected = stored_weights(tmp_path / "out"), stored_weights(original)
    assert all(torch.equal(written[name], expected[name]) for name in expected)
