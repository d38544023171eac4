"""What the processes of a training tell each other. Alone, each of these gives back what it was given."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed

from danlu.core.errors import RunError
from danlu.core.ranks import ranks
from danlu.tune.config import TrainConfig
from danlu.tune.parallel.failure import LOST, lost_peer

LONGEST = 30 * 24 * 3600
"""Old files say 180000000 seconds, which is more than torch can count in nanoseconds of some platforms."""


def sum_of_all(values: Sequence[float], device: torch.device) -> list[float]:
    """Sums over all processes, in float64 (on Apple's GPUs in float32)."""
    numbers = [float(value) for value in values]
    if not _several():
        return numbers
    total = torch.tensor(numbers, dtype=torch.float32 if device.type == "mps" else torch.float64, device=device)
    distributed.all_reduce(total)
    return [float(value) for value in total.tolist()]


def added_up(values: Tensor) -> Tensor:
    """A tensor added up over all processes, element by element."""
    if not _several():
        return values
    summed = values.clone()
    distributed.all_reduce(summed)
    return summed


def mean_of_all(value: float, device: torch.device) -> float:
    """The mean over all processes."""
    count = distributed.get_world_size() if _several() else 1
    return sum_of_all((value,), device)[0] / count


def objects_of_all(value: Any) -> list[Any]:
    """What every process has, in the order of their ranks."""
    if not _several():
        return [value]
    found: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(found, value)
    return found


@contextmanager
def process_group(config: TrainConfig) -> Iterator[None]:
    """Connect the processes: through gloo, or nccl where each has a GPU of its own.

    Raises:
        RunError: when there are fewer GPUs than processes, or another process is gone.
    """
    place = ranks()
    gpu = torch.cuda.is_available()
    if gpu:
        if torch.cuda.device_count() < place.local_world:
            raise RunError(
                f"{place.local_world} processes need as many GPUs, and there are {torch.cuda.device_count()}",
                where="nproc",
            )
        torch.cuda.set_device(place.local_rank)
    distributed.init_process_group(
        config.trainer.get("ddp_backend") or ("cpu:gloo,cuda:nccl" if gpu else "gloo"),
        timeout=timedelta(seconds=min(config.parallel.ddp_timeout, LONGEST)),
    )
    try:
        yield
    except RuntimeError as error:
        if not lost_peer(str(error)):
            raise
        raise RunError(LOST, hint="Its own message or log says why.") from error
    distributed.destroy_process_group()  # not after an error: others may be gone, and this would wait for them


def _several() -> bool:
    return bool(distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1)
