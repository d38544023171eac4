"""A stand-in for a service that speaks OpenAI's protocol, in a thread; it answers what a test tells it to."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

WAIT = 20.0
"""Most seconds that a test waits for another thread; never reached when all is well."""


@dataclass
class Said:
    """One answer: a status, a body, headers; ``cut`` promises more than it sends, status 0 hangs up."""

    status: int = 200
    body: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    cut: bool = False


def chat(text: str, *, finish: str = "stop", usage: tuple[int, int] | None = (7, 3), **message: Any) -> Said:
    choice = {"message": {"role": "assistant", "content": text, **message}, "finish_reason": finish}
    value: dict[str, Any] = {"choices": [choice]}
    if usage:
        value["usage"] = {"prompt_tokens": usage[0], "completion_tokens": usage[1]}
    return Said(body=json.dumps(value))


def failed(status: int, message: str, headers: dict[str, str] | None = None, **more: Any) -> Said:
    return Said(status, json.dumps({"error": {"message": message, **more}}), headers or {})


def stream(*pieces: str, done: bool = True) -> Said:
    events = [{"choices": [{"delta": {"content": piece}, "finish_reason": None}]} for piece in pieces]
    if done:
        events.append({"choices": [{"delta": {}, "finish_reason": "stop"}]})
        events.append({"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": len(pieces)}})
    lines = [f"data: {json.dumps(event)}\n\n" for event in events]
    return Said(body="".join([": hello\n", *lines, "data: [DONE]\n\n" if done else ""]), cut=not done)


def question(body: Any) -> str:
    return str(body["messages"][-1]["content"])


def echo(body: Any) -> Said:
    """Answer a conversation with its last words."""
    return chat(f"{question(body)}!")


class Quiet(ThreadingHTTPServer):
    def handle_error(self, *_: Any) -> None:
        """A client that hangs up is part of a test."""


class Service:
    """Answers each request by ``answer(body)``; keeps what it was sent and how much was under way at once."""

    def __init__(self, answer: Callable[[Any], Said] = echo) -> None:
        self.answer = answer
        self.bodies: list[Any] = []
        self.paths: list[str] = []
        self.headers: list[Any] = []
        self.under_way = self.most_under_way = 0
        self.lock = threading.Lock()
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with owner.lock:
                    owner.bodies.append(body)
                    owner.paths.append(self.path)
                    owner.headers.append(self.headers)
                    owner.under_way += 1
                    owner.most_under_way = max(owner.most_under_way, owner.under_way)
                try:
                    said = owner.answer(body)
                finally:
                    with owner.lock:
                        owner.under_way -= 1
                self.say(said)

            def say(self, said: Said) -> None:
                if not said.status:
                    self.connection.close()
                    return
                data = said.body.encode()
                self.send_response(said.status)
                for name, value in said.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data) + 100 * said.cut))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                pass

        self.http = Quiet(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/v1"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()
