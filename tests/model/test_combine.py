"""Weighted sums of LoRA adapters: exact where the method is, one adapter that opens like any other, clear refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from probes import logits_of, random_adapter, random_prefix, token_batch
from tiny import build_model

from danlu.core.errors import DanluError, UsageError
from danlu.models.adapters import attach
from danlu.models.loading import load_model
from danlu.verbs.merge import merge

pytestmark = pytest.mark.model


@pytest.fixture
def two(tiny_models: dict[str, Path], tmp_path: Path) -> tuple[str, str]:
    for name, seed in (("a", 1), ("b", 2)):
        random_adapter(load_model(tiny_models["llama"]), tmp_path / name, seed=seed)
    return str(tmp_path / "a"), str(tmp_path / "b")


def weights_with(folder: Path, *adapters: tuple[str, float]) -> Any:
    """The first layer's q_proj with Σ w ΔW added."""
    total = load_model(folder, dtype="float32").model.layers[0].self_attn.q_proj.weight.detach().clone()
    for adapter, share in adapters:
        layer = attach(load_model(folder, dtype="float32"), adapter).base_model.model.model.layers[0].self_attn.q_proj
        total += share * layer.get_delta_weight(layer.active_adapters[0])
    return total.detach()


@pytest.mark.parametrize("method", ["cat", "svd"])
def test_the_sum_is_exact(method: str, two: tuple[str, str], tiny_models: dict[str, Path], tmp_path: Path) -> None:
    options: dict[str, Any] = {"rank": 8} if method == "svd" else {}
    merged = merge(two, tmp_path / "out", weights="0.7,0.3", method=method, **options)
    expected = weights_with(tiny_models["llama"], (two[0], 0.7), (two[1], 0.3))
    torch.testing.assert_close(weights_with(tiny_models["llama"], (str(merged), 1.0)), expected, rtol=1e-3, atol=1e-4)
    told = json.loads((merged / "danlu_merge.json").read_text())
    assert [entry["weight"] for entry in told["adapters"]] == [0.7, 0.3]
    assert json.loads((merged / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert (merged / "tokenizer.json").is_file()


@pytest.mark.parametrize("method", ["linear", "ties", "dare_ties"])
def test_the_others_give_an_adapter(
    method: str, two: tuple[str, str], tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    merged = merge(two, tmp_path / "out", method=method)
    opened = attach(load_model(tiny_models["llama"]), merged)
    assert logits_of(opened, token_batch()).isfinite().all()
    again = merge(two, tmp_path / "out", method=method)  # replaces its own result
    assert again == merged


def test_what_cannot_be_added_up(two: tuple[str, str], tiny_models: dict[str, Path], tmp_path: Path) -> None:
    small, other, dora = tmp_path / "small", tmp_path / "other", tmp_path / "dora"
    random_adapter(load_model(tiny_models["llama"]), small, r=2)
    wide = build_model("llama", tmp_path / "wide", hidden_size=32, intermediate_size=48)
    random_adapter(load_model(wide), other)
    random_adapter(load_model(tiny_models["llama"]), dora, use_dora=True)
    random_prefix(load_model(tiny_models["llama"])).save(tmp_path / "prefix", base=str(tiny_models["llama"]))
    cases: list[tuple[list[str], dict[str, Any], str]] = [
        ([], {}, "0 adapters are given"),
        ([two[0]], {}, "1 adapter is given"),
        ([*two], {"weights": "1"}, "1 weights for 2 adapters"),
        ([*two], {"weights": "a,b"}, "not a list of numbers"),
        ([*two], {"method": "sum"}, "no method 'sum'.*dare_ties"),
        ([*two], {"density": 0.0}, "density is 0"),
        ([two[0], str(small)], {"method": "linear"}, "same rank in every adapter: 4 and 2.*cat"),
        ([two[0], str(other)], {}, "different bases"),
        ([two[0], str(dora)], {}, "DoRA's magnitudes"),
        ([two[0], str(tmp_path / "prefix")], {}, "kind PREFIX_TUNING"),
        ([two[0], str(tmp_path / "none")], {}, "no such adapter"),
    ]
    for adapters, options, message in cases:
        with pytest.raises(DanluError, match=message):
            merge(adapters, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
    assert issubclass(UsageError, DanluError)


def test_different_ranks_are_no_hindrance_to_an_exact_sum(
    two: tuple[str, str], tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    random_adapter(load_model(tiny_models["llama"]), tmp_path / "small", r=2)
    merged = merge([two[0], str(tmp_path / "small")], tmp_path / "out", weights=[1.0, -0.5])
    expected = weights_with(tiny_models["llama"], (two[0], 1.0), (str(tmp_path / "small"), -0.5))
    torch.testing.assert_close(weights_with(tiny_models["llama"], (str(merged), 1.0)), expected, rtol=1e-3, atol=1e-4)
