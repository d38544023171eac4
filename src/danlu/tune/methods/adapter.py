"""Adapter tuning: narrow networks behind the parts of every layer; see :mod:`danlu.models.bottleneck`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from danlu.models import adapters
from danlu.models.adapters import read_adapter
from danlu.models.bottleneck import Bottlenecks, BottleneckShape, bottlenecks_of
from danlu.models.layout import decoder_layers
from danlu.tune.config import TrainConfig
from danlu.tune.methods import Tuned
from danlu.tune.methods.given import merge_given
from danlu.tune.weights import master_dtype


def apply(model: Any, config: TrainConfig) -> Tuned:
    """Freeze the model and put adapters into its layers, or continue given ones.

    Raises:
        ModelError: when the model's layers are of another kind, or given adapters do not fit.
    """
    options = config.adapter
    model, continued = merge_given(model, config)
    if continued:
        own = Bottlenecks.load(read_adapter(continued).path, model, dropout=options.adapter_dropout)
    else:
        shape = BottleneckShape(
            placement=options.adapter_placement,
            length=options.adapter_length,
            activation=options.adapter_act,
            layers=len(decoder_layers(model)),
            width=model.config.get_text_config().hidden_size,
        )
        own = Bottlenecks(shape, options.adapter_dropout)
    own.put_on(model).to(master_dtype(config)).requires_grad_(True)
    return Tuned(model)


def save(tuned: Tuned, folder: Path) -> None:
    """Write adapter_config.json and adapter_model.safetensors."""
    adapters.save(tuned.model, folder)


def load(tuned: Tuned, folder: Path) -> None:
    """Read the adapters' weights back."""
    own = bottlenecks_of(tuned.model)
    assert own is not None
    own.load_state_dict(Bottlenecks.load(folder, tuned.model).state_dict())
