"""Export: merged = unmerged, written = read, whole or absent."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from probes import logits_of, random_adapter, random_prefix, token_batch
from transformers import AutoModelForCausalLM, AutoTokenizer

from danlu.core.errors import ModelError, RunError, UsageError
from danlu.models.adapters import attach, attach_all
from danlu.models.export import export
from danlu.models.loading import load_model
from danlu.models.runs import open_run, plain_model
from danlu.verbs.export import export as export_verb

pytestmark = pytest.mark.model


@pytest.fixture
def adapter(tiny_models: dict[str, Path], tmp_path: Path) -> Path:
    """A LoRA adapter of the tiny Llama."""
    random_adapter(load_model(tiny_models["llama"]), tmp_path / "lora")
    return tmp_path / "lora"


def export_llama(tiny_models: dict[str, Path], target: Path, *adapters: Path, **options: Any) -> Any:
    return export(plain_model(str(tiny_models["llama"]), [str(path) for path in adapters]), target, **options)


def nothing_left(folder: Path) -> bool:
    return not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_the_export_answers_as_the_adapter_did(tiny_model: Path, tmp_path: Path) -> None:
    ids = token_batch()
    expected = logits_of(random_adapter(load_model(tiny_model), tmp_path / "lora"), ids)
    report = export(plain_model(str(tiny_model), [str(tmp_path / "lora")]), tmp_path / "out")
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(logits_of(found, ids), expected, atol=1e-4, rtol=1e-4)
    assert report.merge_difference < 1e-4
    assert report.reload_difference < 1e-5
    assert report.rounding == 0
    assert report.parameters == found.num_parameters()
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template
    assert nothing_left(tmp_path)


def test_several_adapters(tiny_models: dict[str, Path], tmp_path: Path, adapter: Path) -> None:
    random_adapter(load_model(tiny_models["llama"]), tmp_path / "second", seed=5)
    report = export_llama(tiny_models, tmp_path / "out", adapter, tmp_path / "second")
    both = attach_all(load_model(tiny_models["llama"]), [adapter, tmp_path / "second"])
    ids = token_batch()
    torch.testing.assert_close(logits_of(load_model(tmp_path / "out"), ids), logits_of(both, ids), atol=1e-4, rtol=1e-4)
    assert report.merged == (str(adapter), str(tmp_path / "second"))


def test_a_second_adapter_on_a_merged_model(tiny_models: dict[str, Path], tmp_path: Path, adapter: Path) -> None:
    """What was exported is a base like any other."""
    export_llama(tiny_models, tmp_path / "out", adapter)
    random_adapter(load_model(tmp_path / "out"), tmp_path / "next", seed=8)
    found = export(plain_model(str(tmp_path / "out"), [str(tmp_path / "next")]), tmp_path / "last")
    assert found.merge_difference < 1e-4


@pytest.mark.parametrize("legacy", [False, True], ids=["safetensors", "bin"])
def test_shards(tiny_models: dict[str, Path], tmp_path: Path, legacy: bool) -> None:
    report = export_llama(tiny_models, tmp_path / "out", shard_size=2e-4, legacy_bin=legacy)
    ending, index = (".bin", "pytorch_model.bin") if legacy else (".safetensors", "model.safetensors")
    shards = [name for name in report.files if name.endswith(ending)]
    assert len(shards) > 2
    assert max(report.files[name] for name in shards) < 2.2e5
    assert (tmp_path / "out" / f"{index}.index.json").is_file()
    ids = token_batch()
    assert torch.equal(logits_of(load_model(tmp_path / "out"), ids), logits_of(load_model(tiny_models["llama"]), ids))
    assert not (legacy and list((tmp_path / "out").glob("*.safetensors")))


def test_tied_weights_are_written_once(tmp_path: Path) -> None:
    from tiny import build_model

    tied = build_model("qwen2", tmp_path / "tied", tie_word_embeddings=True)
    for legacy in (False, True):
        report = export(plain_model(str(tied)), tmp_path / f"out-{legacy}", legacy_bin=legacy)
        weights = sum(size for name, size in report.files.items() if name.endswith((".bin", ".safetensors")))
        assert weights < report.parameters * 4 * 1.05


@pytest.mark.parametrize("legacy", [False, True], ids=["safetensors", "bin"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_precision(tiny_models: dict[str, Path], tmp_path: Path, adapter: Path, dtype: str, legacy: bool) -> None:
    report = export_llama(tiny_models, tmp_path / "out", adapter, dtype=dtype, legacy_bin=legacy)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == dtype
    found = load_model(tmp_path / "out")
    assert found.dtype == getattr(torch, dtype)
    assert 0 < report.rounding < 0.2
    assert report.reload_difference < 1e-5
    merged = attach(load_model(tiny_models["llama"]), adapter).merge_and_unload()
    weight = "model.layers.2.self_attn.v_proj.weight"
    assert torch.equal(found.state_dict()[weight], merged.state_dict()[weight].to(found.dtype))


def test_a_prefix_stays_beside_its_base(
    tiny_models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    random_prefix(load_model(tiny_models["glm"])).save(tmp_path / "prefix", base=str(tiny_models["glm"]))
    report = export(plain_model(str(tiny_models["glm"]), [str(tmp_path / "prefix")]), tmp_path / "out")
    assert report.kept == str(tmp_path / "prefix")
    assert "cannot be merged" in capsys.readouterr().err
    ids = token_batch()
    expected = logits_of(attach(load_model(tiny_models["glm"]), tmp_path / "prefix"), ids)
    found, _ = plain_model(str(tmp_path / "out"), [str(tmp_path / "out" / "adapter")]).load()
    assert torch.equal(logits_of(found, ids), expected)


def test_lineage_and_card(tiny_models: dict[str, Path], tmp_path: Path, adapter: Path) -> None:
    (adapter / "manifest.json").write_text(
        json.dumps({"method": "lora", "base": {"name": "tiny", "path": str(tiny_models["llama"])}})
    )
    export(open_run(adapter), tmp_path / "out")
    lineage = json.loads((tmp_path / "out" / "danlu_export.json").read_text())
    assert lineage["base"] == str(tiny_models["llama"].resolve())
    assert lineage["method"] == "lora"
    assert len(lineage["adapters"][0]["sha256"]) == 64
    assert lineage["checks"]["reload_difference"] < 1e-5
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n")
    assert "danlu chat --model out" in card


def test_a_template_is_written_into_the_tokenizer(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    export_llama(tiny_models, tmp_path / "out", chat_template="{{ messages[0]['content'] }}")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.apply_chat_template([{"role": "user", "content": "丹"}], tokenize=False) == "丹"


def test_what_ends_an_answer_is_in_the_generation_config(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    base = Path(shutil.copytree(tiny_models["llama"], tmp_path / "base"))
    path = base / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token_id": 0}))
    export(plain_model(str(base)), tmp_path / "out")
    assert load_model(tmp_path / "out").generation_config.eos_token_id == [0, 2]


def test_a_foreign_folder_is_refused(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.mkdir()
    export_llama(tiny_models, target)  # empty is fine
    export_llama(tiny_models, target)  # so is a former export
    (target / "danlu_export.json").unlink()
    (target / "thesis.txt").write_text("years of work")
    with pytest.raises(RunError, match="not empty and was not written by"):
        export_llama(tiny_models, target)
    assert (target / "thesis.txt").read_text() == "years of work"
    with pytest.raises(RunError, match="it is a file"):
        export_llama(tiny_models, target / "thesis.txt")


def test_a_taken_folder_is_refused_before_anything_is_loaded(
    tiny_models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    monkeypatch.setattr("danlu.models.export.load_tokenizer", lambda *_: pytest.fail("loaded"))
    with pytest.raises(RunError, match="not empty and was not written by"):
        export_verb(model_name_or_path=str(tiny_models["llama"]), output_dir=str(tmp_path))


def test_a_full_disk_leaves_the_former_export(
    tiny_models: dict[str, Path], tmp_path: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "out"
    export_llama(tiny_models, target)
    before = (target / "model.safetensors").read_bytes()

    def full(model: Any, folder: Path, **_: Any) -> None:
        (folder / "model.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("danlu.models.export.save_weights", full)
    with pytest.raises(RunError, match=r"No space left on device.*unchanged"):
        export_llama(tiny_models, target, adapter)
    assert (target / "model.safetensors").read_bytes() == before
    assert nothing_left(tmp_path)


@pytest.mark.parametrize("legacy", [False, True], ids=["safetensors", "bin"])
def test_a_write_that_fails_for_real(tiny_models: dict[str, Path], tmp_path: Path, legacy: bool) -> None:
    """The operating system refuses files above a size, as a full disk would."""
    import resource
    import signal

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(RunError, match="cannot be written"):
            export_llama(tiny_models, tmp_path / "out", legacy_bin=legacy)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert not (tmp_path / "out").exists()
    assert nothing_left(tmp_path)


def test_no_room_is_said_before_writing(
    tiny_models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    with pytest.raises(RunError, match=r"needs 0\.1 GB and 0\.0 GB are free"):
        export_llama(tiny_models, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_wrong_copy_is_noticed(tiny_models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from danlu.models.weights import save_weights

    def careless(model: Any, folder: Path, **options: Any) -> None:
        with torch.no_grad():
            model.model.layers[0].mlp.up_proj.weight[0, 0] += 0.5
        save_weights(model, folder, **options)

    monkeypatch.setattr("danlu.models.export.save_weights", careless)
    with pytest.raises(ModelError, match="does not answer as the one in memory"):
        export_llama(tiny_models, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_verb(
    tiny_models: dict[str, Path], tmp_path: Path, adapter: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export_verb(run=str(adapter), output_dir=str(tmp_path / "out"), max_shard_size=1.0)
    shown = capsys.readouterr().out
    assert "checked by logits" in shown
    assert str(adapter) in shown
    with pytest.raises(UsageError, match="nothing to export"):
        export_verb(output_dir=str(tmp_path / "other"))
    with pytest.raises(UsageError, match="no folder to write"):
        export_verb(model_name_or_path=str(tiny_models["llama"]))
    assert export_verb(run=str(adapter)).path == adapter / "exports" / "lora"
    checkpoint = Path(shutil.copytree(adapter, adapter / "checkpoint-4", ignore=shutil.ignore_patterns("exports")))
    report = export_verb(run=str(checkpoint), export_format="gguf", gguf_type="f16")
    assert report.path == checkpoint / "exports" / "lora-checkpoint-4-f16"
    assert (report.path / "lora-checkpoint-4-f16.gguf").is_file()


def test_a_fully_tuned_run_names_what_it_began_with(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    from tuning import tune, write_rows

    base = Path(shutil.copytree(tiny_models["qwen2"], tmp_path / "first"))
    (base / "README.md").write_text("---\nlicense: mit\n---\n")
    run = tune(base, write_rows(tmp_path / "rows.jsonl"), tmp_path / "run", finetuning_type="full", max_steps=2)
    for form in ("safetensors", "gguf"):
        report = export_verb(run=str(run), export_format=form)
        card = (report.path / "README.md").read_text()
        assert "first, tuned with the method full on answers of conversations" in card
        assert "license: mit\n" in card
        assert "| rows.jsonl | " in card
        assert "| learning_rate | " in card
        assert str(tmp_path) not in card
    assert "PARAMETER temperature 0\n" in (report.path / "Modelfile").read_text()


def test_a_reward_model_is_no_gguf_file(
    tiny_models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    source = replace(plain_model(str(tiny_models["llama"])), stage="rm")
    monkeypatch.setattr("danlu.models.runs.plain_model", lambda *_: source)
    with pytest.raises(UsageError, match="a reward model cannot be written as gguf"):
        export_verb(model_name_or_path="any", output_dir=str(tmp_path / "out"), export_format="gguf")
