"""One run of one side: start the process, watch its memory, and read its step log."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

POLL = 0.1
"""Seconds between two looks at a process's memory."""


class RunFailed(Exception):
    """A measured process ended with an error."""


@dataclass(frozen=True, slots=True)
class Child:
    """A finished process: when it started (unix seconds), how long it took, and the most memory it held, in bytes.

    ``peak`` is the larger of the process's own high-water mark (resident memory) and the sum over it and its
    children at any look; 0 where there is no /proc.
    """

    started: float
    seconds: float
    peak: int


@dataclass(frozen=True, slots=True)
class StepLog:
    """What a training wrote about itself: when it began and when each optimizer step was done (unix seconds)."""

    began: float
    times: tuple[float, ...]
    losses: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Counted:
    """Tokens of some sequences or steps: real ones (no padding), and those whose loss is trained."""

    tokens: int
    supervised: int


def run_child(command: Sequence[str], environment: Mapping[str, str], log: Path) -> Child:
    """Run a command to its end.

    Args:
        command: the program and its words.
        environment: the whole environment.
        log: file for everything it prints.

    Raises:
        RunFailed: with the last lines of the log.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as stream:
        started, peak = time.time(), 0
        child = subprocess.Popen(command, env=dict(environment), stdout=stream, stderr=subprocess.STDOUT)
        try:
            while child.poll() is None:
                peak = max(peak, memory(child.pid))
                time.sleep(POLL)
        finally:
            if child.poll() is None:
                child.kill()
                child.wait()
    if child.returncode:
        tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:])
        raise RunFailed(f"{' '.join(command[:4])} … ended with {child.returncode} ({log}):\n{tail}")
    return Child(started, time.time() - started, peak)


def memory(process: int) -> int:
    """Bytes of memory: the process's high-water mark, or what it and its children share out now if that is more.

    Pages that several processes share (after a fork) are counted once: proportional set sizes are summed.
    """
    own = status(process).get("VmHWM", 0)
    waiting = _children(process)
    if not waiting:
        return own
    family = _proportional(process)
    while waiting:
        member = waiting.pop()
        family += _proportional(member)
        waiting.extend(_children(member))
    return max(own, family)


def _proportional(process: int) -> int:
    try:
        text = Path(f"/proc/{process}/smaps_rollup").read_text(encoding="utf-8")
    except OSError:
        return 0
    return parse_status(text).get("Pss", 0)


def status(process: int | str) -> dict[str, int]:
    """``VmRSS`` and ``VmHWM`` of a process in bytes; empty when it is gone or there is no /proc."""
    try:
        text = Path(f"/proc/{process}/status").read_text(encoding="utf-8")
    except OSError:
        return {}
    return parse_status(text)


def parse_status(text: str) -> dict[str, int]:
    """Read the sizes of a /proc status or smaps_rollup file, in bytes."""
    values = {}
    for line in text.splitlines():
        name, _, rest = line.partition(":")
        if name in ("VmRSS", "VmHWM", "Pss"):
            values[name] = int(rest.split()[0]) * 1024
    return values


def _children(process: int) -> list[int]:
    found: list[int] = []
    for path in Path(f"/proc/{process}/task").glob("*/children"):
        try:
            found.extend(int(word) for word in path.read_text(encoding="utf-8").split())
        except OSError:
            continue
    return found


def read_danlu_log(path: Path) -> StepLog:
    """The step log from danlu's ``events.jsonl`` (logging_steps=1).

    Raises:
        RunFailed: when there is no whole step in it.
    """
    events = _lines(path)
    steps = [event for event in events if event.get("kind") == "log" and "loss" in event]
    return _step_log(path, [event for event in events if event.get("kind") == "train_begin"], steps)


def read_peer_log(path: Path) -> tuple[StepLog, list[Counted], int]:
    """The log that the launcher in ``peers/`` writes.

    Returns:
        The steps, the tokens of each, and how many places were computed (with padding).

    Raises:
        RunFailed: when there is no whole step in it.
    """
    events = _lines(path)
    losses = {event["step"]: event["loss"] for event in events if event["kind"] == "loss"}
    steps = [{**event, "loss": losses.get(event["step"], float("nan"))} for event in events if event["kind"] == "step"]
    log = _step_log(path, [event for event in events if event["kind"] == "begin"], steps)
    counts = [Counted(event["tokens"], event["supervised"]) for event in steps]
    return log, counts, sum(event["places"] for event in steps)


def _step_log(path: Path, begins: list[dict[str, Any]], steps: list[dict[str, Any]]) -> StepLog:
    if not begins or not steps:
        raise RunFailed(f"{path} has no finished optimizer step")
    numbers = [event["step"] for event in steps]
    if numbers != list(range(1, len(steps) + 1)):
        raise RunFailed(f"{path} does not have every optimizer step once: {numbers}")
    return StepLog(begins[-1]["time"], tuple(event["time"] for event in steps), tuple(event["loss"] for event in steps))


def _lines(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        raise RunFailed(f"{path} was not written")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def speed(times: Sequence[float], counts: Sequence[Counted], first: int, last: int) -> tuple[float, float]:
    """Tokens a second over some steps.

    Args:
        times: when each step was done.
        counts: tokens of each step.
        first: the first step that counts, from 0; at least 1, because a step begins when the one before it is done.
        last: the step after the last one.

    Returns:
        Real tokens and supervised tokens, a second.
    """
    if not 1 <= first < last <= len(times) or len(counts) != len(times):
        raise ValueError(f"steps {first} to {last} of {len(times)} with {len(counts)} counts cannot be timed")
    seconds = times[last - 1] - times[first - 1]
    chosen = counts[first:last]
    return sum(c.tokens for c in chosen) / seconds, sum(c.supervised for c in chosen) / seconds


def step_counts(rows: Sequence[Counted], order: Sequence[int], sequences: int) -> list[Counted]:
    """Tokens of each optimizer step when rows are trained in this order."""
    return [
        Counted(sum(rows[i].tokens for i in part), sum(rows[i].supervised for i in part))
        for part in (order[start : start + sequences] for start in range(0, len(order), sequences))
    ]
