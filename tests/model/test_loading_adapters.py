"""Adapters: attached = saved, merged = unmerged, and none is put on a base it does not belong to."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from probes import logits_of, random_adapter, token_batch
from tiny import build_model

from danlu.core.errors import ModelError, RunError
from danlu.models.adapters import attach, attach_all, merge, read_adapter
from danlu.models.loading import load_model
from danlu.models.runs import open_run, plain_model

pytestmark = pytest.mark.model


@pytest.mark.parametrize("options", [{}, {"use_dora": True}, {"use_rslora": True}], ids=["lora", "dora", "rslora"])
def test_attached_and_merged_are_what_was_saved(tiny_model: Path, tmp_path: Path, options: dict[str, bool]) -> None:
    ids = token_batch()
    saved = random_adapter(load_model(tiny_model), tmp_path / "lora", **options)
    expected = logits_of(saved, ids)
    plain = logits_of(load_model(tiny_model), ids)
    assert (expected - plain).abs().max() > 0.1
    assert torch.equal(logits_of(attach(load_model(tiny_model), tmp_path / "lora"), ids), expected)
    merged = merge(load_model(tiny_model), [tmp_path / "lora"])
    torch.testing.assert_close(logits_of(merged, ids), expected, atol=1e-4, rtol=1e-4)
    assert not any("lora" in name for name, _ in merged.named_parameters())


def test_several_adapters_are_merged_in_order(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    ids = token_batch()
    base = tiny_models["qwen3"]
    random_adapter(load_model(base), tmp_path / "first", seed=1)
    random_adapter(load_model(base), tmp_path / "second", seed=2)
    both = merge(load_model(base), [tmp_path / "first", tmp_path / "second"])
    stacked = attach_all(load_model(base), [tmp_path / "first", tmp_path / "second"])
    torch.testing.assert_close(logits_of(stacked, ids), logits_of(both, ids), atol=1e-4, rtol=1e-4)
    one = logits_of(merge(load_model(base), [tmp_path / "first"]), ids)
    assert (logits_of(both, ids) - one).abs().max() > 0.1


def test_merging_rounds_once(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    random_adapter(load_model(tiny_models["llama"]), tmp_path / "lora")
    exact = merge(load_model(tiny_models["llama"], dtype="bfloat16").float(), [tmp_path / "lora"])
    rounded = merge(load_model(tiny_models["llama"], dtype="bfloat16"), [tmp_path / "lora"])
    assert rounded.dtype == torch.bfloat16
    weight = "model.layers.1.mlp.up_proj.weight"
    assert torch.equal(rounded.state_dict()[weight], exact.state_dict()[weight].bfloat16())
    assert torch.equal(rounded.model.rotary_emb.inv_freq, exact.model.rotary_emb.inv_freq)


def test_an_adapter_can_be_trained_further(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    random_adapter(load_model(tiny_models["glm"]), tmp_path / "lora")
    model = attach(load_model(tiny_models["glm"]), tmp_path / "lora", trainable=True)
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trainable
    assert all("lora_" in name for name in trainable)


def test_a_base_of_another_shape(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    random_adapter(load_model(tiny_models["llama"]), tmp_path / "lora")
    wide = build_model("llama", tmp_path / "wide", intermediate_size=128)
    with pytest.raises(ModelError, match=r"does not fit .*wide .*It was trained on .*llama"):
        attach(load_model(wide), tmp_path / "lora")


@pytest.mark.parametrize("layers", [2, 4])
def test_a_base_with_other_layers(tiny_models: dict[str, Path], tmp_path: Path, layers: int) -> None:
    random_adapter(load_model(tiny_models["llama"]), tmp_path / "lora")
    other = build_model("llama", tmp_path / "other", num_hidden_layers=layers)
    with pytest.raises(ModelError, match=r"weights (are missing|have no place)"):
        attach(load_model(other), tmp_path / "lora")


def test_another_family(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    random_adapter(load_model(tiny_models["llama"]), tmp_path / "lora")
    with pytest.raises(ModelError, match="does not fit"):
        attach(load_model(tiny_models["glm"]), tmp_path / "lora")


def test_another_name_is_a_warning(
    tiny_models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    random_adapter(load_model(tiny_models["llama"]), tmp_path / "lora")
    attach(load_model(tiny_models["llama"]), tmp_path / "lora")
    assert capsys.readouterr().err == ""
    twin = build_model("llama", tmp_path / "twin", seed=9)
    attach(load_model(twin), tmp_path / "lora")
    assert "was trained on" in capsys.readouterr().err


def test_folders_that_are_no_adapters(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="there is no such adapter"):
        read_adapter(tmp_path / "nothing")
    with pytest.raises(ModelError, match=r"no adapter_config\.json"):
        read_adapter(tmp_path)
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with pytest.raises(ModelError, match="has no weights"):
        read_adapter(tmp_path)
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "CPT"}')
    with pytest.raises(ModelError, match="CPT are not supported"):
        read_adapter(tmp_path)


def test_a_damaged_adapter(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    random_adapter(load_model(tiny_models["llama"]), tmp_path / "lora")
    file = tmp_path / "lora" / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-50])
    with pytest.raises(ModelError, match="does not fit"):
        attach(load_model(tiny_models["llama"]), tmp_path / "lora")


def test_a_run_knows_its_base(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    run = tmp_path / "run"
    saved = random_adapter(load_model(tiny_models["llama"]), run)
    manifest = {"method": "lora", "base": {"name": "elsewhere/llama", "path": str(tiny_models["llama"])}}
    (run / "manifest.json").write_text(json.dumps(manifest))
    opened = open_run(run)
    assert (opened.model, opened.adapters, opened.method) == (str(tiny_models["llama"]), (str(run),), "lora")
    model, tokenizer = opened.load()
    ids = token_batch()
    assert torch.equal(logits_of(model, ids), logits_of(saved, ids))
    assert tokenizer.chat_template
    (run / "manifest.json").write_text(json.dumps({**manifest, "base": {"name": "a/b", "path": "/gone"}}))
    assert open_run(run).model == "a/b"
    (run / "manifest.json").unlink()
    assert open_run(run).model == str(tiny_models["llama"].resolve())


def test_a_run_of_full_tuning_is_a_model(tiny_models: dict[str, Path]) -> None:
    opened = open_run(tiny_models["qwen2"])
    assert opened.adapters == ()
    assert opened.load()[0].config.model_type == "qwen2"


def test_folders_that_are_no_runs(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no such run directory"):
        open_run(tmp_path / "nothing")
    with pytest.raises(RunError, match="no trained model"):
        open_run(tmp_path)
    (tmp_path / "checkpoint-20").mkdir()
    with pytest.raises(RunError, match=r"newest checkpoint is --run .*checkpoint-20"):
        open_run(tmp_path)


def test_a_plain_model_takes_the_adapters_tokenizer(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    assert plain_model("m", []).tokenizer == "m"
    assert plain_model("m", [str(tmp_path)]).tokenizer == "m"
    assert plain_model("m", [str(tiny_models["llama"])]).tokenizer == str(tiny_models["llama"])
