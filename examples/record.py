"""What the scripts of the examples share: their command line, and what a result says of where it was measured."""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from danlu.core.manifest import installed_versions

HERE = Path(__file__).resolve().parent
PACKAGES = ("danlu", "torch", "transformers", "peft")


def conditions() -> dict[str, Any]:
    """Versions and machine of a measurement."""
    return {
        "versions": {**installed_versions(PACKAGES), "python": platform.python_version()},
        "machine": f"{platform.machine()}, {platform.system()}, {os.cpu_count()} cores, no GPU",
    }


def main(about: str | None, names: Sequence[str], run: Callable[[str, Path], dict[str, Any]]) -> None:
    """Run the example that is named on the command line and write its result.

    Args:
        about: what ``--help`` says.
        names: the examples that there are.
        run: trains and measures the example of a name, with its runs in a folder; returns what is recorded.
    """
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=names)
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder for the runs (default: runs)")
    parser.add_argument("--results", type=Path, default=HERE / "results", help="folder for the result")
    words = parser.parse_args()
    words.results.mkdir(parents=True, exist_ok=True)
    text = json.dumps(run(words.name, words.runs), indent=2, ensure_ascii=False)
    (words.results / f"{words.name}.json").write_text(text + "\n", encoding="utf-8")
