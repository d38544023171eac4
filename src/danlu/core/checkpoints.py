"""The checkpoints of a run: which there are, which is newest, and the names ``best`` and ``last`` for two of them.

A name is a relative link, so a run can be moved; where the system makes no links it is a file of one line that
holds the checkpoint's name. :func:`follow` reads both.
"""

from __future__ import annotations

from pathlib import Path

from danlu.core.errors import RunError
from danlu.core.files import write_text

CHECKPOINT = "checkpoint-"
LAST, BEST = "last", "best"
NAMES = (LAST, BEST)


def step_of(path: Path) -> int | None:
    """The optimizer step in a checkpoint's name, None for any other name."""
    number = path.name.removeprefix(CHECKPOINT)
    return int(number) if path.name.startswith(CHECKPOINT) and number.isdigit() else None


def checkpoints(run: Path) -> list[Path]:
    """The checkpoints in a run directory, by step; the newest is the last."""
    found = [path for path in run.glob(f"{CHECKPOINT}*") if path.is_dir() and step_of(path) is not None]
    return sorted(found, key=lambda path: step_of(path) or 0)


def newest(run: Path) -> Path | None:
    """The checkpoint with the most steps, None when there is none."""
    return next(reversed(checkpoints(run)), None)


def follow(path: Path) -> Path:
    """The checkpoint that ``RUN/best`` or ``RUN/last`` names; any other path as it is.

    Raises:
        RunError: when that checkpoint was removed.
    """
    name = _target(path) if path.name in NAMES else None
    if name is None:
        return path
    target = path.parent / name
    if not target.is_dir():
        left = ", ".join(found.name for found in checkpoints(path.parent))
        raise RunError(
            f"the {path.name} checkpoint, {name}, is gone",
            where=str(path),
            hint=f"There are {left}." if left else "There are no checkpoints any more.",
        )
    return target


def give_name(run: Path, name: str, checkpoint: Path | None) -> bool:
    """Let ``name`` stand for a checkpoint of the run, or for none any more.

    Args:
        run: the run directory.
        name: one of :data:`NAMES`.
        checkpoint: a folder in it, or None to remove the name.

    Returns:
        False when something else has that name; it is left alone.
    """
    place = run / name
    if _target(place) is None and (place.exists() or place.is_symlink()):
        return False
    if checkpoint is None:
        place.unlink(missing_ok=True)
        return True
    beside = run / f".{name}"
    beside.unlink(missing_ok=True)
    try:
        beside.symlink_to(checkpoint.name, target_is_directory=True)
    except OSError:  # not everybody may make links on Windows, and some file systems have none
        write_text(place, checkpoint.name + "\n")
    else:
        beside.replace(place)
    return True


def _target(place: Path) -> str | None:
    """The checkpoint's name in a link or file of ours; None for everything else."""
    if place.is_symlink():
        name = str(place.readlink())
    elif place.is_file() and place.stat().st_size < 100:
        name = place.read_text(encoding="utf-8", errors="replace").strip()
    else:
        return None
    return name if step_of(Path(name)) is not None and Path(name).name == name else None
