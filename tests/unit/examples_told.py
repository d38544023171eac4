"""What the examples tell: their options, rows and results."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from danlu.core.config import build, read_yaml
from danlu.tune.checks import check
from danlu.tune.config import TrainConfig

READMES = ("README.md", "README.zh.md")


def load(path: Path) -> ModuleType:
    """A script of the examples as a module; it finds its neighbours as when it is run."""
    specification = importlib.util.spec_from_file_location(f"examples_{path.stem}", path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module  # dataclasses look their module up
    sys.path.insert(0, str(path.parent))
    try:
        specification.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent))
    return module


def resolved(root: Path, name: str) -> TrainConfig:
    """The options of an example, which must be possible, with rows that are there and its own command in the file."""
    path = root / "examples" / f"{name}.yaml"
    config = build(TrainConfig, read_yaml(path), where=str(path))
    check(config)
    assert (root / config.data.dataset[0]).is_file()
    assert f"danlu train examples/{name}.yaml" in path.read_text(encoding="utf-8")
    return config


def rows(root: Path, name: str) -> list[dict[str, str]]:
    """The rows of a file of examples/data."""
    text = (root / "examples/data" / f"{name}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def result(root: Path, name: str) -> dict[str, Any]:
    """What was recorded of an example."""
    found: dict[str, Any] = json.loads((root / "examples/results" / f"{name}.json").read_text(encoding="utf-8"))
    return found
