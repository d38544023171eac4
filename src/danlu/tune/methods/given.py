"""Adapters that training starts from: all but the last are merged, the last is continued."""

from __future__ import annotations

from typing import Any

from danlu.core.errors import ConfigError
from danlu.models.adapters import merge, read_adapter
from danlu.models.runs import adapter_chain
from danlu.tune.config import TrainConfig
from danlu.tune.methods import FAMILIES, family


def check_given(config: TrainConfig, infos: list[Any]) -> None:
    """Refuse adapters that the method cannot start from.

    Args:
        config: the run's options.
        infos: what each of the given adapters says of itself, in order.

    Raises:
        ConfigError: for one that cannot be merged although something comes on top of it, or one of another kind than
            the method would continue.
    """
    method, new = config.method.finetuning_type, config.model.create_new_adapter
    below, last = (infos, None) if new else (infos[:-1], infos[-1] if infos else None)
    for info in below:
        if not info.mergeable:
            raise ConfigError(
                f"an adapter of the kind {info.kind} cannot be merged into the weights, so nothing can stand on it",
                where=f"adapter_name_or_path {info.path}",
                hint="Give it alone, without create_new_adapter, to continue it.",
            )
    if below and config.quant.quantization_bit:
        raise ConfigError(
            "adapters are merged into whole weights, not into quantised ones",
            where="adapter_name_or_path, quantization_bit",
            hint="Write the merged model first with danlu export, then name it in model_name_or_path.",
        )
    wanted = family(method).peft_type
    if last is not None and last.kind != wanted:
        names = [name for name, known in FAMILIES.items() if known.peft_type == last.kind]
        change = f"finetuning_type={names[0]} continues it" if names else "It was made by another method"
        merging = "; create_new_adapter=true merges it and trains a new one" if last.mergeable else ""
        raise ConfigError(
            f"the adapter is of the kind {last.kind}, which finetuning_type {method} cannot continue",
            where=f"adapter_name_or_path {last.path}",
            hint=f"{change}{merging}.",
        )


def merge_given(model: Any, config: TrainConfig) -> tuple[Any, str | None]:
    """Freeze the model, merge the earlier adapters into it; the model, and the adapter to continue or None.

    Raises:
        ConfigError: as :func:`check_given`.
        ModelError: when an adapter is missing or does not fit.
    """
    model.requires_grad_(False)
    given = list(adapter_chain(config.model.adapter_name_or_path))
    if given:
        check_given(config, [read_adapter(name) for name in given])
    continued = None if config.model.create_new_adapter or not given else given.pop()
    return (merge(model, given) if given else model), continued
