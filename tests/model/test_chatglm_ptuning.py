"""Checkpoints of the official P-Tuning scripts in danlu's commands, on the tiny model of the family glm."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from old_chatglm import old_prefix
from probes import logits_of, token_batch
from safetensors.torch import save_file
from tuning import losses, tune, write_rows

from danlu.core.errors import ConfigError, ModelError, RunError
from danlu.models.adapter_size import adapter_parameters
from danlu.models.adapters import attach, read_adapter
from danlu.models.export import export
from danlu.models.loading import load_model
from danlu.models.prefix import NETWORK_FILE
from danlu.models.runs import open_run, plain_model

pytestmark = pytest.mark.model
START = "transformer.prefix_encoder."


@pytest.fixture
def glm(tiny_models: dict[str, Path]) -> Path:
    return tiny_models["glm"]


@pytest.mark.parametrize("network", [False, True], ids=["table", "network"])
@pytest.mark.parametrize("generation", ["first", "later"])
def test_training_goes_on(glm: Path, chatglm1: Path, tmp_path: Path, generation: str, network: bool) -> None:
    model = glm
    if generation == "first":
        model = chatglm1
        state = old_prefix(tmp_path / "old", network=network, width=3 * 2 * 64, embedding=64)
    else:
        state = old_prefix(tmp_path / "old", network=network)
    run = tune(
        model,
        write_rows(tmp_path / "rows.jsonl"),
        tmp_path / "run",
        finetuning_type="p_tuning_v2",
        adapter_name_or_path=str(tmp_path / "old"),
        num_train_epochs=6,
        learning_rate=0.05,
    )
    assert sum(losses(run)[-4:]) < sum(losses(run)[:4])
    before = attach(load_model(model), tmp_path / "old").prefix
    after = attach(load_model(model), run).prefix
    assert (run / NETWORK_FILE).is_file() is network
    assert len(before.state_dict()) == len(state)
    assert adapter_parameters(tmp_path / "old") == sum(value.numel() for value in state.values())
    for name, value in before.state_dict().items():
        assert not torch.equal(value, after.state_dict()[name]), name
    assert json.loads((run / "adapter_config.json").read_text())["num_virtual_tokens"] == 5


def test_what_does_not_go_with_it_is_said(
    glm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    old_prefix(tmp_path / "old")
    rows, given = write_rows(tmp_path / "rows.jsonl"), str(tmp_path / "old")
    tune(glm, rows, tmp_path / "run", finetuning_type="p_tuning_v2", adapter_name_or_path=given, max_steps=1)
    assert "what is continued has 5 tokens; pre_seq_len does not change that" in capsys.readouterr().err
    monkeypatch.setattr("danlu.models.loading.load_model", lambda *_, **__: pytest.fail("a model was loaded"))
    with pytest.raises(ConfigError, match="kind PREFIX_TUNING, which finetuning_type lora cannot continue"):
        tune(glm, rows, tmp_path / "other", finetuning_type="lora", adapter_name_or_path=given)


def test_it_is_used_and_exported_as_it_is(glm: Path, tmp_path: Path) -> None:
    """The tokenizer beside it is one of 2023; the base's is taken."""
    old_prefix(tmp_path / "old", network=True)
    (tmp_path / "old" / "tokenizer.model").write_bytes(b"of another time")
    source = plain_model(str(glm), [str(tmp_path / "old")])
    model, _ = source.load()
    report = export(source, tmp_path / "whole")
    assert report.reload_difference < 1e-5
    again = attach(load_model(tmp_path / "whole"), tmp_path / "whole" / "adapter")
    ids = token_batch()
    assert (logits_of(model, ids) - logits_of(model.base, ids)).abs().max() > 0.1
    torch.testing.assert_close(logits_of(again, ids), logits_of(model, ids), atol=1e-4, rtol=1e-4)


def test_only_the_prefix_of_a_whole_model_is_taken(
    glm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = old_prefix(tmp_path / "old")
    ids = token_batch()
    expected = logits_of(attach(load_model(glm), tmp_path / "old"), ids)
    capsys.readouterr()
    whole = tmp_path / "whole"
    whole.mkdir()
    parts = {"model-1.safetensors": {"transformer.output_layer.weight": torch.ones(2)}, "model-2.safetensors": state}
    names = {name: file for file, tensors in parts.items() for name in tensors}
    (whole / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    for file, tensors in parts.items():
        save_file(tensors, whole / file)
    assert read_adapter(whole).official
    assert torch.equal(logits_of(attach(load_model(glm), whole), ids), expected)
    assert "1 tensors besides the prefix; only the prefix is taken" in " ".join(capsys.readouterr().err.split())


def test_one_of_another_model(glm: Path, tiny_models: dict[str, Path], tmp_path: Path) -> None:
    old_prefix(tmp_path / "wide", width=3 * 2 * 2 * 32)
    with pytest.raises(ModelError, match="it has 384 numbers a token, this model takes 192"):
        attach(load_model(glm), tmp_path / "wide")
    old_prefix(tmp_path / "old")
    with pytest.raises(ModelError, match="this is a llama model"):
        attach(load_model(tiny_models["llama"]), tmp_path / "old")


def test_a_damaged_one(glm: Path, tmp_path: Path) -> None:
    state = old_prefix(tmp_path / "old", network=True)
    del state[f"{START}trans.2.bias"]
    torch.save(state, tmp_path / "old" / "pytorch_model.bin")
    with pytest.raises(ModelError, match="no whole prefix"):
        attach(load_model(glm), tmp_path / "old")
    (tmp_path / "old" / "pytorch_model.bin").write_bytes(b"cut")
    with pytest.raises(ModelError, match="cannot be read"):
        read_adapter(tmp_path / "old")


def test_it_is_no_run(tmp_path: Path) -> None:
    old_prefix(tmp_path / "old")
    with pytest.raises(RunError, match="does not say for which model"):
        open_run(tmp_path / "old")
