"""What all methods share whose adapters are PEFT's: put on, continue, find layers, save, load."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from danlu.core.errors import ConfigError, did_you_mean
from danlu.models import adapters
from danlu.models.adapters import attach
from danlu.models.quiet import quiet
from danlu.models.zoo import family_of_type
from danlu.tune.config import TrainConfig
from danlu.tune.methods import Tuned
from danlu.tune.methods.given import merge_given
from danlu.tune.methods.old_names import known_names


def put_on(model: Any, config: TrainConfig, settings: Callable[[Any], Any]) -> tuple[Tuned, bool]:
    """Put a new adapter on a model, or continue the last of the given ones.

    Args:
        model: the base; it is frozen, and earlier adapters are merged into it.
        config: the run's options.
        settings: makes PEFT's configuration for the model.

    Returns:
        The tuned model, and whether the adapter is a new one.
    """
    from peft import get_peft_model

    model, continued = merge_given(model, config)
    if continued:
        adapter = attach(model, continued, trainable=True)
        return Tuned(adapter.get_base_model(), adapter), False
    chosen = settings(model)
    with quiet():
        adapter = get_peft_model(model, chosen)
    return Tuned(adapter.get_base_model(), adapter), True


def linear_names(model: Any) -> dict[str, list[Any]]:
    """The linear layers by the last part of their name, without the output layer."""
    head = model.get_output_embeddings()
    found: dict[str, list[Any]] = {}
    for name, module in model.named_modules():
        if module is not head and _is_linear(module):
            found.setdefault(name.rsplit(".", 1)[-1], []).append(module)
    return found


def expert_names(model: Any) -> list[str]:
    """Names of tensors that hold the experts of a layer, such as ``mlp.experts.down_proj``."""
    found = (name for name, weight in model.named_parameters() if weight.ndim == 3 and ".experts." in name)
    return sorted({name[name.rindex(".", 0, name.index(".experts.")) + 1 :] for name in found})


def _is_linear(module: Any) -> bool:
    """Whether a layer is y = W x + b, also with W stored transposed (GPT-2), in few bits, or by code of its own.

    Some models derive other things from a linear layer, such as a router that answers which experts to ask.
    """
    from transformers.pytorch_utils import Conv1D

    if not isinstance(module, nn.Linear):
        return isinstance(module, Conv1D)
    kind = type(module)
    if kind.forward is nn.Linear.forward or not kind.__module__.startswith("transformers.models."):
        return True
    weight = module.weight
    with torch.no_grad():
        answer: Any = module(torch.zeros(1, module.in_features, dtype=weight.dtype, device=weight.device))
    return isinstance(answer, torch.Tensor) and answer.shape == (1, module.out_features)


def targets(model: Any, wanted: Sequence[str], where: str) -> list[str]:
    """Names of the linear layers to adapt; ``all`` means every one but the output layer.

    Raises:
        ConfigError: when a name fits no linear layer of the model, or one that an adapter cannot change.
    """
    linear = linear_names(model)
    family = family_of_type(str(model.config.model_type))
    fused = family.modules.fused if family else ()
    chosen: list[str] = []
    for name in (part for given in wanted for part in known_names(given, linear)):
        if name == "all":
            chosen += sorted(linear.keys() - set(fused))
        elif name in fused:
            raise ConfigError(
                f"an adapter on {name} would be ignored: a fused kernel of this model reads its weights directly",
                where=where,
                hint="all means every layer that can be adapted.",
            )
        elif name in linear:
            chosen.append(name)
        else:
            raise ConfigError(
                f"the model has no linear layer named {name!r}",
                where=where,
                hint=did_you_mean(name, linear) or f"It has {', '.join(sorted(linear))}; all means every one.",
            )
    return list(dict.fromkeys(chosen))


def save(tuned: Tuned, folder: Path) -> None:
    """Write adapter_config.json and adapter_model.safetensors."""
    adapters.save(tuned.adapter, folder)


def load(tuned: Tuned, folder: Path) -> None:
    """Read the adapter's weights back."""
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    set_peft_model_state_dict(tuned.adapter, load_file(folder / "adapter_model.safetensors"))
