"""What a trainer asks of objectives whose batches are made while it trains."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from danlu.tune.batches import Batch


class Feed(Protocol):
    """Makes the batches of online objectives: answers of the model in training, and what they were worth.

    The trainer counts optimizer steps; which batches a step gets depends only on its number, the seed and the weights,
    so a resumed run gets the batches of an uninterrupted one.
    """

    def __len__(self) -> int:
        """Batches (of all accumulation steps) in one epoch, for one process."""

    def batches(self, step: int, count: int) -> Sequence[Batch]:
        """The batches of an optimizer step, made now if need be.

        Args:
            step: optimizer steps made before.
            count: how many batches are accumulated.

        Raises:
            RunError: when training must not go on; what was saved before stays.
        """

    def finish(self, step: int) -> None:
        """Look at what the last updates have made of the model; called once, on every process.

        Args:
            step: optimizer steps made.

        Raises:
            RunError: when the model is spoilt; what was saved before stays.
        """

    def save(self, folder: Path) -> None:
        """Write what the next batches depend on besides the weights; called on every process."""

    def load(self, folder: Path) -> None:
        """Read it back."""
