"""Before any weight is loaded: how many rows, tokens and steps, how much is trained, and whether memory suffices.

The memory estimate is arithmetic, not a promise: weights, gradients and optimizer state are exact; activations are
counted for a decoder of the usual shape, from what its layers keep for the backward pass.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from danlu.core.errors import UsageError
from danlu.core.ranks import Ranks
from danlu.tune.config import TrainConfig
from danlu.tune.head import CHUNK
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
    model = _without_weights(model_config)
    heads = model_config.num_attention_heads
    return Shape(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        hidden=model_config.hidden_size,
        intermediate=getattr(model_config, "intermediate_size", None) or 4 * model_config.hidden_size,
        layers=model_config.num_hidden_layers,
        heads=heads,
        vocabulary=model_config.vocab_size,
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
    from danlu.tune.methods import METHODS

    given = () if config.model.create_new_adapter else config.model.adapter_name_or_path
    if given:
        return _adapter_parameters(Path(given[-1]).expanduser())
    plain = _changed(_changed(config, "lora", pissa_init=False), "model", adapter_name_or_path=())
    with torch.device("meta"), quiet():
        tuned = METHODS[config.method.finetuning_type].apply(_without_weights(shape.model), plain)
    parts = (tuned.adapter or tuned.model, *([tuned.prefix] if tuned.prefix is not None else []))
    return sum(parameter.numel() for part in parts for parameter in part.parameters() if parameter.requires_grad)


def _adapter_parameters(folder: Path) -> int:
    """How many numbers an adapter that is continued has; of a prefix those of its network, if it has one."""
    from safetensors import safe_open

    files = [folder / name for name in ("prefix_encoder.safetensors", "adapter_model.safetensors")]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        return 0
    with safe_open(file, framework="pt") as tensors:
        return sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118


def memory_needed(shape: Shape, trainable: int, config: TrainConfig, load: Load) -> int:
    """Bytes of weights, gradients, optimizer state and activations.

    Per layer and token a decoder keeps about 8 d + 4 f numbers (d hidden, f intermediate) for the backward pass; with
    recomputation only its input, d, and one layer's worth at a time. AdamW keeps two float32 numbers a weight.
    """
    half = config.compute.bf16 or config.compute.fp16 or config.compute.pure_bf16
    frozen_bytes = 2 if half or config.model.dtype in ("bfloat16", "float16") else 4
    master_bytes = 2 if config.compute.pure_bf16 else 4
    frozen = shape.parameters - trainable if config.method.finetuning_type in ("full", "freeze") else shape.parameters
    weights = frozen * frozen_bytes + trainable * master_bytes
    if half and config.method.finetuning_type == "full" and not config.compute.pure_bf16:
        weights += trainable * 2  # autocast keeps a copy in half precision during a pass
    state = trainable * (master_bytes + 2 * master_bytes)
    per_layer = load.tokens * (8 * shape.hidden + 4 * shape.intermediate) * load.activation_bytes
    if load.explicit_attention:
        per_layer += load.tokens * load.longest * shape.heads * load.activation_bytes
    deep = _layers_with_gradient(shape, config)
    if load.checkpointing:
        activations = deep * load.tokens * shape.hidden * load.activation_bytes + per_layer
    else:
        activations = deep * per_layer
    logits = min(CHUNK, load.tokens) * shape.vocabulary * 10
    return int(weights / load.weight_shares + state / load.state_shares + activations + logits)


def _layers_with_gradient(shape: Shape, config: TrainConfig) -> int:
    count = config.freeze.freeze_trainable_layers
    if config.method.finetuning_type == "freeze" and 0 < count <= shape.layers:
        return count
    return shape.layers


def free_memory() -> int:
    """Bytes that a run may use: of the first GPU if there is one, of the machine otherwise."""
    import torch

    if torch.cuda.is_available():
        free, _ = torch.cuda.mem_get_info()
        return int(free)
    for line in _read_meminfo():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    import os

    return int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def _read_meminfo() -> list[str]:
    path = Path("/proc/meminfo")
    return path.read_text(encoding="ascii").splitlines() if path.exists() else []


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
    return Plan(
        sequences=rows.report["sequences"],
        tokens=rows.report["tokens"],
        supervised=rows.report["supervised"],
        longest=rows.longest,
        steps=total_steps(config, rows.units, place.world),
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
    recompute = not config.compute.disable_gradient_checkpointing
    batch = config.optimizer.per_device_train_batch_size
    smaller = config
    while batch > 1:
        batch //= 2
        accumulation = config.optimizer.gradient_accumulation_steps * (
            config.optimizer.per_device_train_batch_size // batch
        )
        smaller = _changed(
            smaller, "optimizer", per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation
        )
        words = f"per_device_train_batch_size={batch} gradient_accumulation_steps={accumulation} (the same update)"
        yield words, smaller, longest, recompute
    if not config.compute.bf16 and not config.compute.fp16:
        half = _changed(smaller, "compute", bf16=True)
        yield f"per_device_train_batch_size={batch} bf16=true", half, longest, recompute
        smaller = half
    if config.method.finetuning_type == "full":
        lora = _changed(smaller, "method", finetuning_type="lora")
        yield f"finetuning_type=lora per_device_train_batch_size={batch} bf16=true", lora, longest, recompute
        smaller = lora
    for length in (1024, 512, 256):
        if length < longest:
            yield f"cutoff_len={length} per_device_train_batch_size={batch} bf16=true", smaller, length, recompute


def _changed(config: TrainConfig, group: str, **values: Any) -> TrainConfig:
    return config.model_copy(update={group: getattr(config, group).model_copy(update=values)})
