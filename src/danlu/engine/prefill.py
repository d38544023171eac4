"""Prompts that share a beginning are read once as far as they share it, before their answers are decoded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from danlu.engine.beginnings import Beginnings, chained, grouped
from danlu.models.abilities import beginnings
from danlu.models.attention import Beginning

LEAST = 128
"""Tokens that a beginning of prompts has to save for each prompt but one; below, padded rows are as quick."""

TOKENS = 4096
"""Most tokens that are read at a time, unless one prompt alone has more."""


class SharedPrompts:
    """The prompts of a window, and what is computed of what they share.

    Args:
        kept: keys and values of beginnings.
        starts: from :func:`starts_of` all prompts.
    """

    def __init__(self, kept: Beginnings, starts: Sequence[tuple[int, ...]]) -> None:
        self.kept, self.starts = kept, starts

    @torch.no_grad()
    def cache(self, prompts: Sequence[tuple[int, ...]]) -> tuple[Any, Tensor] | None:
        """What the model keeps of some prompts without their last tokens, and its mask (rows, width).

        The cache is padded on the left, with a trained prefix in front of each text. None where the prompts share
        nothing with others, so that reading them as they are costs no more.
        """
        texts = [prompt[:-1] for prompt in prompts]
        tree = grouped(texts, self.starts, LEAST)
        if not (tree.groups and all(texts)):
            return None
        rows: dict[int, Beginning] = {}
        for group in tree.walk():
            before = self.kept.before(group.start)
            for members in _portions(group.members, [len(text) - group.depth for text in texts]):
                own = self._read([texts[number][group.depth :] for number in members], group.depth, before)
                whole = own if before is None else [chained(before, part) for part in own]
                rows.update(zip(members, whole))
        return _padded([rows[number] for number in range(len(texts))])

    def _read(self, texts: Sequence[Sequence[int]], depth: int, before: Beginning | None) -> list[Beginning]:
        device, first = self.kept.model.device, depth + self.kept.size
        ids = torch.tensor([[token for text in texts for token in text]], device=device)
        positions = torch.cat([torch.arange(first, first + len(text), device=device) for text in texts])
        bounds = [0]
        for text in texts:
            bounds.append(bounds[-1] + len(text))
        return beginnings(self.kept.model, ids, positions.unsqueeze(0), bounds, before)


def starts_of(prompts: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """What several prompts begin with, where that is long enough to be read by itself."""
    tree = grouped([prompt[:-1] for prompt in dict.fromkeys(prompts)], least=LEAST)
    waiting, found = list(tree.groups), []
    while waiting:
        group = waiting.pop()
        found.append(group.start)
        waiting += group.groups
    return found


def _portions(members: Sequence[int], lengths: Sequence[int]) -> Iterator[list[int]]:
    """Texts to read at a time."""
    portion: list[int] = []
    for number in members:
        if portion and sum(lengths[one] for one in (*portion, number)) > TOKENS:
            yield portion
            portion = []
        portion.append(number)
    yield portion


def _padded(rows: Sequence[Beginning]) -> tuple[Any, Tensor]:
    """A ``DynamicCache`` of rows, each padded on the left, and the mask (rows, width)."""
    from transformers import DynamicCache

    lengths = [row[0][0].shape[1] for row in rows]
    width = max(lengths)
    cache = DynamicCache()
    for layer in range(len(rows[0])):
        pair = []
        for which in (0, 1):
            parts = [row[layer][which] for row in rows]
            whole = parts[0].new_zeros(len(rows), parts[0].shape[0], width, parts[0].shape[2])
            for place, part in enumerate(parts):
                whole[place, :, width - lengths[place] :] = part
            pair.append(whole)
        cache.update(*pair, layer)
    mask = torch.arange(width).unsqueeze(0) >= width - torch.tensor(lengths).unsqueeze(1)
    return cache, mask.long().to(rows[0][0][0].device)
