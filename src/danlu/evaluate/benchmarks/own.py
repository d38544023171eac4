"""Benchmarks of your own: a short YAML file, or nothing but a table of questions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from danlu.core.config import read_yaml
from danlu.core.errors import DataError
from danlu.data.rows import RawRow
from danlu.evaluate.benchmarks.catalog import described
from danlu.evaluate.benchmarks.loading import raw_rows
from danlu.evaluate.benchmarks.schema import LETTERS, Benchmark

PROTOCOLS: dict[str, dict[str, dict[str, Any]]] = {
    "zh": {
        "letter": {"question": "{question}\n{options}\n答案：", "title": "completion, log-probability of the letter"},
        "chat": {
            "form": "chat",
            "mode": "generate",
            "question": "{question}\n{options}\n请选出正确答案，只回答选项的字母。",
            "title": "chat, the letter is found in the reply",
        },
    },
    "en": {
        "letter": {
            "question": "{question}\n{options}\nAnswer:",
            "target": " {letter}",
            "title": "completion, log-probability of the letter",
        },
        "chat": {
            "form": "chat",
            "mode": "generate",
            "question": "{question}\n{options}\nAnswer with the letter of the right choice only.",
            "title": "chat, the letter is found in the reply",
        },
    },
}
"""Protocols of a benchmark that describes none."""


def own_benchmark(path: Path) -> tuple[Benchmark, Path]:
    """A benchmark from a user's file, and where its questions are.

    A YAML file has the keys of :class:`Benchmark`; only ``splits`` (or ``file``, one table) is needed. A table has the
    columns question, A, B, …, answer, and optionally id, passage and explanation.

    Raises:
        ConfigError, DataError: when the file is missing or cannot be understood.
    """
    if not path.is_file():
        raise DataError("there is no such file", where=str(path))
    if path.suffix.lower() not in (".yaml", ".yml"):
        values: dict[str, Any] = {"file": path.name}
        columns = _columns(path)
        values["columns"] = {"choices": [letter for letter in LETTERS if letter in columns] or ["A"]}
        values["language"] = _language(path)
        return described(completed(values, path), where=str(path)), path
    return described(completed(read_yaml(path), path), where=str(path)), path.parent


def completed(values: dict[str, Any], path: Path) -> dict[str, Any]:
    """What a short description leaves out."""
    values = dict(values)
    file = values.pop("file", None)
    if file is not None:
        values.setdefault("splits", {"test": [str(file)]})
    splits = values.get("splits")
    if isinstance(splits, dict) and splits:
        values["splits"] = {key: [item] if isinstance(item, str) else item for key, item in splits.items()}
        values.setdefault("split", "test" if "test" in splits else next(iter(splits)))
    values.setdefault("name", path.stem)
    values.setdefault("subjects", {str(values["name"]): {}})
    values.setdefault("protocols", PROTOCOLS["en" if values.get("language") == "en" else "zh"])
    return values


def _columns(path: Path) -> list[str]:
    first = next(iter(raw_rows(path)), None)
    return list(map(str, first.value)) if isinstance(first, RawRow) else []


def _language(path: Path) -> str:
    first = next(iter(raw_rows(path)), None)
    text = str(first.value) if isinstance(first, RawRow) else ""
    return "zh" if any("\u4e00" <= letter <= "\u9fff" for letter in text) else "en"
