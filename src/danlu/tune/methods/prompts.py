"""What all methods share that train keys and values in front of the text, or embeddings they are made of."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from danlu.core.console import note
from danlu.models.adapters import load_prefix, read_adapter
from danlu.models.prefix import check_prefix
from danlu.models.soft_prompt import SoftPrompt, warn_of_lost_network
from danlu.tune.config import TrainConfig
from danlu.tune.methods import Tuned
from danlu.tune.methods.given import merge_given


def put_before(model: Any, config: TrainConfig, make: Callable[[Any], Any]) -> Tuned:
    """Freeze the model and put a new prefix or prompt before the text, or continue a given one.

    Args:
        model: the base; given adapters are merged into it, except one that is continued.
        config: the run's options.
        make: makes a new prefix for the model.

    Raises:
        ModelError: when the model has no place for one.
    """
    check_prefix(model.config)
    model, continued = merge_given(model, config)
    if continued:
        info = read_adapter(continued)
        prefix = load_prefix(info, model.config, dropout=config.prefix.prefix_dropout)
        if isinstance(prefix, SoftPrompt):
            warn_of_lost_network(prefix, info.path)
        if prefix.shape.length != config.prefix.pre_seq_len:
            note(f"what is continued has {prefix.shape.length} tokens; pre_seq_len does not change that")
    else:
        prefix = make(model)
    return Tuned(model, prefix=prefix.to(model.device))


def save(tuned: Tuned, folder: Path) -> None:
    """Write the table as PEFT stores it, and the network that makes it so that training can go on."""
    tuned.prefix.save(folder, base=tuned.model.name_or_path)


def load(tuned: Tuned, folder: Path) -> None:
    """Read the table and its network back."""
    saved = load_prefix(read_adapter(folder), tuned.model.config)
    tuned.prefix.load_state_dict(saved.state_dict())
