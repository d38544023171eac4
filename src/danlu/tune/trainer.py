"""The one trainer: transformers' loop with packed batches, exact resuming and checkpoints that are whole or absent."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import Trainer, set_seed
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints

from danlu.core.console import note
from danlu.core.errors import ConfigError
from danlu.core.files import write_json
from danlu.tune.batches import Batch, Sequences, ShuffledBatches, training_batches
from danlu.tune.callbacks import MethodHooks, StopOnRequest, stop_if_nonsense
from danlu.tune.checkpoints import PROGRESS, Progress, name_checkpoints, own_attention, progress_of, whole_or_absent
from danlu.tune.checks import check_metric
from danlu.tune.evaluation import losses
from danlu.tune.feed import Feed
from danlu.tune.learner import Learner
from danlu.tune.methods import METHODS, Tuned, call
from danlu.tune.methods.low_rank import raise_rates
from danlu.tune.optimizers import Build, weights_to_use
from danlu.tune.parallel.loading import IDLE, BatchLoader, Collate
from danlu.tune.parallel.sharding import Sharded, divide_state, whole_in_engine, whole_optimizer
from danlu.tune.parallel.states import (
    Files,
    gather_files,
    has_random_state,
    seed_of,
    write_files,
)
from danlu.tune.parallel.together import mean_of_all, objects_of_all, sum_of_all
from danlu.tune.tally import Tally, of_all

Measure = Callable[[Any], Mapping[str, float]]
"""Generates answers with the model and returns metrics; given by whoever knows how to evaluate."""


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

    Attributes:
        rate_ratio: learning rate of LoRA's B over that of A (LoRA+), or None.
        build_optimizer: makes the optimizer where transformers does not, or None.
        feed: makes the batches while it trains, for online objectives; None reads them from ``train``.
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
        self.learner, self.objective = learner, learner.objective
        self._parameter_count = sum(parameter.numel() for parameter in learner.parameters())
        self.evaluations, self.packing, self.measure = evaluations, packing, measure
        self.on_checkpoint = on_checkpoint
        self.sharding = learner.sharding
        self.sharded: Sharded | None = None
        self.rate_ratio: float | None = None
        self.build_optimizer: Build | None = None
        self.feed: Feed | None = None
        some = next(iter(evaluations.values()), None)  # which one does not matter: evaluate() takes them all
        super().__init__(model=learner, train_dataset=train, eval_dataset=some, **arguments)
        self.model_accepts_loss_kwargs = True
        self.resumed_from: Path | None = None
        self._began = time.time()
        self._epoch_over = self._postponed = False
        self.add_callback(Progress(self))
        self.add_callback(MethodHooks(self.method, tuned))
        found = [item for item in self.callback_handler.callbacks if isinstance(item, StopOnRequest)]
        self.stop = found[0] if found else StopOnRequest()

    @property
    def tally(self) -> Tally:
        """What the objective gathered since the last log line, in this process."""
        return self.learner.tally

    def log(self, logs: dict[str, float], *args: Any, **named: Any) -> None:
        """Log, with what the objective gathered beside a training loss."""
        if "loss" in logs:
            logs |= of_all(self.tally).means()
            self.tally.clear()
        super().log(logs, *args, **named)

    def create_optimizer(self, *arguments: Any, **named: Any) -> torch.optim.Optimizer:
        """As transformers makes it or ``build_optimizer`` does, with a rate of its own for B under LoRA+.

        Raises:
            ConfigError: when its package is missing or it refuses its arguments.
        """
        if self.sharding and self.sharded is None:  # the optimizer must know the parts, not the whole
            self.sharded = Sharded(self.learner, self.sharding, self.args.device, self.accelerator.autocast)
        if self.build_optimizer is not None:
            model = named.get("model") or next(iter(arguments), None) or self.model
            self.optimizer = self.build_optimizer(model, self.args, self.get_decay_parameter_names(model))
        try:
            optimizer: torch.optim.Optimizer = super().create_optimizer(*arguments, **named)
        except (ImportError, ValueError, TypeError, RuntimeError, AssertionError) as error:
            raise ConfigError(f"this optimizer cannot be used: {_first_sentence(error)}", where="optim") from error
        if self.rate_ratio is not None:
            raise_rates(optimizer, self.model, self.rate_ratio)
        return optimizer

    def _move_model_to_device(self, model: Any, device: torch.device) -> None:
        if self.sharding is None:  # else each process takes its part there
            super()._move_model_to_device(model, device)

    def _wrap_model(self, model: Any, *arguments: Any, **named: Any) -> Any:
        return self.sharded or super()._wrap_model(model, *arguments, **named)

    def _clip_grad_norm(self, model: Any) -> Any:
        norm = super()._clip_grad_norm(model)
        return norm.full_tensor() if hasattr(norm, "full_tensor") else norm

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        return norm.full_tensor() if hasattr(norm, "full_tensor") else norm

    def create_scheduler(self, *arguments: Any, **named: Any) -> Any:
        """As transformers makes it.

        Raises:
            ConfigError: when it misses or refuses an argument.
        """
        try:
            return super().create_scheduler(*arguments, **named)
        except (ValueError, TypeError, AssertionError) as error:
            name = getattr(self.args.lr_scheduler_type, "value", self.args.lr_scheduler_type)
            raise ConfigError(
                f"the schedule {name} cannot be made: {_first_sentence(error)}",
                where="lr_scheduler_kwargs",
                hint="Its arguments are given there as a mapping, for instance {min_lr_rate: 0.1}.",
            ) from error

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Packed batches in the order of the seed and the epoch; mere numbers where a feed makes the batches."""
        if self.feed is not None:
            return DataLoader(range(len(self.feed)), batch_size=1)
        data = self.train_dataset
        batches = training_batches(data.store, data.members, self._train_batch_size, self.args.seed, self.packing)
        return self.loader(data, batches)

    def loader(self, data: Sequences, batches: ShuffledBatches) -> DataLoader[Any]:
        """Batches of some items, built by the objective."""
        # Not accelerator.prepare: it would repeat rows at the end of an epoch so that all processes have as many.
        return BatchLoader(
            data,
            batch_sampler=batches,
            collate_fn=Collate(data, self.objective),
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory and torch.cuda.is_available(),
        )

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list[Batch], Any]:
        """The batches of one optimizer step, and what its loss is divided by."""
        found = [batch for _, batch in zip(range(num_batches), epoch_iterator)]
        if self.feed is not None:
            found = list(self.feed.batches(self.state.global_step, len(found)))
        return found, self._get_num_items_in_batch(found, device)

    def _get_num_items_in_batch(self, batch_samples: list[Batch], device: torch.device) -> Any:
        """What the loss of a step is divided by; on the way, all processes agree whether to stop after it."""
        count = sum(self.objective.count(batch) for batch in batch_samples if IDLE not in batch)
        total, asked = sum_of_all((count, self.stop.asked), device)
        self.stop.agreed = asked > 0
        return torch.tensor(int(total), device=device)

    def compute_loss(
        self, model: Any, inputs: Batch, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Mean loss per trained token of the whole accumulated batch."""
        idle = inputs.pop(IDLE, None) is not None
        if num_items_in_batch is None:
            num_items_in_batch = self.objective.count(inputs)
        before = self.tally
        if idle:  # what it tells counts no more than its loss
            self.learner.tally = Tally()
        loss = model(**inputs) / num_items_in_batch
        self.learner.tally = before
        if self.args.world_size > 1:  # gradients are averaged over the processes, and so is the loss that is logged
            loss = loss * (0 if idle else self.args.world_size)
        penalty = call(self.method, "penalty", self.tuned) if model.training else None
        if penalty is not None:  # once a step, however many batches it has
            loss = loss + penalty / self.current_gradient_accumulation_steps
        return (loss, None) if return_outputs else loss

    def floating_point_ops(self, inputs: Batch) -> int:
        """6 × parameters × tokens, the usual estimate."""
        return 6 * self._parameter_count * int(inputs["input_ids"].numel())

    def evaluate(self, *_: Any, metric_key_prefix: str = "eval", **__: Any) -> dict[str, float]:
        """Mean loss per trained token on each evaluation set, and what ``measure`` adds."""
        metrics = losses(self, self.evaluations, metric_key_prefix)
        if self.measure is not None:
            self.model.eval()
            with self.accelerator.autocast():  # trained weights and frozen ones may differ in precision
                measured = self.measure(self.tuned)
            metrics.update({f"{metric_key_prefix}_{name}": value for name, value in measured.items()})
        check_metric(self.args.metric_for_best_model, metrics)
        self.log(dict(metrics))
        self.control: Any = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write what the method trained, and the tokenizer."""
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        with own_attention(self.tuned.model):
            self.method.save(self.tuned, folder)
        if self.learner.value_head is not None:
            self.learner.value_head.save(folder, old_style=self.learner.settings.output.file_style == "et")
        if self.processing_class is not None:
            self.processing_class.save_pretrained(str(folder))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write a checkpoint beside its place and move it there when it is whole."""
        run = Path(self.args.output_dir)
        final = run / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        work, replaced = run / f".saving-{self.state.global_step}", run / f".saving-over-{self.state.global_step}"
        gathered = objects_of_all(float(self._tr_loss))
        stop_if_nonsense(sum(gathered) / len(gathered), self.state.global_step, run)
        self.store_flos()
        if self.state.best_global_step:
            best = run / f"{PREFIX_CHECKPOINT_DIR}-{self.state.best_global_step}"
            self.state.best_model_checkpoint = str(best) if best == final or best.exists() else None
        states = gather_files(self._save_own) if self.args.world_size > 1 else {}
        told = of_all(self.tally)
        if self.is_deepspeed_enabled and not self.args.save_only_model:
            self._save_engine(work)
        with self._whole_weights(), whole_optimizer(self):
            if not self.args.should_save:
                return
            with whole_or_absent(
                work, begun=self.is_deepspeed_enabled, what=f"the checkpoint of step {self.state.global_step}"
            ):
                self._write_checkpoint(work, states, gathered, told)
                if final.exists():
                    final.replace(replaced)
                work.replace(final)
        shutil.rmtree(replaced, ignore_errors=True)
        rotate_checkpoints(
            output_dir=str(run),
            save_total_limit=self.args.save_total_limit,
            best_model_checkpoint=self.state.best_model_checkpoint,
            use_mtime=True,
        )
        name_checkpoints(run, final, self.state.best_model_checkpoint)

    def _save_own(self, folder: str) -> None:
        """What each process has of its own."""
        self._save_rng_state(folder)
        if self.feed is not None:
            self.feed.save(Path(folder))

    def _save_engine(self, folder: Path) -> None:
        """DeepSpeed's processes each write their own part."""
        if self.args.should_save:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        objects_of_all("the folder is there")
        self._save_optimizer_and_scheduler(str(folder))
        objects_of_all("the parts are there")

    def _write_checkpoint(self, folder: Path, states: Files, gathered: list[float], told: Tally) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        with weights_to_use(self.optimizer):
            self.save_model(str(folder), _internal_call=True)
            if not self.args.save_only_model and not self.is_deepspeed_enabled:
                self._save_optimizer_and_scheduler(str(folder))
        if not self.args.save_only_model:
            call(self.method, "save_state", self.tuned, folder)
            self._save_scaler(str(folder))
            if self.args.world_size > 1:
                write_files(folder, states)
            else:
                self._save_own(str(folder))
        for callback in (*self.callback_handler.callbacks, self.control):
            if hasattr(callback, "state") and callable(callback.state):
                self.state.stateful_callbacks[type(callback).__name__] = callback.state()
        self.state.save_to_json(str(folder / "trainer_state.json"))
        write_json(folder / PROGRESS, {**progress_of(self, gathered), "tally": told.sums})
        if self.on_checkpoint:
            self.on_checkpoint(folder)

    def save_final(self) -> None:
        """Write the trained model into the run directory, each file whole or not at all.

        Raises:
            RunError: when the disk is full; what was there before is unchanged.
        """
        run = Path(self.args.output_dir)
        work = run / ".saving-final"
        with self._whole_weights():
            if not self.args.should_save:
                return
            with whole_or_absent(work, what="the trained model"):
                with weights_to_use(self.optimizer):
                    self.save_model(str(work))
                for file in sorted(work.iterdir()) if work.exists() else ():
                    file.replace(run / file.name)
            shutil.rmtree(work, ignore_errors=True)

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        # At the last step of an epoch the loop comes here twice: after the step and after the epoch. A checkpoint
        # between the two would make a resumed run miss what is logged and measured by epoch.
        ending = float(self.state.epoch or 0.0).is_integer() and not self._epoch_over
        postponed = ending and self.control.should_save
        if postponed:
            self.control.should_save = False
        super()._maybe_log_save_evaluate(*args, **kwargs)
        self._postponed = postponed

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        self.resumed_from = Path(resume_from_checkpoint)
        self._load_trained(self.resumed_from)
        call(self.method, "load_state", self.tuned, self.resumed_from)
        if self.feed is not None:
            self.feed.load(self.resumed_from)

    def _load_trained(self, folder: Path) -> None:
        self.method.load(self.tuned, folder)
        if self.learner.value_head is not None:
            self.learner.value_head.load(folder)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            self.resumed_from = Path(checkpoint)  # DeepSpeed reads the weights by itself
            if self.sharded is not None:
                divide_state(self.optimizer)

    def _whole_weights(self, *, back: bool = False) -> AbstractContextManager[None]:
        """While they are written, or (in all processes) read and taken back."""
        everything = self.tuned.adapter is None and self.tuned.prefix is None
        if self.is_deepspeed_enabled:
            return whole_in_engine(self.learner, everything=everything)
        if self.sharded is None:
            return nullcontext()
        return self.sharded.whole(everything=everything, here=back or self.args.should_save, back=back)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        # The states of another number of processes fit nobody: what is random is then another, and that is said.
        if checkpoint is None or has_random_state(Path(checkpoint)):
            super()._load_rng_state(checkpoint)
            return
        note("this checkpoint is of another number of processes: dropout is drawn anew, all else goes on as it was")
        set_seed(seed_of(self.args.seed, self.state.global_step))

    def _finalize_training(self, trial: Any, num_train_samples: Any, start_time: float) -> Any:
        # Speeds are over the whole run, so its time is as well; the loss is that of all processes.
        self._tr_loss.fill_(mean_of_all(float(self._tr_loss), self.args.device))
        return super()._finalize_training(trial, num_train_samples, self._began)

    def _load_best_model(self) -> None:
        if self.state.best_model_checkpoint:
            if callable(getattr(self.optimizer, "eval", None)):
                self.optimizer.eval()  # the checkpoint has the weights to use, so they must not be changed again
            with self._whole_weights(back=True):
                self._load_trained(Path(self.state.best_model_checkpoint))


def _first_sentence(error: Exception) -> str:
    return " ".join(str(error).split()).partition(". ")[0].rstrip(".")
