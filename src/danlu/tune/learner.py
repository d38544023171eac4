"""A model and what it is trained with, as one module: a packed batch goes in, the summed loss comes out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from danlu.models.attention import PACKED, register
from danlu.tune.boundary import BoundaryCache, upper_half
from danlu.tune.head import summed_cross_entropy
from danlu.tune.objectives import OBJECTIVES
from danlu.tune.parallel.configs import ShardingPlan


@dataclass(frozen=True, slots=True)
class Abilities:
    """What a model's code allows, found by asking it and comparing numbers.

    Attributes:
        packed: sequences side by side give what they give one by one.
        plain_head: logits are the output layer applied to the last hidden states, nothing more.
    """

    packed: bool
    plain_head: bool


class Learner(nn.Module):
    """Wraps a causal language model for training.

    Args:
        model: the causal language model whose forward is trained (adapters already in place).
        abilities: from :func:`examine`.
        prefix: makes trained keys and values (layers, 2, key-value heads, N, d), or None.
        cache: hidden states below the lowest trained layer, kept from the first epoch on, or None.
        objective: what is learnt; see :data:`danlu.tune.objectives.OBJECTIVES`.

    Attributes:
        sharding: how its weights are to be divided among processes, or None to keep them whole in each.
    """

    def __init__(
        self,
        model: Any,
        abilities: Abilities,
        prefix: nn.Module | None = None,
        cache: BoundaryCache | None = None,
        objective: str = "sft",
    ) -> None:
        super().__init__()
        self.model, self.prefix = model, prefix
        self.objective = OBJECTIVES[objective]
        self.abilities, self.cache = abilities, cache
        self.config = model.config
        self.sharding: ShardingPlan | None = None

    def forward(self, **batch: Tensor) -> Tensor:
        """The summed loss of a batch under the objective, a scalar."""
        loss: Tensor = self.objective.loss(self, batch)
        return loss

    def cross_entropy(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        bounds: Tensor,
        at: Tensor,
        targets: Tensor,
        members: Tensor | None = None,
    ) -> Tensor:
        """Σ -log p(target) over the trained tokens of a batch; see :func:`danlu.tune.batches.collate`."""
        if not self.abilities.plain_head:
            logits = self._logits(input_ids, position_ids, bounds)[at]
            return F.cross_entropy(logits.float(), targets, reduction="sum")
        hidden = self._hidden(input_ids, position_ids, bounds, members)[at]
        head = self.model.get_output_embeddings()
        return summed_cross_entropy(hidden.to(self._work_dtype(hidden)), head.weight, head.bias, targets)

    def gradient_checkpointing_enable(self, **options: Any) -> None:
        """Recompute activations in the backward pass."""
        self.model.gradient_checkpointing_enable(**options)

    def get_input_embeddings(self) -> nn.Module:
        """The model's embedding layer, where NEFTune adds its noise."""
        return self.model.get_input_embeddings()

    def _work_dtype(self, hidden: Tensor) -> torch.dtype:
        device = hidden.device.type
        return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype

    def _hidden(self, input_ids: Tensor, position_ids: Tensor, bounds: Tensor, members: Tensor | None) -> Tensor:
        """Last hidden states of all tokens, (T, d)."""
        backbone = self.model.base_model
        if not self.abilities.packed:
            padded, mask = _padded(input_ids[0], bounds)
            states = backbone(input_ids=padded, attention_mask=mask, use_cache=False).last_hidden_state
            return states[mask.bool()]
        options, position_ids = self._options(bounds), self._placed(position_ids)
        if self.cache is not None and members is not None:
            below = self.cache.states(backbone, members, self._options)
            with upper_half(backbone, self.cache.first_trained):
                states = backbone(inputs_embeds=below, position_ids=position_ids, use_cache=False, **options)
        else:
            states = backbone(input_ids=input_ids, position_ids=position_ids, use_cache=False, **options)
        return states.last_hidden_state[0]

    def _logits(self, input_ids: Tensor, position_ids: Tensor, bounds: Tensor) -> Tensor:
        if not self.abilities.packed:
            padded, mask = _padded(input_ids[0], bounds)
            return self.model(input_ids=padded, attention_mask=mask, use_cache=False).logits[mask.bool()]
        options, position_ids = self._options(bounds), self._placed(position_ids)
        return self.model(input_ids=input_ids, position_ids=position_ids, use_cache=False, **options).logits[0]

    def _placed(self, position_ids: Tensor) -> Tensor:
        """Positions of the text: behind the prefix, if there is one."""
        return position_ids if self.prefix is None else position_ids + self.prefix.shape.length

    def _options(self, bounds: Tensor) -> dict[str, Any]:
        # A mask of four dimensions is passed through by transformers; the attention itself reads the bounds.
        options: dict[str, Any] = {
            "bounds": bounds.tolist(),
            "attention_mask": torch.zeros(1, 1, 1, 1, device=bounds.device),
        }
        if self.prefix is not None:
            options["prefix"] = self.prefix()
        return options


def _padded(ids: Tensor, bounds: Tensor) -> tuple[Tensor, Tensor]:
    """Sequences as rows padded on the right: ids (n, L) and mask (n, L)."""
    lengths = bounds.diff()
    mask = torch.arange(int(lengths.max()), device=ids.device).unsqueeze(0) < lengths.unsqueeze(1)
    padded = torch.zeros(mask.shape, dtype=ids.dtype, device=ids.device)
    padded[mask] = ids
    return padded, mask.long()


def examine(model: Any) -> Abilities:
    """Try the two shortcuts on a few tokens and keep those that give the same numbers.

    The model is left with packed attention switched on if that is right for it, with its own otherwise.
    """
    own = model.config._attn_implementation
    packed = False
    if getattr(model, "_supports_attention_backend", False):
        register()
        model.set_attn_implementation(PACKED)
        packed = _packing_is_exact(model)
        if not packed:
            model.set_attn_implementation(own)
    return Abilities(packed=packed, plain_head=_head_is_plain(model))


@torch.no_grad()
def _packing_is_exact(model: Any) -> bool:
    learner = Learner(model.eval(), Abilities(packed=True, plain_head=True))
    ids = _probe_ids(model, 12)
    cuts = [0, 7, 12]
    bounds = torch.tensor(cuts, device=ids.device)
    positions = torch.cat([torch.arange(7), torch.arange(5)]).unsqueeze(0).to(ids.device)
    try:
        together = learner._hidden(ids, positions, bounds, None)
        apart = [
            model.base_model(input_ids=ids[:, start:end], use_cache=False).last_hidden_state[0]
            for start, end in zip(cuts[:-1], cuts[1:])
        ]
    except (TypeError, RuntimeError, ValueError, AttributeError):
        return False  # code that does not pass unknown arguments to its attention
    return _same(together, torch.cat(apart))


@torch.no_grad()
def _head_is_plain(model: Any) -> bool:
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        return False
    ids = _probe_ids(model, 5)
    model.eval()
    logits = model(input_ids=ids, use_cache=False).logits
    return _same(logits, head(model.base_model(input_ids=ids, use_cache=False).last_hidden_state))


def _probe_ids(model: Any, count: int) -> Tensor:
    size = min(model.get_input_embeddings().weight.shape[0], 1000)
    device = model.get_input_embeddings().weight.device
    return (torch.arange(count, device=device) * 37 % (size - 3) + 3).unsqueeze(0)


def _same(first: Tensor, second: Tensor, tolerance: float = 0.03) -> bool:
    first, second = first.float(), second.float()
    return bool((first - second).norm() <= tolerance * second.norm())
