"""The parts of the remote engine: remembered answers, pace, counting, and log-likelihoods."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from openai_server import Said, Service, chat

from danlu.core.errors import UsageError
from danlu.data.schema import Conversation, Message
from danlu.engine.options import EngineOptions
from danlu.engine.protocol import GenerationOptions, Request, ScoreRequest
from danlu.engine.remote.cache import AnswerCache, answer_key
from danlu.engine.remote.engine import RemoteEngine
from danlu.engine.remote.failures import RemoteError
from danlu.engine.remote.ledger import Ledger, Price, Usage, guess_tokens, most_tokens
from danlu.engine.remote.pace import Clock, Pace, retry_after


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    service = Service()
    yield service
    service.close()


def scorer(service: Service, tmp_path: Path, **options: Any) -> RemoteEngine:
    given = EngineOptions(**{"api": service.url, "api_retries": 0, **options})
    return RemoteEngine("m", given, cache=AnswerCache(tmp_path / "answers.sqlite"))


def letters(body: Any) -> Said:
    """A model whose tokens are letters (but ``ab`` is one token): −1 for each, the likeliest except ``x``."""
    text = body["prompt"]
    tokens = list(text.replace("ab", "\0"))
    tokens = [token.replace("\0", "ab") for token in tokens]
    top = [None, *({token: -1.0} | ({"z": -0.5} if token == "x" else {}) for token in tokens[1:])]
    shown = {
        "tokens": [*tokens, "w"],
        "token_logprobs": [None, *[-1.0] * len(tokens)],
        "top_logprobs": [*top, {"w": -1.0}],
    }
    usage = {"prompt_tokens": len(tokens), "completion_tokens": 1}
    return Said(body=json.dumps({"choices": [{"text": text + "w", "logprobs": shown}], "usage": usage}))


def test_continuations_are_scored(service: Service, tmp_path: Path) -> None:
    service.answer = letters
    engine = scorer(service, tmp_path)
    (found,) = engine.score([ScoreRequest("k", "so:", (" y", " xyy"), per_token=True)])
    assert found.log_probs == (-2.0, -4.0)
    assert found.tokens == (2, 4)
    assert found.greedy == (True, False)
    assert found.prompt_tokens == 3
    assert found.per_token == ((-1.0,) * 2, (-1.0,) * 4)
    assert service.bodies[0] == {
        "model": "m",
        "prompt": "so:",
        "max_tokens": 1,
        "temperature": 0.0,
        "echo": True,
        "logprobs": 1,
    }
    asked = len(service.bodies)
    (again,) = scorer(service, tmp_path).score([ScoreRequest("k", "so:", (" y", " xyy"))])
    assert again.log_probs == (-2, -4)
    assert len(service.bodies) == asked, "all of it is remembered"


def test_tokens_that_merge_across_the_seam_count(service: Service, tmp_path: Path) -> None:
    service.answer = letters
    (found,) = scorer(service, tmp_path).score([ScoreRequest("k", "so a", ("b", "c"))])
    assert found.tokens == (1, 2), "the token ab, and a with c: both measured behind the space"


def test_what_a_service_does_not_show(service: Service, tmp_path: Path) -> None:
    service.answer = lambda body: chat("hi")
    engine = scorer(service, tmp_path)
    with pytest.raises(UsageError, match=r"shows no log-probabilities.*ask for answers instead"):
        list(engine.score([ScoreRequest("k", "so", ("x",))]))
    shown = {"tokens": ["w"], "token_logprobs": [-1.0], "top_logprobs": [{"w": -1.0}]}
    usage = {"prompt_tokens": 4, "completion_tokens": 1}
    service.answer = lambda body: Said(body=json.dumps({"choices": [{"text": "w", "logprobs": shown}], "usage": usage}))
    with pytest.raises(UsageError, match="does not echo"):
        list(engine.score([ScoreRequest("k", "so", ("x",))]))
    with pytest.raises(UsageError, match="plain text only"):
        list(engine.score([ScoreRequest("k", Conversation((Message("user", "x"),)), ("x",))]))
    service.answer = letters
    with pytest.raises(RemoteError, match="first token of a text no log-probability"):
        list(engine.score([ScoreRequest("k", "", ("x", "y"))]))


def test_sampled_answers_are_remembered_by_their_seed(service: Service, tmp_path: Path) -> None:
    drawn = GenerationOptions(do_sample=True)
    request = Request("k", Conversation((Message("user", "q"),)), drawn)
    first, second = scorer(service, tmp_path), scorer(service, tmp_path)
    list(first.generate([request]))
    list(second.generate([request]))
    assert len(service.bodies) == 1
    list(scorer(service, tmp_path, answer_cache="off").generate([request]))
    assert len(service.bodies) == 2

    def seedless(body: Any) -> Said:
        error = {"error": {"message": "seed is not supported", "param": "seed"}}
        return Said(400, json.dumps(error)) if "seed" in body else chat("x")

    service.answer = seedless
    other = Request("k", Conversation((Message("user", "other"),)), drawn)
    asking = scorer(service, tmp_path)
    list(asking.generate([other]))
    before = len(service.bodies)
    list(asking.generate([other]))
    assert len(service.bodies) == before + 1, "without a seed it is asked again"
    asking = scorer(service, tmp_path, answer_cache="sampled")
    list(asking.generate([other]))
    before = len(service.bodies)
    list(asking.generate([other]))
    assert len(service.bodies) == before, "unless it is wanted"


def test_the_key_is_never_written(service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "secret-in-memory")
    engine = scorer(service, tmp_path, api_key_env="MY_KEY")
    list(engine.generate([Request("k", Conversation((Message("user", "q"),)))]))
    assert service.headers[0]["Authorization"] == "Bearer secret-in-memory"
    assert all(b"secret-in-memory" not in path.read_bytes() for path in tmp_path.iterdir())


def test_the_key_of_an_answer_is_all_that_was_asked() -> None:
    base = answer_key("http://a/v1", {"model": "m", "temperature": 0})
    assert base == answer_key("http://a/v1", {"temperature": 0, "model": "m"})
    others = [("http://b/v1", {"model": "m", "temperature": 0}), ("http://a/v1", {"model": "n", "temperature": 0})]
    assert base not in {answer_key(*other) for other in others}


def test_the_least_used_answers_go_first(tmp_path: Path) -> None:
    cache = AnswerCache(tmp_path / "a.sqlite", limit=30)
    for number in range(5):
        cache.put(str(number), "m", "12345678")
    cache.get("0")
    assert cache.size() == (5, 50)
    assert cache.prune() == 2
    assert [cache.get(str(number)) is not None for number in range(5)] == [True, False, False, True, True]
    cache.close()


def test_several_processes_remember_into_one_file(tmp_path: Path) -> None:
    path = tmp_path / "a.sqlite"
    code = (
        "import sys; from pathlib import Path; from danlu.engine.remote.cache import AnswerCache\n"
        "cache = AnswerCache(Path(sys.argv[1]))\n"
        "for n in range(50): cache.put(f'{sys.argv[2]}-{n}', 'm', n)"
    )
    running = [subprocess.Popen([sys.executable, "-c", code, str(path), name]) for name in "ab"]
    assert [process.wait() for process in running] == [0, 0]
    assert AnswerCache(path).size()[0] == 100


def test_a_damaged_file_is_said_and_not_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.sqlite"
    path.write_bytes(b"this is no database" * 100)
    cache = AnswerCache(path)
    cache.put("k", "m", 1)
    assert cache.get("k") is None
    assert capsys.readouterr().err.count("answers are not remembered") == 1


class Time:
    def __init__(self) -> None:
        self.now = 0.0
        self.clock = Clock(lambda: self.now, self.sleep)

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_requests_a_minute() -> None:
    time = Time()
    pace = Pace(requests=60, clock=time.clock)
    for _ in range(60):
        pace.enter(0)
    assert time.now == 0
    pace.enter(0)
    assert time.now == pytest.approx(1.0)
    time.now += 3600
    for _ in range(61):
        pace.enter(0)
    assert time.now == pytest.approx(3602.0), "a pause saves up no more than a minute's worth"


def test_tokens_a_minute() -> None:
    time = Time()
    pace = Pace(tokens=600, clock=time.clock)
    pace.enter(500)
    pace.enter(200)
    assert time.now == pytest.approx(10.0)
    pace.enter(5000)
    assert time.now == pytest.approx(70.0), "one that is larger than the limit goes when the bucket is full"


def test_a_pause_is_for_everybody() -> None:
    time = Time()
    pace = Pace(clock=time.clock)
    pace.hold(30)
    pace.enter(1)
    assert time.now == pytest.approx(30.0)


def test_retry_after_in_seconds_or_as_a_date() -> None:
    now = 1_800_000_000.0
    date = format_datetime(datetime.fromtimestamp(now + 40, UTC), usegmt=True)
    assert [retry_after(text, now) for text in ("12", "-3", date, "soon", None)] == [12.0, 0.0, 40.0, None, None]


def test_a_ledger_adds_up() -> None:
    ledger = Ledger("m", Price(2.0, 10.0), budget=1.0)
    assert ledger.hold(0.6)
    assert not ledger.hold(0.6)
    ledger.settle(0.6, Usage(100_000, 10_000, guessed=True))
    assert ledger.cost == pytest.approx(0.3)
    assert ledger.hold(0.6)
    assert "cost 0.3000 of 1; tokens of 1 guessed" in ledger.summary()
    assert Ledger("m").cost is None


def test_tokens_are_guessed_and_bounded() -> None:
    assert guess_tokens("a" * 40 + "你好") == 12
    assert most_tokens("a你") == 4
    assert math.isfinite(guess_tokens(""))
