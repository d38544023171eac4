"""What each process adds to a checkpoint (random states, its answers), written by the one that writes it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from danlu.core.ranks import ranks
from danlu.tune.parallel.together import objects_of_all

Files = Mapping[str, bytes]
"""File name → content."""


def gather_files(write: Callable[[str], None]) -> Files:
    """Let every process write its files, and collect them.

    Args:
        write: writes the files of this process into a folder.
    """
    with tempfile.TemporaryDirectory(prefix="danlu-") as folder:
        write(folder)
        own = {file.name: file.read_bytes() for file in Path(folder).iterdir()}
    return {name: content for files in objects_of_all(own) for name, content in files.items()}


def write_files(folder: Path, states: Files) -> None:
    """Write the files into a checkpoint."""
    for name, content in states.items():
        (folder / name).write_bytes(content)


def has_random_state(checkpoint: Path) -> bool:
    """Whether a checkpoint holds the state of this process among as many as there are now."""
    place = ranks()
    if place.world == 1:
        return (checkpoint / "rng_state.pth").is_file()
    return len(list(checkpoint.glob("rng_state_*.pth"))) == place.world


def seed_of(seed: int, step: int) -> int:
    """A seed that differs between processes and between places where runs were resumed."""
    return (seed + 1_000_003 * ranks().rank + 10_007 * step) % 2**31
