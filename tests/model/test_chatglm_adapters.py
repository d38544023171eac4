"""Adapters converted for good: of ChatGLM's scripts as folders of today, prefixes as the scripts read them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from chatglm2 import stored_weights, write_checkpoint
from old_chatglm import old_lora, old_prefix
from probes import logits_of, random_adapter, random_prefix, token_batch
from tiny import build_tokenizer
from tuning import tune, write_rows

from danlu.core.errors import ModelError, UsageError
from danlu.models.adapters import attach
from danlu.models.chatglm.adapters import convert_adapter
from danlu.models.export import export
from danlu.models.loading import load_model
from danlu.models.runs import open_run, plain_model
from danlu.verbs.convert import convert

pytestmark = pytest.mark.model


@pytest.fixture
def glm(tiny_models: dict[str, Path]) -> Path:
    return tiny_models["glm"]


@pytest.mark.parametrize("kind", ["lora", "prefix"])
def test_one_of_then_is_plain_peft_of_today(glm: Path, tmp_path: Path, kind: str) -> None:
    from peft import PeftModel

    if kind == "lora":
        old_lora(tmp_path / "old")
        (tmp_path / "old" / "value_head.bin").write_bytes(b"of a reward model")
    else:
        old_prefix(tmp_path / "old", network=True)
    folder, ids = convert_adapter(tmp_path / "old", tmp_path / "new", model=str(glm)), token_batch()
    expected = logits_of(attach(load_model(glm), tmp_path / "old"), ids)
    found = logits_of(PeftModel.from_pretrained(load_model(glm), folder), ids)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert (folder / "value_head.bin").is_file() is (kind == "lora")
    assert (folder / "prefix_encoder.safetensors").is_file() is (kind == "prefix")


@pytest.mark.parametrize("network", [False, True], ids=["table", "network"])
@pytest.mark.parametrize("generation", ["first", "later"])
def test_there_and_back(glm: Path, chatglm1: Path, tmp_path: Path, generation: str, network: bool) -> None:
    first = generation == "first"
    sizes = {"width": 3 * 2 * 64, "embedding": 64} if first else {}
    state = old_prefix(tmp_path / "old", network=network, **sizes)
    convert_adapter(tmp_path / "old", tmp_path / "new", model=str(chatglm1 if first else glm))
    convert_adapter(tmp_path / "new", tmp_path / "back", original=True)
    back = torch.load(tmp_path / "back" / "pytorch_model.bin", weights_only=True)
    assert back.keys() == state.keys()
    for name, value in state.items():
        torch.testing.assert_close(back[name], value, atol=1e-6, rtol=0)
    assert f"pre_seq_len=5, prefix_projection={network}" in (tmp_path / "back" / "README.md").read_text()


def test_a_run_for_the_official_scripts(glm: Path, tmp_path: Path) -> None:
    """Its network has other widths than theirs, so they get its table."""
    run = tune(
        glm,
        write_rows(tmp_path / "rows.jsonl"),
        tmp_path / "run",
        finetuning_type="p_tuning_v2",
        pre_seq_len=4,
        prefix_projection=True,
    )
    folder, ids = convert_adapter(run, tmp_path / "official", original=True), token_batch()
    assert list(torch.load(folder / "pytorch_model.bin")) == ["transformer.prefix_encoder.embedding.weight"]
    expected = logits_of(attach(load_model(glm), run), ids)
    torch.testing.assert_close(logits_of(attach(load_model(glm), folder), ids), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("network", [False, True], ids=["table", "network"])
def test_the_whole_round(tmp_path: Path, network: bool) -> None:
    """Folder and prefix of then, trained further, exported for the code of then."""
    base = write_checkpoint(tmp_path / "chatglm2", multi_query_group_num=2)
    build_tokenizer().save_pretrained(base)
    state = old_prefix(tmp_path / "old", network=network, width=2 * 2 * 2 * 8, hidden=32)
    rows = write_rows(tmp_path / "rows.jsonl")
    run = tune(base, rows, tmp_path / "run", finetuning_type="p_tuning_v2", adapter_name_or_path=str(tmp_path / "old"))
    report = export(open_run(run), tmp_path / "out", original=True)
    assert report.kept == str(run)
    weights = stored_weights(tmp_path / "out")
    assert weights.keys() == stored_weights(base).keys()
    assert all(torch.equal(value, weights[name]) for name, value in stored_weights(base).items())
    trained = torch.load(tmp_path / "out" / "adapter" / "pytorch_model.bin", weights_only=True)
    assert trained.keys() == state.keys()
    assert all(not torch.equal(value, trained[name]) for name, value in state.items())
    ids = token_batch()
    again = attach(load_model(tmp_path / "out"), tmp_path / "out" / "adapter")
    torch.testing.assert_close(
        logits_of(again, ids), logits_of(attach(load_model(base), run), ids), atol=1e-4, rtol=1e-4
    )


def test_the_first_generation_is_exported_for_its_code_too(chatglm1: Path, tmp_path: Path) -> None:
    state = old_prefix(tmp_path / "old", network=True, width=3 * 2 * 64, embedding=64)
    export(plain_model(str(chatglm1), [str(tmp_path / "old")]), tmp_path / "out", original=True)
    written = torch.load(tmp_path / "out" / "adapter" / "pytorch_model.bin", weights_only=True)
    assert written.keys() == state.keys()
    for name, value in state.items():
        torch.testing.assert_close(written[name], value, atol=1e-6, rtol=0)


def test_a_prefix_that_is_taken_for_the_model(tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "chatglm2")
    state = old_prefix(tmp_path / "old", width=2 * 2 * 2 * 8)
    shutil.copyfile(base / "config.json", tmp_path / "old" / "config.json")
    with pytest.raises(ModelError, match="weights are missing.*\n?.*this folder as the adapter"):
        load_model(tmp_path / "old")
    torch.save(stored_weights(base) | state, base / "pytorch_model.bin")
    with pytest.raises(ModelError, match="no place.*\n?.*this folder as the adapter"):
        load_model(base)


def test_the_verb_knows_adapters(glm: Path, tmp_path: Path) -> None:
    old_prefix(tmp_path / "old")
    folder = convert(tmp_path / "old", tmp_path / "new", model=str(glm), family=None, dtype="auto")
    assert (folder / "adapter_config.json").is_file()
    back = convert(folder, tmp_path / "back", convert_format="original")
    assert (back / "pytorch_model.bin").is_file()
    with pytest.raises(UsageError, match="dtype is for models"):
        convert(folder, tmp_path / "other", dtype="float16")
    with pytest.raises(UsageError, match="only a prefix"):
        convert(glm, tmp_path / "other", convert_format="original")


def test_nothing_to_convert(glm: Path, tmp_path: Path) -> None:
    random_adapter(load_model(glm), tmp_path / "lora")
    with pytest.raises(UsageError, match="nothing to convert"):
        convert_adapter(tmp_path / "lora", tmp_path / "new", model=str(glm))
    with pytest.raises(UsageError, match="know prefixes only"):
        convert_adapter(tmp_path / "lora", tmp_path / "new", model=str(glm), original=True)
    random_prefix(load_model(glm)).save(tmp_path / "prefix", base=str(glm))
    with pytest.raises(UsageError, match="nothing to convert"):
        convert_adapter(tmp_path / "prefix", tmp_path / "new")
    old_prefix(tmp_path / "old")
    (tmp_path / "old" / "config.json").unlink()
    with pytest.raises(UsageError, match="does not say which model"):
        convert_adapter(tmp_path / "old", tmp_path / "new")
    assert not (tmp_path / "new").exists()
