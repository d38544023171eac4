"""The one trainer: transformers' loop with packed batches, exact resuming and checkpoints that are whole or absent."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints

from danlu.core.errors import RunError
from danlu.core.files import read_json, write_json
from danlu.tune.batches import Batch, Sequences, ShuffledBatches, collate, pack_groups
from danlu.tune.learner import Learner
from danlu.tune.methods import METHODS, Tuned

Measure = Callable[[Any], Mapping[str, float]]
"""Generates answers with the model and returns metrics; given by whoever knows how to evaluate."""

_PROGRESS = "danlu_progress.json"
"""What the loop of transformers forgets in a checkpoint: the loss gathered since the last log line."""


class DanluTrainer(Trainer):
    """Trains a :class:`Learner`.

    Args:
        learner: the model to train.
        tuned: the same model as its method sees it; says how to save and load it.
        method: name of that method.
        train: sequences to train on, or None to evaluate only.
        evaluations: named sequences to evaluate on; the name "" reports plain ``eval_loss``.
        packing: fill sequences up to this many tokens, or None for one row a sequence.
        measure: generation metrics at every evaluation, or None.
        on_checkpoint: called with the folder of a checkpoint before it becomes visible.
        arguments: of :class:`transformers.Trainer`.
    """

    def __init__(
        self,
        learner: Learner,
        tuned: Tuned,
        method: str,
        *,
        train: Sequences | None,
        evaluations: Mapping[str, Sequences],
        packing: int | None = None,
        measure: Measure | None = None,
        on_checkpoint: Callable[[Path], None] | None = None,
        **arguments: Any,
    ) -> None:
        self.tuned, self.method = tuned, METHODS[method]
        self.evaluations, self.packing, self.measure = evaluations, packing, measure
        self.on_checkpoint = on_checkpoint
        super().__init__(model=learner, train_dataset=train, **arguments)
        self.model_accepts_loss_kwargs = True
        self.add_callback(_RestoreProgress(self))

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Packed batches in the order of the seed and the epoch."""
        data = self.train_dataset
        groups = None
        if self.packing:
            groups = pack_groups(data.store.lengths[data.members], self.packing)
        batches = ShuffledBatches(len(data), self._train_batch_size, self.args.seed, groups)
        return self.accelerator.prepare(self._loader(data, batches))

    def _loader(self, data: Sequences, batches: Any) -> DataLoader[Any]:
        workers = self.args.dataloader_num_workers
        return DataLoader(
            data,
            batch_sampler=batches,
            collate_fn=_Collate(data),
            num_workers=workers,
            pin_memory=self.args.dataloader_pin_memory and torch.cuda.is_available(),
        )

    def _get_num_items_in_batch(self, batch_samples: list[Batch], device: torch.device) -> Any:
        count = torch.tensor(sum(len(batch["targets"]) for batch in batch_samples), device=device)
        if self.args.world_size > 1:
            count = self.accelerator.gather(count).sum()
        return count

    def compute_loss(
        self, model: Any, inputs: Batch, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Mean loss per trained token of the whole accumulated batch."""
        if num_items_in_batch is None:
            num_items_in_batch = len(inputs["targets"])
        loss = model(**inputs) / num_items_in_batch
        if self.args.world_size > 1:
            loss = loss * self.args.world_size
        return (loss, None) if return_outputs else loss

    def floating_point_ops(self, inputs: Batch) -> int:
        """6 × parameters × tokens, the usual estimate."""
        return 6 * self._parameter_count * int(inputs["input_ids"].numel())

    @property
    def _parameter_count(self) -> int:
        if not hasattr(self, "_parameters_counted"):
            self._parameters_counted = sum(p.numel() for p in self.model.parameters())
        return self._parameters_counted

    def evaluate(self, *_: Any, metric_key_prefix: str = "eval", **__: Any) -> dict[str, float]:
        """Mean loss per trained token on each evaluation set, and what ``measure`` adds."""
        metrics: dict[str, float] = {}
        for name, data in self.evaluations.items():
            key = f"{metric_key_prefix}_{name}_loss" if name else f"{metric_key_prefix}_loss"
            metrics[key] = self._evaluation_loss(data)
        if self.measure is not None:
            self.model.eval()
            measured = self.measure(self.tuned)
            metrics.update({f"{metric_key_prefix}_{name}": value for name, value in measured.items()})
        self.log(dict(metrics))
        self.control: Any = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    @torch.no_grad()
    def _evaluation_loss(self, data: Sequences) -> float:
        size = self.args.per_device_eval_batch_size
        batches = [list(range(start, min(start + size, len(data)))) for start in range(0, len(data), size)]
        loader = self.accelerator.prepare(self._loader(data, batches))
        learner = (
            self.model_wrapped if self.is_in_train else self.accelerator.prepare_model(self.model, evaluation_mode=True)
        )
        was_training, cache = learner.training, self.model.cache
        learner.eval()
        self.model.cache = None  # evaluation rows have numbers of their own
        total = torch.zeros(2, dtype=torch.float64)
        for batch in loader:
            inputs = self._prepare_inputs(batch)
            total += torch.tensor([float(learner(**inputs)), float(len(inputs["targets"]))], dtype=torch.float64)
        if self.args.world_size > 1:
            total = self.accelerator.reduce(total.to(self.args.device), "sum").cpu()
        learner.train(was_training)
        self.model.cache = cache
        return float(total[0] / total[1])

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write what the method trained, and the tokenizer."""
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        with _own_attention(self.tuned.model):
            self.method.save(self.tuned, folder)
        if self.processing_class is not None:
            self.processing_class.save_pretrained(str(folder))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write a checkpoint beside its place and move it there when it is whole."""
        run = Path(self.args.output_dir)
        final = run / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        work = run / f".saving-{self.state.global_step}"
        self.store_flos()
        try:
            self._write_checkpoint(work)
        except (OSError, RuntimeError) as error:
            shutil.rmtree(work, ignore_errors=True)
            if not _disk_trouble(error):
                raise
            raise RunError(
                f"the checkpoint of step {self.state.global_step} cannot be written: {error}",
                where=str(run),
                hint="Free some space and start the same command again; it goes on from the last checkpoint.",
            ) from error
        if self.args.should_save:
            shutil.rmtree(final, ignore_errors=True)
            work.replace(final)
            if self.state.best_global_step:
                best = run / f"{PREFIX_CHECKPOINT_DIR}-{self.state.best_global_step}"
                self.state.best_model_checkpoint = str(best) if best.exists() else None
                self.state.save_to_json(str(final / "trainer_state.json"))
            rotate_checkpoints(
                output_dir=str(run),
                save_total_limit=self.args.save_total_limit,
                best_model_checkpoint=self.state.best_model_checkpoint,
                use_mtime=True,
            )

    def _write_checkpoint(self, folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self.save_model(str(folder), _internal_call=True)
        if not self.args.save_only_model:
            self._save_optimizer_and_scheduler(str(folder))
            self._save_scaler(str(folder))
            self._save_rng_state(str(folder))
        if self.args.should_save:
            for callback in (*self.callback_handler.callbacks, self.control):
                if hasattr(callback, "state") and callable(callback.state):
                    self.state.stateful_callbacks[type(callback).__name__] = callback.state()
            self.state.save_to_json(str(folder / "trainer_state.json"))
            gathered = {
                "gathered_loss": float(self._tr_loss),
                "total_loss": self._total_loss_scalar,
                "last_logged_step": self._globalstep_last_logged,
                "start_step": self._initial_global_step,
            }
            write_json(folder / _PROGRESS, gathered)
            if self.on_checkpoint:
                self.on_checkpoint(folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        self.method.load(self.tuned, Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        if self.state.best_model_checkpoint:
            self.method.load(self.tuned, Path(self.state.best_model_checkpoint))


class _Collate:
    """Turns positions in a dataset into a packed batch; a class so that worker processes can receive it."""

    def __init__(self, data: Sequences) -> None:
        self.store = data.store

    def __call__(self, members: list[int]) -> Batch:
        return collate(self.store, members)


class _RestoreProgress(TrainerCallback):
    """Gives a resumed loop the loss that had been gathered but not logged when the checkpoint was written."""

    def __init__(self, trainer: DanluTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Called after the loop has set its counters to zero."""
        path = Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}" / _PROGRESS
        if not state.global_step or not path.exists():
            return
        saved = read_json(path)
        self.trainer._tr_loss += saved["gathered_loss"]
        self.trainer._total_loss_scalar = saved["total_loss"]
        self.trainer._globalstep_last_logged = saved["last_logged_step"]
        self.trainer._initial_global_step = saved["start_step"]


class _own_attention:
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
