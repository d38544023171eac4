"""Contexts and their continuations side by side in one row: nothing is padded, and a context is read once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from danlu.engine.scoring import Sheet, exact_head, foretold
from danlu.models.abilities import Abilities
from danlu.models.attention import Beginning, packed_options


@dataclass(slots=True)
class Stem:
    """A context and the requests that ask what follows it."""

    ids: tuple[int, ...]
    sheets: list[Sheet]

    def branches(self) -> Iterator[tuple[Sheet, int, tuple[int, ...]]]:
        """Each continuation as the sheet that waits for it, its number there, and its tokens."""
        for sheet in self.sheets:
            for number, tokens in enumerate(sheet.joined.branches):
                yield sheet, number, tokens

    def tokens(self, depth: int) -> int:
        """How many tokens are read when the first ``depth`` are known."""
        return len(self.ids) - depth + sum(len(tokens) - 1 for _, _, tokens in self.branches())


def stems_of(sheets: Sequence[Sheet]) -> list[Stem]:
    """Requests with the same context together."""
    stems: dict[tuple[int, ...], Stem] = {}
    for sheet in sheets:
        stems.setdefault(sheet.joined.context, Stem(sheet.joined.context, [])).sheets.append(sheet)
    return list(stems.values())


@dataclass(slots=True)
class Pack:
    """Sequences side by side.

    Attributes:
        ids: T tokens.
        positions: T; a continuation counts on from its context.
        bounds: where sequences begin and end.
        parents: the sequence that another one continues, or -1.
        places: where the output layer runs.
        wanted: (number of a place, token whose probability is read there).
        readers: (sheet, continuation, how many of the wanted numbers are its own), in the order of ``wanted``.
    """

    ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    bounds: list[int] = field(default_factory=lambda: [0])
    parents: list[int] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    wanted: list[tuple[int, int]] = field(default_factory=list)
    readers: list[tuple[Sheet, int, int]] = field(default_factory=list)

    def add(self, stem: Stem, depth: int, offset: int) -> None:
        """Lay out a context, without its first ``depth`` tokens, and what continues it.

        Args:
            stem: the context.
            depth: tokens that are known already, fewer than it has.
            offset: tokens of a trained prefix.
        """
        branches = list(stem.branches())
        alone = len(branches) == 1  # one continuation is read as one text with its context
        body = [*stem.ids[depth:], *(branches[0][2][:-1] if alone else ())]
        number = len(self.parents)
        start = self._sequence(body, depth + offset, -1)
        last = start + len(stem.ids) - depth - 1
        first_place = len(self.places)
        self.places.append(last)
        for sheet, branch, tokens in branches:
            self.wanted.append((first_place, tokens[0]))
            if len(tokens) > 1:
                start = last + 1 if alone else self._sequence(tokens[:-1], len(stem.ids) + offset, number)
                for step, token in enumerate(tokens[1:]):
                    self.wanted.append((len(self.places), token))
                    self.places.append(start + step)
            self.readers.append((sheet, branch, len(tokens)))

    def _sequence(self, ids: Sequence[int], position: int, parent: int) -> int:
        start = len(self.ids)
        self.ids += ids
        self.positions += range(position, position + len(ids))
        self.bounds.append(len(self.ids))
        self.parents.append(parent)
        return start

    @torch.no_grad()
    def read(self, model: Any, abilities: Abilities, before: Beginning | None) -> None:
        """Run the model and write the numbers on the sheets.

        Args:
            model: the causal language model, with packed attention.
            abilities: what its code allows.
            before: keys and values that every context continues.
        """
        device = model.device
        parents = self.parents if max(self.parents) >= 0 else None
        told = packed_options(self.bounds, device, parents=parents, prefix=before) | {
            "input_ids": torch.tensor([self.ids], device=device),
            "position_ids": torch.tensor([self.positions], device=device),
            "use_cache": False,
        }
        places = torch.tensor(self.places, device=device)
        head = None
        if abilities.plain_head:
            head = exact_head(model.get_output_embeddings())
            rows = model.base_model(**told).last_hidden_state[0, places]
        else:
            rows = model(**told, logits_to_keep=places).logits[0]
        log_probs, greedy = foretold(rows, self.wanted, head)
        start = 0
        for sheet, branch, length in self.readers:
            sheet.take(branch, log_probs[start : start + length], greedy[start : start + length])
            start += length


def filled(stems: Sequence[Stem], depth: int, offset: int, tokens: int, most: int | None) -> Iterator[Pack]:
    """Contexts in packs of at most so many tokens, and at most so many contexts if ``most`` is given.

    Args:
        stems: contexts that share their first ``depth`` tokens.
        depth: tokens that are known already.
        offset: tokens of a trained prefix.
        tokens: of a pack, unless one context alone has more.
        most: contexts of a pack.
    """
    pack, count = Pack(), 0
    for stem in stems:
        if count and (len(pack.ids) + stem.tokens(depth) > tokens or count == most):
            yield pack
            pack, count = Pack(), 0
        pack.add(stem, depth, offset)
        count += 1
    if count:
        yield pack
