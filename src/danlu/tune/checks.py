"""Options that contradict each other, found before anything is loaded."""

from __future__ import annotations

from importlib.util import find_spec

from danlu.core.console import warn
from danlu.core.errors import MissingDependency, UsageError, did_you_mean
from danlu.tune.config import TrainConfig
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
    _check_evaluation(config)
    _check_encoding(config)
    _check_adapters(config)
    _check_parallel(config)


def check_packages(config: TrainConfig) -> None:
    """Look for the packages of ``report_to`` and ``deepspeed`` before anything is loaded.

    Raises:
        UsageError: for a tracker that transformers does not know.
        MissingDependency: naming the package.
    """
    if config.parallel.deepspeed and not find_spec("deepspeed"):
        raise MissingDependency("deepspeed", "for deepspeed")
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
    if not metric.endswith("loss") and not config.task.predict_with_generate:
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


def _check_encoding(config: TrainConfig) -> None:
    if config.encode.train_on_prompt and config.encode.mask_history:
        raise UsageError("train_on_prompt and mask_history contradict each other", hint="Keep one of them.")
    weights, datasets = config.data.interleave_probs, config.data.dataset
    if weights and config.data.mix_strategy == "concat":
        warn("interleave_probs has no effect with mix_strategy=concat; interleave_under, _over or _once would use it")
    if weights and len(weights) != len(datasets):
        raise UsageError(
            f"interleave_probs has {len(weights)} weights for {len(datasets)} datasets",
            hint="Give one weight to each dataset.",
        )


def _check_adapters(config: TrainConfig) -> None:
    adapters, method = config.model.adapter_name_or_path, config.method.finetuning_type
    if len(adapters) > 1 and method != "lora":
        raise UsageError(
            f"{len(adapters)} adapters are given and finetuning_type is {method}",
            where="adapter_name_or_path",
            hint="Only LoRA adapters can be joined; give one.",
        )
    if adapters and method in ("full", "freeze"):
        raise UsageError(
            f"finetuning_type {method} has no adapters",
            where="adapter_name_or_path",
            hint="Name the earlier run in model_name_or_path.",
        )


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
