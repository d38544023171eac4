"""Python files of a model's authors: danlu never runs them, and brings them along for tools that do."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from danlu.core.console import warn


def code_files(config: Mapping[str, Any]) -> list[str]:
    """Files that ``auto_map`` of a config names; those of another repository (``owner/name--module``) are not here."""
    named = config.get("auto_map") or {}
    classes = [item for value in named.values() for item in (value if isinstance(value, list) else [value])]
    return sorted({f"{item.split('.')[0]}.py" for item in classes if isinstance(item, str) and "--" not in item})


def bring_code(config: Mapping[str, Any], source: Path, folder: Path) -> None:
    """Copy the Python files of a model's folder if its config names some; say which are not there.

    Args:
        config: what config.json says.
        source: folder of the model that was tuned.
        folder: where it is written now.
    """
    named = code_files(config)
    for file in source.glob("*.py") if named else ():
        shutil.copyfile(file, folder / file.name)
    missing = [name for name in named if not (folder / name).is_file()]
    if missing:
        warn(
            f"config.json names {', '.join(missing)} (auto_map), and {source} has no such file: tools that run the "
            "model's own code need it beside the weights"
        )
