"""Benchmarks by name: those that danlu describes, and your own YAML files."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from danlu.core.config import Options, build, read_yaml
from danlu.core.errors import ConfigError, UsageError, did_you_mean
from danlu.evaluate.benchmarks.schema import Benchmark, Protocol, Subject

PARTS: dict[str, type[Options]] = {"subjects": Subject, "protocols": Protocol}


@cache
def benchmarks() -> dict[str, Benchmark]:
    """Every benchmark that danlu describes, by name. Their questions are not part of danlu."""
    found = {}
    with as_file(files("danlu.assets") / "benchmarks") as folder:
        for path in sorted(folder.glob("*.yaml")):
            benchmark = described(read_yaml(path), where=path.name)
            found[benchmark.name] = benchmark
    return found


def described(values: Mapping[str, Any], where: str) -> Benchmark:
    """A benchmark from the mapping of a YAML file.

    Raises:
        ConfigError: with the place of what is unknown, missing or wrong.
    """
    tree = dict(values)
    for part, model in PARTS.items():
        entries = tree.get(part)
        if isinstance(entries, Mapping):
            tree[part] = {
                str(name): build(model, _mapping(entry, f"{where}:{part}.{name}"), where=f"{where}:{part}.{name}")
                for name, entry in entries.items()
            }
    return build(Benchmark, tree, where=where)


def _mapping(entry: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(entry, Mapping):
        raise ConfigError(f"a mapping of keys to values is expected, this is {entry!r}", where=where)
    return entry


def benchmark_named(name: str) -> Benchmark:
    """A benchmark that danlu describes.

    Raises:
        UsageError: with the nearest names.
    """
    if name not in benchmarks():
        hint = did_you_mean(name, benchmarks()) or f"Known: {', '.join(benchmarks())}."
        raise UsageError(f"there is no benchmark named {name!r}", hint=f"{hint} A YAML or csv file works as well.")
    return benchmarks()[name]


def looks_like_file(name: str) -> bool:
    """Whether the name of a benchmark is a file of the user's."""
    return Path(name).suffix.lower() in (".yaml", ".yml", ".csv", ".jsonl", ".json", ".parquet")
