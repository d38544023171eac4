"""One training from loaded rows to a finished run directory."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from danlu.core.console import note
from danlu.core.errors import DataError, RunError
from danlu.core.manifest import installed_versions
from danlu.core.ranks import is_main
from danlu.core.results import metrics_block, write_results
from danlu.core.run import RunDirectory
from danlu.data.tokens import TokenStore
from danlu.models.abilities import examine
from danlu.models.loading import check_architecture, load_model, pick_device
from danlu.models.memory import keep_freed_memory
from danlu.models.quantize import Quantization
from danlu.models.quiet import quiet
from danlu.models.stored_bits import check_trainable
from danlu.tune.arguments import training_arguments
from danlu.tune.artefacts import (
    write_finetuning_args,
    write_model_card,
    write_training_args,
)
from danlu.tune.batches import Sequences, pack_groups, training_batches
from danlu.tune.boundary import BoundaryCache, split_dtype
from danlu.tune.callbacks import Recorder, StopOnNonsense, StopOnRequest, name_in_tensorboard
from danlu.tune.config import TrainConfig
from danlu.tune.contexts import check_contexts
from danlu.tune.learner import Learner
from danlu.tune.matrix import ONLINE
from danlu.tune.methods import METHODS, Tuned, family
from danlu.tune.norms import speed_up_norms
from danlu.tune.objectives import needs
from danlu.tune.online.plan import RolloutPlan, check_room
from danlu.tune.online.wiring import Rollouts, make_experience
from danlu.tune.optimizers import builder
from danlu.tune.parallel.configs import sharding_plan
from danlu.tune.parallel.start import planned
from danlu.tune.plots import plot_curves
from danlu.tune.preflight import GIB, Plan, Rows, make_plan, read_shape
from danlu.tune.reference_model import reference_key, reference_log_probs
from danlu.tune.trainer import DanluTrainer, Measure
from danlu.tune.value import begin as begin_value_head
from danlu.tune.weights import frozen_dtype


class Session:
    """Trains one model.

    Args:
        config: the run's options.
        run: its directory, with manifest and row keys in place.
        folder: the base model's folder.
        tokenizer: of the model.
        store: the tokenised rows to train on.

    Attributes:
        evaluation: named rows to measure on the way; "" reports plain ``eval_loss``.
        measure: generation metrics at each evaluation, or None.
        open_rollouts: opens what objectives that learn from the model's own answers need; called when training begins.
        data: the sources in words, for the model card.
        decided: whether activations are recomputed, when that was decided and said before; else None.
    """

    def __init__(self, config: TrainConfig, run: RunDirectory, folder: Path, tokenizer: Any, store: TokenStore) -> None:
        self.config, self.run_directory, self.folder = _for_this_machine(config), run, folder
        self.tokenizer, self.store = tokenizer, store
        self.evaluation: Mapping[str, TokenStore] = {}
        self.measure: Measure | None = None
        self.open_rollouts: Callable[[], Rollouts] | None = None
        self.data: Sequence[str] = ()
        self.decided: bool | None = None

    def plan_all(self) -> Plan:
        """The plan for the rows that are trained on."""
        members, _ = split_members(self.store, self.config.data.val_size, self.config.compute.seed)
        return self.plan(members)

    def plan(self, members: NDArray[np.int64]) -> Plan:
        """Count steps and memory; say them; refuse what cannot work. No weights are loaded.

        Raises:
            UsageError: when memory does not suffice.
        """
        from transformers import AutoConfig

        check_architecture(self.folder)
        check_trainable(self.folder, whole=family(self.config.method.finetuning_type).kind == "whole")
        lengths = self.store.lengths[members]
        units = len(members)
        if self.config.encode.packing:
            units = len(pack_groups(lengths, self.config.encode.cutoff_len))
        model_config = AutoConfig.from_pretrained(self.folder, trust_remote_code=False)
        if self.config.task.stage in ONLINE:
            check_room(self.config, int(lengths.max()), getattr(model_config, "max_position_embeddings", None))
        rows = Rows(self.store.report, units, int(lengths.max()))
        shape = read_shape(model_config)
        plan = make_plan(self.config, shape, rows, planned(self.config), self.decided)
        if self.decided is not None:
            return plan
        if context_end := getattr(model_config, "context_end_token_id", None):
            check_contexts(self.store, members, context_end)
        share = 100 * plan.trainable / plan.parameters
        note(
            f"plan: {plan.steps} steps of {plan.batch} sequences, {plan.trainable:,} of {plan.parameters:,} weights "
            f"trained ({share:.2f} %), about {plan.memory / GIB:.1f} of {plan.free / GIB:.1f} GiB free memory"
            + (", activations recomputed" if plan.checkpointing else "")
            + (f", {plan.processes} processes" if plan.processes > 1 else "")
        )
        adapted = family(self.config.method.finetuning_type).kind == "peft"
        if shape.experts and adapted and not self.config.lora.lora_experts:
            note(
                f"the experts are one tensor a layer, which adapters do not reach: {shape.experts:,} weights "
                f"({100 * shape.experts / plan.parameters:.0f} %) stay as they are; "
                "finetuning_type=lora lora_experts=true adapts them too"
            )
        if self.config.task.stage in ONLINE:
            options = self.config.optimizer
            alone = options.per_device_train_batch_size * options.gradient_accumulation_steps
            rollouts = RolloutPlan.of(self.config, units, plan.batch // alone)
            note(
                f"rollouts: {rollouts.asked} prompts with {rollouts.group} answers each, up to "
                f"{self.config.generate.max_new_tokens} tokens long, for every {rollouts.steps_per_rollout} steps"
            )
        return plan

    def run(self, checkpoint: Path | None, *, started: float) -> dict[str, float]:
        """Train, or go on from a checkpoint, and write everything a run directory holds.

        Args:
            checkpoint: where to go on, or None.
            started: when the command began (``time.monotonic()``).

        Returns:
            The training metrics.
        """
        from transformers import set_seed

        config, output = self.config, self.run_directory.path
        members, held_out = split_members(self.store, config.data.val_size, config.compute.seed)
        plan = self.plan(members)
        keep_freed_memory()
        for half_written in output.glob(".saving-*") if is_main() else ():
            shutil.rmtree(half_written, ignore_errors=True)
        set_seed(config.compute.seed)
        learner, tuned = self._learner(members)
        trainer = self._trainer(learner, tuned, members, held_out, plan)
        self._reference(trainer)
        self._feed(trainer, members)
        recorder = next(item for item in trainer.callback_handler.callbacks if isinstance(item, Recorder))
        stop = next(item for item in trainer.callback_handler.callbacks if isinstance(item, StopOnRequest))
        stop.after(config.output.max_minutes, started)
        note(f"ready after {time.monotonic() - started:.1f} s")
        try:
            with quiet():
                result = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        finally:
            recorder.close()
            stop.release()
            if learner.cache:
                learner.cache.close()
        if stop.agreed and trainer.state.global_step < trainer.state.max_steps:
            raise RunError(
                f"stopped at step {trainer.state.global_step} of {trainer.state.max_steps} {stop.reason}; it is saved",
                where=str(output),
                hint="Start the same command again to go on.",
            )
        if trainer.feed is not None:
            trainer.feed.finish(trainer.state.global_step)
        metrics = {"epoch": float(trainer.state.epoch or 0.0), **result.metrics}
        with quiet():
            trainer.save_final()
        if is_main():
            trainer.save_state()
            self._finish(metrics, trainer.state.log_history)
        return metrics

    def _learner(self, members: NDArray[np.int64]) -> tuple[Learner, Tuned]:
        config = self.config
        dtype = str(frozen_dtype(config, torch.float32)).removeprefix("torch.")
        with quiet():
            model = load_model(
                self.folder,
                dtype=dtype,  # type: ignore[arg-type]
                attention=_attention(config),
                device="cpu" if config.parallel.fsdp else pick_device(),
                quantization=_quantization(config),
            )
        model.name_or_path = model.config._name_or_path = config.model.model_name_or_path
        abilities = examine(model)
        if config.model.flash_attn not in ("auto", "packed"):
            abilities = replace(abilities, packed=False)
            model.set_attn_implementation(_attention(config) or "sdpa")
        if not abilities.packed:
            note("this model's sequences cannot be packed side by side; they are padded instead")
        if model.device.type == "cpu":
            speed_up_norms(model)
        tuned = METHODS[config.method.finetuning_type].apply(model, config)
        if tuned.prefix is not None and not abilities.packed:
            raise RunError(
                f"{config.method.finetuning_type} needs packed attention, which this model's code does not allow",
                hint="Use another method, for instance finetuning_type=lora."
                if config.model.flash_attn in ("auto", "packed")
                else "Leave flash_attn out.",
            )
        cache = self._boundary_cache(tuned, members)
        learner = Learner(tuned.model, abilities, tuned.prefix, cache, config)
        learner.sharding = sharding_plan(config.parallel)
        if learner.value_head is not None:
            begin_value_head(learner.value_head, config, self.folder)
        return learner, tuned

    def _reference(self, trainer: DanluTrainer) -> None:
        """Give the rows what the model says of them before training, where the objective compares with that."""
        learner, config, args = trainer.model, self.config, trainer.args
        if "reference" not in needs(learner.objective):
            return
        prefix = learner.prefix
        continued = bool(config.model.adapter_name_or_path) and not config.model.create_new_adapter
        learner.prefix = prefix if continued else None
        device = learner.model.device.type
        dtype = torch.float16 if config.compute.fp16 else torch.bfloat16
        for data in (trainer.train_dataset, *trainer.evaluations.values()):
            data.columns["reference"] = reference_log_probs(
                learner,
                data.store,
                key=reference_key(config, self.folder, data.store),
                batch_size=config.optimizer.per_device_train_batch_size,
                precision=torch.autocast(device, dtype, enabled=config.compute.bf16 or config.compute.fp16),
                rank=(args.process_index, args.world_size),
            )
        learner.prefix = prefix

    def _feed(self, trainer: DanluTrainer, members: NDArray[np.int64]) -> None:
        """Let objectives that learn from the model's own answers make their batches."""
        if self.open_rollouts is None:
            return
        trainer.feed = experience = make_experience(
            trainer, self.config, self.open_rollouts(), self.store, members, self.run_directory.path
        )
        held_out = [(data.store, data.members.tolist()) for data in trainer.evaluations.values()]
        if held_out:
            trainer.measure = lambda _: experience.evaluate(*held_out[0])
            trainer.evaluations = {}

    def _boundary_cache(self, tuned: Tuned, members: NDArray[np.int64]) -> BoundaryCache | None:
        """Hidden states below the trained layers are worth keeping when there is a second epoch to use them."""
        config, first = self.config, tuned.first_trained
        if first is None or not config.compute.freeze_cache or config.optimizer.num_train_epochs <= 1:
            return None
        if config.task.stage not in ("pt", "sft"):
            return None  # a prompt with several answers is no plain sequence
        if config.parallel.fsdp or config.parallel.deepspeed:
            return None  # layers are gathered for all processes together, and each computes other states
        if config.compute.neftune_noise_alpha:
            return None  # the noise on the embeddings is another one in each epoch
        backbone, width = tuned.model.base_model, tuned.model.config.hidden_size
        probe = torch.arange(3, 12, device=tuned.model.device).unsqueeze(0)
        options = {"bounds": [0, 9], "attention_mask": torch.zeros(1, 1, 1, 1, device=probe.device)}
        with torch.autocast(probe.device.type, torch.bfloat16, enabled=config.compute.bf16):
            dtype = split_dtype(backbone, first, probe, options)
        if dtype is None:
            return None
        if not BoundaryCache.fits(int(self.store.bounds[-1]), width, dtype.itemsize):
            note("hidden states of the frozen layers are not kept: they would fill the disk")
            return None
        size = config.optimizer.per_device_train_batch_size
        packing = config.encode.cutoff_len if config.encode.packing else None
        order = training_batches(self.store, members, size, config.compute.seed, packing)
        batches = [[int(members[place]) for place in share] for shares in order.shares() for share in shares if share]
        return BoundaryCache(self.store, batches, width, first, dtype)

    def _trainer(
        self, learner: Learner, tuned: Tuned, members: NDArray[np.int64], held_out: NDArray[np.int64], plan: Plan
    ) -> DanluTrainer:
        config, output = self.config, self.run_directory.path
        evaluations = {name: Sequences(store, np.arange(len(store))) for name, store in self.evaluation.items()}
        if len(held_out):
            evaluations.setdefault("", Sequences(self.store, held_out))
        if config.log.eval_strategy != "no" and not evaluations:
            raise DataError("there are no rows to evaluate on", hint="Set eval_dataset or val_size.")
        tokens_per_step = None if self.open_rollouts else plan.tokens / max(plan.sequences, 1) * plan.batch
        callbacks = [
            Recorder(output, config.output.file_style, tokens_per_step),
            StopOnNonsense(compare=self.open_rollouts is None),
            StopOnRequest(),
        ]
        if config.log.early_stopping_steps:
            from transformers import EarlyStoppingCallback

            callbacks.append(EarlyStoppingCallback(early_stopping_patience=config.log.early_stopping_steps))
        arguments = training_arguments(config, output, total_steps=plan.steps, checkpointing=plan.checkpointing)
        with quiet():
            trainer = DanluTrainer(
                learner,
                tuned,
                config.method.finetuning_type,
                train=Sequences(self.store, members),
                evaluations=evaluations,
                packing=config.encode.cutoff_len if config.encode.packing else None,
                measure=self.measure,
                on_checkpoint=self._stamp,
                args=arguments,
                processing_class=self.tokenizer,
                callbacks=callbacks,
            )
        trainer.rate_ratio = config.lora.loraplus_lr_ratio
        trainer.build_optimizer = builder(config)
        name_in_tensorboard(trainer.callback_handler.callbacks, output, config.log.run_name or output.resolve().name)
        from transformers import PrinterCallback

        trainer.remove_callback(PrinterCallback)
        return trainer

    def _stamp(self, checkpoint: Path) -> None:
        step = int(checkpoint.name.rsplit("-", 1)[-1])
        self.run_directory.stamp_checkpoint(checkpoint, step)

    def _finish(self, metrics: dict[str, Any], history: list[dict[str, Any]]) -> None:
        config, output = self.config, self.run_directory.path
        if config.output.file_style == "et":  # that tool wrote five numbers
            metrics = {key: value for key, value in metrics.items() if key != "total_flos"}
        if not (config.output.file_style == "et" and config.task.stage == "ppo"):  # where it wrote none
            write_results(output, "train", metrics)
        write_finetuning_args(output, config)
        if config.output.file_style == "et":
            write_training_args(output, config)
        write_model_card(
            output, config, base_model=config.model.model_name_or_path, data=self.data, versions=installed_versions()
        )
        note(metrics_block("train", metrics))
        if config.output.plot_loss:
            online = ("reward",) if self.open_rollouts is not None else ()
            plot_curves(output, history, ("loss", "eval_loss", *online), tell=note)


def _for_this_machine(config: TrainConfig) -> TrainConfig:
    """float16 needs a GPU; bfloat16 is its equal here."""
    if not config.compute.fp16 or torch.cuda.is_available():
        return config
    note("fp16 needs a GPU; this run uses bf16 instead")
    return config.model_copy(update={"compute": config.compute.model_copy(update={"fp16": False, "bf16": True})})


def _quantization(config: TrainConfig) -> Quantization | None:
    options = config.quant
    if options.quantization_bit is None:
        return None
    return Quantization(options.quantization_bit, options.quantization_type, options.double_quantization)


def _attention(config: TrainConfig) -> str | None:
    return {"auto": None, "packed": None, "disabled": "eager", "sdpa": "sdpa", "fa2": "flash_attention_2"}[
        config.model.flash_attn
    ]


def split_members(store: TokenStore, val_size: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Split sequences into training and held-out ones, by row, so that no row is in both.

    Args:
        store: the sequences.
        val_size: a share of the rows if below 1, else a count; 0 holds nothing out.
        seed: decides which rows.

    Raises:
        DataError: when nothing would be left to train on.
    """
    everything = np.arange(len(store))
    if val_size <= 0:
        return everything, everything[:0]
    rows = np.unique(store.rows)
    count = round(val_size * len(rows)) if val_size < 1 else int(val_size)
    if not 0 < count < len(rows):
        raise DataError(
            f"val_size={val_size:g} holds out {count} of {len(rows)} rows",
            hint="Choose a share or count that leaves rows on both sides.",
        )
    chosen = np.random.default_rng(seed).permutation(rows)[:count]
    held = np.isin(store.rows, chosen)
    return everything[~held], everything[held]
