"""Answers of a model in training to many prompts, several to each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from danlu.core.errors import UsageError
from danlu.engine.decoding import Row, decode_rows, evaluating
from danlu.engine.protocol import GenerationOptions
from danlu.models.prefix import split_prefix

TOKENS = 32_768
"""Most tokens (prompts and longest answers) of rows that are answered together."""

ROWS = 64
"""Most rows that are answered together."""


@dataclass(frozen=True, slots=True)
class Rollout:
    """One answer of the model.

    Attributes:
        prompt: number of its prompt among those of the step.
        sample: number among the answers to this prompt.
        prompt_ids: what the model was given.
        answer_ids: what it generated, at least one token, with the token that ended it.
        finished: whether the model ended the answer; otherwise it reached the longest length.
    """

    prompt: int
    sample: int
    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]
    finished: bool

    def text_ids(self, stop_ids: frozenset[int]) -> tuple[int, ...]:
        """The answer without the token that ended it."""
        ended = bool(self.answer_ids) and self.answer_ids[-1] in stop_ids
        return self.answer_ids[:-1] if ended else self.answer_ids


@dataclass(frozen=True, slots=True)
class Sampler:
    """How answers are sampled.

    Attributes:
        options: temperature, top_p, top_k, max_new_tokens and seed count; a repetition penalty is refused, because what
            is likely would depend on it in a way that the loss does not know.
        stop_ids: tokens that end an answer.
        pad: token that fills up shorter prompts.
        context: longest sequence of the model in tokens, or None.
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

    def sample(
        self,
        model: Any,
        prompts: Sequence[Sequence[int]],
        count: int,
        *,
        step: int,
        numbers: Sequence[int] | None = None,
    ) -> list[Rollout]:
        """Let a model answer each prompt several times; its mode (training or not) is left as it was.

        The random numbers of an answer are those of the seed, the step, the number of its prompt and its own: what
        else is answered, in which batches or processes, changes nothing but the last digits of the logits.

        Args:
            model: a causal language model, with adapters or without, or a
                :class:`danlu.models.prefix.PrefixModel`.
            prompts: token ids with the header of the answer.
            count: answers to each.
            step: of the training.
            numbers: number of each prompt in the step, over all processes; from 0 by default.

        Returns:
            ``count`` answers to the first prompt, then to the second, and so on.

        Raises:
            UsageError: when a prompt leaves no room for an answer.
        """
        numbers = range(len(prompts)) if numbers is None else numbers
        rows = [
            [self._row(model, ids, f"{step}/{number}/{sample}") for sample in range(count)]
            for number, ids in zip(numbers, prompts, strict=True)
        ]
        with evaluating(model):
            for batch in self._batches(rows):
                for _ in decode_rows(model, batch, stop_ids=self.stop_ids, pad=self.pad):
                    pass
        return [
            Rollout(number, sample, tuple(row.ids), tuple(row.tokens), row.finished == "stop")
            for number, group in zip(numbers, rows)
            for sample, row in enumerate(group)
        ]

    def _row(self, model: Any, ids: Sequence[int], key: str) -> Row:
        limit = self.options.max_new_tokens
        if self.context is not None:
            _, prefix = split_prefix(model)
            limit = min(limit, self.context - len(ids) - (prefix.shape.length if prefix is not None else 0))
        if limit < 1 or not ids:
            raise UsageError(
                f"a prompt of {len(ids)} tokens leaves no room for an answer in the model's context of {self.context}"
                if ids
                else "a prompt has no tokens",
                hint="Shorten prompts with cutoff_len." if ids else "Check the template.",
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
