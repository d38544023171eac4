"""Rows that a model was trained on show what it remembers, not what it can do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from danlu.core.console import warn
from danlu.core.run import RunDirectory
from danlu.models.runs import TrainedModel


def warn_of_known_rows(keys: Sequence[int], source: TrainedModel, names: str) -> None:
    """Warn when rows were in the training data of a run or of what it stands on.

    Args:
        keys: content hashes of the rows.
        source: the model that is measured.
        names: of the datasets, for the message.
    """
    for place in dict.fromkeys((source.run, *map(Path, source.adapters), Path(source.model))):
        seen = int(RunDirectory(place).seen(keys).sum()) if place is not None else 0
        if seen:
            warn(
                f"{seen} of {len(keys)} rows of {names} were in the training data of {place}: "
                "these scores show memory, not skill"
            )
