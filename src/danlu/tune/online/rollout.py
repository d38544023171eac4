"""Answers of a model in training to many prompts, several to each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from danlu.core.errors import DataError, UsageError
from danlu.engine.decoding import Row, decode_rows, evaluating, room_of
from danlu.engine.protocol import GenerationOptions

TOKENS = 32_768
"""Most tokens (prompts and longest answers) of rows that are answered together."""

ROWS = 64
"""Most rows that are answered together."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer of the model: its token ids, with the token that ended it, and whether one did."""

    ids: tuple[int, ...]
    finished: bool


@dataclass(frozen=True, slots=True)
class Sampler:
    """How answers are sampled.

    Attributes:
        options: temperature, top_p, top_k, max_new_tokens and seed count; a repetition penalty is refused, because what
            is likely would depend on it in a way that the loss does not know.
        stop_ids: tokens that end an answer.
        pad: token that fills up shorter prompts.
        context: longest sequence in tokens; the model's own by default.
        tokens: bound on the tokens of rows that are answered together.
        rows: bound on their number.

    Raises:
        UsageError: for options that cannot be used.
    """

    options: GenerationOptions
    stop_ids: frozenset[int]
    pad: int
    context: int | None = None
    tokens: int = TOKENS
    rows: int = ROWS

    def __post_init__(self) -> None:
        if not self.options.do_sample:
            raise UsageError("answers to learn from are sampled", where="do_sample")
        if self.options.repetition_penalty != 1 or self.options.stop:
            raise UsageError(
                "answers to learn from come from the model's own distribution: no repetition_penalty, no stop texts",
                where="generation options",
            )

    def ask(self, model: Any, prompts: Sequence[Sequence[int]], count: int, keys: Sequence[str]) -> list[list[Answer]]:
        """Let a model answer each prompt several times; its mode (training or not) is left as it was.

        The random numbers of an answer are those of the seed, the key of its prompt and its own number: what else is
        answered, in which batches or processes, changes nothing but the last digits of the logits.

        Args:
            model: a causal language model, with adapters or without, or a
                :class:`danlu.models.prefix.PrefixModel`.
            prompts: token ids with the header of the answer.
            count: answers to each.
            keys: one for each prompt, another one at every step.

        Returns:
            For each prompt its ``count`` answers.

        Raises:
            DataError: when a prompt leaves no room for an answer.
        """
        room = room_of(model, self.context)
        groups = [
            [self._row(ids, f"{key}:{number}", room) for number in range(count)]
            for key, ids in zip(keys, prompts, strict=True)
        ]
        with evaluating(model):
            for batch in self._batches(groups):
                for _ in decode_rows(model, batch, stop_ids=self.stop_ids, pad=self.pad):
                    pass
        return [[Answer(tuple(row.tokens), row.finished == "stop") for row in rows] for rows in groups]

    def _row(self, ids: Sequence[int], key: str, room: int) -> Row:
        limit = min(self.options.max_new_tokens, room - len(ids))
        if not ids:
            raise DataError("a prompt has no tokens", hint="Check the template.")
        if limit < 1:
            raise DataError(
                f"a prompt of {len(ids)} tokens leaves no room for an answer: the model takes {room} tokens",
                hint="Lower cutoff_len.",
            )
        return Row(key, list(ids), self.options, limit)

    def _batches(self, groups: Sequence[Sequence[Row]]) -> Iterator[list[Row]]:
        """Rows of similar length, longest first; answers to one prompt stay together, so that it is computed once."""
        batch: list[Row] = []
        longest = 0
        for group in sorted(groups, key=lambda group: -len(group[0].ids)):
            for row in group:
                longest = max(longest, len(row.ids) + row.limit)
                if batch and (len(batch) >= self.rows or longest * (len(batch) + 1) > self.tokens):
                    yield batch
                    batch, longest = [], len(row.ids) + row.limit
                batch.append(row)
        if batch:
            yield batch
