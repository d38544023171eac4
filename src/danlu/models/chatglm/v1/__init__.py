"""ChatGLM-6B, the first version: a prefix language model with positions of two rows (Du et al. 2022, arXiv:2103.10360).

Tensor names are those of the original release, so its folder is read as it is and an export is one again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from danlu.core.errors import ModelError


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


def check_first_version(config: Mapping[str, Any], where: str) -> None:
    """Refuse what is not computed here.

    Raises:
        ModelError: for quantised weights, models that read images and those with one row of positions.
    """
    bits = config.get("quantization_bit")
    if bits:
        raise ModelError(
            f"the weights are stored in {bits} bits, in a layout that only the model's own CUDA code reads",
            where=where,
            hint="Use the release in half precision; quantization_bit=4 or 8 of danlu quantises it while loading.",
        )
    if config.get("eva_config"):
        raise ModelError("this is VisualGLM-6B, a model that reads images", where=where, hint="Use ChatGLM-6B.")
    if not config.get("position_encoding_2d", True):
        raise ModelError(
            "position_encoding_2d is false: no ChatGLM-6B was released like that, and it is not computed here",
            where=where,
        )
