"""Everything a training run can be told, in groups of at most a dozen fields.

Names are the field's usual ones (transformers, LLaMA-Factory), so a flat YAML of those tools reads as it is.
The comment after each default is the option's documentation: the CLI, the docs and errors use it.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from danlu.core.config import Options
from danlu.tune.options.data import DataOptions, EncodeOptions
from danlu.tune.options.fields import Mapping
from danlu.tune.options.methods import (
    AdaLoraOptions,
    AdapterOptions,
    FreezeOptions,
    Ia3Options,
    LnOptions,
    LoraOptions,
    MethodOptions,
    OftOptions,
    PrefixOptions,
    PromptOptions,
    QuantOptions,
    VeraOptions,
)
from danlu.tune.options.objectives import GrpoOptions, PpoOptions, PreferenceOptions, RolloutOptions
from danlu.tune.options.optimizers import GaloreOptions
from danlu.tune.options.parallel import ParallelOptions
from danlu.tune.options.running import ComputeOptions, GenerateOptions, LogOptions, OptimOptions, OutputOptions
from danlu.tune.options.task import ModelOptions, TaskOptions

FREE_ON_RESUME = frozenset(
    {
        "output",
        "log",
        "generate",
        "task.do_train",
        "task.do_eval",
        "task.do_predict",
        "task.predict_with_generate",
        "model.cache_dir",
        "model.trust_remote_code",
        "data.eval_dataset",
        "data.on_bad_row",
        "data.tokenized_path",
        "data.overwrite_cache",
        "compute.preprocessing_num_workers",
        "compute.gradient_checkpointing",
        "compute.disable_gradient_checkpointing",
        "compute.freeze_cache",
        "compute.dataloader_num_workers",
        "parallel",
    }
)
"""Groups and keys that may change when a run is resumed: they do not move the weights."""


class TrainConfig(Options):
    """A whole run."""

    task: TaskOptions = TaskOptions()
    model: ModelOptions = ModelOptions()
    data: DataOptions = DataOptions()
    encode: EncodeOptions = EncodeOptions()
    method: MethodOptions = MethodOptions()
    freeze: FreezeOptions = FreezeOptions()
    lora: LoraOptions = LoraOptions()
    adalora: AdaLoraOptions = AdaLoraOptions()
    vera: VeraOptions = VeraOptions()
    oft: OftOptions = OftOptions()
    ia3: Ia3Options = Ia3Options()
    ln: LnOptions = LnOptions()
    prefix: PrefixOptions = PrefixOptions()
    prompt: PromptOptions = PromptOptions()
    adapter: AdapterOptions = AdapterOptions()
    quant: QuantOptions = QuantOptions()
    preference: PreferenceOptions = PreferenceOptions()
    rollout: RolloutOptions = RolloutOptions()
    ppo: PpoOptions = PpoOptions()
    grpo: GrpoOptions = GrpoOptions()
    optimizer: OptimOptions = OptimOptions()
    galore: GaloreOptions = GaloreOptions()
    compute: ComputeOptions = ComputeOptions()
    parallel: ParallelOptions = ParallelOptions()
    output: OutputOptions = OutputOptions()
    log: LogOptions = LogOptions()
    generate: GenerateOptions = GenerateOptions()
    trainer: Mapping = Field({}, description="further arguments of transformers' TrainingArguments, by name")

    @model_validator(mode="before")
    @classmethod
    def _loss_is_stage(cls, values: Any) -> Any:
        """LLaMA-Factory writes ``stage: dpo`` with ``pref_loss: orpo`` for what is the stage orpo here."""
        task: Any = values.get("task") if isinstance(values, dict) else None
        preference: Any = values.get("preference") if isinstance(values, dict) else None
        if not (isinstance(task, dict) and isinstance(preference, dict)):
            return values
        wanted = preference.get("pref_loss")
        if task.get("stage") == "dpo" and wanted in ("ipo", "orpo", "simpo"):
            return values | {
                "task": task | {"stage": wanted},
                "preference": preference | {"pref_loss": "sigmoid"},
            }
        return values
