"""Checkpoints that are whole or absent, and what a resumed loop must be told besides."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from transformers import EarlyStoppingCallback, TrainerCallback, set_seed

from danlu.core.checkpoints import BEST, LAST, give_name
from danlu.core.console import note
from danlu.core.errors import RunError
from danlu.core.files import read_json
from danlu.core.ranks import ranks
from danlu.tune.parallel.states import seed_of

if TYPE_CHECKING:
    from danlu.tune.trainer import DanluTrainer

PROGRESS = "danlu_progress.json"
"""What the loop of transformers forgets in a checkpoint: the loss gathered since the last log line."""


def progress_of(trainer: DanluTrainer, gathered: Sequence[float]) -> dict[str, Any]:
    """What :class:`Progress` gives back to a resumed loop.

    Args:
        trainer: in training.
        gathered: the loss of each process since the last log line.
    """
    return {
        "gathered_loss": sum(gathered) / len(gathered),
        "gathered_by_process": list(gathered),
        "total_loss": trainer._total_loss_scalar,
        "last_logged_step": trainer._globalstep_last_logged,
        "start_step": trainer._initial_global_step,
        "seconds": time.time() - trainer._began,
    }


class Progress(TrainerCallback):
    """Gives a resumed loop what that of transformers forgets, and marks the ends of epochs."""

    def __init__(self, trainer: DanluTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Called after the loop has set its counters to zero."""
        trainer = self.trainer
        trainer._began = time.time()
        if trainer.resumed_from is None:
            if ranks().rank:  # each process has its own dropout
                set_seed(seed_of(args.seed, 0))
            return
        for callback in trainer.callback_handler.callbacks:
            known = state.stateful_callbacks.get(type(callback).__name__)
            if isinstance(callback, EarlyStoppingCallback) and isinstance(known, dict):
                callback.early_stopping_patience_counter = known["attributes"]["early_stopping_patience_counter"]
        path = trainer.resumed_from / PROGRESS
        if path.exists():
            saved = read_json(path)
            each, place = saved.get("gathered_by_process", ()), ranks()
            trainer._tr_loss += each[place.rank] if len(each) == place.world else saved["gathered_loss"]
            trainer._total_loss_scalar = saved["total_loss"]
            trainer._globalstep_last_logged = saved["last_logged_step"]
            trainer._initial_global_step = saved["start_step"]
            trainer._began -= saved.get("seconds", 0.0)
            if state.is_world_process_zero:
                trainer.tally.merge(saved.get("tally", {}))

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The steps of an epoch follow."""
        self.trainer._epoch_over = self.trainer._postponed = False

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """A checkpoint that was due after the last step is written after the epoch."""
        self.trainer._epoch_over = True
        control.should_save |= self.trainer._postponed


@contextmanager
def whole_or_absent(work: Path, *, what: str, begun: bool = False) -> Iterator[None]:
    """Write into a folder that is removed if that fails.

    Args:
        work: the folder.
        what: is written, in words.
        begun: whether something is in it already.

    Raises:
        RunError: when the disk is full.
    """
    if not begun:
        shutil.rmtree(work, ignore_errors=True)
    try:
        yield
    except (RunError, OSError, RuntimeError, SafetensorError) as error:
        shutil.rmtree(work, ignore_errors=True)
        if not _disk_trouble(error):
            raise
        told = "the disk is full" if "unexpected pos" in str(error) else error  # torch: a write was cut short
        raise RunError(
            f"{what} cannot be written: {told}",
            where=str(work.parent),
            hint="Free some space and start the same command again; it goes on from the last checkpoint.",
        ) from error


def name_checkpoints(run: Path, last: Path, best: str | None) -> None:
    """Let ``last`` and ``best`` in the run directory stand for checkpoints; what is called so already stays."""
    for name, checkpoint in ((LAST, last), (BEST, Path(best) if best else None)):
        there = checkpoint if checkpoint and checkpoint.is_dir() else None
        if not give_name(run, name, there) and there:
            note(f"{run / name} is not danlu's, so it does not stand for {there.name}")


class own_attention:
    """While saving, the configuration names the model's usual attention, not danlu's."""

    def __init__(self, model: Any) -> None:
        self.config = model.config

    def __enter__(self) -> None:
        self.before = self.config._attn_implementation
        self.config._attn_implementation = "sdpa"

    def __exit__(self, *_: object) -> None:
        self.config._attn_implementation = self.before


def _disk_trouble(error: BaseException) -> bool:
    """Whether an error of a writer means that the disk is full or not writable."""
    text = str(error).lower()
    return isinstance(error, OSError) or any(
        sign in text
        for sign in (
            "no space",
            "disk",
            "write failed",
            "file write",
            "unexpected pos",
            os.strerror(28).lower(),
        )
    )
