"""The words of ``danlu score``: which is the file, and what is shown of its scores."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from danlu.core.config import parse_overrides
from danlu.core.console import out
from danlu.core.errors import UsageError


def split_file(words: Sequence[str]) -> tuple[str | None, list[str]]:
    """The word that is a file, if one is, and the others.

    The file is the first word; ``key=value`` is one only when there is such a file.

    Raises:
        UsageError: for a second file.
    """
    if not words or words[0].startswith("--") or ("=" in words[0] and not Path(words[0]).is_file()):
        return None, list(words)
    file, *rest = words
    if rest and not rest[0].startswith("--") and "=" not in rest[0]:
        raise UsageError(f"one file is measured at a time, and {rest[0]!r} is a second", where="command line")
    return file, rest


def option_values(words: Sequence[str]) -> dict[str, Any]:
    """``key=value`` words; values are read as YAML, but those of options that are text are kept as they are written.

    So ``pattern=[A-D]`` is a regular expression and not a list.
    """
    from danlu.evaluate.metrics import METRICS
    from danlu.evaluate.metrics.choosing import text_options

    plain = text_options(METRICS)
    texts = {key: text for key, equals, text in (word.partition("=") for word in words) if equals and key in plain}
    return {**parse_overrides(word for word in words if word.partition("=")[0] not in texts), **texts}


def measure_file(file: str, given: Mapping[str, Any], words: Sequence[str], *, as_json: bool) -> None:
    """Measure a file of predictions and print its scores.

    Args:
        file: the predictions.
        given: options of the command, None or empty where they are not given.
        words: ``key=value`` words: options of the metrics, or the same as options of the command.
        as_json: print JSON.

    Raises:
        UsageError: for an option that is given in both ways.
    """
    from danlu.evaluate.results import print_scores
    from danlu.verbs.score_file import score_file, summary

    told = {name: value for name, value in given.items() if value}
    values = option_values(words)
    if twice := sorted(told.keys() & values.keys()):
        raise UsageError(f"{twice[0]} is given twice", where="command line")
    measured = score_file(file, **told, **values)
    if as_json:
        out.print_json(json.dumps(summary(measured, file), ensure_ascii=False))
    else:
        print_scores(measured)
