"""Where tokens stand in ChatGLM-6B: positions of two rows, and the context in which tokens see one another.

A text is a context with a mask token ([gMASK], or [MASK] if there is none), then ``<sop>`` and the answer. Tokens
before ``<sop>`` see all of them; from ``<sop>`` on a token sees what comes before it. The first row of positions counts
through the context and stays at the mask token's from ``<sop>`` on; the second is 0 in the context and 1, 2, … from
``<sop>`` on. A text without ``<sop>`` has no context: it is causal, and its second row is 0.

What stands before the text, a prefix or prompt of N tokens, takes 0 … N-1 in the first row and 0 in the second.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

NOWHERE = 1 << 40
"""Position of ``<sop>`` in a text that has none: behind everything."""


@dataclass(frozen=True, slots=True)
class Marks:
    """Token ids that say where the context ends and where the answer belongs."""

    sop: int
    gmask: int
    mask: int


@dataclass(frozen=True, slots=True)
class Places:
    """Where the tokens of a call stand.

    Attributes:
        positions: (2, B, L).
        contexts: for each row the column of ``<sop>`` (B), before which tokens see one another, 0 without one; for
            sequences side by side the number of such tokens in each, a list; None where no token sees a later one.
    """

    positions: Tensor
    contexts: Tensor | list[int] | None


def two_rows(count: Tensor, sop: Tensor | int, mask: Tensor) -> Tensor:
    """Positions (2, B, L) of tokens.

    Args:
        count: (B, L), where each token would stand if it were only counted.
        sop: that of ``<sop>``, :data:`NOWHERE` if there is none; it broadcasts to ``count``.
        mask: that of the mask token, likewise.
    """
    return torch.stack((torch.where(count >= sop, mask, count), (count - sop + 1).clamp(min=0)))


def counted(attention_mask: Tensor | None, tokens: Tensor, past: int) -> Tensor:
    """Positions (B, L) of tokens (B, L, …) that are only counted: through the mask (B, past + L) if there is one."""
    rows, length = tokens.shape[:2]
    if attention_mask is not None and attention_mask.ndim == 2:
        return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -length:]
    return torch.arange(past, past + length, device=tokens.device).expand(rows, -1)


def in_rows(ids: Tensor, count: Tensor, marks: Marks) -> Places:
    """Places of texts in rows.

    Args:
        ids: (B, L), padded on either side; the whole text.
        count: (B, L), from :func:`counted` or given.
        marks: the ids to look for.
    """
    sop_at, found = _first(ids == marks.sop)
    before = torch.arange(ids.shape[1], device=ids.device) < sop_at.unsqueeze(1)
    gmask_at, has_gmask = _first((ids == marks.gmask) & before)
    mask_at, has_mask = _first((ids == marks.mask) & before)
    fallback = (sop_at - 1).clamp(min=0)
    at = torch.where(has_gmask, gmask_at, torch.where(has_mask, mask_at, fallback)).unsqueeze(1)
    sop = torch.where(found.unsqueeze(1), count.gather(1, sop_at.unsqueeze(1)), NOWHERE)
    return Places(two_rows(count, sop, count.gather(1, at)), torch.where(found, sop_at, 0))


def _first(which: Tensor) -> tuple[Tensor, Tensor]:
    """The first true column of each row (0 where there is none), and whether there is one; both (B)."""
    return which.int().argmax(-1), which.any(-1)


def side_by_side(
    ids: Tensor, count: Tensor, bounds: Sequence[int], parents: Sequence[int] | None, marks: Marks
) -> Places:
    """Places of sequences that are packed into one row.

    Args:
        ids: (1, T).
        count: (1, T), counted anew in each sequence, or on behind the one it continues.
        bounds: where sequences begin and end (s + 1).
        parents: for each sequence the number of the one that it continues, or -1.
        marks: the ids to look for.

    Raises:
        ValueError: when the context of a sequence ends in what continues it: several could not share it.
    """
    tokens = ids[0].tolist()
    sops: list[int | None] = []
    masks: list[int] = []
    contexts: list[int] = []
    for number, (start, end) in enumerate(zip(bounds[:-1], bounds[1:])):
        parent = -1 if parents is None else parents[number]
        sop = next((place for place in range(start, end) if tokens[place] == marks.sop), None)
        if parent >= 0:
            if sop is not None and sops[parent] is None:
                raise ValueError("a prompt that several answers continue has to contain <sop>, and this one has none")
            sops.append(sops[parent])
            masks.append(masks[parent])
            contexts.append(0)
            continue
        sops.append(sop)
        contexts.append(0 if sop is None else sop - start)
        masks.append(start if sop is None else _mask_place(tokens, start, sop, marks))
    lengths = torch.tensor([end - start for start, end in zip(bounds[:-1], bounds[1:])], device=ids.device)
    row = count[0]
    at = torch.tensor([0 if place is None else place for place in sops], device=ids.device)
    missing = torch.tensor([place is None for place in sops], device=ids.device)
    sop_count = torch.where(missing, NOWHERE, row[at]).repeat_interleave(lengths)
    mask_count = row[torch.tensor(masks, device=ids.device)].repeat_interleave(lengths)
    return Places(two_rows(count, sop_count, mask_count), contexts)


def _mask_place(tokens: Sequence[int], start: int, sop: int, marks: Marks) -> int:
    """The place of the mask token of a context, or of its last token if it has none."""
    context = tokens[start:sop]
    for wanted in (marks.gmask, marks.mask):
        if wanted in context:
            return start + context.index(wanted)
    return max(sop - 1, start)


def following(positions: Tensor, count: int = 1) -> Tensor:
    """Positions (2, B, count) of the tokens that come next, behind ``positions`` (2, B, L)."""
    last = positions[..., -1:]
    answering = (last[1:] > 0).long()
    step = torch.cat((1 - answering, answering))
    return last + step * torch.arange(1, count + 1, device=positions.device)
