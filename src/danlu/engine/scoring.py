"""Log-likelihoods read off logits, and the batches of padded rows for models that cannot be packed.

A row is a context with one continuation; continuations of a single token share the row of their context. The output
layer runs at the positions before the scored tokens, and the logarithm of the softmax is taken in float32, in chunks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from danlu.engine.decoding import first_positions, pad_left
from danlu.engine.joining import Joined
from danlu.engine.protocol import Scored
from danlu.models.prefix import split_prefix

CHUNK = 256
"""Positions whose probabilities exist at one time: CHUNK × vocabulary numbers."""

PART = 16_384
"""Rows of the output layer that are widened at a time."""


@dataclass(slots=True)
class Sheet:
    """The numbers of one request as they come in.

    Attributes:
        joined: the request.
        log_probs: of each token of each branch.
        greedy: whether each is the likeliest.
        missing: branches whose numbers are not known yet.
    """

    joined: Joined
    log_probs: list[list[float]] = field(default_factory=list)
    greedy: list[list[bool]] = field(default_factory=list)
    missing: int = 0

    def __post_init__(self) -> None:
        branches = self.joined.branches
        self.log_probs, self.greedy = [[] for _ in branches], [[] for _ in branches]
        self.missing = len(branches)

    def take(self, branch: int, log_probs: list[float], greedy: list[bool]) -> None:
        """Note the numbers of a branch."""
        self.log_probs[branch], self.greedy[branch] = log_probs, greedy
        self.missing -= 1

    def scored(self) -> Scored:
        """The answer."""
        return self.joined.scored(self.log_probs, self.greedy)


@dataclass(slots=True)
class ScoreRow:
    """Tokens that are read as one row, and the branches whose probabilities are read off its end.

    Attributes:
        ids: what the model reads.
        branches: (sheet, number of the branch), each as long as ``kept``.
        kept: how many of the last positions foretell scored tokens.
    """

    ids: tuple[int, ...]
    branches: list[tuple[Sheet, int]]
    kept: int


def rows_of(sheets: Sequence[Sheet]) -> list[ScoreRow]:
    """The rows that give all numbers of some requests."""
    rows: dict[tuple[int, tuple[int, ...]], ScoreRow] = {}
    for sheet in sheets:
        for number, branch in enumerate(sheet.joined.branches):
            ids = (*sheet.joined.context, *branch[:-1])
            row = rows.setdefault((len(branch), ids), ScoreRow(ids, [], len(branch)))
            row.branches.append((sheet, number))
    return list(rows.values())


@torch.no_grad()
def read_rows(model: Any, rows: Sequence[ScoreRow], pad: int) -> None:
    """Run the model over a batch of rows and write the numbers on the sheets.

    Args:
        model: a causal language model, with adapters or a prefix or without.
        rows: they are padded on the left.
        pad: token that fills up shorter rows.
    """
    base, prefix = split_prefix(model)
    ids, mask = (part.to(base.device) for part in pad_left([row.ids for row in rows], pad))
    told: dict[str, Any] = {"use_cache": False}
    if prefix is not None:
        told = {"past_key_values": prefix.past_key_values(base, len(rows), base.dtype)}
        mask = torch.cat([mask.new_ones(len(rows), prefix.shape.length), mask], dim=1)
    kept = max(row.kept for row in rows)
    positions = first_positions(base, ids, mask)
    logits = base(input_ids=ids, attention_mask=mask, position_ids=positions, logits_to_keep=kept, **told).logits
    places = [(number, step - row.kept) for number, row in enumerate(rows) for step in range(row.kept)]
    index = torch.tensor(places, device=logits.device)
    wanted: list[tuple[int, int]] = []
    first = 0
    for row in rows:
        for sheet, branch in row.branches:
            wanted += [(first + step, token) for step, token in enumerate(sheet.joined.branches[branch])]
        first += row.kept
    log_probs, greedy = foretold(logits[index[:, 0], index[:, 1]], wanted)
    start = 0
    for row in rows:
        for sheet, branch in row.branches:
            sheet.take(branch, log_probs[start : start + row.kept], greedy[start : start + row.kept])
            start += row.kept


def exact_head(head: Any) -> Callable[[Tensor], Tensor]:
    """The output layer in float32, for hidden states (n, d) of any precision.

    In bfloat16 logits have eight bits: of fifty questions with four choices, some have two that are equally likely. The
    states and weights tell them apart. Weights are widened a part at a time; other layers than plain ones are left.
    """
    if type(head) is not nn.Linear or head.weight.dtype == torch.float32:
        return lambda states: head(states.to(head.weight.dtype))

    def logits(states: Tensor) -> Tensor:
        wide = states.float()
        parts = [nn.functional.linear(wide, part.float()) for part in head.weight.split(PART)]
        return torch.cat(parts, dim=-1) if head.bias is None else torch.cat(parts, dim=-1) + head.bias.float()

    return logits


def foretold(
    states: Tensor, wanted: Sequence[tuple[int, int]], head: Callable[[Tensor], Tensor] | None = None
) -> tuple[list[float], list[bool]]:
    """Log-probabilities of tokens, and whether each is the likeliest at its place.

    Args:
        states: (n, d) hidden states for ``head``, or without one (n, vocabulary) logits; any precision.
        wanted: (row of the states, token).
        head: the output layer, for instance of :func:`exact_head`.
    """
    rows, tokens = torch.tensor(wanted, device=states.device).unbind(1)
    log_probs = torch.empty(len(wanted), dtype=torch.float32, device=states.device)
    greedy = torch.empty(len(wanted), dtype=torch.bool, device=states.device)
    for start in range(0, len(states), CHUNK):
        part = states[start : start + CHUNK]
        log_p = (part if head is None else head(part)).float().log_softmax(-1)
        here = ((rows >= start) & (rows < start + CHUNK)).nonzero()[:, 0]
        at, chosen = rows[here] - start, tokens[here]
        log_probs[here] = log_p[at, chosen]
        greedy[here] = log_p.argmax(-1)[at] == chosen
    return log_probs.tolist(), greedy.tolist()
