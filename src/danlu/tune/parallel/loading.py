"""Batches of one process, loaded so that all processes make the same number of steps."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.data import DataLoader

from danlu.tune.batches import Batch, Sequences

IDLE = "idle"
"""The key that marks a batch of a process that got no rows: it is computed and counts nothing."""


class BatchLoader(DataLoader[Any]):
    """Loads batches in the order of an epoch."""

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of this epoch."""
        self.batch_sampler.set_epoch(epoch)


class Collate:
    """Turns numbers of sequences into a batch; a class so that worker processes can receive it."""

    def __init__(self, data: Sequences, objective: Any) -> None:
        self.data, self.build = data, objective.build

    def __call__(self, members: list[int]) -> Batch:
        """The batch of these sequences, marked when their numbers are those of an idle process (``~number``)."""
        idle = members[0] < 0
        items = [~member for member in members] if idle else members
        batch: Batch = self.build(self.data.store, items)
        batch |= {name: torch.from_numpy(column[items]) for name, column in self.data.columns.items()}
        return batch | {IDLE: torch.ones(())} if idle else batch
