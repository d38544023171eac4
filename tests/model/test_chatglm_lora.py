"""LoRA adapters of ChatGLM's first code on the native model: the update of the fused matrix, cut as the matrix is."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from chatglm2 import write_checkpoint
from old_chatglm import SIZES, old_lora
from probes import logits_of, token_batch
from tiny import build_model

from danlu.core.errors import ModelError
from danlu.models.adapter_size import adapter_parameters
from danlu.models.adapters import attach, merge
from danlu.models.combine import combine
from danlu.models.loading import load_model

pytestmark = pytest.mark.model
LAYERS = "base_model.model.transformer.encoder.layers."
NATIVE = {
    "self_attention.query_key_value": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attention.dense": ("self_attn.o_proj",),
    "mlp.dense_h_to_4h": ("mlp.gate_up_proj",),
    "mlp.dense_4h_to_h": ("mlp.down_proj",),
}


def fused(model: Any, layer: int, module: str) -> torch.Tensor:
    """The weight that the first code had as one matrix."""
    return torch.cat([model.get_submodule(f"model.layers.{layer}.{name}").weight for name in NATIVE[module]])


@pytest.mark.parametrize("safe", [False, True], ids=["bin", "safetensors"])
@pytest.mark.parametrize("settings", [{}, {"use_rslora": True, "r": 2}], ids=["plain", "rslora"])
def test_merged_weights(tiny_models: dict[str, Path], tmp_path: Path, settings: dict[str, Any], safe: bool) -> None:
    """W + scale · B A, computed on the fused matrix."""
    before = load_model(tiny_models["glm"])
    state = old_lora(tmp_path / "old", modules=tuple(SIZES), safe=safe, **settings)
    rank = settings.get("r", 4)
    scale = 32 / (math.sqrt(rank) if settings else rank)
    attached = attach(load_model(tiny_models["glm"]), tmp_path / "old")
    after = merge(load_model(tiny_models["glm"]), [tmp_path / "old"])
    for layer in range(3):
        for module in SIZES:
            start = f"{LAYERS}{layer}.{module}"
            update = scale * state[f"{start}.lora_B.weight"] @ state[f"{start}.lora_A.weight"]
            assert update.abs().max() > 0.1
            expected = fused(before, layer, module) + update
            torch.testing.assert_close(fused(after, layer, module), expected, atol=1e-5, rtol=1e-5)
    ids = token_batch()
    torch.testing.assert_close(logits_of(attached, ids), logits_of(after, ids), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("shared", [True, False], ids=["groups", "head by head"])
def test_order_of_rows(tmp_path: Path, shared: bool) -> None:
    """With as many key heads as query heads the original decides: (q, k, v) of head 0, of head 1, …, or not."""
    folder = write_checkpoint(tmp_path / "glm", multi_query_attention=shared, multi_query_group_num=4)
    state = old_lora(tmp_path / "old", layers=2, rows=96, columns=32)
    after, before = merge(load_model(folder), [tmp_path / "old"]), load_model(folder)
    start = f"{LAYERS}1.self_attention.query_key_value"
    update = 8 * state[f"{start}.lora_B.weight"] @ state[f"{start}.lora_A.weight"]
    for at, part in enumerate(NATIVE["self_attention.query_key_value"]):
        expected = update.chunk(3)[at] if shared else update.view(4, 3, 8, 32)[:, at].reshape(32, 32)
        name = f"model.layers.1.{part}.weight"
        change = after.get_parameter(name) - before.get_parameter(name)
        torch.testing.assert_close(change, expected, atol=1e-5, rtol=1e-5)


def test_directions_and_lengths(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    """DoRA keeps the length of each row apart: m · (W + s B A) / |W + s B A|, and rows are rows when cut."""
    before = load_model(tiny_models["glm"])
    state = old_lora(tmp_path / "old", use_dora=True)
    start = f"{LAYERS}1.self_attention.query_key_value"
    for layer in range(3):
        state[f"{LAYERS}{layer}.self_attention.query_key_value.lora_magnitude_vector"] = torch.rand(128) + 1
    torch.save(state, tmp_path / "old" / "adapter_model.bin")
    after = merge(load_model(tiny_models["glm"]), [tmp_path / "old"])
    whole = fused(before, 1, "self_attention.query_key_value")
    whole = whole + 8 * state[f"{start}.lora_B.weight"] @ state[f"{start}.lora_A.weight"]
    expected = state[f"{start}.lora_magnitude_vector"].unsqueeze(1) * whole / whole.norm(dim=1, keepdim=True)
    found = fused(after, 1, "self_attention.query_key_value")
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_it_is_saved_as_an_adapter_of_today(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    from peft import PeftModel

    from danlu.models.adapters import save

    old_lora(tmp_path / "old")
    attached = attach(load_model(tiny_models["glm"]), tmp_path / "old", trainable=True)
    trained = {name for name, value in attached.named_parameters() if value.requires_grad}
    assert len(trained) == 3 * 3 * 2
    assert all("lora_" in name for name in trained)
    save(attached, tmp_path / "new")
    plain, ids = PeftModel.from_pretrained(load_model(tiny_models["glm"]), tmp_path / "new"), token_batch()
    torch.testing.assert_close(logits_of(plain, ids), logits_of(attached, ids))


@pytest.mark.parametrize("safe", [False, True], ids=["bin", "safetensors"])
def test_its_size_is_known_before(tiny_models: dict[str, Path], tmp_path: Path, safe: bool) -> None:
    old_lora(tmp_path / "old", modules=tuple(SIZES), safe=safe)
    attached = attach(load_model(tiny_models["glm"]), tmp_path / "old", trainable=True)
    trained = sum(value.numel() for value in attached.parameters() if value.requires_grad)
    assert adapter_parameters(tmp_path / "old") == trained


def test_two_are_added_up(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    old_lora(tmp_path / "old")
    old_lora(tmp_path / "wide", modules=("self_attention.query_key_value", "mlp.dense_4h_to_h"))
    folders = [str(tmp_path / "old"), str(tmp_path / "wide")]
    both = combine(folders, tmp_path / "both", weights=[0.5, 0.5], model=str(tiny_models["glm"]))
    base = load_model(tiny_models["glm"])
    sums = [fused(merge(load_model(tiny_models["glm"]), [name]), 1, "mlp.dense_4h_to_h") for name in folders]
    found = fused(merge(load_model(tiny_models["glm"]), [both]), 1, "mlp.dense_4h_to_h")
    torch.testing.assert_close(found, (sums[0] + sums[1]) / 2, atol=1e-5, rtol=1e-5)
    assert not torch.equal(found, fused(base, 1, "mlp.dense_4h_to_h"))


def test_one_of_another_shape(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    old_lora(tmp_path / "deep", layers=4)
    with pytest.raises(ModelError, match="it has a layer 3, this model has 3 layers"):
        attach(load_model(tiny_models["glm"]), tmp_path / "deep")
    old_lora(tmp_path / "old")
    wide = build_model("glm", tmp_path / "wide", num_attention_heads=8)
    with pytest.raises(ModelError, match="query_key_value has 128 rows, this model's has 192"):
        attach(load_model(wide), tmp_path / "old")


def old_first(folder: Path) -> dict[str, Any]:
    """An adapter of the first generation, whose model keeps its names; its tensors."""
    state = {
        name.replace("encoder.layers", "layers").replace("self_attention", "attention"): value
        for name, value in old_lora(folder, rows=192).items()
    }
    torch.save(state, folder / "adapter_model.bin")
    return state


def test_the_first_generation_takes_its_own(chatglm1: Path, tmp_path: Path) -> None:
    state, ids = old_first(tmp_path / "old"), token_batch()
    attached = attach(load_model(chatglm1), tmp_path / "old", trainable=True)
    assert sum(value.requires_grad for value in attached.parameters()) == len(state)
    before, after = load_model(chatglm1), merge(load_model(chatglm1), [tmp_path / "old"])
    name = "transformer.layers.1.attention.query_key_value"
    update = 8 * state[f"base_model.model.{name}.lora_B.weight"] @ state[f"base_model.model.{name}.lora_A.weight"]
    change = after.get_parameter(f"{name}.weight") - before.get_parameter(f"{name}.weight")
    torch.testing.assert_close(change, update, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logits_of(attached, ids), logits_of(after, ids), atol=1e-3, rtol=1e-3)


def test_one_of_another_generation(tiny_models: dict[str, Path], chatglm1: Path, tmp_path: Path) -> None:
    old_first(tmp_path / "first")
    with pytest.raises(ModelError, match="trained on the first ChatGLM-6B, this is ChatGLM2 or 3"):
        attach(load_model(tiny_models["glm"]), tmp_path / "first")
    old_lora(tmp_path / "later")
    with pytest.raises(ModelError, match="trained on ChatGLM2 or 3, this is the first ChatGLM-6B"):
        attach(load_model(chatglm1), tmp_path / "later")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"modules_to_save": ["output_layer"]}, "whole modules"),
        ({"bias": "all"}, "with biases"),
        ({"enable_lora": [True, False, True]}, "left out"),
        ({"rank_pattern": {"dense": 8}}, "another rank"),
    ],
)
def test_what_cannot_be_translated(
    tiny_models: dict[str, Path], tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    old_lora(tmp_path / "old", **settings)
    with pytest.raises(ModelError, match=message):
        attach(load_model(tiny_models["glm"]), tmp_path / "old")
