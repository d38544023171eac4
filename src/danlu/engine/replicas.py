"""One engine many times, on one machine or many, through Ray.

Requests are handed out in small parts, each replica has one at a time, and results are yielded as parts come back. A
replica that dies is replaced and its part is done again by whoever is free; since an answer depends on its request
alone, the result is that of one engine in this process, in another order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal, Protocol, TypeAlias

from danlu.core.console import note, warn
from danlu.core.errors import DanluError, MissingDependency, ModelError
from danlu.engine.protocol import Completion, Engine, Request, Scored, ScoreRequest

PART = 8
"""Requests of a part: small enough to lose little, large enough for a batch."""

DEATHS = 3
"""Replicas that one part may take with it before it is given up: it is the part that kills them."""

Kind: TypeAlias = Literal["generate", "score"]


class Lost(Exception):
    """A replica died; why, in words."""


@dataclass(slots=True)
class Part:
    """Requests that are answered together.

    Attributes:
        requests: what is asked.
        deaths: replicas that died of it, or with it.
    """

    requests: Sequence[Any]
    deaths: int = 0


class Fleet(Protocol):
    """Where replicas live; :class:`RayFleet` is one, tests have another."""

    def start(self) -> Any:
        """A new replica."""

    def send(self, replica: Any, kind: Kind, requests: Sequence[Any]) -> Any:
        """Give a replica something to do; a ticket for the results."""

    def wait(self, tickets: Sequence[Any]) -> Any:
        """The first of the tickets that is ready."""

    def results(self, ticket: Any) -> list[Any]:
        """Its results.

        Raises:
            Lost: when the replica is no more.
        """

    def stop(self, replicas: Sequence[Any]) -> None:
        """End replicas."""


class ReplicaEngine:
    """Answers with several replicas of an engine.

    Args:
        factory: makes the engine, in the process of each replica; Ray pickles it.
        replicas: how many.
        fleet: where they live; Ray by default: the cluster of ``RAY_ADDRESS``, else one on this machine.

    Raises:
        MissingDependency: without Ray.
    """

    def __init__(self, factory: Callable[[], Engine], replicas: int, *, fleet: Fleet | None = None) -> None:
        self._fleet = fleet or RayFleet(factory, replicas)
        self._idle = deque(self._fleet.start() for _ in range(replicas))

    def __enter__(self) -> ReplicaEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self._fleet.stop(list(self._idle))

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """Yield a completion for every request, in any order.

        Raises:
            DanluError: what a replica's engine raises.
            ModelError: when the same requests end one replica after the other.
        """
        return self._each("generate", requests)

    def score(self, requests: Iterable[ScoreRequest]) -> Iterator[Scored]:
        """Yield scores for every request, in any order; errors as :meth:`generate`."""
        return self._each("score", requests)

    def _each(self, kind: Kind, requests: Iterable[Any]) -> Iterator[Any]:
        waiting = iter(requests)
        again: deque[Part] = deque()
        under_way: dict[Any, tuple[Any, Part]] = {}
        try:
            while True:
                while self._idle and (part := again.popleft() if again else _next_part(waiting)):
                    replica = self._idle.popleft()
                    under_way[self._fleet.send(replica, kind, part.requests)] = (replica, part)
                if not under_way:
                    return
                ticket = self._fleet.wait(list(under_way))
                replica, part = under_way.pop(ticket)
                try:
                    results = self._fleet.results(ticket)
                except Lost as loss:
                    self._mourn(part, str(loss))
                    again.append(part)
                    continue
                self._idle.append(replica)
                yield from results
        finally:
            self._idle.extend(replica for replica, _ in under_way.values())

    def _mourn(self, part: Part, cause: str) -> None:
        part.deaths += 1
        first = part.requests[0].key
        self._idle.append(self._fleet.start())
        if part.deaths >= DEATHS:
            raise ModelError(
                f"{part.deaths} replicas ended while they answered the {len(part.requests)} requests from {first!r} "
                f"({cause})",
                hint="It may be memory: use fewer replicas, or look at these requests with one engine.",
            )
        warn(f"a replica ended; its {len(part.requests)} requests (from {first!r}) are answered again by another")


def _next_part(waiting: Iterator[Any]) -> Part | None:
    requests = list(islice(waiting, PART))
    return Part(requests) if requests else None


class _Replica:
    """What runs in the process of a replica: an engine, loaded when it is first needed."""

    def __init__(self, factory: Callable[[], Engine]) -> None:
        self._factory = factory
        self._engine: Engine | None = None

    def do(self, kind: Kind, requests: Sequence[Any]) -> list[Any] | DanluError:
        """All results of a part, or what the engine refuses."""
        try:
            self._engine = self._engine or self._factory()
            return list(getattr(self._engine, kind)(requests))
        except DanluError as error:
            return DanluError(error.what, where=error.where, hint=error.hint)


class RayFleet:
    """Replicas as Ray actors, each with a GPU where the cluster has some, else with its share of the cores.

    Args:
        factory: makes an engine.
        replicas: how many there will be, to share the cores.
    """

    def __init__(self, factory: Callable[[], Engine], replicas: int) -> None:
        try:
            import ray
        except ImportError as error:
            raise MissingDependency("ray", "to spread requests over replicas", "ray") from error
        self._ray = ray
        if not ray.is_initialized():
            ray.init(include_dashboard=False, log_to_driver=False, logging_level="warning")
        resources = ray.cluster_resources()
        graphics = resources.get("GPU", 0)
        cores = max(int(resources.get("CPU", 1)) // replicas, 1)
        wanted = {"num_gpus": 1} if graphics else {"num_cpus": min(cores, 8)}
        if replicas > (graphics or resources.get("CPU", 1)):
            raise ModelError(
                f"{replicas} replicas need as many {'GPUs' if graphics else 'cores'}, the cluster has "
                f"{graphics or resources.get('CPU', 1):g}",
                hint="Use fewer replicas.",
            )
        self._factory = ray.put(factory)
        self._actor = ray.remote(**wanted, max_restarts=0)(_Replica)
        note(f"{replicas} replicas, {', '.join(f'{name}={count}' for name, count in wanted.items())} each")

    def start(self) -> Any:
        """See :class:`Fleet`."""
        return self._actor.remote(self._factory)

    def send(self, replica: Any, kind: Kind, requests: Sequence[Any]) -> Any:
        """See :class:`Fleet`."""
        return replica.do.remote(kind, requests)

    def wait(self, tickets: Sequence[Any]) -> Any:
        """See :class:`Fleet`."""
        ready, _ = self._ray.wait(list(tickets), num_returns=1)
        return ready[0]

    def results(self, ticket: Any) -> list[Any]:
        """See :class:`Fleet`."""
        known = self._ray.exceptions
        try:
            results = self._ray.get(ticket)
        except (known.RayActorError, known.WorkerCrashedError, known.OutOfMemoryError) as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            raise Lost(lines[-1][:200] if lines else type(error).__name__) from error
        if isinstance(results, DanluError):
            raise results
        return list(results)

    def stop(self, replicas: Sequence[Any]) -> None:
        """See :class:`Fleet`."""
        for replica in replicas:
            self._ray.kill(replica)
