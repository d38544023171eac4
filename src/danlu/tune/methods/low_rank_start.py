"""LoRA whose start changes the frozen weights (PiSSA, OLoRA), written as an adapter for the unchanged ones.

Such a start takes its own product out of the base: W' = W - s B₀ A₀, so that the model begins as it was. What is
trained is W' + s B A = W + s (B A - B₀ A₀), a plain LoRA of twice the rank: rows [A; A₀] and columns [B, -B₀]. Written
like that, the adapter needs neither the same decomposition again (PiSSA's fast one is random) nor a changed base.
"""

from __future__ import annotations

from copy import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from danlu.models.folders import make_readable

CHANGES_BASE = ("pissa", "olora")
"""Starts that change the frozen weights."""

FILE = "adapter_model.safetensors"
State = dict[str, Tensor]


def remember(adapter: Any) -> State:
    """A₀ and B₀ of every layer, by their names in the adapter's file."""
    return {name: value.detach().clone() for name, value in _state(adapter).items() if _factor(name)}


def _state(adapter: Any) -> State:
    from peft import get_peft_model_state_dict

    return dict(get_peft_model_state_dict(adapter, save_embedding_layers=False))


def _factor(name: str) -> str | None:
    return next((letter for letter in "AB" if f".lora_{letter}." in name), None)


def save_for_unchanged_base(adapter: Any, begun: State, folder: Path) -> None:
    """Write the adapter with twice the rank and the same scale.

    Raises:
        OSError: when the folder cannot be written.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    config = copy(adapter.peft_config[adapter.active_adapter])
    # the scale is alpha / r, or alpha / √r with rsLoRA: it stays the same when r doubles
    config.lora_alpha *= 2**0.5 if config.use_rslora else 2
    config.r, config.init_lora_weights, config.inference_mode = 2 * config.r, True, True
    config.base_model_name_or_path = adapter.get_base_model().name_or_path
    config.save_pretrained(str(folder))
    state = {name: value.detach() for name, value in _state(adapter).items()}
    for name, first in begun.items():
        pair = (state[name], first) if _factor(name) == "A" else (state[name], -first)
        state[name] = torch.cat(pair, dim=0 if _factor(name) == "A" else 1)
    save_file({k: v.cpu().contiguous() for k, v in state.items()}, folder / FILE, metadata={"format": "pt"})
    make_readable(folder)


@torch.no_grad()
def load_for_unchanged_base(adapter: Any, begun: State, folder: Path) -> None:
    """Read the trained half back; where this machine began elsewhere, the base is moved to where training began."""
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    state = load_file(folder / FILE)
    saved: State = {}
    for name in begun:
        first, second = state[name].chunk(2, dim=0 if _factor(name) == "A" else 1)
        state[name], saved[name] = first.contiguous(), second if _factor(name) == "A" else -second
    for name in (name for name in begun if _factor(name) == "A"):
        other = name.replace(".lora_A.", ".lora_B.")
        pairs = [(begun[name], saved[name].to(begun[name])), (begun[other], saved[other].to(begun[other]))]
        if not all(torch.equal(ours, theirs) for ours, theirs in pairs):
            layer = adapter.get_submodule(name.partition(".lora_A.")[0])
            weight = layer.get_base_layer().weight
            ours, theirs = begun[other] @ begun[name], pairs[1][1] @ pairs[0][1]
            weight += (layer.scaling[adapter.active_adapter] * (ours - theirs)).to(weight)
            begun[name], begun[other] = pairs[0][1], pairs[1][1]
    set_peft_model_state_dict(adapter, state)
