"""ChatGLM-6B, the first version: a prefix language model with positions of two rows (Du et al. 2022, arXiv:2103.10360).

Tensor names are those of the original release, so its folder is read as it is and an export is one again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from danlu.core.errors import ModelError

MODEL_TYPE = "chatglm"
FIELDS = ("inner_hidden_size", "position_encoding_2d")
"""Fields that only the first version has; ChatGLM2 and 3 share its model type."""


def register() -> None:
    """Make the model known to transformers as ``chatglm``; calling it again changes nothing."""
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

    from danlu.models.chatglm.v1.configuration import ChatGLMConfig
    from danlu.models.chatglm.v1.modeling import (
        ChatGLMForConditionalGeneration,
        ChatGLMForSequenceClassification,
        ChatGLMModel,
    )

    AutoConfig.register(ChatGLMConfig.model_type, ChatGLMConfig, exist_ok=True)
    AutoModel.register(ChatGLMConfig, ChatGLMModel, exist_ok=True)
    AutoModelForCausalLM.register(ChatGLMConfig, ChatGLMForConditionalGeneration, exist_ok=True)
    AutoModelForSequenceClassification.register(ChatGLMConfig, ChatGLMForSequenceClassification, exist_ok=True)


def is_first_version(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is that of ChatGLM-6B and not of a later version."""
    return config.get("model_type") == MODEL_TYPE and any(mark in config for mark in FIELDS)


def check_first_version(config: Mapping[str, Any], where: str) -> None:
    """Refuse what is not computed here.

    Raises:
        ModelError: for quantised weights and for models with one row of positions.
    """
    bits = config.get("quantization_bit")
    if bits:
        raise ModelError(
            f"the weights are stored in {bits} bits, in a layout that only the model's own CUDA code reads",
            where=where,
            hint="Use the release in half precision; quantization_bit=4 or 8 of danlu quantises it while loading.",
        )
    if not config.get("position_encoding_2d", True):
        raise ModelError(
            "position_encoding_2d is false: no ChatGLM-6B was released like that, and it is not computed here",
            where=where,
        )
