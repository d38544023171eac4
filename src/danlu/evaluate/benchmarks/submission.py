"""``submission.json``: answers to questions without labels, as the site of C-Eval scores them.

One object; a key for every subject; its value maps every id of the subject's test file, as text, to one letter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from danlu.core.files import read_json, write_json
from danlu.evaluate.benchmarks.schema import Benchmark, Item

FILE_NAME = "submission.json"


def submission(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, str]]:
    """Answers by subject and id; a question whose reply has no answer is left out."""
    found: dict[str, dict[str, str]] = {}
    for row in rows:
        answers = found.setdefault(row["subject"], {})
        if row.get("predicted"):
            answers[str(row["id"])] = row["predicted"]
    return found


def write_submission(rows: Sequence[Mapping[str, Any]], folder: Path) -> Path:
    """Write the file; its path."""
    path = folder / FILE_NAME
    write_json(path, submission(rows), indent=4)
    return path


def problems(benchmark: Benchmark, given: Any, items: Mapping[str, Sequence[Item]] | None = None) -> list[str]:
    """What the site would refuse, in words; nothing for a good file.

    Args:
        benchmark: whose subjects are expected.
        given: the parsed file.
        items: questions by subject, to check the ids. Without them the published number of questions is checked,
            numbered from 0.
    """
    if not isinstance(given, dict):
        return ["it is no object of subjects"]
    found = [f"{subject}: the subject is missing" for subject in benchmark.subjects if subject not in given]
    found += [f"{subject}: there is no such subject" for subject in given if subject not in benchmark.subjects]
    split = next(iter(benchmark.unlabelled), benchmark.split)
    for subject, answers in given.items():
        if subject not in benchmark.subjects:
            continue
        if not isinstance(answers, dict):
            found.append(f"{subject}: it is no object of answers")
            continue
        count = benchmark.subjects[subject].counts.get(split, 0)
        known = [item.id for item in items[subject]] if items and subject in items else [str(n) for n in range(count)]
        missing, extra = [key for key in known if key not in answers], [key for key in answers if key not in set(known)]
        found += [f"{subject}: {_ids(missing)} missing"] if missing else []
        found += [f"{subject}: {_ids(extra)} not in the test file"] if extra else []
        wrong = [
            (key, value) for key, value in answers.items() if not (isinstance(value, str) and value in tuple("ABCD"))
        ]
        found += [f"{subject}:{key}: {value!r} is not one of A, B, C, D" for key, value in wrong]
    return found


def check_submission(path: Path, benchmark: Benchmark, items: Mapping[str, Sequence[Item]] | None = None) -> list[str]:
    """:func:`problems` of a file.

    Raises:
        RunError: when it is missing or no JSON.
    """
    return problems(benchmark, read_json(path), items)


def _ids(keys: Sequence[str]) -> str:
    shown = ", ".join(keys[:5]) + (f" and {len(keys) - 5} more" if len(keys) > 5 else "")
    return f"id {shown} is" if len(keys) == 1 else f"ids {shown} are"
