"""Answers from a model in this process."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby, islice
from typing import Any

from danlu.core.console import warn
from danlu.core.errors import UsageError
from danlu.data.schema import Conversation
from danlu.engine.beams import beam_search
from danlu.engine.beginnings import Beginnings
from danlu.engine.decoding import Row, decode_rows, evaluating, room_of
from danlu.engine.joining import Joined, join
from danlu.engine.prefill import SharedPrompts, starts_of
from danlu.engine.protocol import (
    GREEDY,
    Completion,
    GenerationOptions,
    Prompt,
    Renderer,
    Request,
    Scored,
    ScoreRequest,
)
from danlu.engine.scorer import Examined, Scorer, beginnings_of
from danlu.engine.text import TextStream, cut_at_stop, decode, without_lead

WINDOW = 512
"""Requests that are sorted by length at a time."""

SCORE_WINDOW = 256
"""Requests for scores that are tokenised and computed at a time."""

TOKENS = 16_384
"""Most tokens (prompts and longest answers) of a batch of automatic size."""

ROWS = 16
"""Most rows of a batch of automatic size; more gain little on a CPU."""


@dataclass(slots=True)
class CutCount:
    """Prompts that were too long: how many, and how many tokens were left out."""

    prompts: int = 0
    tokens: int = 0


class LocalEngine:
    """Generates with a model in memory: plain, with PEFT adapters, or with a prefix.

    Args:
        model: as :func:`danlu.models.loading.load_model` or :func:`danlu.models.adapters.attach` return it.
        tokenizer: its tokenizer.
        renderer: turns conversations into prompts and knows what ends an answer.
        batch_size: rows answered together; None chooses by length.
        context: longest sequence in tokens; the model's own by default.

    Attributes:
        cut: prompts that had to be shortened so far. Their beginning is left out; the first one is warned of.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        renderer: Renderer,
        *,
        batch_size: int | None = None,
        context: int | None = None,
    ) -> None:
        self.model, self.tokenizer, self.renderer = model, tokenizer, renderer
        self.batch_size = batch_size
        self.context = room_of(model, context)
        self.cut = CutCount()
        self._stop_ids = renderer.stop_ids
        self._lead: str = getattr(renderer, "lead", "")
        pad = tokenizer.pad_token_id
        self._pad = pad if pad is not None else next(iter(self._stop_ids), 0)
        named = (tokenizer.bos_token_id, tokenizer.eos_token_id, self._pad)
        self._start = next(number for number in named if number is not None)

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """Answer requests; each completion comes as soon as its row ends, in any order.

        Requests are read in windows, so an endless iterable works; within a window prompts of similar length
        share a batch. An answer, greedy or sampled, is what the request alone would get, to the precision of
        the model's arithmetic. A long beginning that prompts share (worked examples, instructions) is read once.
        """
        waiting = iter(requests)
        kept: Beginnings | None = None
        while window := list(islice(waiting, WINDOW)):
            rows = [self._row(request.key, request.prompt, request.options) for request in window]
            starts = starts_of([tuple(row.ids) for row in rows if row.options.num_beams == 1])
            shared = None
            if starts and self._examined.decodes:
                kept = kept or beginnings_of(self.model)
                shared = SharedPrompts(kept, starts)
            for batch in self._batches(rows):
                yield from self._answer(batch, shared)

    def stream(
        self, prompt: Prompt | Sequence[int], options: GenerationOptions = GREEDY, *, key: str = ""
    ) -> Iterator[str]:
        """Answer one prompt, piece by piece: whole characters, no control tokens, no stop text.

        Args:
            prompt: a conversation, a plain text or token ids.
            options: how to answer; beams are not streamed but given at once.
            key: decides the random numbers together with ``options.seed``.
        """
        row = self._row(key, prompt, options)
        if options.num_beams > 1:
            yield from (completion.text for completion in self._answer([row]))
            return
        text = TextStream(self.tokenizer, options.stop, self._lead)
        with evaluating(self.model):
            for _ in decode_rows(self.model, [row], stop_ids=self._stop_ids, pad=self._pad):
                token = row.tokens[-1]
                piece = "" if token in self._stop_ids else text.push(token)
                if piece:
                    yield piece
        rest = text.finish()
        if rest:
            yield rest

    def score(self, requests: Iterable[ScoreRequest]) -> Iterator[Scored]:
        """Log-likelihoods of continuations; the scores of a request come as soon as they are known, in any order.

        Requests are read in windows, so an endless iterable works. A prompt that is too long loses its beginning, which
        is counted in :attr:`cut`.

        Raises:
            UsageError: for a key that comes twice, and for what :func:`danlu.engine.joining.join` refuses.
        """
        waiting, keys = iter(requests), set[str]()
        scorer = Scorer(self.model, self._examined, self._pad, self.batch_size)
        while window := list(islice(waiting, SCORE_WINDOW)):
            for request in window:
                if request.key in keys:
                    raise UsageError("two requests have the same key", where=f"request {request.key!r}")
                keys.add(request.key)
            yield from scorer.score([self._joined(request) for request in window])

    def length(self, prompt: Prompt) -> int:
        """Tokens of a prompt as the model would see it, were its context endless."""
        return len(self._ids(prompt))

    @cached_property
    def _examined(self) -> Examined:
        return Examined.of(self.model)

    def _joined(self, request: ScoreRequest) -> Joined:
        joined = join(request, self.renderer, self._start, self.context)
        if joined.cut:
            self._count_cut(joined.cut, request.key, "a prompt and what continues it do")
        return joined

    def _answer(self, batch: list[Row], shared: SharedPrompts | None = None) -> Iterator[Completion]:
        with evaluating(self.model):
            if batch[0].options.num_beams > 1:
                beam_search(self.model, batch, stop_ids=self._stop_ids, pad=self._pad)
                yield from map(self._completion, batch)
                return
            for active in decode_rows(self.model, batch, stop_ids=self._stop_ids, pad=self._pad, shared=shared):
                yield from (self._completion(row) for row in active if row.finished)

    def _completion(self, row: Row) -> Completion:
        ended = row.finished == "stop" and row.tokens[-1] in self._stop_ids
        text = decode(self.tokenizer, row.tokens[:-1] if ended else row.tokens)
        text, _ = cut_at_stop(without_lead(text, self._lead), row.options.stop)
        return Completion(row.key, text, tuple(row.tokens), row.finished or "length", len(row.ids), cut_tokens=row.cut)

    def _ids(self, prompt: Prompt | Sequence[int]) -> list[int]:
        if isinstance(prompt, Conversation):
            return self.renderer.prompt(prompt)
        return self.renderer.continued(prompt, [""])[0] if isinstance(prompt, str) else list(prompt)

    def _row(self, key: str, prompt: Prompt | Sequence[int], options: GenerationOptions) -> Row:
        ids = self._ids(prompt) or [self._start]
        room = max(self.context - options.max_new_tokens, self.context // 2, 1)
        cut = max(len(ids) - room, 0)
        if cut:
            ids = ids[cut:]
            self._count_cut(cut, key, "a prompt and its answer do")
        limit = max(min(options.max_new_tokens, self.context - len(ids)), 1)
        watch = TextStream(self.tokenizer, options.stop, self._lead) if options.stop else None
        return Row(key, ids, options, limit, cut=cut, watch=watch)

    def _count_cut(self, tokens: int, key: str, what: str) -> None:
        if not self.cut.prompts:
            warn(
                f"{what} not fit into the model's context of {self.context} tokens: "
                f"the prompt's first {tokens} tokens are left out (request {key!r}; others are only counted)"
            )
        self.cut.prompts += 1
        self.cut.tokens += tokens

    def _batches(self, rows: list[Row]) -> Iterator[list[Row]]:
        """Rows of similar length, longest first: what does not fit in memory fails at once, not late."""
        ordered = sorted(rows, key=lambda row: (_together(row), -len(row.ids), -row.limit))
        for _, group in groupby(ordered, key=_together):
            batch: list[Row] = []
            for row in group:
                if batch and self._full(batch, row):
                    yield batch
                    batch = []
                batch.append(row)
            yield batch

    def _full(self, batch: list[Row], row: Row) -> bool:
        if self.batch_size is not None:
            return len(batch) >= self.batch_size
        longest = max(len(item.ids) + item.limit for item in (*batch, row))
        return len(batch) >= ROWS or longest * (len(batch) + 1) > TOKENS


def _together(row: Row) -> tuple[int, float, int]:
    """Rows that may share a batch: any that do not search beams, else those that search alike."""
    options = row.options
    return (1, 1.0, 0) if options.num_beams == 1 else (options.num_beams, options.repetition_penalty, row.limit)
