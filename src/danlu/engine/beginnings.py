"""Beginnings that several texts share: found by comparing tokens, computed once, kept while there is room."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from danlu.engine.joining import shared
from danlu.models.abilities import beginning
from danlu.models.attention import Beginning
from danlu.models.memory import free_memory

LEAST = 32
"""Tokens that a beginning has to save, for each text but one, to be computed by itself."""

LARGEST = 1 << 31
"""Most bytes of keys and values that are kept, if there is that much memory."""


@dataclass(slots=True)
class Group:
    """Texts that begin alike.

    Attributes:
        depth: how many tokens they share.
        start: those tokens.
        members: numbers of the texts that share no more than that with others.
        groups: of texts that share more.
    """

    depth: int = 0
    start: tuple[int, ...] = ()
    members: list[int] = field(default_factory=list)
    groups: list[Group] = field(default_factory=list)

    def walk(self) -> Iterator[Group]:
        """The groups that have members, each after those that it continues."""
        if self.members:
            yield self
        for group in self.groups:
            yield from group.walk()


def grouped(texts: Sequence[tuple[int, ...]], known: Sequence[tuple[int, ...]] = (), least: int = LEAST) -> Group:
    """Sort texts into a tree of common beginnings, each at least ``least`` tokens longer than the one it continues.

    Args:
        texts: token ids; each keeps at least its last token for itself.
        known: beginnings that are computed already: a single text may share one.
        least: see above.
    """
    count = len(texts)
    every = [*texts, *known]
    order = sorted(range(len(every)), key=every.__getitem__)
    longest = [len(text) - (number < count) for number, text in enumerate(every)]
    common = [
        min(shared(every[first], every[second]), longest[first], longest[second])
        for first, second in zip(order, order[1:])
    ]
    return _grown(every, order, common, count, 0, least)


def _grown(
    every: Sequence[tuple[int, ...]], order: Sequence[int], common: Sequence[int], count: int, depth: int, least: int
) -> Group:
    """The group of neighbours in sorted order that share ``depth`` tokens; ``common`` is one shorter than ``order``."""
    group = Group(depth, every[order[0]][:depth] if order else ())
    start = 0
    for end in range(1, len(order) + 1):
        if end < len(order) and common[end - 1] >= depth + least:
            continue
        run, within = order[start:end], common[start : end - 1]
        start = end
        texts = [number for number in run if number < count]
        if len(run) == 1 or not texts:
            group.members += texts
        else:
            group.groups.append(_grown(every, run, within, count, min(within), least))
    return group


class Beginnings:
    """Keys and values of beginnings; those that were used last stay, as long as they fit.

    Args:
        model: a causal language model with packed attention, for which :func:`beginnings_are_exact` holds.
        trained: keys and values of a trained prefix in front of every text, or None.
        limit: most bytes that are kept; an eighth of the free memory by default.

    Attributes:
        computed: tokens that were computed so far.
    """

    def __init__(self, model: Any, trained: Beginning | None = None, limit: int | None = None) -> None:
        self.model, self.trained = model, trained
        self.limit = min(free_memory() // 8, LARGEST) if limit is None else limit
        self.size = trained[0][0].shape[-2] if trained is not None else 0
        self.computed = 0
        self._kept: OrderedDict[tuple[int, ...], Beginning] = OrderedDict()
        self._bytes = 0

    @property
    def known(self) -> list[tuple[int, ...]]:
        """The beginnings that are kept."""
        return list(self._kept)

    @torch.no_grad()
    def before(self, ids: tuple[int, ...]) -> Beginning | None:
        """What texts that begin with ``ids`` see of them, behind the trained prefix; None where that is nothing."""
        return self._behind_trained(self._found(ids)) if ids else self.trained

    def _found(self, ids: tuple[int, ...]) -> Beginning:
        best: tuple[int, ...] = ()
        length = 0
        for known in self._kept:
            if (common := shared(known, ids)) > length:
                best, length = known, common
        kept: Beginning | None = None
        if length:
            self._kept.move_to_end(best)
            kept = [(keys[:, :length], values[:, :length]) for keys, values in self._kept[best]]
        if length == len(ids):
            assert kept is not None
            return kept
        device = self.model.device
        rest = torch.tensor([ids[length:]], device=device)
        positions = torch.arange(length, len(ids), device=device).unsqueeze(0) + self.size
        before = self.trained if kept is None else self._behind_trained(kept)
        made = beginning(self.model, rest, positions, before)
        self.computed += len(ids) - length
        found = made if kept is None else chained(kept, made)
        self._keep(ids, found)
        return found

    def _behind_trained(self, kept: Beginning) -> Beginning:
        return kept if self.trained is None else chained(self.trained, kept)

    def _keep(self, ids: tuple[int, ...], found: Beginning) -> None:
        self._kept[ids] = found
        self._bytes += _bytes_of(found)
        while self._bytes > self.limit:
            _, dropped = self._kept.popitem(last=False)
            self._bytes -= _bytes_of(dropped)


def chained(first: Beginning, second: Beginning) -> Beginning:
    """Keys and values of one beginning and of what follows it."""
    return [
        (torch.cat((a[0].to(b[0].dtype), b[0]), dim=-2), torch.cat((a[1].to(b[1].dtype), b[1]), dim=-2))
        for a, b in zip(first, second)
    ]


def _bytes_of(kept: Beginning) -> int:
    return sum(part.numel() * part.element_size() for pair in kept for part in pair)
