"""Answers from a service.

**When requests fail.** A failure that may pass is asked again (:class:`danlu.engine.remote.client.Client`). What
still fails does not stop the others: every other answer is yielded first, and only then one error tells how many
failed and why (``failures`` has each). Callers write answers as they come, so the same command asks only what is
missing, and no measurement is ever made on a part of the answers. A wrong key or address, or many failures in a row
without one answer, ends the asking early; what is under way is still waited for and yielded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

from danlu.core.console import note, warn
from danlu.core.errors import DanluError, UsageError
from danlu.core.workspace import api_key
from danlu.data.schema import Conversation
from danlu.engine.options import EngineOptions
from danlu.engine.protocol import GREEDY, Completion, GenerationOptions, Request, Scored, ScoreRequest
from danlu.engine.remote import scoring, wire
from danlu.engine.remote.cache import AnswerCache, answer_key
from danlu.engine.remote.client import Client, checked_address
from danlu.engine.remote.crew import Crew
from danlu.engine.remote.failures import BudgetError, Passing, RemoteError, service_hints
from danlu.engine.remote.ledger import Estimate, Ledger, Usage, guess_tokens, most_tokens
from danlu.engine.remote.pace import Clock, Pace, Patience
from danlu.engine.text import cut_at_stop, texts_of

TOO_MANY = 8
"""Failures in a row, without one answer, after which no more requests are made (at least one for each under way)."""

TOLD = 3
"""Requests that are made again and said so; further ones are only counted."""

ResultT = TypeVar("ResultT")


@dataclass(frozen=True, slots=True)
class Job(Generic[ResultT]):
    """One request on its way.

    Attributes:
        key: of the request.
        most: what it may cost at most.
        known: its result if every answer to it is in the cache.
        work: gets the result from the service, and what it took.
    """

    key: str
    most: float
    known: Callable[[], ResultT | None]
    work: Callable[[], ResultT]


class RemoteEngine:
    """Generates and scores with a model behind a URL.

    Args:
        model: its name at the service.
        options: address, key variable, limits, prices, budget.
        clock: time, for tests.
        cache: remembered answers; the user's own by default.

    Attributes:
        ledger: tokens and cost so far.
        failures: requests of the last call that have no answer, by key.
        retries: requests that were made again so far.

    Raises:
        UsageError: without an address, or when the named key variable is empty.
    """

    def __init__(
        self, model: str, options: EngineOptions, *, clock: Clock | None = None, cache: AnswerCache | None = None
    ) -> None:
        if options.api is None:
            raise UsageError("no address of a service is given", hint="--api http://host:8000/v1")
        self.url, self.model, self.options = checked_address(options.api), model, options
        clock = clock or Clock()
        self._client = Client(
            api_key(options.api_key_env, needed="api_key_env" in options.model_fields_set),
            patience=Patience(timeout=options.api_timeout, retries=options.api_retries),
            pace=Pace(options.requests_per_minute, options.tokens_per_minute, clock),
            clock=clock,
            hints=service_hints(options.api_key_env, model),
            again=self._tell_again,
        )
        self.cache = None if options.answer_cache == "off" else cache or AnswerCache()
        self.ledger = Ledger(model, options.price, options.budget)
        self.dialect = wire.Dialect(model)
        self.failures: dict[str, DanluError] = {}
        self.retries = 0

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """Yield answers as they come; see the module for failures.

        Raises:
            RemoteError: after all others are answered, when a request has no answer.
            BudgetError: after what is under way, when the next request could exceed the budget.
        """
        yield from self._each(map(self._generation, requests))

    def score(self, requests: Iterable[ScoreRequest]) -> Iterator[Scored]:
        """Yield log-likelihoods, from a service whose completions echo the prompt with its log-probabilities.

        Raises:
            UsageError: for conversations and token ids, and when the service shows no log-probabilities.
            RemoteError: as :meth:`generate`.
        """
        yield from self._each(map(self._scoring, requests))

    def stream(self, prompt: Conversation, options: GenerationOptions = GREEDY, *, key: str = "") -> Iterator[str]:
        """Answer one prompt, piece by piece. A stream that breaks off is asked for again and goes on where it was.

        Raises:
            RemoteError: when it breaks off and the new answer begins otherwise, or the service refuses.
            BudgetError: when it could exceed the budget.
        """
        request = Request(key, prompt, options)
        most, given, attempt = self._most(wire.text_of(request), options.max_new_tokens), "", 0
        if not self.ledger.hold(most):
            raise self._too_dear(key)
        usage: list[Usage] = []
        try:
            while True:
                try:
                    for text in self._texts(request, usage):
                        if not text.startswith(given) and not given.startswith(text):
                            raise RemoteError("the stream broke off, and the new answer is another", where=self.url)
                        if len(text) > len(given):
                            yield text[len(given) :]
                            given = text
                    return
                except Passing as failure:
                    self._client.patiently(self.url, failure, attempt)
                    attempt += 1
        finally:
            self.ledger.settle(most, usage[-1] if usage else None)

    def estimate(self, requests: Iterable[Request]) -> Estimate:
        """What requests will take if none is in the cache; nothing is asked."""
        return self.ledger.estimate((wire.text_of(item), item.options.max_new_tokens) for item in requests)

    def close(self) -> None:
        """Say what it took, and close connections."""
        if self.ledger.requests or self.ledger.cached:
            again = f"; {self.retries} requests were made again" if self.retries else ""
            note(self.ledger.summary() + again)
        self._client.close()

    def _generation(self, request: Request) -> Job[Completion]:
        text, longest = wire.text_of(request), request.options.max_new_tokens
        most = self._most(text, longest)

        def completed(value: Any) -> Completion:
            return wire.completion_of(wire.read_answer(value, request, self.url), request, self.dialect)

        def known() -> Completion | None:
            value = self._remembered(*wire.body_of(request, self.dialect))
            if value is None:
                return None
            self.ledger.reuse()
            return completed(value)

        def work() -> Completion:
            usage = None
            try:
                size = guess_tokens(text) + longest
                value = self._ask(lambda: wire.body_of(request, self.dialect), size, completed)
                usage = wire.read_answer(value, request, self.url).usage
                return completed(value)
            finally:
                self.ledger.settle(most, usage)

        return Job(request.key, most, known, work)

    def _scoring(self, request: ScoreRequest) -> Job[Scored]:
        texts = texts_of(request, "a service", self.url)
        bodies = [scoring.body_of(text, self.model) for text in texts]
        sizes = [most_tokens(text) for text in texts]
        most = sum(self._most(text, 1) for text in texts)

        def known() -> Scored | None:
            values = [self._remembered(scoring.PATH, body) for body in bodies]
            if any(value is None for value in values):
                return None
            self.ledger.reuse()
            return scoring.scored(request, list(map(self._echo, values)), self.url)

        def work() -> Scored:
            read, written, guessed = 0, 0, False
            try:
                found = []
                for text, body, size in zip(texts, bodies, sizes):
                    value = self._remembered(scoring.PATH, body)
                    if value is None:
                        value = self._ask(partial(_same, body), size, self._echo)
                        usage = wire.usage_of(value, text, "")
                        read, written, guessed = read + usage.prompt, written + usage.answer, usage.guessed
                    found.append(self._echo(value))
                return scoring.scored(request, found, self.url)
            finally:
                self.ledger.settle(most, Usage(read, written, guessed) if read else None)

        return Job(request.key, most, known, work)

    def _each(self, jobs: Iterable[Job[ResultT]]) -> Iterator[ResultT]:
        crew: Crew[Job[ResultT], ResultT] = Crew(lambda job: job.work(), self.options.api_concurrency)
        course = _Course(max(TOO_MANY, self.options.api_concurrency))
        self.failures = course.failures
        end: DanluError | None = None
        try:
            for job in jobs:
                if (ready := job.known()) is not None:
                    course.answered += 1
                    yield ready
                    continue
                while crew.full or not self.ledger.hold(job.most):
                    if not crew.waiting:
                        end = self._too_dear(job.key)
                        break
                    yield from course.took(*crew.take())
                if end:
                    break
                if course.hopeless:
                    self.ledger.settle(job.most, None)
                    break
                crew.give(job)
            for finished in crew.all():
                yield from course.took(*finished)
        finally:
            crew.dismiss()
        if error := course.error(self.url) or end:
            raise error

    def _echo(self, value: Any) -> scoring.Echo:
        return scoring.read(value, self.url)

    def _ask(
        self, build: Callable[[], tuple[str, Mapping[str, Any]]], tokens: int, check: Callable[[Any], object]
    ) -> Any:
        """Post, in words that the service accepts, and remember an answer that passes the check."""
        while True:
            path, body = build()
            try:
                value = self._client.post(self.url + path, body, tokens=tokens)
            except RemoteError as error:
                if error.reply is not None and self.dialect.learn(error.reply, body):
                    continue
                raise
            check(value)
            if self.cache is not None and self._cacheable(body):
                self.cache.put(answer_key(self.url + path, body), self.model, value)
            return value

    def _remembered(self, path: str, body: Mapping[str, Any]) -> Any:
        if self.cache is None or not self._cacheable(body):
            return None
        return self.cache.get(answer_key(self.url + path, body))

    def _cacheable(self, body: Mapping[str, Any]) -> bool:
        return wire.repeatable(body) or self.options.answer_cache == "sampled"

    def _texts(self, request: Request, usage: list[Usage]) -> Iterator[str]:
        """The answer so far, again and again, from one stream."""
        while True:
            path, body = wire.body_of(request, self.dialect)
            body = self.dialect.spoken({**body, "stream": True, "stream_options": {"include_usage": True}})
            try:
                yield from self._text_so_far(path, body, request, usage)
                return
            except RemoteError as error:
                if error.reply is None or not self.dialect.learn(error.reply, body):
                    raise

    def _text_so_far(self, path: str, body: Any, request: Request, usage: list[Usage]) -> Iterator[str]:
        text, finish, prompt = "", None, wire.text_of(request)
        for event in self._client.events(self.url + path, body, tokens=request.options.max_new_tokens):
            if not isinstance(event, dict) or "error" in event:
                raise RemoteError(f"the stream says: {event}", where=self.url)
            for choice in event.get("choices") or ():
                piece = (choice.get("delta") or {}).get("content") or choice.get("text") or ""
                finish = choice.get("finish_reason") or finish
                text, stopped = cut_at_stop(text + piece, request.options.stop)
                yield text
                if stopped:
                    finish = "stop"
            usage[:] = [wire.usage_of(event, prompt, text)]
        if finish is None:
            raise Passing("the stream broke off")

    def _most(self, text: str, longest: int) -> float:
        """What a request can cost at most: as many tokens as bytes, with room for the template, and a full answer."""
        price = self.options.price
        return price.of(most_tokens(text) + 64, longest) if price else 0.0

    def _too_dear(self, key: str) -> BudgetError:
        return BudgetError(
            f"the budget of {self.options.budget:g} could be exceeded by the next request ({key!r}); "
            f"{self.ledger.cost or 0:.4f} is spent",
            where=self.url,
            hint="Finished answers are kept: a larger budget and the same command go on with what is missing.",
        )

    def _tell_again(self, text: str) -> None:
        self.retries += 1
        if self.retries <= TOLD:
            warn(text + (" (further ones are only counted)" if self.retries == TOLD else ""))


def _same(body: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    return scoring.PATH, body


class _Course:
    """How one call goes: what is answered, what failed, and whether going on makes sense."""

    def __init__(self, patience: int) -> None:
        self.patience, self.answered, self.failures = patience, 0, dict[str, DanluError]()
        self.hopeless = False

    def took(self, job: Job[ResultT], result: ResultT | Exception) -> Iterator[ResultT]:
        """Yield a result, or keep the failure.

        Raises:
            Exception: whatever is no failure of the service, a defect of danlu for instance.
        """
        if isinstance(result, DanluError):
            self.failures[job.key] = result
            alone = isinstance(result, UsageError) or (isinstance(result, RemoteError) and result.hopeless)
            self.hopeless |= alone or (not self.answered and len(self.failures) >= self.patience)
        elif isinstance(result, Exception):
            raise result
        else:
            self.answered += 1
            yield result

    def error(self, where: str) -> DanluError | None:
        """One error for all failures: the one that ends everything, else the first with their number."""
        if not self.failures:
            return None
        for failure in self.failures.values():
            if isinstance(failure, UsageError) or (isinstance(failure, RemoteError) and failure.hopeless):
                return failure
        key, first = next(iter(self.failures.items()))
        count = len(self.failures)
        told = f"{count} request{'s' if count > 1 else ''} got no answer, {self.answered} did; {key!r}: {first.what}"
        kept = "Finished answers are kept: the same command asks only for what is missing."
        return RemoteError(told, where=first.where or where, hint=f"{first.hint or ''} {kept}".strip())
