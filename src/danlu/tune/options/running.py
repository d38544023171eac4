"""How a run is computed, written, logged and how it answers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, field_validator, model_validator

from danlu.core.config import Options, Words
from danlu.core.errors import did_you_mean
from danlu.tune.options.fields import Count, Mapping, Schedule, Share, option, text_or_bool, trackers

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

FileStyle = Literal["danlu", "et", "llamafactory"]


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
    optim: str = option("adamw_torch_fused", "optimizer: a name of transformers, or muon")
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
    resume_from_checkpoint: Annotated[str | bool | None, BeforeValidator(text_or_bool)] = option(
        None, "checkpoint to continue; found by itself by default"
    )
    save_strategy: Schedule = option("steps", "when checkpoints are written")
    save_steps: float = option(500, "every so many steps; below 1 a share of all steps", gt=0)
    save_total_limit: Count | None = option(None, "how many checkpoints are kept")
    save_only_model: bool = option(False, "checkpoints without optimizer state (they cannot be resumed)")
    max_minutes: float | None = option(None, "stop and save after so many minutes; the same command goes on", gt=0)
    plot_loss: bool = option(False, "draw training_loss.png")
    file_style: FileStyle = option(
        "danlu", "whose file formats to write: danlu, et (ChatGLM-Efficient-Tuning), llamafactory"
    )


class LogOptions(Options):
    """What is logged, measured and compared on the way."""

    logging_strategy: Schedule = option("steps", "when the loss is logged")
    logging_steps: float = option(10, "every so many steps; below 1 a share of all steps", gt=0)
    logging_first_step: bool = option(False, "log the first step as well")
    report_to: Annotated[Words, BeforeValidator(trackers)] = option(
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
