"""Result files and the console block that readers of the older tools expect.

``<split>_results.json`` and ``all_results.json`` (merged over the runs of a directory) are what
transformers' ``Trainer`` writes: indented by four, keys sorted, no final line break.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from danlu.core.errors import RunError
from danlu.core.files import read_json, write_text


def write_results(folder: Path, split: str, values: Mapping[str, Any]) -> None:
    """Write ``<split>_results.json`` and merge the values into ``all_results.json``, each in one step.

    Raises:
        RunError: when the folder cannot be written.
    """
    _write(folder / f"{split}_results.json", values)
    path = folder / "all_results.json"
    try:
        before = read_json(path)
    except RunError:  # none yet, or cut short by a crash: this command's numbers still count
        before = {}
    _write(path, {**(before if isinstance(before, dict) else {}), **values})


def _write(path: Path, values: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(dict(values), indent=4, sort_keys=True))


def metrics_block(split: str, values: Mapping[str, Any]) -> str:
    """The lines ``***** eval metrics *****`` and an aligned ``  key = value`` for each, keys sorted."""
    shown = {key: shown_metric(key, value) for key, value in values.items()}
    key_width = max(map(len, shown), default=0)
    value_width = max(map(len, shown.values()), default=0)
    lines = [f"***** {split} metrics *****"]
    lines += [f"  {key:<{key_width}} = {shown[key]:>{value_width}}" for key in sorted(shown)]
    return "\n".join(lines)


def shown_metric(key: str, value: Any) -> str:
    """A number as transformers shows it, by the kind of its key."""
    if "_mem_" in key:
        return f"{int(value) >> 20}MB"
    if "_runtime" in key:
        hundredths = int(abs(value - int(value)) * 100)
        return f"{timedelta(seconds=int(value))}.{hundredths:02d}"
    if key == "total_flos":
        return f"{int(value) >> 30}GF"
    return str(round(value, 4)) if isinstance(value, float) else str(value)
