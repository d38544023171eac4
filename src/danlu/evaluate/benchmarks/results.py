"""``results.json``: every number with the protocol that made it. The schema is in docs/en/benchmarks.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from danlu import __version__
from danlu.core.errors import DataError
from danlu.core.files import read_json, write_json
from danlu.core.manifest import now
from danlu.evaluate.benchmarks.aggregate import Number, diagnostics, numbers
from danlu.evaluate.benchmarks.files import together
from danlu.evaluate.benchmarks.runner import Task

FILE_NAME = "results.json"
FORMAT = "danlu.benchmark/1"


@dataclass(frozen=True, slots=True)
class Results:
    """The outcome of one evaluation.

    Attributes:
        folder: where it is written.
        document: what ``results.json`` holds.
        numbers: the same scores, as values.
        rows: the answers, as ``samples.jsonl`` holds them.
    """

    folder: Path
    document: Mapping[str, Any]
    numbers: Sequence[Number]
    rows: Sequence[Mapping[str, Any]]

    @property
    def headline(self) -> Number | None:
        """The number that the protocol's authors publish; None without labels."""
        return next((number for number in self.numbers if number.headline), None)


def write_results(task: Task, rows: Sequence[Mapping[str, Any]], folder: Path, *, seed: int = 42) -> Results:
    """Sum up answers and write ``results.json``."""
    found = numbers(task.benchmark, rows, task.protocol.average, seed=seed)
    digest = task.protocol.digest
    by = {"protocol": task.protocol_id, "digest": digest, "shots": task.shots}
    document = {
        "format": FORMAT,
        "danlu": __version__,
        "created": now(),
        "benchmark": {
            "name": task.benchmark.name,
            "split": task.split,
            "source": task.benchmark.source,
            "licence": task.benchmark.licence,
            "subjects": list(task.questions.items),
            "missing": list(task.questions.missing),
            "limit": task.limit,
        },
        "protocol": {
            **by,
            "settings": task.protocol.model_dump(mode="json", exclude={"title", "source"}, exclude_defaults=True),
        },
        "model": dict(task.model),
        "data": {
            "place": task.place,
            "sha256": together(task.questions.files),
            "files": {record.name: record.sha256 for record in task.questions.files},
        },
        "scores": [_score(number, by) for number in found],
        "diagnostics": diagnostics(rows),
    }
    write_json(folder / FILE_NAME, document)
    return Results(folder, document, found, rows)


def _score(number: Number, by: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "scope": number.scope,
        "name": number.name,
        "average": number.average,
        "metric": number.metric,
        "value": round(number.value, 6),
        "low": round(number.interval.low, 6),
        "high": round(number.interval.high, 6),
        "interval": number.interval.method,
        "n": number.n,
        "subjects": number.subjects,
        "headline": number.headline,
        **by,
    }


def read_results(path: Path) -> dict[str, Any]:
    """A ``results.json``, or the one of a folder.

    Raises:
        RunError: when it is missing or broken.
        DataError: when it is another kind of file.
    """
    file = path / FILE_NAME if path.is_dir() else path
    document = read_json(file)
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise DataError("it is not the result of danlu bench", where=str(file))
    return document
