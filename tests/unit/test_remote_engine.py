"""A model behind a URL: what is sent, what comes back, and everything a service can do wrong."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from openai_server import WAIT, Said, Service, chat, echo, failed, question, stream

from danlu.core.errors import UsageError
from danlu.data.schema import Conversation, Message, ToolCall
from danlu.engine.options import EngineOptions
from danlu.engine.protocol import GenerationOptions, Request
from danlu.engine.remote.cache import AnswerCache
from danlu.engine.remote.engine import RemoteEngine
from danlu.engine.remote.failures import BudgetError, RemoteError
from danlu.engine.remote.pace import Clock

KEY = "sk-test-0123456789"


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    service = Service()
    yield service
    service.close()


@pytest.fixture
def slept() -> list[float]:
    return []


@pytest.fixture
def engine(service: Service, slept: list[float], tmp_path: Path) -> Callable[..., RemoteEngine]:
    def made(**options: Any) -> RemoteEngine:
        told = EngineOptions(**{"api": service.url, "api_timeout": 10, **options})
        clock = Clock(now=lambda: sum(slept), sleep=slept.append)
        return RemoteEngine("m", told, clock=clock, cache=AnswerCache(tmp_path / "answers.sqlite"))

    return made


def ask(*texts: str, **options: Any) -> list[Request]:
    given = GenerationOptions(**options)
    return [Request(text, Conversation((Message("user", text),)), given) for text in texts]


def test_answers_come_back_by_key(service: Service, engine: Callable[..., RemoteEngine]) -> None:
    found = {item.key: item for item in engine().generate(ask("一", "two", "three"))}
    assert {key: item.text for key, item in found.items()} == {"一": "一!", "two": "two!", "three": "three!"}
    assert found["two"].finish_reason == "stop"
    assert found["two"].prompt_tokens == 7
    assert set(service.paths) == {"/v1/chat/completions"}
    assert service.headers[0]["Authorization"] == f"Bearer {KEY}"


def test_options_as_the_service_reads_them(service: Service, engine: Callable[..., RemoteEngine]) -> None:
    list(engine().generate(ask("greedy", max_new_tokens=9)))
    assert service.bodies[0] == {
        "model": "m",
        "messages": [{"role": "user", "content": "greedy"}],
        "max_tokens": 9,
        "temperature": 0.0,
    }
    sampled = {"do_sample": True, "temperature": 0.5, "top_p": 0.9, "top_k": 5, "repetition_penalty": 1.1}
    list(engine().generate(ask("a", "b", **sampled, stop=("x", "y", "z", "u", "b!"))))
    first, second = sorted(service.bodies[1:], key=question)
    assert {first[name] for name in ("temperature", "top_p", "top_k", "repetition_penalty")} == {0.5, 0.9, 5, 1.1}
    assert first["stop"] == ["x", "y", "z", "u"]
    assert first["seed"] != second["seed"], "the key is part of the seed: other requests draw other numbers"


def test_the_fifth_stop_text_is_cut_off_here(engine: Callable[..., RemoteEngine]) -> None:
    (found,) = engine().generate(ask("abcd", stop=("v", "w", "x", "y", "c")))
    assert found.text == "ab"


def test_beams_are_said_to_be_left_out(engine: Callable[..., RemoteEngine], capsys: pytest.CaptureFixture[str]) -> None:
    list(engine().generate(ask("a", "b", num_beams=2)))
    assert capsys.readouterr().err.count("searches no beams") == 1


def test_tools_and_their_results_are_tied_together(service: Service, engine: Callable[..., RemoteEngine]) -> None:
    calls = [{"id": "c", "function": {"name": "add", "arguments": '{"a": 1}'}, "type": "function"}]
    service.answer = lambda _: chat("", tool_calls=calls, finish="tool_calls")
    turns = (
        Message("user", "1+1?"),
        Message("assistant", "", (ToolCall("add", '{"a": 1}'),)),
        Message("tool", "2"),
    )
    (found,) = engine().generate([Request("k", Conversation(turns, ('{"name": "add"}',)))])
    sent = service.bodies[0]
    assert sent["messages"][1]["tool_calls"][0]["id"] == sent["messages"][2]["tool_call_id"]
    assert sent["tools"] == [{"type": "function", "function": {"name": "add"}}]
    assert found.text == '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'


def test_texts_and_ids_go_to_completions(service: Service, engine: Callable[..., RemoteEngine]) -> None:
    service.answer = lambda body: Said(body='{"choices": [{"text": " world", "finish_reason": "length"}]}')
    found = {item.key: item for item in engine().generate([Request("t", "hello"), Request("i", (1, 2))])}
    assert set(service.paths) == {"/v1/completions"}
    assert sorted((body["prompt"] for body in service.bodies), key=str) == [[1, 2], "hello"]
    assert found["t"].finish_reason == "length"
    assert found["t"].text == " world"


def test_as_many_at_a_time_as_allowed(service: Service, engine: Callable[..., RemoteEngine]) -> None:
    together = threading.Barrier(3)

    def meet(body: Any) -> Said:
        together.wait(WAIT)
        return echo(body)

    service.answer = meet
    found = list(engine(api_concurrency=3).generate(ask(*map(str, range(9)))))
    assert len(found) == 9
    assert service.most_under_way == 3


@pytest.mark.parametrize("trouble", [failed(429, "slow"), failed(503, "loading"), failed(408, "late"), Said(0)])
def test_what_may_pass_is_asked_again(
    trouble: Said, service: Service, engine: Callable[..., RemoteEngine], slept: list[float]
) -> None:
    service.answer = lambda body: trouble if len(service.bodies) <= 2 else echo(body)
    (found,) = engine().generate(ask("a"))
    assert found.text == "a!"
    assert len(slept) == 2
    assert 0.5 <= slept[0] <= 0.75
    assert 1.0 <= slept[1] <= 1.5


def test_half_an_answer_is_asked_again(service: Service, engine: Callable[..., RemoteEngine]) -> None:
    service.answer = lambda body: Said(body="{", cut=True) if len(service.bodies) == 1 else echo(body)
    assert [item.text for item in engine().generate(ask("a"))] == ["a!"]


def test_the_wait_that_a_service_wants_is_kept(
    service: Service, engine: Callable[..., RemoteEngine], slept: list[float]
) -> None:
    busy = failed(429, "slow", {"Retry-After": "17"})
    service.answer = lambda body: busy if len(service.bodies) == 1 else echo(body)
    list(engine().generate(ask("a")))
    assert slept == [17.0]
    busy.headers["Retry-After"] = "86400"
    service.answer = lambda body: busy
    with pytest.raises(RemoteError, match="left alone for 86400 s"):
        list(engine().generate(ask("b")))


def test_a_slow_service(service: Service, engine: Callable[..., RemoteEngine]) -> None:
    waiting = threading.Event()
    service.answer = lambda body: chat("late") if waiting.wait(WAIT) else Said(500)
    with pytest.raises(RemoteError, match=r"timed out.*asked 2 times"):
        list(engine(api_timeout=0.05, api_retries=1).generate(ask("a")))
    waiting.set()


@pytest.mark.parametrize(
    ("trouble", "message"),
    [
        (failed(401, f"wrong key {KEY}"), "answered 401: wrong key ….*environment variable OPENAI_API_KEY"),
        (failed(403, "no"), "answered 403: no. The key in OPENAI_API_KEY may not use the model m"),
        (failed(404, "no model"), "answered 404: no model. Check the address"),
        (failed(429, "pay", code="insufficient_quota"), "no credit left"),
        (Said(307, headers={"Location": "http://elsewhere"}), "answered 307.*the address that it points to"),
    ],
)
def test_what_never_passes_ends_the_asking(
    trouble: Said, message: str, service: Service, engine: Callable[..., RemoteEngine]
) -> None:
    service.answer = lambda body: trouble
    with pytest.raises(RemoteError, match=message) as caught:
        list(engine(api_concurrency=1).generate(ask(*map(str, range(50)))))
    assert str(caught.value).startswith(service.url)
    assert KEY not in str(caught.value)
    assert len(service.bodies) <= 2


@pytest.mark.parametrize(
    ("trouble", "message"),
    [
        (failed(400, "too long"), "answered 400: too long"),
        (failed(500, "oops"), "answered 500: oops. It was asked 2 times"),
        (Said(body="<html>"), "not JSON: <html>"),
        (Said(body='{"choices": [{}]}'), "not the shape of a completion"),
        (Said(body="[1]"), "not the shape of a completion"),
    ],
)
def test_the_others_go_on(trouble: Said, message: str, service: Service, engine: Callable[..., RemoteEngine]) -> None:
    service.answer = lambda body: trouble if question(body) == "bad" else echo(body)
    asking = engine(api_retries=1)
    found = []
    with pytest.raises(RemoteError, match=f"1 request got no answer, 3 did; 'bad': .*{message}.*only for what is"):
        found.extend(item.text for item in asking.generate(ask("a", "bad", "b", "c")))
        pytest.fail("the generator has to raise while it is read")
    again = engine(api_retries=1)
    service.answer, before = echo, len(service.bodies)
    assert sorted(item.text for item in again.generate(ask("a", "bad", "b", "c"))) == ["a!", "b!", "bad!", "c!"]
    assert len(service.bodies) == before + 1, "the others are remembered"
    assert list(asking.failures) == ["bad"]


def test_a_service_that_is_gone_is_not_asked_ten_thousand_times(
    service: Service, engine: Callable[..., RemoteEngine]
) -> None:
    service.answer = lambda body: failed(500, "oops")
    with pytest.raises(RemoteError, match="got no answer, 0 did"):
        list(engine(api_retries=0, api_concurrency=2).generate(ask(*map(str, range(10_000)))))
    assert len(service.bodies) < 20


def test_words_that_a_service_does_not_know(
    service: Service, engine: Callable[..., RemoteEngine], capsys: pytest.CaptureFixture[str]
) -> None:
    def picky(body: Any) -> Said:
        if "max_tokens" in body:
            return failed(400, "Use 'max_completion_tokens'.", param="max_tokens", code="unsupported_parameter")
        if "top_k" in body:
            return failed(400, "Unrecognized request argument supplied: top_k")
        return echo(body)

    service.answer = picky
    found = list(engine(api_concurrency=1).generate(ask("a", "b", do_sample=True, top_k=5, max_new_tokens=3)))
    assert [item.text for item in found] == ["a!", "b!"]
    assert service.bodies[-1]["max_completion_tokens"] == 3
    assert len(service.bodies) == 4, "it is learnt once"
    assert capsys.readouterr().err.count("does not accept top_k") == 1


def test_a_budget_is_never_exceeded(service: Service, engine: Callable[..., RemoteEngine]) -> None:
    service.answer = lambda body: chat("x", usage=(100_000, 10))
    asking = engine(price_in=1.0, price_out=10_000.0, budget=1.0, api_concurrency=2)
    found = []
    with pytest.raises(BudgetError, match="budget of 1 could be exceeded"):
        for item in asking.generate(ask(*map(str, range(50)), max_new_tokens=20)):
            found.append(item)
    assert 1 <= len(found) < 50
    assert asking.ledger.cost == pytest.approx(len(found) * 0.2)
    assert asking.ledger.cost <= 1.0


def test_a_stream_in_pieces(service: Service, engine: Callable[..., RemoteEngine]) -> None:
    service.answer = lambda body: stream("你", "好", "!")
    asking = engine()
    assert list(asking.stream(ask("a")[0].prompt)) == ["你", "好", "!"]
    assert (asking.ledger.prompt, asking.ledger.answer) == (5, 3)
    assert service.bodies[0]["stream_options"] == {"include_usage": True}


def test_a_stream_that_breaks_off_goes_on(service: Service, engine: Callable[..., RemoteEngine]) -> None:
    service.answer = lambda body: (
        stream("one ", "two ", done=False) if len(service.bodies) == 1 else stream("one two three")
    )
    assert "".join(engine().stream(ask("a")[0].prompt)) == "one two three"
    service.answer = lambda body: stream("one ", done=False) if len(service.bodies) == 3 else stream("another")
    with pytest.raises(RemoteError, match="the new answer is another"):
        list(engine().stream(ask("a")[0].prompt))


def test_the_summary_says_what_it_took(engine: Callable[..., RemoteEngine], capsys: pytest.CaptureFixture[str]) -> None:
    asking = engine(price_in=1.0, price_out=2.0)
    list(asking.generate(ask("a")))
    list(asking.generate(ask("a")))
    asking.close()
    told = capsys.readouterr().err.replace("\n", " ")
    assert "m: 1 answers, 7 tokens in, 3 out; 1 more from the cache; cost 0.0000" in told


def test_an_estimate_asks_nothing(service: Service, engine: Callable[..., RemoteEngine]) -> None:
    told = engine(price_in=1.0, price_out=1.0).estimate(ask("a" * 400, max_new_tokens=50))
    assert told.requests == 1
    assert 100 <= told.prompt <= 120
    assert told.answer == 50
    assert told.cost == pytest.approx((told.prompt + 50) / 1e6)
    assert not service.bodies


def test_wrong_use_is_said() -> None:
    with pytest.raises(UsageError, match="no address"):
        RemoteEngine("m", EngineOptions())
    with pytest.raises(UsageError, match="no address of a service"):
        RemoteEngine("m", EngineOptions(api="ftp://host"))
    with pytest.raises(UsageError, match="end up in logs") as caught:
        RemoteEngine("m", EngineOptions(api="http://me:secret@host/v1"))
    assert "secret" not in str(caught.value)
    with pytest.raises(UsageError, match="DANLU_TEST_KEY is empty"):
        RemoteEngine("m", EngineOptions(api="http://host/v1", api_key_env="DANLU_TEST_KEY"))
    with pytest.raises(ValueError, match="a budget needs the prices"):
        EngineOptions(budget=1)
