"""The one trainer: transformers' loop with packed batches, exact resuming and checkpoints that are whole or absent."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import Trainer, set_seed
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints

from danlu.core.console import note
from danlu.core.errors import ConfigError, UsageError, did_you_mean
from danlu.core.files import write_json
from danlu.core.ranks import ranks
from danlu.tune.batches import Batch, Sequences, ShuffledBatches, training_batches
from danlu.tune.callbacks import StopOnRequest, stop_if_nonsense
from danlu.tune.checkpoints import PROGRESS, Progress, own_attention, progress_of, whole_or_absent
from danlu.tune.learner import Learner
from danlu.tune.methods import METHODS, Tuned
from danlu.tune.methods.low_rank import raise_rates
from danlu.tune.parallel.loading import IDLE, BatchLoader, Collate
from danlu.tune.parallel.sharding import Sharded, divide_state, whole_in_engine, whole_state
from danlu.tune.parallel.states import (
    RandomStates,
    gather_random_states,
    has_random_state,
    seed_of,
    write_random_states,
)
from danlu.tune.parallel.together import mean_of_all, objects_of_all, sum_of_all

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
        some = next(iter(evaluations.values()), None)  # which one does not matter: evaluate() takes them all
        super().__init__(model=learner, train_dataset=train, eval_dataset=some, **arguments)
        self.model_accepts_loss_kwargs = True
        self.resumed_from: Path | None = None
        self._began = time.time()
        self._epoch_over = self._postponed = False
        self.add_callback(Progress(self))
        found = [item for item in self.callback_handler.callbacks if isinstance(item, StopOnRequest)]
        self.stop = found[0] if found else StopOnRequest()

    def create_optimizer(self, *arguments: Any, **named: Any) -> torch.optim.Optimizer:
        """As transformers makes it, with a rate of its own for B under LoRA+.

        Raises:
            ConfigError: when its package is missing or it refuses its arguments.
        """
        if self.sharding and self.sharded is None:  # the optimizer must know the parts, not the whole
            self.sharded = Sharded(self.learner, self.sharding, self.args.device, self.accelerator.autocast)
        try:
            optimizer: torch.optim.Optimizer = super().create_optimizer(*arguments, **named)
        except (ImportError, ValueError, TypeError) as error:
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
        """Packed batches in the order of the seed and the epoch."""
        data = self.train_dataset
        batches = training_batches(data.store, data.members, self._train_batch_size, self.args.seed, self.packing)
        return self._loader(data, batches)

    def _loader(self, data: Sequences, batches: ShuffledBatches) -> DataLoader[Any]:
        # Not accelerator.prepare: it would repeat rows at the end of an epoch so that all processes have as many.
        return BatchLoader(
            data,
            batch_sampler=batches,
            collate_fn=Collate(data, self.objective),
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory and torch.cuda.is_available(),
        )

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
        loss = model(**inputs) / num_items_in_batch
        if self.args.world_size > 1:  # gradients are averaged over the processes, and so is the loss that is logged
            loss = loss * (0 if idle else self.args.world_size)
        return (loss, None) if return_outputs else loss

    def floating_point_ops(self, inputs: Batch) -> int:
        """6 × parameters × tokens, the usual estimate."""
        return 6 * self._parameter_count * int(inputs["input_ids"].numel())

    def evaluate(self, *_: Any, metric_key_prefix: str = "eval", **__: Any) -> dict[str, float]:
        """Mean loss per trained token on each evaluation set, and what ``measure`` adds."""
        metrics: dict[str, float] = {}
        whole_total = whole_count = 0.0
        for name, data in self.evaluations.items():
            key = f"{metric_key_prefix}_{name}_loss" if name else f"{metric_key_prefix}_loss"
            total, count = self._evaluation_loss(data)
            metrics[key] = total / count
            whole_total, whole_count = whole_total + total, whole_count + count
        if self.evaluations:
            metrics[f"{metric_key_prefix}_loss"] = whole_total / whole_count
        if self.measure is not None:
            self.model.eval()
            measured = self.measure(self.tuned)
            metrics.update({f"{metric_key_prefix}_{name}": value for name, value in measured.items()})
        self._check_metric(metrics)
        self.log(dict(metrics))
        self.control: Any = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _check_metric(self, metrics: Mapping[str, float]) -> None:
        wanted = self.args.metric_for_best_model
        if wanted is not None and f"eval_{wanted.removeprefix('eval_')}" not in metrics:
            names = [name.removeprefix("eval_") for name in metrics]
            raise UsageError(
                f"the evaluation has no metric {wanted!r}",
                where="metric_for_best_model",
                hint=did_you_mean(wanted, names) or f"It has {', '.join(names)}.",
            )

    @torch.no_grad()
    def _evaluation_loss(self, data: Sequences) -> tuple[float, float]:
        """Summed loss and number of trained tokens, of all processes; each row is counted once."""
        size, place = self.args.per_device_eval_batch_size, ranks()
        batches = ShuffledBatches(len(data), size, None, rank=place.rank, processes=place.world)
        learner = (
            self.model_wrapped if self.is_in_train else self.accelerator.prepare_model(self.model, evaluation_mode=True)
        )
        was_training, cache = learner.training, self.learner.cache
        learner.eval()
        self.learner.cache = None  # evaluation rows have numbers of their own
        total = count = 0.0
        for batch in self._loader(data, batches):
            inputs = self._prepare_inputs(batch)
            idle = inputs.pop(IDLE, None) is not None
            loss = float(learner(**inputs))
            if not idle:
                total, count = total + loss, count + self.objective.count(inputs)
        learner.train(was_training)
        self.learner.cache = cache
        total, count = sum_of_all((total, count), self.args.device)
        return total, count

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write what the method trained, and the tokenizer."""
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        with own_attention(self.tuned.model):
            self.method.save(self.tuned, folder)
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
        states = gather_random_states(self._save_rng_state) if self.args.world_size > 1 else {}
        if self.is_deepspeed_enabled and not self.args.save_only_model:
            self._save_engine(work)
        with self._whole_weights(), self._whole_optimizer():
            if not self.args.should_save:
                return
            with whole_or_absent(
                work, begun=self.is_deepspeed_enabled, what=f"the checkpoint of step {self.state.global_step}"
            ):
                self._write_checkpoint(work, states, gathered)
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

    def _save_engine(self, folder: Path) -> None:
        """DeepSpeed's processes each write their own part."""
        if self.args.should_save:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        objects_of_all("the folder is there")
        self._save_optimizer_and_scheduler(str(folder))
        objects_of_all("the parts are there")

    def _write_checkpoint(self, folder: Path, states: RandomStates, gathered: list[float]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.save_model(str(folder), _internal_call=True)
        if not self.args.save_only_model:
            if not self.is_deepspeed_enabled:
                self._save_optimizer_and_scheduler(str(folder))
            self._save_scaler(str(folder))
            if self.args.world_size > 1:
                write_random_states(folder, states)
            else:
                self._save_rng_state(str(folder))
        for callback in (*self.callback_handler.callbacks, self.control):
            if hasattr(callback, "state") and callable(callback.state):
                self.state.stateful_callbacks[type(callback).__name__] = callback.state()
        self.state.save_to_json(str(folder / "trainer_state.json"))
        write_json(folder / PROGRESS, progress_of(self, gathered))
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
        self.method.load(self.tuned, self.resumed_from)

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

    @contextmanager
    def _whole_optimizer(self) -> Iterator[None]:
        """While its state is written."""
        own = self.optimizer
        if self.sharded is not None and not self.args.save_only_model:
            state = whole_state(own.state_dict(), here=self.args.should_save)
            self.optimizer: Any = SimpleNamespace(state_dict=lambda: state)
        try:
            yield
        finally:
            self.optimizer = own

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
            with self._whole_weights(back=True):
                self.method.load(self.tuned, Path(self.state.best_model_checkpoint))


def _first_sentence(error: Exception) -> str:
    return " ".join(str(error).split()).partition(". ")[0].rstrip(".")
