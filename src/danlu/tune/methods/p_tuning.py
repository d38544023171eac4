"""P-Tuning: embeddings before the text, made by a network (Liu et al. 2021, arXiv:2103.10385).

The prompt is MLP(P), or MLP(BiLSTM(P)), with P (N, d) trained; only its result is needed afterwards.
"""

from __future__ import annotations

from typing import Any

from danlu.models.soft_prompt import EncoderShape, PromptShape, SoftPrompt
from danlu.tune.config import TrainConfig
from danlu.tune.methods import Tuned
from danlu.tune.methods.prompts import load, put_before, save

__all__ = ["apply", "load", "save"]


def apply(model: Any, config: TrainConfig) -> Tuned:
    """Freeze the model and make a prompt with its network, or continue a given one."""
    options = config.prompt

    def make(base: Any) -> Any:
        width = base.config.get_text_config().hidden_size
        encoder = EncoderShape(
            options.encoder_reparameterization_type,
            options.encoder_hidden_size or width,
            options.encoder_num_layers,
            options.encoder_dropout,
        )
        shape = PromptShape(config.prefix.pre_seq_len, width)
        return SoftPrompt(shape, encoder, dropout=config.prefix.prefix_dropout)

    return put_before(model, config, make)
