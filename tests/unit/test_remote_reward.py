"""A scoring server: what it is sent, and everything that it can do wrong."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from danlu.data.schema import Conversation, Message
from danlu.tune.online.remote_reward import RemoteReward
from danlu.tune.online.samples import RewardError, Sample

SAMPLES = [
    Sample(Conversation((Message("user", f"第{n}问"),)), answer, reference)
    for n, (answer, reference) in enumerate([("一", "one"), ("二二", None), ("", "x")])
]
Reply = tuple[int, str]


class Quiet(ThreadingHTTPServer):
    def handle_error(self, *_: Any) -> None:
        """A client that does not wait for the answer is part of the test."""


class Server:
    """Answers requests with one reply after the other, the last one for ever; keeps what it was sent."""

    def __init__(self) -> None:
        self.replies: list[Reply | Callable[[Any], Reply]] = []
        self.bodies: list[Any] = []
        self.headers: list[Any] = []
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                owner.bodies.append(body)
                owner.headers.append(self.headers)
                reply = owner.replies.pop(0) if len(owner.replies) > 1 else owner.replies[0]
                status, text = reply(body) if callable(reply) else reply
                if not status:  # hang up
                    self.connection.close()
                    return
                self.send_response(status)
                if 300 <= status < 400:
                    self.send_header("Location", "/elsewhere")
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *_: Any) -> None:
                pass

        self.http = Quiet(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/score"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "DANLU_REWARD_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()


def lengths(body: Any) -> Reply:
    return 200, json.dumps({"scores": [len(answer) for answer in body["answers"]]})


def test_scores_come_back_in_order_batch_by_batch(server: Server) -> None:
    server.replies = [lengths]
    assert RemoteReward(server.url, batch_size=2).score(SAMPLES) == [1.0, 2.0, 0.0]
    assert server.bodies == [
        {
            "prompts": [[{"role": "user", "content": "第0问"}], [{"role": "user", "content": "第1问"}]],
            "answers": ["一", "二二"],
            "references": ["one", None],
        },
        {"prompts": [[{"role": "user", "content": "第2问"}]], "answers": [""], "references": ["x"]},
    ]
    assert "Authorization" not in server.headers[0]


def test_the_token_comes_from_the_environment(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.replies = [lengths]
    monkeypatch.setenv("DANLU_REWARD_TOKEN", "secret")
    RemoteReward(server.url).score(SAMPLES)
    assert server.headers[0]["Authorization"] == "Bearer secret"


def test_a_server_that_fails_for_a_while_is_asked_again(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    server.replies = [(503, "loading"), (0, ""), (429, "slow down"), lengths]
    slept: list[float] = []
    assert RemoteReward(server.url, wait=0.5, sleep=slept.append).score(SAMPLES) == [1.0, 2.0, 0.0]
    assert slept == [0.5, 1.0, 2.0]
    told = capsys.readouterr().err
    assert "the server answered 503: loading; asking again in 0.5 s" in told
    assert told.count("warning") == 3


def test_a_server_that_keeps_failing_ends_the_run(server: Server) -> None:
    server.replies = [(500, "oh\n no")]
    with pytest.raises(RewardError, match=r"/score: the server answered 500: oh no\. It was asked 3 times"):
        RemoteReward(server.url, retries=2, sleep=lambda _: None).score(SAMPLES)
    assert len(server.bodies) == 3


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ((401, "who are you"), "answered 401: who are you. Set DANLU_REWARD_TOKEN"),
        ((404, ""), "answered 404: nothing. Check the path"),
        ((422, "bad"), "answered 422: bad"),
        ((307, ""), "answered 307.*the address that it points to"),
        ((200, "<html>"), "not JSON: <html>"),
        ((200, '{"rewards": []}'), 'has no scores: {"rewards": '),
        ((200, "[1, 2, 3]"), "has no scores"),
        ((200, '{"scores": [1]}'), "returned 1 numbers for 3 answers"),
        ((200, '{"scores": [1, NaN, 2]}'), "returned nan for answer 1 .*二二"),
        ((200, '{"scores": [1, null, 2]}'), "returned None for answer 1"),
        ((200, '{"scores": 3}'), "returned a number instead of a list"),
    ],
)
def test_a_wrong_answer_is_said_at_once(reply: Reply, message: str, server: Server) -> None:
    server.replies = [reply]
    with pytest.raises(RewardError, match=message) as caught:
        RemoteReward(server.url, sleep=lambda _: None).score(SAMPLES)
    assert str(caught.value).startswith(server.url)
    assert len(server.bodies) == 1


def test_nobody_there(server: Server) -> None:
    server.http.server_close()
    with pytest.raises(RewardError, match=r"gave no answer \(.*refused.*asked 2 times"):
        RemoteReward(server.url, retries=1, sleep=lambda _: None).score(SAMPLES)


def test_a_server_that_is_too_slow(server: Server) -> None:
    waiting = threading.Event()
    server.replies = [lambda body: (200, "{}") if waiting.wait(20) else (500, "")]
    with pytest.raises(RewardError, match="timed out"):
        RemoteReward(server.url, timeout=0.05, retries=0).score(SAMPLES)
    waiting.set()
