"""Where things live on disk: the only reader of environment variables."""

from __future__ import annotations

import os
from pathlib import Path

from danlu.core.errors import RunError, UsageError


def cache_home() -> Path:
    """The cache folder: ``$DANLU_CACHE``, else ``$XDG_CACHE_HOME/danlu``, else ``~/.cache/danlu``.

    Everything below it can be deleted at any time; it is made again when needed.

    Raises:
        RunError: when the folder cannot be made.
    """
    explicit = os.environ.get("DANLU_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    path = Path(explicit) if explicit else Path(base) / "danlu"
    path = path.expanduser()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(
            f"the cache folder cannot be made ({error.strerror})",
            where=str(path),
            hint="Set DANLU_CACHE to a folder that can be written.",
        ) from error
    return path


def cache_folder(name: str) -> Path:
    """A named folder below :func:`cache_home`, made if needed."""
    path = cache_home() / name
    path.mkdir(parents=True, exist_ok=True)
    return path


def benchmarks_home() -> Path:
    """Where the questions of benchmarks are looked for; never made or written to.

    ``$DANLU_BENCHMARKS``, else ``danlu/benchmarks`` in the user's data folder (``$XDG_DATA_HOME``, ``~/.local/share``).
    """
    explicit = os.environ.get("DANLU_BENCHMARKS")
    base = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    return (Path(explicit) if explicit else Path(base) / "danlu" / "benchmarks").expanduser()


def offline() -> bool:
    """Whether the user asked for no network (``HF_HUB_OFFLINE`` or ``DANLU_OFFLINE`` is set to 1)."""
    return "1" in (os.environ.get("HF_HUB_OFFLINE"), os.environ.get("DANLU_OFFLINE"))


def wanted_hub() -> str:
    """The hub that the user wants by default: ``DANLU_HUB``, or ModelScope where ``USE_MODELSCOPE_HUB`` is set.

    The second is LLaMA-Factory's variable.
    """
    named = os.environ.get("DANLU_HUB", "").strip()
    if named:
        return named
    return "modelscope" if os.environ.get("USE_MODELSCOPE_HUB", "").lower() in ("1", "true", "y") else "huggingface"


def reward_token() -> str | None:
    """What a scoring server wants to be shown (``DANLU_REWARD_TOKEN``), or None."""
    return os.environ.get("DANLU_REWARD_TOKEN") or None


def api_key(variable: str, *, needed: bool = False) -> str | None:
    """The key of a service, from the environment variable that holds it; None when it is empty.

    Raises:
        UsageError: when it is needed.
    """
    key = os.environ.get(variable, "").strip()
    if needed and not key:
        raise UsageError(f"the environment variable {variable} is empty", hint=f"export {variable}=… with the key.")
    return key or None


def share_cores() -> None:
    """Let threads that wait for each other sleep instead of spin, unless the user chose (``OMP_WAIT_POLICY``).

    Where other work keeps a core busy, spinning threads take the time of the one they wait for, and a training step
    can last ten times as long. Only a process that has not loaded its OpenMP library yet is affected.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
