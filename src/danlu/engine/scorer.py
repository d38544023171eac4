"""Scores of many requests: what they share is computed once, the rest lies side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

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


@dataclass(frozen=True, slots=True)
class Examined:
    """What a model's code allows, tried out.

    Attributes:
        abilities: whether sequences may lie side by side, and what the output layer is.
        keeps: whether what it computed of a beginning serves every text that begins so.
    """

    abilities: Abilities
    keeps: bool

    @classmethod
    def of(cls, model: Any) -> Examined:
        """Try out a model as the engine has it; packed attention stays on if it is right."""
        inner, _ = computing_parts(model)
        with evaluating(model):
            abilities = examine(inner)
            return cls(abilities, abilities.packed and beginnings_are_exact(inner))


class Scorer:
    """Scores requests, a window of them at a time. Use a new one when weights may have changed.

    Args:
        model: as :class:`danlu.engine.local.LocalEngine` has it.
        examined: what its code allows.
        pad: token that fills up shorter rows where they are padded.
        batch_size: contexts that are read together; None chooses by memory.

    Attributes:
        beginnings: what was computed of common beginnings; None where the model keeps none.
    """

    def __init__(self, model: Any, examined: Examined, pad: int, batch_size: int | None = None) -> None:
        self.model, self.abilities, self.pad, self.batch_size = model, examined.abilities, pad, batch_size
        self.inner, prefix = computing_parts(model)
        self.trained: Tensor | None = None
        if prefix is not None and self.abilities.packed:
            with evaluating(model), torch.no_grad():
                self.trained = prefix.keys_and_values(self.inner)
        self.beginnings = Beginnings(self.inner, self.trained) if examined.keeps else None
        self.tokens = affordable_tokens(self.inner)

    def score(self, window: Sequence[Joined]) -> Iterator[Scored]:
        """Yield the scores of every request as soon as they are known."""
        sheets = [Sheet(joined) for joined in window]
        for concerned in self._packed(sheets) if self.abilities.packed else self._padded(sheets):
            yield from (sheet.scored() for sheet in concerned if not sheet.missing)

    def _packed(self, sheets: Sequence[Sheet]) -> Iterator[list[Sheet]]:
        stems = stems_of(sheets)
        offset = 0 if self.trained is None else self.trained.shape[-2]
        texts = [stem.ids for stem in stems]
        known = self.beginnings.known if self.beginnings else ()
        groups = grouped(texts, known) if self.beginnings else grouped(texts, least=max(map(len, texts)) + 1)
        for group in groups.walk():
            before = self.trained
            if self.beginnings and group.depth:
                with evaluating(self.model):
                    before = self.beginnings.before(group.start)
            members = [stems[number] for number in sorted(group.members)]
            for pack in filled(members, group.depth, offset, self.tokens, self.batch_size):
                with evaluating(self.model):
                    pack.read(self.inner, self.abilities, before)
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
            if batch and len(batch) >= (self.batch_size or min(ROWS, max(self.tokens // longest, 1))):
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
