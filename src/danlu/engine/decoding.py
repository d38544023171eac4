"""The decoding loop: a batch of prompts, one token a step, rows leave as soon as they are finished.

The loop is ours, not ``generate`` of transformers, because rows have options of their own, are wanted as
soon as they end, and must not be computed any further after that; streaming is the same loop with one row.
Prompts are padded on the left. Positions are always given, counted from the attention mask, so padding
changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from danlu.engine.prefill import SharedPrompts
from danlu.engine.protocol import FinishReason, GenerationOptions
from danlu.engine.sampling import choose, row_generator
from danlu.engine.text import TextStream
from danlu.models.prefix import split_prefix

STATE = "cache_params"
"""What state space models call what they keep of the tokens before, in place of keys and values."""


@dataclass(slots=True)
class Row:
    """One prompt being answered.

    Attributes:
        key: of the request.
        ids: the prompt.
        options: how to answer.
        limit: most new tokens.
        cut: tokens left out at the start of the prompt.
        tokens: the answer so far.
        finished: why it ended; None while it goes on.
    """

    key: str
    ids: list[int]
    options: GenerationOptions
    limit: int
    cut: int = 0
    tokens: list[int] = field(default_factory=list)
    finished: FinishReason | None = None
    generator: torch.Generator | None = None
    watch: TextStream | None = None

    def take(self, token: int, stop_ids: frozenset[int]) -> None:
        """Add a token and see whether the answer ends with it."""
        self.tokens.append(token)
        if token in stop_ids:
            self.finished = "stop"
            return
        if self.watch is not None:
            self.watch.push(token)
            if self.watch.stopped:
                self.finished = "stop"
                return
        if len(self.tokens) >= self.limit:
            self.finished = "length"


class _Batch:
    """What the model has computed for the rows that are still going on.

    A prompt that several rows share is computed once; its keys and values are copied when the answers part.
    """

    def __init__(self, model: Any, rows: Sequence[Row], pad: int, shared: SharedPrompts | None = None) -> None:
        self.model, prefix = split_prefix(model)
        self.rows = list(rows)
        device = self.model.device
        prompts: dict[tuple[int, ...], int] = {}
        copies = [prompts.setdefault(tuple(row.ids), len(prompts)) for row in rows]
        self.copies = torch.tensor(copies, device=device) if len(prompts) < len(rows) else None
        ids, mask = (part.to(device) for part in pad_left(list(prompts), pad))
        self.seen = self._seen(copies, ids, mask)
        self.cache: Any = None
        self.memory = "past_key_values"
        read = shared.cache(list(prompts)) if shared else None
        before = mask[:, :0]
        if read is not None:  # all but the last token
            (self.cache, before), ids, mask = read, ids[:, -1:], mask[:, -1:]
        elif prefix is not None:
            self.cache = prefix.past_key_values(self.model, len(prompts), self.model.dtype)
            before = mask.new_ones(len(prompts), prefix.shape.length)
        self.ids, self.mask = ids, torch.cat([before, mask], dim=1)
        self.positions = first_positions(self.model, self.ids, self.mask)

    def _seen(self, copies: Sequence[int], ids: Tensor, mask: Tensor) -> Tensor | None:
        if all(row.options.repetition_penalty == 1 for row in self.rows):
            return None
        vocabulary = self.model.get_output_embeddings().weight.shape[0]
        seen = torch.zeros(len(self.rows), vocabulary, dtype=torch.bool, device=mask.device)
        for row, prompt in enumerate(copies):
            seen[row, ids[prompt][mask[prompt].bool()]] = True
        return seen

    def step(self) -> list[int]:
        """Compute one token for every row."""
        told: dict[str, Any] = {self.memory: self.cache} if self.cache is not None else {}
        if self.memory == STATE and self.cache is not None:
            told["attention_mask"] = None  # a state knows no padding after the prompt
        else:
            told["attention_mask"] = self.mask
        output = self.model(input_ids=self.ids, position_ids=self.positions, use_cache=True, logits_to_keep=1, **told)
        self.memory = next(name for name in (self.memory, STATE) if name in output)
        self.cache, logits = output[self.memory], output.logits[:, -1]
        if self.copies is not None:  # from here on each row has a prompt of its own
            self.cache.reorder_cache(self.copies)
            logits, self.mask = logits[self.copies], self.mask[self.copies]
            self.positions = self.positions[..., self.copies, :]
            self.copies = None
        options = [row.options for row in self.rows]
        tokens = choose(logits, options, [row.generator for row in self.rows], self.seen)
        if self.seen is not None:
            self.seen.scatter_(1, tokens.unsqueeze(1), True)
        self.ids = tokens.unsqueeze(1)
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.rows), 1)], dim=1)
        self.positions = next_positions(self.model, self.positions)
        return [int(token) for token in tokens]

    def drop_finished(self) -> None:
        """Keep only the rows that go on."""
        kept = [place for place, row in enumerate(self.rows) if row.finished is None]
        if len(kept) == len(self.rows) or not kept:
            return
        index = torch.tensor(kept, device=self.ids.device)
        self.rows = [self.rows[place] for place in kept]
        self.ids, self.mask, self.positions = self.ids[index], self.mask[index], self.positions[..., index, :]
        self.seen = None if self.seen is None else self.seen[index]
        self.cache.reorder_cache(index)  # keeps rows in any kind of cache, also the states of linear attention


def room_of(model: Any, context: int | None = None) -> int:
    """Longest prompt and answer together, in tokens: the model's context, or a given one, less its prefix."""
    base, prefix = split_prefix(model)
    known = getattr(base.config.get_text_config(), "max_position_embeddings", None) or 1 << 20
    return (context or known) - (prefix.shape.length if prefix is not None else 0)


def first_positions(model: Any, ids: Tensor, mask: Tensor) -> Tensor:
    """Positions (rows, L) of prompts (rows, L), counted through a mask (rows, N + L) that begins with a prefix.

    A model whose positions have several rows of their own makes them itself, as (…, rows, L).
    """
    own = getattr(model, "token_positions", None)
    positions: Tensor = own(ids, mask) if own else (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
    return positions


def next_positions(model: Any, positions: Tensor) -> Tensor:
    """Positions (…, rows, 1) of the tokens behind ``positions`` (…, rows, L)."""
    own = getattr(model, "next_positions", None)
    following: Tensor = own(positions) if own else positions[..., -1:] + 1
    return following


def pad_left(sequences: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    """Token ids (rows, longest) padded on the left, and the mask (1 for text) of the same shape."""
    width = max(map(len, sequences))
    ids = torch.tensor([[pad] * (width - len(row)) + list(row) for row in sequences])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in sequences])
    return ids, mask


def decode_rows(
    model: Any, rows: Sequence[Row], *, stop_ids: frozenset[int], pad: int, shared: SharedPrompts | None = None
) -> Iterator[list[Row]]:
    """Answer rows together; after every step, yield the rows that took part in it.

    Args:
        model: a causal language model, with adapters or a prefix or without.
        rows: prompts; each gets tokens until ``finished`` is set.
        stop_ids: tokens that end an answer.
        pad: token that fills up shorter prompts.
        shared: what is computed of beginnings that prompts share, these and others.
    """
    for row in rows:
        row.generator = row_generator(row.options, row.key)
    with torch.no_grad():
        batch = _Batch(model, rows, pad, shared)
    while batch.rows:
        with torch.no_grad():  # not around the yield: the caller's code runs there
            tokens = batch.step()
        active = list(batch.rows)
        for row, token in zip(active, tokens):
            row.take(token, stop_ids)
        yield active
        if all(row.finished for row in active):
            return
        with torch.no_grad():
            batch.drop_finished()


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Evaluation mode inside, afterwards as it was: a model may be asked in the midst of training."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
