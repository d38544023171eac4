"""ChatGLM-6B in transformers' terms: attention of any implementation, caches, generation, gradient checkpointing."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Cache, DynamicCache, GenerationMixin, PreTrainedModel
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GenericForSequenceClassification, GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from danlu.models.chatglm.v1.configuration import ChatGLMConfig
from danlu.models.chatglm.v1.places import (
    NOWHERE,
    Marks,
    Places,
    counted,
    following,
    in_rows,
    side_by_side,
    two_rows,
)

ALPHA = (2 * 28) ** 0.5
"""Weight of the residual, √(2 · layers). The original code takes 28 layers for it, however many there are."""

ROTARY_BASE = 10000.0


def angles(positions: Tensor, head_dim: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines (B, L, head_dim) of positions (2, B, L): the first half for row 0, the second for row 1.

    The original stores frequencies in half precision, and so its weights were trained with rounded ones.
    """
    half = head_dim // 2
    exponents = torch.arange(0, half, 2, device=positions.device, dtype=torch.float32) / half
    frequencies = (ROTARY_BASE**-exponents).half().float()
    turns = positions.unsqueeze(-1).float() * frequencies
    whole = torch.cat((turns[0], turns[0], turns[1], turns[1]), dim=-1)
    return whole.cos(), whole.sin()


def rotated(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Queries or keys (B, heads, L, head_dim) turned by angles (B, L, head_dim); each half of them by itself."""
    parts = x.unflatten(-1, (2, 2, -1))
    turned = torch.stack((-parts[..., 1, :], parts[..., 0, :]), dim=-2).flatten(-3)
    result: Tensor = x * cosine.unsqueeze(1).to(x.dtype) + turned * sine.unsqueeze(1).to(x.dtype)
    return result


def eager_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """Attention by its definition; (B, L, heads, head_dim) and the weights."""
    scores = query @ key.transpose(-1, -2) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = F.dropout(scores.float().softmax(-1).to(query.dtype), dropout, module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class ChatGLMAttention(nn.Module):
    """Self-attention; queries, keys and values of a head lie side by side in one matrix."""

    def __init__(self, config: ChatGLMConfig, layer_idx: int) -> None:
        super().__init__()
        self.config, self.layer_idx, self.head_dim = config, layer_idx, config.head_dim
        self.scaling, self.is_causal = config.head_dim**-0.5, True
        self.query_key_value = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """(B, L, hidden) → the same shape, and the weights where the implementation gives them."""
        shape = hidden_states.shape[:-1]
        fused = self.query_key_value(hidden_states).view(*shape, -1, 3 * self.head_dim)
        query, key, value = (part.transpose(1, 2) for part in fused.chunk(3, dim=-1))
        query, key = rotated(query, *position_embeddings), rotated(key, *position_embeddings)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention)
        output, weights = attend(self, query, key, value, attention_mask, dropout=0.0, scaling=self.scaling, **kwargs)
        return self.dense(output.reshape(*shape, -1)), weights


class ChatGLMMLP(nn.Module):
    """The feed-forward part: tanh-GELU between two matrices, no gate."""

    def __init__(self, config: ChatGLMConfig) -> None:
        super().__init__()
        self.dense_h_to_4h = nn.Linear(config.hidden_size, config.inner_hidden_size)
        self.dense_4h_to_h = nn.Linear(config.inner_hidden_size, config.hidden_size)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(…, hidden) → (…, hidden)."""
        result: Tensor = self.dense_4h_to_h(F.gelu(self.dense_h_to_4h(hidden_states), approximate="tanh"))
        return result


class ChatGLMBlock(GradientCheckpointingLayer):
    """One layer. What is added to the output of a part is its normalised input, times :data:`ALPHA`."""

    def __init__(self, config: ChatGLMConfig, layer_idx: int) -> None:
        super().__init__()
        self.input_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layernorm_epsilon)
        self.attention = ChatGLMAttention(config, layer_idx)
        self.post_attention_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layernorm_epsilon)
        self.mlp = ChatGLMMLP(config)

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        """(B, L, hidden) → the same shape; ``kwargs`` go to the attention."""
        normal = self.input_layernorm(hidden_states)
        hidden_states = ALPHA * normal + self.attention(normal, **kwargs)[0]
        normal = self.post_attention_layernorm(hidden_states)
        result: Tensor = ALPHA * normal + self.mlp(normal)
        return result


class ChatGLMPreTrainedModel(PreTrainedModel):
    """What all classes of the model share."""

    config_class = ChatGLMConfig
    base_model_prefix = "transformer"
    supports_gradient_checkpointing = True
    _no_split_modules: ClassVar[list[str]] = ["ChatGLMBlock"]
    _skip_keys_device_placement: ClassVar[list[str]] = ["past_key_values"]
    _keys_to_ignore_on_load_unexpected: ClassVar[list[str]] = [r"rotary_emb\.inv_freq"]
    _supports_sdpa = True
    _supports_attention_backend = True
    _can_record_outputs: ClassVar[dict[str, Any]] = {"hidden_states": ChatGLMBlock, "attentions": ChatGLMAttention}


class ChatGLMModel(ChatGLMPreTrainedModel):
    """The model without its output layer."""

    def __init__(self, config: ChatGLMConfig) -> None:
        super().__init__(config)
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(ChatGLMBlock(config, number) for number in range(config.num_layers))
        self.final_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layernorm_epsilon)
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The embedding layer."""
        return self.word_embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace it."""
        self.word_embeddings = value

    @property
    def marks(self) -> Marks:
        """The token ids that divide context and answer."""
        config = self.config
        return Marks(config.context_end_token_id, config.gmask_token_id, config.mask_token_id)

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Hidden states of whole texts, or of the next tokens of texts in the cache.

        Args:
            input_ids: (B, L); where ``<sop>`` stands in them is where the context ends.
            attention_mask: (B, past + L), 1 for text.
            position_ids: (2, B, L); or (B, L), tokens counted, from which both rows are made; or None.
            past_key_values: what was computed before.
            inputs_embeds: (B, L, hidden) in place of ``input_ids``: tokens without a context.
            use_cache: whether to keep keys and values.
            kwargs: ``bounds`` and ``parents`` of sequences side by side, and what else the attention takes.

        Raises:
            ValueError: when the positions cannot be known: a text is continued without both rows of them.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("exactly one of input_ids and inputs_embeds is needed")
        embeds = self.word_embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        past = past_key_values.get_seq_length() if past_key_values is not None else 0
        bounds = kwargs.get("bounds")
        if bounds is None:
            places = self._in_rows(input_ids, embeds, attention_mask, position_ids, past)
        else:
            places = self._side_by_side(input_ids, position_ids, bounds, kwargs.get("parents"))
            kwargs["contexts"] = places.contexts
        mask = create_causal_mask(
            config=self.config,
            inputs_embeds=embeds,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            or_mask_function=_in_context(places.contexts, past) if isinstance(places.contexts, Tensor) else None,
        )
        cosine_and_sine = angles(places.positions, self.config.head_dim)
        hidden = embeds
        for layer in self.layers:
            hidden = layer(
                hidden,
                position_embeddings=cosine_and_sine,
                attention_mask=mask,
                past_key_values=past_key_values,
                **kwargs,
            )
        return BaseModelOutputWithPast(last_hidden_state=self.final_layernorm(hidden), past_key_values=past_key_values)

    def _in_rows(
        self, ids: Tensor | None, embeds: Tensor, attention_mask: Tensor | None, given: Tensor | None, past: int
    ) -> Places:
        """Places of texts in rows; ``contexts`` is None where no token can see a later one."""
        length = embeds.shape[1]
        step = past > 0 and length == 1
        if given is not None and given.ndim == 3:
            known = step or ids is None
            return Places(given, None if known else in_rows(ids, given[0], self.marks).contexts)
        count = counted(attention_mask, embeds, past) if given is None else given.expand(embeds.shape[:2])
        if ids is None:
            return Places(two_rows(count, NOWHERE, count), None)
        if past and (step or given is None) and not (ids == self.marks.sop).any(-1).all():
            raise ValueError("to continue a text in the cache, position_ids (2, batch, length) are needed")
        return in_rows(ids, count, self.marks)

    def _side_by_side(
        self, ids: Tensor | None, given: Tensor | None, bounds: list[int], parents: list[int] | None
    ) -> Places:
        """Places of packed sequences."""
        if ids is None or given is None:
            raise ValueError("sequences side by side need input_ids and position_ids")
        return side_by_side(ids, given, bounds, parents, self.marks)


def _in_context(contexts: Tensor, past: int) -> Any:
    """For ``create_causal_mask``: keys before ``<sop>`` are seen by all tokens; ``past`` keys stand before the text."""
    ends = torch.where(contexts > 0, contexts + past, 0)
    return lambda batch, head, query, key: key < ends[batch]


class ChatGLMForConditionalGeneration(ChatGLMPreTrainedModel, GenerationMixin):
    """The language model. Its name is that of the original class."""

    _tied_weights_keys: ClassVar[dict[str, str]] = {"lm_head.weight": "transformer.word_embeddings.weight"}

    def __init__(self, config: ChatGLMConfig) -> None:
        super().__init__(config)
        self.transformer = ChatGLMModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        """The output layer."""
        return self.lm_head

    def set_output_embeddings(self, value: nn.Module) -> None:
        """Replace it."""
        self.lm_head = value

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits of the next tokens (B, L, vocabulary), and the mean loss if there are ``labels`` (B, L).

        Args:
            input_ids: as for :class:`ChatGLMModel`, like all arguments that are not named here.
            attention_mask: likewise.
            position_ids: likewise.
            past_key_values: likewise.
            inputs_embeds: likewise.
            labels: the same tokens, -100 where nothing is learnt.
            use_cache: likewise.
            logits_to_keep: only the last so many positions, or those of a tensor; 0: all.
            kwargs: likewise.
        """
        output = self.transformer(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(output.last_hidden_state[:, kept])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=output.past_key_values,
            hidden_states=output.hidden_states,
            attentions=output.attentions,
        )

    def token_positions(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Positions (2, B, L) of whole texts.

        Args:
            input_ids: (B, L), padded on either side.
            attention_mask: (B, N + L); N ones in front stand for a prefix.
        """
        return in_rows(input_ids, counted(attention_mask, input_ids, 0), self.transformer.marks).positions

    def next_positions(self, positions: Tensor) -> Tensor:
        """Positions (2, B, 1) of the tokens that come behind ``positions`` (2, B, L)."""
        return following(positions)

    def _prepare_position_ids_for_generation(self, inputs_tensor: Tensor, model_kwargs: dict[str, Any]) -> Tensor:
        return self.token_positions(model_kwargs.get("input_ids", inputs_tensor), model_kwargs.get("attention_mask"))

    def _update_model_kwargs_for_generation(
        self,
        outputs: Any,
        model_kwargs: dict[str, Any],
        is_encoder_decoder: bool = False,
        num_new_tokens: int = 1,
    ) -> dict[str, Any]:
        positions = model_kwargs.pop("position_ids", None)
        updated: dict[str, Any] = super()._update_model_kwargs_for_generation(
            outputs, model_kwargs, is_encoder_decoder, num_new_tokens
        )
        if positions is not None:
            updated["position_ids"] = torch.cat((positions, following(positions, num_new_tokens)), dim=-1)
        return updated


class ChatGLMForSequenceClassification(GenericForSequenceClassification, ChatGLMPreTrainedModel):
    """A classifier, as which reward models are exported."""
