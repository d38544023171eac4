"""Before any weight is loaded: how many rows, tokens and steps, how much is trained, and whether memory suffices.

The memory estimate is arithmetic, not a promise: weights, gradients and optimizer state are exact; activations are
counted for a decoder of the usual shape, from what its layers keep for the backward pass.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from danlu.core.checkpoints import follow
from danlu.core.errors import UsageError
from danlu.core.ranks import Ranks
from danlu.models.adapter_size import adapter_parameters
from danlu.models.memory import free_memory
from danlu.models.quantize import Quantization
from danlu.tune.config import TrainConfig
from danlu.tune.head import CHUNK
from danlu.tune.matrix import ONLINE
from danlu.tune.methods import METHODS, call, family
from danlu.tune.online.plan import RolloutPlan, keeps_first_weights
from danlu.tune.optimizers import state_bytes
from danlu.tune.parallel.configs import divided
from danlu.tune.parallel.start import planned

GIB = 2**30
SAFETY = 0.9
"""Share of the free memory that the estimate may fill."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What the memory of a decoder depends on, read from its configuration."""

    parameters: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    vocabulary: int
    tables: int
    linear: int
    """Weights of linear layers, without the output layer: what quantisation makes smaller."""
    experts: int
    """Weights of experts that are one tensor a layer, which adapters do not reach."""
    model: Any
    """The configuration itself, to build the model from."""


@dataclass(frozen=True, slots=True)
class Load:
    """What one forward and backward pass must hold.

    Attributes:
        tokens: of one packed batch.
        longest: of one sequence in it.
        checkpointing: whether activations are recomputed.
        activation_bytes: of one number.
        explicit_attention: whether attention weights are kept (on a CPU).
        weight_shares: processes among which the weights are divided.
        state_shares: processes among which the optimizer's state is divided.
    """

    tokens: int
    longest: int
    checkpointing: bool
    activation_bytes: int
    explicit_attention: bool
    weight_shares: int = 1
    state_shares: int = 1


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run will do.

    Attributes:
        sequences: to train on.
        tokens: of them; ``supervised`` are trained.
        longest: longest sequence in tokens.
        steps: optimizer steps.
        batch: sequences in one optimizer step, over all processes.
        parameters: of the model; ``trainable`` are trained.
        memory: estimated bytes needed; ``free`` are there.
        checkpointing: whether activations are recomputed.
        processes: that share a step.
    """

    sequences: int
    tokens: int
    supervised: int
    longest: int
    steps: int
    batch: int
    parameters: int
    trainable: int
    memory: int
    free: int
    checkpointing: bool
    processes: int = 1


@dataclass(frozen=True, slots=True)
class Rows:
    """What is trained on.

    Attributes:
        report: counts of the encoded rows (sequences, tokens, supervised).
        units: sequences, or packs of them, in one epoch.
        longest: tokens of the longest sequence.
    """

    report: dict[str, Any]
    units: int
    longest: int


def read_shape(model_config: Any) -> Shape:
    """Count a model's parameters from its configuration, without weights (on PyTorch's meta device)."""
    from danlu.tune.methods.peft_adapters import linear_names

    model = _without_weights(model_config)
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    return Shape(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        hidden=model_config.hidden_size,
        intermediate=getattr(model_config, "intermediate_size", None) or 4 * model_config.hidden_size,
        layers=model_config.num_hidden_layers,
        heads=getattr(model_config, "num_attention_heads", None) or 0,  # a state space has none
        vocabulary=model_config.vocab_size,
        tables=sum(weight.numel() for weight in {end.weight for end in ends if end is not None}),
        linear=sum(layer.weight.numel() for layers in linear_names(model).values() for layer in layers),
        experts=sum(one.numel() for name, one in model.named_parameters() if one.ndim == 3 and ".experts." in name),
        model=model_config,
    )


def _without_weights(model_config: Any) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(model_config)


def trainable_parameters(shape: Shape, config: TrainConfig) -> int:
    """How many numbers the method trains: it is applied to a model without weights, and they are counted.

    Raises:
        ConfigError: when the method refuses the options.
    """
    import torch

    from danlu.models.quiet import quiet

    given = () if config.model.create_new_adapter else config.model.adapter_name_or_path
    if given:
        return adapter_parameters(follow(Path(given[-1]).expanduser()))
    start = {"pissa_init": False, "init_lora_weights": "default"}  # decompositions need weights
    plain = _changed(_changed(config, "lora", **start), "model", adapter_name_or_path=())
    with torch.device("meta"), quiet():
        tuned = METHODS[config.method.finetuning_type].apply(_without_weights(shape.model), plain)
    parts = (tuned.adapter or tuned.model, *([tuned.prefix] if tuned.prefix is not None else []))
    return sum(parameter.numel() for part in parts for parameter in part.parameters() if parameter.requires_grad)


def memory_needed(shape: Shape, trainable: int, config: TrainConfig, load: Load) -> int:
    """Bytes of weights, gradients, optimizer state and activations.

    Per layer and token a decoder keeps about 8 d + 4 f numbers (d hidden, f intermediate) for the backward pass; with
    recomputation only its input, d, and one layer's worth at a time. What the optimizer keeps is a table
    (:func:`danlu.tune.optimizers.state_bytes`): AdamW two numbers a weight.
    """
    half = config.compute.bf16 or config.compute.fp16 or config.compute.pure_bf16
    frozen_bytes = 2 if half or config.model.dtype in ("bfloat16", "float16") else 4
    master_bytes = 2 if config.compute.pure_bf16 else 4
    whole = family(config.method.finetuning_type).kind == "whole"
    frozen = shape.parameters - trainable if whole else shape.parameters
    weights = frozen * frozen_bytes + trainable * master_bytes
    if config.quant.quantization_bit:
        weights -= int(shape.linear * (frozen_bytes - _quantized_bytes(config)))
    if half and config.method.finetuning_type == "full" and not config.compute.pure_bf16:
        weights += trainable * 2  # autocast keeps a copy in half precision during a pass
    tables = shape.tables if config.method.finetuning_type == "full" else 0
    gradients = trainable * master_bytes
    state = state_bytes(config, trainable, hidden=shape.hidden, tables=tables, weight_bytes=master_bytes)
    if keeps_first_weights(config):
        state += trainable * master_bytes
    per_layer = load.tokens * (8 * shape.hidden + 4 * shape.intermediate) * load.activation_bytes
    if load.explicit_attention:
        per_layer += load.tokens * load.longest * shape.heads * load.activation_bytes
    deep = _layers_with_gradient(shape, config)
    if load.checkpointing:
        activations = deep * load.tokens * shape.hidden * load.activation_bytes + per_layer
    else:
        activations = deep * per_layer
    logits = min(CHUNK, load.tokens) * shape.vocabulary * 10
    shared = weights / load.weight_shares + (gradients + state) / load.state_shares
    return int(shared + activations + logits)


def _quantized_bytes(config: TrainConfig) -> float:
    options = config.quant
    assert options.quantization_bit is not None
    return Quantization(options.quantization_bit, options.quantization_type, options.double_quantization).bytes_each


def _layers_with_gradient(shape: Shape, config: TrainConfig) -> int:
    count = config.freeze.freeze_trainable_layers
    if config.method.finetuning_type == "freeze" and 0 < count <= shape.layers:
        return count
    return shape.layers


def total_steps(config: TrainConfig, units: int, processes: int = 1) -> int:
    """Optimizer steps of the whole run, counted as transformers' Trainer counts them.

    Args:
        config: the run's options.
        units: sequences (or packs of sequences) in one epoch.
        processes: that share the batches.
    """
    options = config.optimizer
    if options.max_steps > 0:
        return options.max_steps
    if config.task.stage in ONLINE:
        rollouts = RolloutPlan.of(config, units, processes)
        return math.ceil(options.num_train_epochs * rollouts.rollouts_per_epoch * rollouts.steps_per_rollout)
    batches = math.ceil(units / (options.per_device_train_batch_size * processes))
    per_epoch = max(math.ceil(batches / options.gradient_accumulation_steps), 1)
    return math.ceil(options.num_train_epochs * per_epoch)


def make_plan(
    config: TrainConfig, shape: Shape, rows: Rows, place: Ranks | None = None, decided: bool | None = None
) -> Plan:
    """Decide about recomputation and refuse what cannot work.

    Args:
        config: the run's options.
        shape: of the model.
        rows: that are trained on.
        place: the processes that take part; one by default. Without GPUs those of a machine share its memory.
        decided: what was decided before, when the others may already have filled memory; nothing is refused then.

    Raises:
        UsageError: when the estimate exceeds the free memory; with the cheapest change that would fit.
    """
    place = place or Ranks()
    trainable = trainable_parameters(shape, config)
    free = free_memory() // sharers(place)
    wanted = config.compute.gradient_checkpointing if decided is None else decided
    prefix_blocks = config.compute.disable_gradient_checkpointing
    choices = [wanted] if wanted is not None else [False] if prefix_blocks else [False, True]
    needed, checkpointing = 0, False
    for checkpointing in choices:
        needed = memory_needed(shape, trainable, config, _load(config, rows.longest, checkpointing))
        if needed <= SAFETY * free or decided is not None:
            break
    else:
        each = " for each process" if place.world > 1 else ""
        raise UsageError(
            f"this run needs about {needed / GIB:.1f} GiB and {free / GIB:.1f} GiB are free{each}",
            hint=cheapest_fit(config, shape, rows.longest, free),
        )
    options = config.optimizer
    steps = total_steps(config, rows.units, place.world)
    call(METHODS[config.method.finetuning_type], "check", config, steps)
    return Plan(
        sequences=rows.report["sequences"],
        tokens=rows.report["tokens"],
        supervised=rows.report["supervised"],
        longest=rows.longest,
        steps=steps,
        batch=options.per_device_train_batch_size * options.gradient_accumulation_steps * place.world,
        parameters=shape.parameters,
        trainable=trainable,
        memory=needed,
        free=free,
        checkpointing=checkpointing,
        processes=place.world,
    )


def sharers(place: Ranks) -> int:
    """How many processes share the memory that :func:`free_memory` tells."""
    import torch

    return 1 if torch.cuda.is_available() else place.local_world


def _load(config: TrainConfig, longest: int, checkpointing: bool) -> Load:
    import torch

    half = config.compute.bf16 or config.compute.fp16 or config.compute.pure_bf16
    if config.task.stage in ONLINE:
        longest += config.generate.max_new_tokens
    length = config.encode.cutoff_len if config.encode.packing else longest
    world, (weights, state) = planned(config).world, divided(config.parallel)
    return Load(
        tokens=length * config.optimizer.per_device_train_batch_size,
        longest=longest,
        checkpointing=checkpointing,
        activation_bytes=2 if half else 4,
        explicit_attention=not torch.cuda.is_available(),
        weight_shares=world if weights else 1,
        state_shares=world if state else 1,
    )


def cheapest_fit(config: TrainConfig, shape: Shape, longest: int, free: int) -> str:
    """The first of a list of changes, mildest first, with which the estimate fits."""
    for change, changed, length, checkpointing in _changes(config, longest):
        trainable = trainable_parameters(shape, changed)
        if memory_needed(shape, trainable, changed, _load(changed, length, checkpointing)) <= SAFETY * free:
            return f"It would fit with {change}."
    return "Even small batches of short sequences would not fit; choose a smaller model."


def _changes(config: TrainConfig, longest: int) -> Iterator[tuple[str, TrainConfig, int, bool]]:
    """Changes that add up, mildest first: (words, configuration, longest row, whether activations are recomputed)."""
    recompute = not config.compute.disable_gradient_checkpointing
    rows, accumulation = config.optimizer.per_device_train_batch_size, config.optimizer.gradient_accumulation_steps
    batch, smaller, words = rows, config, ""
    while batch > 1:
        batch //= 2
        steps = accumulation * (rows // batch)
        smaller = _changed(smaller, "optimizer", per_device_train_batch_size=batch, gradient_accumulation_steps=steps)
        words = f"per_device_train_batch_size={batch} gradient_accumulation_steps={steps}"
        yield f"{words} (the same update)", smaller, longest, recompute
    compute = config.compute
    if not (compute.bf16 or compute.fp16 or compute.pure_bf16):
        smaller, words = _changed(smaller, "compute", bf16=True), f"{words} bf16=true".strip()
        yield words, smaller, longest, recompute
    if config.method.finetuning_type in ("full", "freeze"):
        for optimizer in _leaner(config):
            lean = _changed(smaller, "optimizer", optim=optimizer)
            yield f"{words} optim={optimizer}".strip(), lean, longest, recompute
    if config.method.finetuning_type == "full":
        smaller = _changed(smaller, "method", finetuning_type="lora")
        words = f"finetuning_type=lora {words}".strip()
        yield words, smaller, longest, recompute
    for length in (1024, 512, 256):
        if length < longest:
            yield f"cutoff_len={length} {words}".strip(), smaller, length, recompute


def _leaner(config: TrainConfig) -> list[str]:
    """Optimizers that keep less than the chosen one, and whose packages are there, the nearest to AdamW first."""
    if not config.optimizer.optim.startswith(("adamw_torch", "paged_adamw_32")):
        return []
    return (["adamw_8bit"] if find_spec("bitsandbytes") else []) + ["adafactor"]


def _changed(config: TrainConfig, group: str, **values: Any) -> TrainConfig:
    return config.model_copy(update={group: getattr(config, group).model_copy(update=values)})
