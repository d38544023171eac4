"""The one trainer: transformers' loop with packed batches, exact resuming and checkpoints that are whole or absent."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader
from transformers import Trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints

from danlu.core.errors import ConfigError, UsageError, did_you_mean
from danlu.core.files import write_json
from danlu.tune.batches import Batch, Sequences, training_batches
from danlu.tune.callbacks import MethodHooks, stop_if_nonsense
from danlu.tune.checkpoints import PROGRESS, Progress, name_checkpoints, own_attention, whole_or_absent
from danlu.tune.feed import Feed
from danlu.tune.learner import Learner
from danlu.tune.methods import METHODS, Tuned, call
from danlu.tune.methods.low_rank import raise_rates
from danlu.tune.optimizers import Build, weights_to_use
from danlu.tune.tally import Tally

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
        self.evaluations, self.packing, self.measure = evaluations, packing, measure
        self.on_checkpoint = on_checkpoint
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

    @property
    def tally(self) -> Tally:
        """What the objective gathered since the last log line, in this process."""
        tally: Tally = self.model.tally
        return tally

    def gathered(self, tally: Tally) -> dict[str, list[float]]:
        """A tally summed over all processes."""
        if self.args.world_size == 1:
            return tally.sums
        everybody: list[Any] = [None] * self.args.world_size
        torch.distributed.all_gather_object(everybody, tally.sums)
        whole = Tally()
        for sums in everybody:
            whole.merge(sums)
        return whole.sums

    def log(self, logs: dict[str, float], *args: Any, **named: Any) -> None:
        """Log, with what the objective gathered beside a training loss."""
        if "loss" in logs:
            logs |= Tally(self.gathered(self.tally)).means()
            self.tally.clear()
        super().log(logs, *args, **named)

    def create_optimizer(self, *arguments: Any, **named: Any) -> torch.optim.Optimizer:
        """As transformers makes it or ``build_optimizer`` does, with a rate of its own for B under LoRA+.

        Raises:
            ConfigError: when its package is missing or it refuses its arguments.
        """
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
        return self.accelerator.prepare(self._loader(data, batches))

    def _loader(self, data: Sequences, batches: Any) -> DataLoader[Any]:
        workers = self.args.dataloader_num_workers
        return DataLoader(
            data,
            batch_sampler=batches,
            collate_fn=_Collate(data, self.model.objective),
            num_workers=workers,
            pin_memory=self.args.dataloader_pin_memory and torch.cuda.is_available(),
        )

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list[Batch], Any]:
        """The batches of one optimizer step, and what its loss is divided by."""
        found = [batch for _, batch in zip(range(num_batches), epoch_iterator)]
        if self.feed is not None:
            found = list(self.feed.batches(self.state.global_step, len(found)))
        return found, self._get_num_items_in_batch(found, device)

    def _get_num_items_in_batch(self, batch_samples: list[Batch], device: torch.device) -> Any:
        count = torch.tensor(sum(map(self.model.objective.count, batch_samples)), device=device)
        if self.args.world_size > 1:
            count = self.accelerator.gather(count).sum()
        return count

    def compute_loss(
        self, model: Any, inputs: Batch, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Mean loss per trained token of the whole accumulated batch."""
        if num_items_in_batch is None:
            num_items_in_batch = self.model.objective.count(inputs)
        loss = model(**inputs) / num_items_in_batch
        if self.args.world_size > 1:
            loss = loss * self.args.world_size
        penalty = call(self.method, "penalty", self.tuned) if model.training else None
        if penalty is not None:  # once a step, however many batches it has
            loss = loss + penalty / self.current_gradient_accumulation_steps
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
        with weights_to_use(self.optimizer):
            metrics = self._metrics(metric_key_prefix)
        self._check_metric(metrics)
        self.log(dict(metrics))
        self.control: Any = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _metrics(self, metric_key_prefix: str) -> dict[str, float]:
        metrics: dict[str, float] = {}
        whole, gathered = np.zeros(2), Tally()
        for name, data in self.evaluations.items():
            key = f"{metric_key_prefix}_{name}_loss" if name else f"{metric_key_prefix}_loss"
            total, count, tally = self._evaluation_loss(data)
            metrics[key] = total / count
            prefix = key.removesuffix("loss")
            metrics |= {prefix + what: mean for what, mean in Tally(tally).means().items()}
            whole += total, count
            gathered.merge(tally)
        if self.evaluations:
            metrics[f"{metric_key_prefix}_loss"] = float(whole[0] / whole[1])
            metrics |= {f"{metric_key_prefix}_{what}": mean for what, mean in gathered.means().items()}
        if self.measure is not None:
            self.model.eval()
            measured = self.measure(self.tuned)
            metrics.update({f"{metric_key_prefix}_{name}": value for name, value in measured.items()})
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
    def _evaluation_loss(self, data: Sequences) -> tuple[float, float, dict[str, list[float]]]:
        """Summed loss, what it is divided by, and what the objective gathered."""
        size = self.args.per_device_eval_batch_size
        batches = [list(range(start, min(start + size, len(data)))) for start in range(0, len(data), size)]
        loader = self.accelerator.prepare(self._loader(data, batches))
        learner = (
            self.model_wrapped if self.is_in_train else self.accelerator.prepare_model(self.model, evaluation_mode=True)
        )
        was_training, cache, tally = learner.training, self.model.cache, self.model.tally
        learner.eval()
        self.model.cache = None  # evaluation rows have numbers of their own
        self.model.tally = Tally()
        total = torch.zeros(2, dtype=torch.float64)
        for batch in loader:
            inputs = self._prepare_inputs(batch)
            total += torch.tensor(
                [float(learner(**inputs)), float(self.model.objective.count(inputs))], dtype=torch.float64
            )
        if self.args.world_size > 1:
            total = self.accelerator.reduce(total.to(self.args.device), "sum").cpu()
        learner.train(was_training)
        found = self.gathered(self.model.tally)
        self.model.cache, self.model.tally = cache, tally
        return float(total[0]), float(total[1]), found

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write what the method trained, and the tokenizer."""
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        with own_attention(self.tuned.model):
            self.method.save(self.tuned, folder)
        if self.model.value_head is not None:
            self.model.value_head.save(folder, old_style=self.model.settings.output.file_style == "et")
        if self.processing_class is not None:
            self.processing_class.save_pretrained(str(folder))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write a checkpoint beside its place and move it there when it is whole."""
        run = Path(self.args.output_dir)
        final = run / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        work, replaced = run / f".saving-{self.state.global_step}", run / f".saving-over-{self.state.global_step}"
        stop_if_nonsense(float(self._tr_loss), self.state.global_step, run)
        self.store_flos()
        if self.state.best_global_step:
            best = run / f"{PREFIX_CHECKPOINT_DIR}-{self.state.best_global_step}"
            self.state.best_model_checkpoint = str(best) if best == final or best.exists() else None
        with whole_or_absent(work, f"the checkpoint of step {self.state.global_step}"):
            self._write_checkpoint(work)
            if self.args.should_save:
                if final.exists():
                    final.replace(replaced)
                work.replace(final)
        if self.args.should_save:
            shutil.rmtree(replaced, ignore_errors=True)
            rotate_checkpoints(
                output_dir=str(run),
                save_total_limit=self.args.save_total_limit,
                best_model_checkpoint=self.state.best_model_checkpoint,
                use_mtime=True,
            )
            name_checkpoints(run, final, self.state.best_model_checkpoint)

    def _write_checkpoint(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        gathered = self.gathered(self.tally)
        with weights_to_use(self.optimizer):
            self.save_model(str(folder), _internal_call=True)
            if not self.args.save_only_model:
                self._save_optimizer_and_scheduler(str(folder))
        if self.feed is not None:
            self.feed.save(folder)
        if not self.args.save_only_model:
            if self.args.should_save:
                call(self.method, "save_state", self.tuned, folder)
            self._save_scaler(str(folder))
            self._save_rng_state(str(folder))
        if self.args.should_save:
            for callback in (*self.callback_handler.callbacks, self.control):
                if hasattr(callback, "state") and callable(callback.state):
                    self.state.stateful_callbacks[type(callback).__name__] = callback.state()
            self.state.save_to_json(str(folder / "trainer_state.json"))
            progress = {
                "gathered_loss": float(self._tr_loss),
                "total_loss": self._total_loss_scalar,
                "last_logged_step": self._globalstep_last_logged,
                "start_step": self._initial_global_step,
                "seconds": time.time() - self._began,
                "tally": gathered,
            }
            write_json(folder / PROGRESS, progress)
            if self.on_checkpoint:
                self.on_checkpoint(folder)

    def save_final(self) -> None:
        """Write the trained model into the run directory, each file whole or not at all.

        Raises:
            RunError: when the disk is full; what was there before is unchanged.
        """
        run = Path(self.args.output_dir)
        work = run / ".saving-final"
        with whole_or_absent(work, "the trained model"):
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
        if self.model.value_head is not None:
            self.model.value_head.load(folder)

    def _finalize_training(self, trial: Any, num_train_samples: Any, start_time: float) -> Any:
        # Speeds are over the whole run, so its time is as well.
        return super()._finalize_training(trial, num_train_samples, self._began)

    def _load_best_model(self) -> None:
        if self.state.best_model_checkpoint:
            if callable(getattr(self.optimizer, "eval", None)):
                self.optimizer.eval()  # the checkpoint has the weights to use, so they must not be changed again
            self._load_trained(Path(self.state.best_model_checkpoint))


class _Collate:
    """Turns numbers of sequences into a batch; a class so that worker processes can receive it."""

    def __init__(self, data: Sequences, objective: Any) -> None:
        self.data, self.build = data, objective.build

    def __call__(self, members: list[int]) -> Batch:
        batch: Batch = self.build(self.data.store, members)
        return batch | {name: torch.from_numpy(column[members]) for name, column in self.data.columns.items()}


def _first_sentence(error: Exception) -> str:
    return " ".join(str(error).split()).partition(". ")[0].rstrip(".")
