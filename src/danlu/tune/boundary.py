"""Freeze tuning computes the frozen lower layers once: their output is kept and read back in later epochs."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from danlu.core.workspace import cache_folder
from danlu.data.tokens import TokenStore
from danlu.tune.batches import collate

DISK_SHARE = 0.25
"""At most this share of the free disk is used."""


class BoundaryCache:
    """Hidden states at the lowest trained layer, one block for each sequence, in a file that is deleted with it.

    Matrix products of other sizes may round differently, so the states of a sequence are always computed in the
    company it has in the first epoch: a run that is resumed later sees the same numbers, bit for bit.

    Args:
        store: the sequences.
        batches: those of the first epoch, as numbers of sequences in the store.
        width: hidden size.
        first_trained: number of the lowest layer that is trained.
        dtype: of the hidden states.
    """

    def __init__(
        self, store: TokenStore, batches: Sequence[Sequence[int]], width: int, first_trained: int, dtype: torch.dtype
    ) -> None:
        self.store, self.batches = store, batches
        self.first_trained, self.dtype, self.width = first_trained, dtype, width
        self.folder = Path(tempfile.mkdtemp(prefix="states-", dir=cache_folder("boundary")))
        raw = np.int16 if dtype.itemsize == 2 else np.int32
        count = int(store.bounds[-1]) * width
        self.file: NDArray[Any] = np.memmap(self.folder / "states.bin", dtype=raw, mode="w+", shape=(count,))
        self.home = np.zeros(len(store), dtype=np.int64)
        for number, batch in enumerate(batches):
            self.home[list(batch)] = number
        self.kept = np.zeros(len(batches), dtype=np.bool_)

    @staticmethod
    def fits(tokens: int, width: int, itemsize: int) -> bool:
        """Whether the states of so many tokens may be kept on this machine's disk."""
        return tokens * width * itemsize <= DISK_SHARE * shutil.disk_usage(cache_folder("boundary")).free

    def close(self) -> None:
        """Delete the file."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def states(self, backbone: Any, members: Tensor, options: Callable[[Tensor], dict[str, Any]]) -> Tensor:
        """Hidden states below the trained layers, (1, T, width), computed or read.

        Args:
            backbone: the model without its head.
            members: numbers of the sequences wanted.
            options: what the backbone is told besides ids and positions, from the bounds of a batch.
        """
        wanted = members.tolist()
        for number in np.unique(self.home[wanted]):
            if not self.kept[number]:
                self._compute(backbone, self.batches[number], options, members.device)
                self.kept[number] = True
        parts = [torch.from_numpy(self._block(member)) for member in wanted]
        return torch.cat(parts).view(self.dtype).view(1, -1, self.width).to(members.device)

    @torch.no_grad()
    def _compute(
        self, backbone: Any, batch: Sequence[int], options: Callable[[Tensor], dict[str, Any]], device: torch.device
    ) -> None:
        inputs = {name: value.to(device) for name, value in collate(self.store, batch).items()}
        told = options(inputs["bounds"])
        with lower_half(backbone, self.first_trained):
            states = backbone(
                input_ids=inputs["input_ids"], position_ids=inputs["position_ids"], use_cache=False, **told
            ).last_hidden_state
        flat = states[0].to(self.dtype).view(torch.int16 if self.dtype.itemsize == 2 else torch.int32).cpu()
        start = 0
        for member in batch:
            length = int(self.store.lengths[member])
            self._block(member)[:] = flat[start : start + length].reshape(-1).numpy()
            start += length

    def _block(self, member: int) -> NDArray[Any]:
        start, end = int(self.store.bounds[member]), int(self.store.bounds[member + 1])
        return self.file[start * self.width : end * self.width]


@contextmanager
def upper_half(backbone: Any, first_trained: int) -> Iterator[None]:
    """Only the layers from the lowest trained one on."""
    with _layers(backbone, backbone.layers[first_trained:]):
        yield


@contextmanager
def lower_half(backbone: Any, first_trained: int) -> Iterator[None]:
    """Only the layers below the lowest trained one, without the final norm."""
    norm = backbone.norm
    backbone.norm = nn.Identity()
    try:
        with _layers(backbone, backbone.layers[:first_trained]):
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
def split_dtype(backbone: Any, first_trained: int, input_ids: Tensor, options: dict[str, Any]) -> torch.dtype | None:
    """The precision of hidden states at the boundary, if lower and upper layers can be run one after the other.

    Returns:
        None when the two halves do not give exactly what the whole gives.
    """
    if not (hasattr(backbone, "layers") and isinstance(getattr(backbone, "norm", None), nn.Module)):
        return None
    if any(isinstance(module, nn.Dropout) and module.p > 0 for module in backbone.modules()):
        return None
    positions = torch.arange(input_ids.shape[1], device=input_ids.device).unsqueeze(0)
    told = {"position_ids": positions, "use_cache": False, **options}
    try:
        whole = backbone(input_ids=input_ids, **told).last_hidden_state
        with lower_half(backbone, first_trained):
            below = backbone(input_ids=input_ids, **told).last_hidden_state
        with upper_half(backbone, first_trained):
            again = backbone(inputs_embeds=below, **told).last_hidden_state
    except (TypeError, RuntimeError, AttributeError, IndexError):
        return None  # code whose layers cannot be run in two parts
    dtype: torch.dtype = below.dtype
    return dtype if torch.equal(again, whole) else None
