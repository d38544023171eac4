"""Freeze tuning computes the frozen lower layers once: their output is kept and read back in later epochs."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from danlu.core.workspace import cache_folder

DISK_SHARE = 0.25
"""At most this share of the free disk is used."""


class BoundaryCache:
    """Hidden states at the lowest trained layer, one block for each sequence, in a file that is deleted with it.

    Args:
        bounds: where each sequence begins and ends in the token store (n + 1).
        width: hidden size.
        first_trained: number of the lowest layer that is trained.
        dtype: of the hidden states.
    """

    def __init__(self, bounds: NDArray[np.int64], width: int, first_trained: int, dtype: torch.dtype) -> None:
        self.bounds, self.first_trained, self.dtype = bounds, first_trained, dtype
        self.folder = Path(tempfile.mkdtemp(prefix="states-", dir=cache_folder("boundary")))
        count = int(bounds[-1]) * width
        raw = np.int16 if dtype.itemsize == 2 else np.int32
        self.file: NDArray[Any] = np.memmap(self.folder / "states.bin", dtype=raw, mode="w+", shape=(count,))
        self.width, self.kept = width, np.zeros(len(bounds) - 1, dtype=np.bool_)

    @staticmethod
    def fits(tokens: int, width: int, itemsize: int) -> bool:
        """Whether the states of so many tokens may be kept on this machine's disk."""
        return tokens * width * itemsize <= DISK_SHARE * shutil.disk_usage(cache_folder("boundary")).free

    def close(self) -> None:
        """Delete the file."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def states(
        self, backbone: Any, input_ids: Tensor, position_ids: Tensor, options: dict[str, Any], members: Tensor
    ) -> Tensor:
        """Hidden states below the trained layers, (1, T, width), computed or read."""
        wanted = members.tolist()
        if all(self.kept[member] for member in wanted):
            parts = [torch.from_numpy(self._block(member)) for member in wanted]
            return torch.cat(parts).view(self.dtype).view(1, -1, self.width).to(input_ids.device)
        with torch.no_grad(), self._lower_half(backbone):
            states = backbone(
                input_ids=input_ids, position_ids=position_ids, use_cache=False, **options
            ).last_hidden_state
        flat = states[0].to(self.dtype).view(torch.int16 if self.dtype.itemsize == 2 else torch.int32).cpu()
        start = 0
        for member in wanted:
            length = int(self.bounds[member + 1] - self.bounds[member])
            self._block(member)[:] = flat[start : start + length].reshape(-1).numpy()
            self.kept[member] = True
            start += length
        return states.detach()

    def _block(self, member: int) -> NDArray[Any]:
        start, end = int(self.bounds[member]), int(self.bounds[member + 1])
        return self.file[start * self.width : end * self.width]

    @contextmanager
    def upper_half(self, backbone: Any) -> Iterator[None]:
        """Only the layers from the lowest trained one on."""
        with _layers(backbone, backbone.layers[self.first_trained :]):
            yield

    @contextmanager
    def _lower_half(self, backbone: Any) -> Iterator[None]:
        """Only the layers below the lowest trained one, without the final norm."""
        norm = backbone.norm
        backbone.norm = nn.Identity()
        try:
            with _layers(backbone, backbone.layers[: self.first_trained]):
                yield
        finally:
            backbone.norm = norm


@contextmanager
def _layers(backbone: Any, chosen: nn.ModuleList) -> Iterator[None]:
    every = backbone.layers
    backbone.layers = chosen
    try:
        yield
    finally:
        backbone.layers = every


@torch.no_grad()
def splits_exactly(backbone: Any, first_trained: int, input_ids: Tensor, options: dict[str, Any]) -> bool:
    """Whether running the lower and then the upper layers gives what running all gives."""
    if not (hasattr(backbone, "layers") and isinstance(getattr(backbone, "norm", None), nn.Module)):
        return False
    if any(isinstance(module, nn.Dropout) and module.p > 0 for module in backbone.modules()):
        return False
    positions = torch.arange(input_ids.shape[1], device=input_ids.device).unsqueeze(0)
    bounds = np.array([0, input_ids.shape[1]])
    whole = backbone(input_ids=input_ids, position_ids=positions, use_cache=False, **options).last_hidden_state
    cache = BoundaryCache(bounds, whole.shape[-1], first_trained, whole.dtype)
    try:
        cache.states(backbone, input_ids, positions, options, torch.tensor([0]))
        below = cache.states(backbone, input_ids, positions, options, torch.tensor([0]))
        with cache.upper_half(backbone):
            again = backbone(inputs_embeds=below, position_ids=positions, use_cache=False, **options)
        return bool(torch.equal(again.last_hidden_state, whole))
    except (TypeError, RuntimeError, AttributeError, IndexError):
        return False  # code whose layers cannot be run in two parts
    finally:
        cache.close()
