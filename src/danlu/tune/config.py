"""Everything a training run can be told, in groups of at most a dozen fields.

Names are the field's usual ones (transformers, LLaMA-Factory), so a flat YAML of those tools reads as it is.
The comment after each default is the option's documentation: the CLI, the docs and errors use it.
"""

from __future__ import annotations

from pydantic import Field

from danlu.core.config import Options
from danlu.tune.options.data import DataOptions, EncodeOptions
from danlu.tune.options.fields import Mapping
from danlu.tune.options.methods import FreezeOptions, LoraOptions, MethodOptions, PrefixOptions
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
    prefix: PrefixOptions = PrefixOptions()
    lora: LoraOptions = LoraOptions()
    optimizer: OptimOptions = OptimOptions()
    compute: ComputeOptions = ComputeOptions()
    parallel: ParallelOptions = ParallelOptions()
    output: OutputOptions = OutputOptions()
    log: LogOptions = LogOptions()
    generate: GenerateOptions = GenerateOptions()
    trainer: Mapping = Field({}, description="further arguments of transformers' TrainingArguments, by name")
