"""Handing out requests to replicas: all are answered once, a dead replica's part again; and Ray where it is there."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from danlu.core.errors import DanluError, MissingDependency, ModelError
from danlu.engine.protocol import Completion, Request, Scored, ScoreRequest
from danlu.engine.replicas import PART, Lost, ReplicaEngine


class Upper:
    """Answers in capitals; ``kill -9``s its process once when it is asked for it."""

    def __init__(self, marker: Path | None = None) -> None:
        self.marker = marker

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        for request in requests:
            if request.prompt == "die" and self.marker is not None and not self.marker.exists():
                self.marker.write_text(str(os.getpid()))
                os.kill(os.getpid(), signal.SIGKILL)
            if request.prompt == "refuse":
                raise ModelError("it does not want to", hint="Ask nicely.")
            yield Completion(request.key, str(request.prompt).upper(), (), "stop", 1)

    def score(self, requests: Iterable[ScoreRequest]) -> Iterator[Scored]:
        for request in requests:
            yield Scored(request.key, tuple(-float(len(c)) for c in request.continuations), (1,), (True,), 1)


class Here:
    """A fleet in this process: the last ticket is ready first, and chosen tickets are lost."""

    def __init__(self, lost: Sequence[int] = ()) -> None:
        self.lost, self.sent, self.started, self.busy = set(lost), 0, 0, set[int]()
        self.stopped: list[Any] = []

    def start(self) -> int:
        self.started += 1
        return self.started

    def send(self, replica: int, kind: Any, requests: Sequence[Any]) -> tuple[int, int, Any, tuple[Any, ...]]:
        assert replica not in self.busy, "one part at a time"
        self.busy.add(replica)
        self.sent += 1
        return (self.sent, replica, kind, tuple(requests))

    def wait(self, tickets: Sequence[Any]) -> Any:
        return tickets[-1]

    def results(self, ticket: Any) -> list[Any]:
        number, replica, kind, requests = ticket
        self.busy.discard(replica)
        if number in self.lost:
            raise Lost("it was hit")
        return list(getattr(Upper(), kind)(requests))

    def stop(self, replicas: Sequence[Any]) -> None:
        self.stopped += replicas


def asked(count: int) -> list[Request]:
    return [Request(str(n), f"text {n}") for n in range(count)]


def test_every_request_is_answered_once() -> None:
    requests, fleet = asked(5 * PART + 3), Here()
    with ReplicaEngine(Upper, 3, fleet=fleet) as engine:
        found = list(engine.generate(requests))
        scores = list(engine.score([ScoreRequest(str(n), "a", ("bc",)) for n in range(20)]))
    assert sorted(found, key=lambda item: int(item.key)) == list(Upper().generate(requests))
    assert sorted(int(item.key) for item in scores) == list(range(20))
    assert fleet.started == 3
    assert sorted(fleet.stopped) == [1, 2, 3]


def test_a_dead_replicas_part_is_done_again(capsys: pytest.CaptureFixture[str]) -> None:
    requests, fleet = asked(4 * PART), Here(lost=[2, 5])
    with ReplicaEngine(Upper, 2, fleet=fleet) as engine:
        found = list(engine.generate(requests))
    assert sorted(int(item.key) for item in found) == list(range(4 * PART))
    assert fleet.started == 4
    assert capsys.readouterr().err.count("a replica ended") == 2


def test_requests_that_kill_replicas_are_named() -> None:
    with (
        pytest.raises(ModelError, match="3 replicas ended while they answered the 2 requests from '0'.*it was hit"),
        ReplicaEngine(Upper, 1, fleet=Here(lost=range(100))) as engine,
    ):
        list(engine.generate(asked(2)))


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingDependency, match=r"danlu\[ray\]"):
        ReplicaEngine(Upper, 2)


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    module = pytest.importorskip("ray", reason="Ray is not installed (the extra ray)")
    module.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    module.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers do not know this file
    yield module
    module.shutdown()


def test_real_replicas_survive_kill_9(ray: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    marker = tmp_path / "died"
    requests = [*asked(3 * PART), Request("last", "die"), *(Request(f"b{n}", "x") for n in range(PART))]
    with ReplicaEngine(lambda: Upper(marker), 2) as engine:
        found = {item.key: item for item in engine.generate(requests)}
        with pytest.raises(DanluError, match="it does not want to. Ask nicely"):
            list(engine.generate([Request("r", "refuse")]))
    assert int(marker.read_text()) != os.getpid()
    assert found == {item.key: item for item in Upper().generate(requests)}
    assert "a replica ended" in capsys.readouterr().err


def test_more_replicas_than_cores_are_refused(ray: Any) -> None:
    with pytest.raises(ModelError, match="3 replicas need as many cores, the cluster has 2"):
        ReplicaEngine(Upper, 3)
