"""Scores of many requests: what they share is computed once, the rest lies side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from danlu.engine.beginnings import Beginnings, grouped
from danlu.engine.decoding import evaluating
from danlu.engine.joining import Joined
from danlu.engine.packs import filled, stems_of
from danlu.engine.protocol import Scored
from danlu.engine.scoring import CHUNK, ScoreRow, Sheet, read_rows, rows_of
from danlu.models.abilities import Abilities, beginnings_are_exact, computing_parts, examine
from danlu.models.memory import free_memory

TOKENS = 4096
"""Most tokens that are read at a time."""

ROWS = 16
"""Most padded rows that are read at a time."""


class Scorer:
    """Scores requests, a window of them at a time. Use a new one when weights may have changed.

    What the model's code allows is tried out before the first request: packed attention, and keeping the beginnings
    of texts. Packed attention stays switched on in a model that allows it.

    Args:
        model: as :class:`danlu.engine.local.LocalEngine` has it.
        pad: token that fills up shorter rows where they are padded.
        batch_size: contexts that are read together; None chooses by memory.

    Attributes:
        beginnings: what was computed of common beginnings; None where the model keeps none.
    """

    def __init__(self, model: Any, pad: int, batch_size: int | None = None) -> None:
        self.model, self.pad, self.batch_size = model, pad, batch_size
        self.inner, self.prefix = computing_parts(model)
        self.beginnings: Beginnings | None = None
        self._abilities: Abilities | None = None
        self._trained: torch.Tensor | None = None

    def score(self, window: Sequence[Joined]) -> Iterator[Scored]:
        """Yield the scores of every request as soon as they are known."""
        sheets = [Sheet(joined) for joined in window]
        with evaluating(self.model):
            abilities = self._abilities or self._examined()
        parts = self._packed(sheets, abilities) if abilities.packed else self._padded(sheets)
        for concerned in parts:
            yield from (sheet.scored() for sheet in concerned if not sheet.missing)

    @torch.no_grad()
    def _examined(self) -> Abilities:
        self._abilities = examine(self.inner)
        if self._abilities.packed and self.prefix is not None:
            self._trained = self.prefix.keys_and_values(self.inner)
        if self._abilities.packed and beginnings_are_exact(self.inner):
            self.beginnings = Beginnings(self.inner, self._trained)
        self._tokens = affordable_tokens(self.inner)
        return self._abilities

    def _packed(self, sheets: Sequence[Sheet], abilities: Abilities) -> Iterator[list[Sheet]]:
        stems = stems_of(sheets)
        offset = 0 if self._trained is None else self._trained.shape[-2]
        texts = [stem.ids for stem in stems]
        known = self.beginnings.known if self.beginnings else ()
        groups = grouped(texts, known) if self.beginnings else grouped(texts, least=max(map(len, texts)) + 1)
        for group in groups.walk():
            before = self._trained
            if self.beginnings and group.depth:
                with evaluating(self.model):
                    before = self.beginnings.before(group.start)
            members = [stems[number] for number in sorted(group.members)]
            for pack in filled(members, group.depth, offset, self._tokens, self.batch_size):
                with evaluating(self.model):
                    pack.read(self.inner, abilities, before)
                yield list({id(sheet): sheet for sheet, _, _ in pack.readers}.values())

    def _padded(self, sheets: Sequence[Sheet]) -> Iterator[list[Sheet]]:
        for batch in self._batches(rows_of(sheets)):
            with evaluating(self.model):
                read_rows(self.model, batch, self.pad)
            yield list({id(sheet): sheet for row in batch for sheet, _ in row.branches}.values())

    def _batches(self, rows: list[ScoreRow]) -> Iterator[list[ScoreRow]]:
        """Rows of similar length, longest first."""
        batch: list[ScoreRow] = []
        for row in sorted(rows, key=lambda row: (-len(row.ids), -row.kept)):
            longest = len(batch[0].ids if batch else row.ids)
            if batch and len(batch) >= (self.batch_size or min(ROWS, max(self._tokens // longest, 1))):
                yield batch
                batch = []
            batch.append(row)
        if batch:
            yield batch


def affordable_tokens(model: Any) -> int:
    """How many tokens may be read at a time: what one layer holds of each has to fit in a quarter of free memory."""
    config = model.config.get_text_config()
    width = config.hidden_size
    inner = getattr(config, "intermediate_size", None) or 4 * width
    head = 2 * 4 * CHUNK * model.get_output_embeddings().weight.shape[0]
    each = model.dtype.itemsize * (10 * width + 3 * inner)
    return int(min(max((free_memory() // 4 - head) // each, 256), TOKENS))
