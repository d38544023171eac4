"""Freeze tuning: a few layers are trained, the rest stays as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from danlu.core.errors import ConfigError, did_you_mean
from danlu.models.layout import decoder_layers
from danlu.tune.config import TrainConfig
from danlu.tune.methods import Tuned
from danlu.tune.methods.old_names import known_names
from danlu.tune.weights import load_weights, master_dtype, save_whole


def apply(model: Any, config: TrainConfig) -> Tuned:
    """Train ``freeze_trainable_layers`` of the layers: the last n, or the first n if negative.

    Raises:
        ConfigError: for more layers than there are, or modules that no layer has.
    """
    options = config.freeze
    layers = decoder_layers(model)
    count = options.freeze_trainable_layers
    if not 0 < abs(count) <= len(layers):
        raise ConfigError(
            f"freeze_trainable_layers is {count}, the model has {len(layers)} layers",
            hint="Give 1 to that many; negative numbers count from the first layer.",
        )
    chosen = layers[-count:] if count > 0 else layers[:-count]
    names = _module_names(chosen[0])
    wanted = [part for name in options.freeze_trainable_modules for part in known_names(name, names)]
    unknown = [name for name in wanted if name != "all" and name not in names]
    if unknown:
        raise ConfigError(
            f"no layer has a module {unknown[0]!r}",
            where="freeze_trainable_modules",
            hint=did_you_mean(unknown[0], names) or f"The layers have {', '.join(sorted(names))}.",
        )
    model.requires_grad_(False)
    dtype = master_dtype(config)
    for layer in chosen:
        for name, parameter in layer.named_parameters():
            if "all" in wanted or not set(wanted).isdisjoint(name.split(".")):
                parameter.requires_grad_(True)
                parameter.data = parameter.data.to(dtype)
    _unfreeze_extra(model, options.freeze_extra_modules, dtype, {id(weight) for weight in layers.parameters()})
    alone = count > 0 and not options.freeze_extra_modules
    return Tuned(model, first_trained=len(layers) - count if alone and count < len(layers) else None)


def _module_names(layer: Any) -> set[str]:
    return {part for name, _ in layer.named_modules() for part in name.split(".") if part}


def _unfreeze_extra(model: Any, wanted: tuple[str, ...], dtype: Any, inside: set[int]) -> None:
    every = model.named_parameters(remove_duplicate=False)  # a tied head is listed too
    outside = [(path.split("."), parameter) for path, parameter in every if id(parameter) not in inside]
    present = {part for path, _ in outside for part in path[:-1]}
    for name in (part for given in wanted for part in known_names(given, present)):
        if name not in present:
            raise ConfigError(
                f"the model has no module {name!r} outside its layers",
                where="freeze_extra_modules",
                hint=f"Outside the layers there are {', '.join(sorted(present))}.",
            )
        for path, parameter in outside:
            if name in path:
                parameter.requires_grad_(True)
                parameter.data = parameter.data.to(dtype)


def save(tuned: Tuned, folder: Path) -> None:
    """Write the whole model, so that the folder is usable by itself."""
    save_whole(tuned.model, folder)


def load(tuned: Tuned, folder: Path) -> None:
    """Read the model back."""
    load_weights(tuned.model, folder)
