"""P-Tuning v2: trained keys and values stand before every sequence in every layer (Liu et al. 2021)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from danlu.core.errors import ConfigError
from danlu.models.prefix import PrefixEncoder, PrefixShape
from danlu.tune.config import TrainConfig
from danlu.tune.methods import Tuned


def apply(model: Any, config: TrainConfig) -> Tuned:
    """Freeze the model and make a prefix, or continue a given one.

    Raises:
        ConfigError: when several adapters are given; prefixes cannot be merged.
    """
    model.requires_grad_(False)
    given = config.model.adapter_name_or_path
    if len(given) > 1 or (given and config.model.create_new_adapter):
        raise ConfigError(
            "a prefix cannot be merged into the weights, so p_tuning_v2 takes one adapter and continues it",
            where="adapter_name_or_path",
            hint="Name one prefix without create_new_adapter, or export a LoRA adapter first.",
        )
    options = config.prefix
    if given:
        prefix = PrefixEncoder.load(Path(given[0]), model.config, dropout=options.prefix_dropout)
    else:
        shape = PrefixShape.of(model.config, options.pre_seq_len)
        prefix = PrefixEncoder(shape, projection=options.prefix_projection, dropout=options.prefix_dropout)
    return Tuned(model, prefix=prefix.to(model.device))


def save(tuned: Tuned, folder: Path) -> None:
    """Write the prefix as PEFT stores it, and the network that makes it so that training can go on."""
    tuned.prefix.save(folder, base=tuned.model.name_or_path)


def load(tuned: Tuned, folder: Path) -> None:
    """Read the prefix and its network back."""
    tuned.prefix.load_state_dict(PrefixEncoder.load(folder, tuned.model.config).state_dict())
