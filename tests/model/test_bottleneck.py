"""Bottleneck adapters: the identity at first, off when wanted, found by structure, exported beside their base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from probes import logits_of, token_batch
from test_engine_local import answers, engine_of
from tiny import build_model
from torch import nn
from tuning import tune, write_rows

from danlu.core.errors import ConfigError, ModelError
from danlu.models.adapters import attach, save
from danlu.models.bottleneck import Bottlenecks, BottleneckShape, bottlenecks_of, sublayers
from danlu.models.export import export
from danlu.models.loading import load_model
from danlu.models.runs import plain_model

pytestmark = pytest.mark.model

SHAPE = BottleneckShape("houlsby", 8, "gelu", 3, 64)


def random_bottlenecks(model: Any) -> Bottlenecks:
    """Adapters that change every logit."""
    with torch.random.fork_rng():
        torch.manual_seed(8)
        own = Bottlenecks(SHAPE)
        for name, weight in own.named_parameters():
            if ".up." in name:
                nn.init.normal_(weight, std=0.3)
    return own.put_on(model)


def test_it_begins_as_the_identity_and_can_be_switched_off(tiny_model: Path) -> None:
    model, ids = load_model(tiny_model, dtype="float32"), token_batch()
    names, plain = dict(model.named_parameters()).keys(), logits_of(model, ids)
    own = Bottlenecks(SHAPE).put_on(model)
    assert torch.equal(logits_of(model, ids), plain)
    assert names == {name for name, _ in model.named_parameters() if not name.startswith("danlu_bottlenecks.")}
    for weight in own.parameters():
        nn.init.normal_(weight, std=0.3)
    assert (logits_of(model, ids) - plain).abs().max() > 0.1
    with own.off():
        assert torch.equal(logits_of(model, ids), plain)
    with pytest.raises(ModelError, match="adapters already"):
        Bottlenecks(SHAPE).put_on(model)


def test_parts_are_found_in_every_family(tiny_model: Path) -> None:
    for layer in load_model(tiny_model).base_model.layers:
        assert sublayers(layer) == {"attention": layer.self_attn, "mlp": layer.mlp}
    with pytest.raises(ModelError, match=r"has 0 and 2.*finetuning_type=lora"):
        sublayers(nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)]))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_saved_opened_exported_and_asked(dtype: Any, tiny_models: dict[str, Path], tmp_path: Path) -> None:
    folder, ids = tiny_models["glm"], token_batch()
    model = load_model(folder, dtype=dtype)
    random_bottlenecks(model)
    save(model, tmp_path / "adapter")
    opened = attach(load_model(folder, dtype=dtype), tmp_path / "adapter")
    assert not any(weight.requires_grad for weight in opened.parameters())
    assert torch.equal(logits_of(opened, ids), logits_of(model, ids))
    assert answers(engine_of(folder, opened, batch_size=8)).keys() == answers(engine_of(folder, opened)).keys()
    if dtype == "float32":
        report = export(plain_model(str(folder), [str(tmp_path / "adapter")]), tmp_path / "out")
        assert report.kept == str(tmp_path / "adapter")
        again = attach(load_model(tmp_path / "out"), tmp_path / "out" / "adapter")
        torch.testing.assert_close(logits_of(again, ids), logits_of(model, ids), rtol=1e-5, atol=1e-5)


def test_adapters_of_another_base_and_damaged_ones(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    random_bottlenecks(load_model(tiny_models["llama"])).save(tmp_path / "a", base="some/model")
    wide = build_model("llama", tmp_path / "wide", hidden_size=32, intermediate_size=48)
    with pytest.raises(ModelError, match=r"for 3 layers of width 64, it has 3 of 32.*some/model"):
        attach(load_model(wide), tmp_path / "a")
    text = (tmp_path / "a" / "adapter_config.json").read_text()
    (tmp_path / "a" / "adapter_config.json").write_text(text.replace('"houlsby"', '"pfeiffer"'))
    with pytest.raises(ModelError, match="damaged"):
        attach(load_model(tiny_models["llama"]), tmp_path / "a")


def test_training_goes_on_and_nothing_is_put_on_top(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    data = write_rows(tmp_path / "rows.jsonl", 8)
    options = {"finetuning_type": "adapter", "adapter_length": 8, "max_steps": 2}
    first = tune(tiny_models["llama"], data, tmp_path / "first", **options)
    second = tune(tiny_models["llama"], data, tmp_path / "second", adapter_name_or_path=str(first), **options)
    before, after = (bottlenecks_of(attach(load_model(tiny_models["llama"]), run)) for run in (first, second))
    assert before is not None
    assert after is not None
    assert not torch.equal(before.layers[0]["mlp"].up.weight, after.layers[0]["mlp"].up.weight)
    with pytest.raises(ConfigError, match="DANLU_BOTTLENECK cannot be merged"):
        tune(tiny_models["llama"], data, tmp_path / "third", adapter_name_or_path=str(first), create_new_adapter=True)
