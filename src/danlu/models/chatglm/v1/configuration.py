"""What config.json of ChatGLM-6B says, under its own names."""

from __future__ import annotations

from typing import Any, ClassVar

from transformers import PreTrainedConfig

MASK_BEFORE_SOP, GMASK_BEFORE_SOP = 4, 3
"""How far [MASK] and [gMASK] stand before ``<sop>``, in both vocabularies (130528 and 150528 tokens)."""


class ChatGLMConfig(PreTrainedConfig):
    """The configuration; ``bos_token_id`` is ``<sop>``, where the answer begins, and ``eos_token_id`` ``<eop>``.

    Early releases do not name ``mask_token_id`` and ``gmask_token_id``; they then follow from ``bos_token_id``. No
    release names ``tie_word_embeddings``, and transformers of that time tied the output layer to the embeddings: so
    it is here, unless a folder holds two tables that differ.
    """

    model_type = "chatglm"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]
    attribute_map: ClassVar[dict[str, str]] = {
        "num_hidden_layers": "num_layers",
        "intermediate_size": "inner_hidden_size",
        "max_position_embeddings": "max_sequence_length",
    }

    vocab_size: int = 130528
    hidden_size: int = 4096
    num_layers: int = 28
    num_attention_heads: int = 32
    inner_hidden_size: int = 16384
    layernorm_epsilon: float = 1e-5
    max_sequence_length: int = 2048
    initializer_range: float = 0.02
    use_cache: bool = True
    bos_token_id: int | None = 130004
    eos_token_id: int | list[int] | None = 130005
    pad_token_id: int | None = 3
    mask_token_id: int | None = None
    gmask_token_id: int | None = None
    position_encoding_2d: bool = True
    quantization_bit: int | None = 0
    tie_word_embeddings: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if self.bos_token_id is not None:
            if self.mask_token_id is None:
                self.mask_token_id = self.bos_token_id - MASK_BEFORE_SOP
            if self.gmask_token_id is None:
                self.gmask_token_id = self.bos_token_id - GMASK_BEFORE_SOP

    @property
    def context_end_token_id(self) -> int | None:
        """The token at which the part of a text ends whose tokens see one another."""
        return self.bos_token_id

    @property
    def head_dim(self) -> int:
        """Numbers in one key of one head."""
        return self.hidden_size // self.num_attention_heads
