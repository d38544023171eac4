"""Options that contradict each other, found before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from danlu.core.errors import MissingDependency, UsageError, did_you_mean
from danlu.models.adapters import read_adapter
from danlu.models.runs import adapter_chain
from danlu.tune.config import TrainConfig
from danlu.tune.matrix import ONLINE, STAGES, check_combination
from danlu.tune.methods import family
from danlu.tune.methods.given import check_given
from danlu.tune.online.plan import RolloutPlan
from danlu.tune.online.rewards import open_reward
from danlu.tune.online.sources import parse_source
from danlu.tune.optimizers import check_optimizer
from danlu.tune.parallel.configs import divided, sharding_plan

TRACKERS = {
    "tensorboard": ("tensorboard", "tensorboardX"),
    "wandb": ("wandb",),
    "swanlab": ("swanlab",),
    "mlflow": ("mlflow",),
    "trackio": ("trackio",),
    "comet_ml": ("comet_ml",),
    "clearml": ("clearml",),
    "neptune": ("neptune",),
    "dvclive": ("dvclive",),
    "codecarbon": ("codecarbon",),
    "azure_ml": ("azureml",),
    "dagshub": ("dagshub", "mlflow"),
    "flyte": ("flytekit",),
}
"""Trackers that transformers can report to → packages, one of which each needs."""


def check(config: TrainConfig) -> None:
    """Refuse a configuration that cannot be run.

    Raises:
        UsageError: naming the options and the change that would do.
    """
    task = config.task
    if not (task.do_train or task.do_eval or task.do_predict):
        raise UsageError("there is nothing to do", hint="Set do_train, do_eval or do_predict.")
    if task.do_train and not config.data.dataset:
        raise UsageError("no dataset is named", hint="Set dataset; `danlu data list` shows known names.")
    check_combination(config.method.finetuning_type, task.stage)
    _check_evaluation(config)
    _check_encoding(config)
    _check_stage(config)
    _check_adapters(config)
    _check_parallel(config)


def remarks(config: TrainConfig) -> list[str]:
    """What is possible and hardly meant, for warnings."""
    stage, encode, preference, data = config.task.stage, config.encode, config.preference, config.data
    idle = [name for name in ("train_on_prompt", "mask_history") if stage != "sft" and getattr(encode, name)]
    idle += [name for name, stages in _READ_BY.items() if stage not in stages and _is_set(config, name)]
    if stage == "dpo" and preference.pref_loss == "hinge" and preference.dpo_label_smoothing:
        idle.append("dpo_label_smoothing (with pref_loss=hinge)")
    found = []
    if idle:
        found.append(f"{' and '.join(idle)} {'has' if len(idle) == 1 else 'have'} no effect in stage {stage}")
    if stage == "kto" and config.optimizer.per_device_train_batch_size == 1:
        found.append(
            "kto estimates the KL term over a batch: per_device_train_batch_size=1 makes it the number of one answer"
        )
    if data.interleave_probs and data.mix_strategy == "concat":
        found.append(
            "interleave_probs has no effect with mix_strategy=concat; interleave_under, _over or _once would use it"
        )
    return found


def check_packages(config: TrainConfig) -> None:
    """Look for the packages that options need, before anything is loaded.

    Raises:
        UsageError: for an optimizer or tracker that is not known.
        MissingDependency: naming the package.
    """
    check_optimizer(config)
    if config.parallel.deepspeed and not find_spec("deepspeed"):
        raise MissingDependency("deepspeed", "for deepspeed")
    if config.quant.quantization_bit and not find_spec("bitsandbytes"):
        raise MissingDependency("bitsandbytes", "for quantization_bit", "quant")
    for name in config.log.report_to:
        if name == "all":
            continue
        if name not in TRACKERS:
            hint = did_you_mean(name, TRACKERS) or f"Known: {', '.join(TRACKERS)}."
            raise UsageError(f"there is no tracker {name!r}", where="report_to", hint=hint)
        if not any(find_spec(package) for package in TRACKERS[name]):
            raise MissingDependency(TRACKERS[name][0], f"for report_to={name}")


def _check_evaluation(config: TrainConfig) -> None:
    rows = bool(config.data.eval_dataset) or config.data.val_size > 1e-6
    if config.data.eval_dataset and config.data.val_size > 1e-6:
        raise UsageError("eval_dataset and val_size both name rows to evaluate on", hint="Keep one of them.")
    if not rows:
        asked = [name for name in ("do_eval", "do_predict") if getattr(config.task, name)]
        asked += ["eval_strategy"] if config.task.do_train and config.log.eval_strategy != "no" else []
        if asked:
            raise UsageError(
                "Please make sure eval_dataset be provided or val_size >1e-6",
                where=", ".join(asked),
                hint="To measure on the training rows themselves, name them in eval_dataset too.",
            )
    log = config.log
    if config.task.do_train and log.eval_strategy == "no":
        if log.load_best_model_at_end:
            raise UsageError("load_best_model_at_end needs eval_strategy", hint="Set it to steps or epoch.")
        if log.early_stopping_steps:
            raise UsageError("early_stopping_steps needs eval_strategy", hint="Set it to steps or epoch.")
    metric = (log.metric_for_best_model or "loss").removeprefix("eval_")
    told = metric.endswith(("loss", *STAGES[config.task.stage].metrics))
    if not told and not config.task.predict_with_generate:
        raise UsageError(
            f"{metric} is measured only when answers are generated",
            where="metric_for_best_model",
            hint="Set predict_with_generate=true, or use loss.",
        )
    if log.load_best_model_at_end and config.output.save_strategy != log.eval_strategy:
        raise UsageError(
            "load_best_model_at_end needs a checkpoint at each evaluation",
            where=f"save_strategy {config.output.save_strategy}, eval_strategy {log.eval_strategy}",
            hint="Give both the same value.",
        )


def _check_stage(config: TrainConfig) -> None:
    stage = config.task.stage
    if config.task.predict_with_generate and stage not in ("sft", "pt"):
        raise UsageError(
            f"stage {stage} is measured by its own numbers, not by generated answers",
            where="predict_with_generate",
            hint="Leave it out"
            + ("." if stage == "rm" else "; `danlu eval --run DIR stage=sft dataset=…` has the trained model answer."),
        )
    if stage in ONLINE:
        _check_online(config)


def _check_online(config: TrainConfig) -> None:
    stage, rollout = config.task.stage, config.rollout
    if not config.task.do_train:
        return
    if not (rollout.reward_model or rollout.reward_funcs):
        raise UsageError(
            f"stage {stage} needs something that says how good an answer is",
            where="reward_model, reward_funcs",
            hint="Set reward_model=DIR (a run of stage rm), or reward_funcs=NAME, file.py:function or a URL.",
        )
    for entry in rollout.reward_funcs:
        spec = parse_source(entry)
        if ":" not in spec.source:  # a rule: its name and arguments are known without running anything
            open_reward(spec)
    sources = len(rollout.reward_funcs) + bool(rollout.reward_model)
    if len(rollout.reward_weights) not in (0, sources):
        raise UsageError(
            f"reward_weights has {len(rollout.reward_weights)} weights for {sources} rewards",
            hint="Give one weight to each of reward_funcs, then one to reward_model.",
        )
    if config.encode.packing:
        raise UsageError(
            f"packing has nothing to fill in stage {stage}: answers already stand beside their prompt",
            hint="Leave packing out.",
        )
    RolloutPlan.of(config, prompts=1)


_READ_BY = {
    "pref_loss": ("dpo",),
    "pref_ftx": ("dpo", "ipo", "simpo"),
    "dpo_label_smoothing": ("dpo",),
    "simpo_gamma": ("simpo",),
    "kto_chosen_weight": ("kto",),
    "kto_rejected_weight": ("kto",),
}
"""Options of preference learning → the stages that read them. ``pref_beta`` is no news: old files always set it."""


def _is_set(config: TrainConfig, name: str) -> bool:
    return getattr(config.preference, name) != type(config.preference).model_fields[name].default


def _check_encoding(config: TrainConfig) -> None:
    if config.encode.train_on_prompt and config.encode.mask_history:
        raise UsageError("train_on_prompt and mask_history contradict each other", hint="Keep one of them.")
    weights, datasets = config.data.interleave_probs, config.data.dataset
    if weights and len(weights) != len(datasets):
        raise UsageError(
            f"interleave_probs has {len(weights)} weights for {len(datasets)} datasets",
            hint="Give one weight to each dataset.",
        )


def _check_adapters(config: TrainConfig) -> None:
    adapters, method = config.model.adapter_name_or_path, config.method.finetuning_type
    if family(method).kind != "whole":
        _check_kinds(config)
        return
    if adapters:
        raise UsageError(
            f"finetuning_type {method} has no adapters",
            where="adapter_name_or_path",
            hint="Name the earlier run in model_name_or_path.",
        )
    if config.quant.quantization_bit:
        raise UsageError(
            f"quantised weights cannot be trained with finetuning_type {method}",
            where="quantization_bit",
            hint="Use a method with an adapter, for instance finetuning_type=lora, or leave quantization_bit out.",
        )


def _check_kinds(config: TrainConfig) -> None:
    """Adapters that lie on this machine say themselves what they are; others are looked at when they are loaded."""
    chain = adapter_chain(config.model.adapter_name_or_path)
    if chain and all(Path(name).is_dir() for name in chain):
        check_given(config, [read_adapter(name) for name in chain])


def _check_parallel(config: TrainConfig) -> None:
    options = config.parallel
    sharding_plan(options)
    weights, _ = divided(options)
    name = "fsdp" if options.fsdp else "deepspeed"
    if weights and config.task.predict_with_generate and config.log.eval_strategy != "no":
        raise UsageError(
            "answers are not generated during training while the weights are divided among processes",
            where=f"{name}, predict_with_generate, eval_strategy",
            hint="Measure the loss on the way, and generate afterwards with do_predict.",
        )
    passed = [key for key in ("fsdp", "fsdp_config", "deepspeed", "ddp_timeout") if key in config.trainer]
    if passed:
        raise UsageError(f"{passed[0]} has an option of its own", where=f"trainer.{passed[0]}")


def check_metric(wanted: str | None, metrics: Mapping[str, float]) -> None:
    """Refuse a metric for the best checkpoint that the evaluation did not measure.

    Raises:
        UsageError: with the names that it did.
    """
    if wanted is not None and f"eval_{wanted.removeprefix('eval_')}" not in metrics:
        names = [name.removeprefix("eval_") for name in metrics]
        raise UsageError(
            f"the evaluation has no metric {wanted!r}",
            where="metric_for_best_model",
            hint=did_you_mean(wanted, names) or f"It has {', '.join(names)}.",
        )
