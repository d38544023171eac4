"""Prompt tuning: trained embeddings before the text and nothing else (Lester et al. 2021, arXiv:2104.08691)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from danlu.core.errors import ConfigError
from danlu.models.loading import load_tokenizer, model_folder
from danlu.models.soft_prompt import PromptShape, SoftPrompt
from danlu.tune.config import TrainConfig
from danlu.tune.methods import Tuned
from danlu.tune.methods.prompts import load, put_before, save

__all__ = ["apply", "load", "save"]


def apply(model: Any, config: TrainConfig) -> Tuned:
    """Freeze the model and make a prompt, or continue a given one.

    Raises:
        ConfigError: when the prompt is to start from a text and there is none.
    """

    def make(base: Any) -> Any:
        shape = PromptShape(config.prefix.pre_seq_len, base.config.get_text_config().hidden_size)
        prompt = SoftPrompt(shape, dropout=config.prefix.prefix_dropout)
        _begin(prompt, base, config)
        return prompt

    return put_before(model, config, make)


@torch.no_grad()
def _begin(prompt: SoftPrompt, model: Any, config: TrainConfig) -> None:
    table = model.get_input_embeddings().weight
    match config.prompt.prompt_tuning_init:
        case "random":  # as widely scattered as the model's own embeddings
            prompt.embedding.weight.mul_(table.float().std())
            return
        case "vocab":
            chosen = torch.randint(table.shape[0], (prompt.shape.length,), device=table.device)
        case "text":
            chosen = _tokens(config, prompt.shape.length).to(table.device)
    prompt.embedding.weight.data = table[chosen].float()


def _tokens(config: TrainConfig, length: int) -> Tensor:
    """The tokens of the text, repeated and cut to ``length``."""
    text = config.prompt.prompt_tuning_init_text
    if not text:
        raise ConfigError(
            "the prompt is to start from a text, and there is none",
            where="prompt_tuning_init_text",
            hint="Write what the model is to do, for instance: Answer in one short sentence.",
        )
    named = config.model
    folder = model_folder(
        named.model_name_or_path, revision=named.model_revision, cache_dir=named.cache_dir, hub=named.model_hub
    )
    tokenizer = load_tokenizer(folder)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if not ids:
        raise ConfigError("the text has no tokens", where="prompt_tuning_init_text")
    return torch.tensor((ids * (length // len(ids) + 1))[:length])
