"""What can go wrong, as one small tree.

    DanluError                  something danlu can explain; exit code 1
    ├── UsageError              the command or its configuration is wrong; exit code 2
    │   └── ConfigError         a key or value of a configuration file or override
    ├── DataError               a row, file or dataset cannot be used
    ├── ModelError              a model, tokenizer, template or adapter cannot be used
    ├── RunError                a run directory is missing, foreign, damaged or full
    └── MissingDependency       an optional package is needed for what was asked

Each error says *what* is wrong, *where* (file:line:field) and *what to do* (``hint``) in one paragraph.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class DanluError(Exception):
    """Base of every error that danlu raises on purpose.

    Args:
        what: what is wrong, a sentence without the final full stop.
        where: the place, for instance ``data.jsonl:12:output`` or ``train.yaml:lora_rank``.
        hint: what to do about it, a sentence.

    Attributes:
        told: whether another process has shown the same error to the user.
    """

    exit_code = 1
    told = False

    def __init__(self, what: str, *, where: str | None = None, hint: str | None = None) -> None:
        self.what = what.rstrip(".")
        self.where = where
        self.hint = hint
        super().__init__(str(self))

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        advice = f" {self.hint}" if self.hint else ""
        return f"{place}{self.what}.{advice}"


class UsageError(DanluError):
    """The command line or the combination of options makes no sense."""

    exit_code = 2


class ConfigError(UsageError):
    """A configuration key is unknown or its value has the wrong type."""


class DataError(DanluError):
    """A dataset, file or row cannot be used."""


class ModelError(DanluError):
    """A model, tokenizer, template or adapter cannot be used."""


class RunError(DanluError):
    """A run directory is missing, belongs to another run, or cannot be written."""


class MissingDependency(DanluError):
    """An optional package is needed.

    Args:
        package: name on the package index.
        purpose: what it is needed for, for instance "to read parquet files".
        extra: the danlu extra that carries it.
    """

    def __init__(self, package: str, purpose: str, extra: str | None = None) -> None:
        target = f'"danlu[{extra}]"' if extra else package
        super().__init__(
            f"the package {package} is needed {purpose} and is not installed",
            hint=f"Install it with: pip install {target}",
        )


def did_you_mean(word: str, candidates: Iterable[str]) -> str | None:
    """A hint naming the nearest candidates to ``word``, or None when nothing is near."""
    near = difflib.get_close_matches(word, list(dict.fromkeys(candidates)), n=3, cutoff=0.6)
    return f"Did you mean {' or '.join(near)}?" if near else None


def explained(error: Exception) -> DanluError:
    """Any error as one paragraph: what the system refuses keeps its words, the rest is danlu's own fault."""
    if isinstance(error, DanluError):
        return error
    if isinstance(error, OSError) and error.strerror:
        return DanluError(error.strerror, where=str(error.filename) if error.filename else None)
    if isinstance(error, MemoryError):
        return DanluError("there is not enough memory", hint="Close other programs, or choose smaller batches.")
    text = " ".join(str(error).split())
    return DanluError(
        f"unexpected {type(error).__name__}: {text}",
        hint="This is a defect of danlu; the same command with --debug shows where.",
    )
