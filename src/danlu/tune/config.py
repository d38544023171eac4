"""Everything a training run can be told, in groups of at most a dozen fields.

Names are the field's usual ones (transformers, LLaMA-Factory), so a flat YAML of those tools reads as it is.
The comment after each default is the option's documentation: the CLI, the docs and errors use it.
"""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from danlu.core.config import Options, Words, split_words
from danlu.core.errors import did_you_mean

SCHEDULERS = (
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "constant",
    "constant_with_warmup",
    "inverse_sqrt",
    "reduce_lr_on_plateau",
    "cosine_with_min_lr",
    "cosine_warmup_with_min_lr",
    "warmup_stable_decay",
    "greedy",
)
"""Learning rate schedules of transformers."""

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
        "compute.deepspeed",
        "compute.ddp_timeout",
    }
)
"""Groups and keys that may change when a run is resumed: they do not move the weights."""


def _trackers(value: Any) -> Any:
    """As :func:`split_words`, and ``none`` is an empty list (also the YAML words ``no`` and ``false``)."""
    words = [] if value is False else split_words(value)
    return [] if words in (["none"], ["None"], ("none",)) else words


def _schedule(value: Any) -> Any:
    """YAML 1.1 reads a bare ``no`` as false."""
    return "no" if value is False else value


def _mapping(value: Any) -> Any:
    """A mapping, its JSON text, or None for an empty one."""
    if isinstance(value, str) and value.strip().startswith("{"):
        try:
            return json.loads(value)
        except ValueError as error:
            raise ValueError(f"it is not valid JSON ({error})") from None
    return {} if value is None else _numbers(value)


def _numbers(value: Any) -> Any:
    """YAML 1.1 reads ``1e-5`` as text; where no type says otherwise it is a number."""
    if isinstance(value, dict):
        return {key: _numbers(item) for key, item in value.items()}
    return float(value) if isinstance(value, str) and _POWER.fullmatch(value) else value


def _path_or_mapping(value: Any) -> Any:
    return _mapping(value) if isinstance(value, str) and value.strip().startswith("{") else value


def _text_or_bool(value: Any) -> Any:
    """``"true"`` and ``"false"`` are truth values, any other text stays text."""
    return {"true": True, "false": False}.get(value.lower(), value) if isinstance(value, str) else value


_POWER = re.compile(r"[-+]?\d+\.?\d*[eE][-+]?\d+")

Numbers = Annotated[tuple[float, ...], BeforeValidator(split_words)]
Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]

Stage = Literal["sft"]
MethodName = Literal["full", "freeze", "lora", "p_tuning_v2"]
Schedule = Annotated[Literal["no", "steps", "epoch"], BeforeValidator(_schedule)]
Mapping = Annotated[dict[str, Any], BeforeValidator(_mapping)]
FileStyle = Literal["danlu", "et", "llamafactory"]


def option(default: Any, text: str, **limits: Any) -> Any:
    """A field with its one-line documentation."""
    return Field(default, description=text, **limits)


class TaskOptions(Options):
    """What to do."""

    stage: Stage = option("sft", "training objective")
    do_train: bool = option(True, "train")
    do_eval: bool = option(False, "measure the evaluation rows afterwards")
    do_predict: bool = option(False, "write an answer for every evaluation row")
    predict_with_generate: bool = option(False, "evaluate by generating answers (BLEU, ROUGE) instead of by loss")


class ModelOptions(Options):
    """Which weights to start from."""

    model_name_or_path: str = option("smollm2-135m", "folder, hub id, GGUF file, or a name from `danlu models`")
    adapter_name_or_path: Words = option((), "adapters: all but the last are merged, the last is trained further")
    create_new_adapter: bool = option(False, "merge all given adapters and train a new one")
    cache_dir: str | None = option(None, "where hub downloads are kept")
    model_revision: str = option("main", "hub revision: branch, tag or commit")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = option("auto", "precision of the frozen weights")
    flash_attn: Literal["auto", "disabled", "sdpa", "fa2", "packed"] = option("auto", "attention implementation")
    trust_remote_code: bool = option(False, "accepted for old files; danlu never runs code from a model folder")


class DataOptions(Options):
    """Which rows, and how they are mixed."""

    dataset: Words = option((), "names from the catalog, files, folders, globs or hub ids; commas between")
    eval_dataset: Words = option((), "rows to evaluate on, named the same way")
    dataset_dir: str = option("data", "folder that holds dataset_info.json")
    max_samples: Count | None = option(None, "at most this many rows of each dataset (the first)")
    val_size: float = option(0.0, "rows held out for evaluation: a share below 1 or a count", ge=0)
    mix_strategy: Literal["concat", "interleave_under", "interleave_over", "interleave_once"] = option(
        "concat", "how several datasets are joined"
    )
    interleave_probs: Numbers = option((), "sampling weight of each dataset when interleaving")
    eval_on_each_dataset: bool = option(False, "report eval_<dataset>_loss for each evaluation dataset")
    on_bad_row: Literal["skip", "error"] = option("skip", "rows that cannot be read: count and show them, or stop")
    tokenized_path: str | None = option(None, "folder to keep the tokenised rows in, instead of the cache")
    overwrite_cache: bool = option(False, "tokenise again even if the cache has these rows")
    prompt_separator: str = option("\n", "alpaca rows: what joins instruction and input")


class EncodeOptions(Options):
    """How rows become tokens and which of them are trained."""

    template: str | None = option(None, "named template, for models that have none of their own")
    default_system: str | None = option(None, "system prompt for rows that bring none")
    enable_thinking: bool | None = option(None, "passed to templates that know it")
    source_prefix: str | None = option(None, "text put straight before the first user turn")
    cutoff_len: Count = option(2048, "longest sequence, in tokens")
    max_source_length: Count | None = option(None, "a budget for the prompt alone, within cutoff_len")
    max_target_length: Count | None = option(None, "a budget for the answer alone, within cutoff_len")
    truncation: Literal["drop", "keep_start", "keep_end", "split", "error"] = option(
        "drop", "what happens to longer rows; control tokens are never cut"
    )
    train_on_prompt: bool = option(False, "train the prompt's tokens as well")
    mask_history: bool = option(False, "train the last answer only")
    unstable_template: Literal["error", "split"] = option(
        "error", "when the chat template rewrites earlier turns: refuse, or one sequence for each answer"
    )
    packing: bool = option(False, "fill sequences up to cutoff_len with several rows that cannot see each other")


class MethodOptions(Options):
    """Which weights change."""

    finetuning_type: MethodName = option("lora", "full, freeze, lora or p_tuning_v2")
    freeze_trainable_layers: int = option(2, "freeze: the last n layers are trained; negative: the first n")
    freeze_trainable_modules: Words = option(("all",), "freeze: parts of those layers, for instance mlp, self_attn")
    freeze_extra_modules: Words = option((), "freeze: modules outside the layers, for instance lm_head, norm")
    pre_seq_len: Count = option(64, "p_tuning_v2: length of the trained prefix, in tokens")
    prefix_projection: bool = option(False, "p_tuning_v2: make the prefix with a two-layer network")
    prefix_dropout: Share = option(0.0, "p_tuning_v2: dropout on the prefix while training")


class LoraOptions(Options):
    """Low-rank adapters."""

    lora_rank: Count = option(8, "rank r of the update")
    lora_alpha: float | None = option(None, "scale: the update is multiplied by alpha / r; 2 r by default")
    lora_dropout: Share = option(0.0, "dropout on the adapter's input")
    lora_target: Words = option(("all",), "modules to adapt; all = every linear layer but the head")
    additional_target: Words = option((), "modules trained in full and saved beside the adapter")
    use_rslora: bool = option(False, "scale by alpha / sqrt(r)")
    use_dora: bool = option(False, "learn magnitude and direction apart (DoRA)")
    pissa_init: bool = option(False, "start from the principal singular vectors (PiSSA)")
    pissa_iter: int = option(16, "iterations of the fast SVD for PiSSA; -1 for the exact one")
    loraplus_lr_ratio: float | None = option(None, "learning rate of B over that of A (LoRA+)", gt=0)


class OptimOptions(Options):
    """How the weights move."""

    num_train_epochs: float = option(3.0, "passes over the rows", gt=0)
    max_steps: int = option(-1, "optimizer steps, overrides the epochs")
    per_device_train_batch_size: Count = option(8, "rows in one forward pass")
    gradient_accumulation_steps: Count = option(1, "forward passes in one optimizer step")
    learning_rate: float = option(5e-5, "peak learning rate", gt=0)
    lr_scheduler_type: str = option("linear", "linear, cosine, constant, constant_with_warmup, polynomial, …")
    lr_scheduler_kwargs: Mapping = option({}, "arguments of the scheduler")
    warmup_ratio: Share = option(0.0, "share of the steps with rising learning rate")
    warmup_steps: float = option(0, "steps with rising learning rate, overrides warmup_ratio; below 1 a share", ge=0)
    optim: str = option("adamw_torch_fused", "optimizer name of transformers")
    weight_decay: float = option(0.0, "weight decay", ge=0)
    max_grad_norm: float = option(1.0, "gradients are scaled down to this norm; 0 leaves them", ge=0)

    @field_validator("lr_scheduler_type")
    @classmethod
    def _known_scheduler(cls, value: str) -> str:
        if value not in SCHEDULERS:
            hint = did_you_mean(value, SCHEDULERS) or f"Known: {', '.join(SCHEDULERS)}."
            raise ValueError(f"there is no such schedule. {hint}")
        return value


class ComputeOptions(Options):
    """Precision, memory, randomness."""

    bf16: bool = option(False, "bfloat16 mixed precision")
    fp16: bool = option(False, "float16 mixed precision (GPU only)")
    pure_bf16: bool = option(False, "train bfloat16 weights without a float32 copy")
    gradient_checkpointing: bool | None = option(None, "recompute activations: on, off, or only if memory needs it")
    disable_gradient_checkpointing: bool = option(False, "never recompute activations")
    freeze_cache: bool = option(True, "freeze: keep the hidden states below the trained layers after the first epoch")
    seed: int = option(42, "seed of everything random")
    dataloader_num_workers: int = option(0, "processes that build batches", ge=0)
    preprocessing_num_workers: Count | None = option(None, "threads that tokenise; all cores by default")
    neftune_noise_alpha: float | None = option(None, "noise on the embeddings (NEFTune)")
    deepspeed: Annotated[str | dict[str, Any] | None, BeforeValidator(_path_or_mapping)] = option(
        None, "DeepSpeed configuration: a file or a mapping"
    )
    ddp_timeout: Count = option(1800, "seconds before a silent process group is given up")

    @model_validator(mode="after")
    def _one_precision(self) -> ComputeOptions:
        if sum((self.bf16, self.fp16, self.pure_bf16)) > 1:
            raise ValueError("bf16, fp16 and pure_bf16 exclude each other; keep one")
        if self.gradient_checkpointing and self.disable_gradient_checkpointing:
            raise ValueError("gradient_checkpointing and disable_gradient_checkpointing contradict each other")
        return self


class OutputOptions(Options):
    """Where the run is written and when it is saved."""

    output_dir: str | None = option(None, "run directory; runs/<date>-<dataset>-<method> by default")
    overwrite_output_dir: bool = option(False, "start again in a directory that holds another run")
    resume_from_checkpoint: Annotated[str | bool | None, BeforeValidator(_text_or_bool)] = option(
        None, "checkpoint to continue; found by itself by default"
    )
    save_strategy: Schedule = option("steps", "when checkpoints are written")
    save_steps: float = option(500, "every so many steps; below 1 a share of all steps", gt=0)
    save_total_limit: Count | None = option(None, "how many checkpoints are kept")
    save_only_model: bool = option(False, "checkpoints without optimizer state (they cannot be resumed)")
    plot_loss: bool = option(False, "draw training_loss.png")
    file_style: FileStyle = option(
        "danlu", "whose file formats to write: danlu, et (ChatGLM-Efficient-Tuning), llamafactory"
    )


class LogOptions(Options):
    """What is logged, measured and compared on the way."""

    logging_strategy: Schedule = option("steps", "when the loss is logged")
    logging_steps: float = option(10, "every so many steps; below 1 a share of all steps", gt=0)
    logging_first_step: bool = option(False, "log the first step as well")
    report_to: Annotated[Words, BeforeValidator(_trackers)] = option(
        (), "tensorboard, wandb, swanlab, mlflow, trackio; none by default"
    )
    run_name: str | None = option(None, "name of the run in trackers")
    eval_strategy: Schedule = option("no", "when the evaluation rows are measured")
    eval_steps: float | None = option(None, "every so many steps; below 1 a share; logging_steps by default", gt=0)
    per_device_eval_batch_size: Count = option(8, "rows in one forward pass while evaluating")
    load_best_model_at_end: bool = option(False, "finish with the best checkpoint instead of the last")
    metric_for_best_model: str | None = option(None, "what decides which is best: loss, bleu-4, rouge-l, …")
    greater_is_better: bool | None = option(None, "whether a larger value of it is better; known for our metrics")
    early_stopping_steps: Count | None = option(None, "stop after so many evaluations without a better value")


class GenerateOptions(Options):
    """How answers are generated. Greedy unless told otherwise."""

    do_sample: bool = option(False, "sample instead of taking the likeliest token")
    temperature: float = option(0.95, "sampling temperature", gt=0)
    top_p: Share = option(0.7, "smallest set of tokens with this probability")
    top_k: int = option(50, "at most this many tokens", ge=0)
    num_beams: Count = option(1, "beams of a beam search")
    max_new_tokens: Count = option(512, "longest answer, in tokens")
    repetition_penalty: float = option(1.0, "above 1: repeat less", gt=0)
    metric_set: Literal["compat", "standard"] = option(
        "compat", "compat: the numbers of the old tools, digit for digit"
    )


class TrainConfig(Options):
    """A whole run."""

    task: TaskOptions = TaskOptions()
    model: ModelOptions = ModelOptions()
    data: DataOptions = DataOptions()
    encode: EncodeOptions = EncodeOptions()
    method: MethodOptions = MethodOptions()
    lora: LoraOptions = LoraOptions()
    optimizer: OptimOptions = OptimOptions()
    compute: ComputeOptions = ComputeOptions()
    output: OutputOptions = OutputOptions()
    log: LogOptions = LogOptions()
    generate: GenerateOptions = GenerateOptions()
    trainer: Mapping = Field({}, description="further arguments of transformers' TrainingArguments, by name")
