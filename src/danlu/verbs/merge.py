"""``danlu merge``: several LoRA adapters of one base as one adapter."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from danlu.core.console import note, out, warn
from danlu.core.errors import UsageError


def merge(
    adapters: Sequence[str],
    output: str | Path,
    *,
    weights: Sequence[float] | str | None = None,
    method: str = "cat",
    density: float = 0.5,
    rank: int | None = None,
    model: str | None = None,
) -> Path:
    """Write the weighted sum of LoRA adapters; see :func:`danlu.models.combine.combine`.

    Args:
        adapters: runs, folders or hub ids.
        output: folder to write.
        weights: one for each, as numbers or as ``"0.7,0.3"``; equal shares by default.
        method: linear, cat, svd, ties or dare_ties.
        density: share that ties and dare_ties keep.
        rank: of the result with svd.
        model: the base, where the adapters do not say it.

    Raises:
        UsageError: when they cannot be added up so.
    """
    if isinstance(weights, str):
        try:
            weights = [float(word) for word in weights.split(",") if word.strip()]
        except ValueError as error:
            raise UsageError(
                f"{weights!r} is not a list of numbers", where="--weights", hint="For instance --weights 0.7,0.3."
            ) from error
    from danlu.models.combine import combine
    from danlu.models.value_head import read_head

    heads = [str(name) for name in adapters if Path(name).is_dir() and read_head(Path(name)) is not None]
    if heads:
        warn(f"value heads are not added up: the result is no reward model ({', '.join(heads)} had one)")
    note("Loading, adding up and writing …")
    folder = combine(
        list(adapters),
        Path(output).expanduser(),
        weights=weights,
        method=method,  # type: ignore[arg-type]
        density=density,
        rank=rank,
        model=model,
    )
    out.print(str(folder), style="accent", markup=False, soft_wrap=True)
    return folder
