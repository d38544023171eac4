"""What a machine can train: the memory estimate of a few methods on models of a few sizes, without any model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from danlu.core.config import build, read_yaml
from danlu.tune.config import TrainConfig
from danlu.tune.preflight import SAFETY, Load, Shape, memory_needed, read_shape, trainable_parameters

FILE = Path(__file__).parents[1] / "assets" / "shapes.yaml"
FEW = (2, 3)
"""Layers of the models that are built to count: each further layer adds the same."""

Verdict = Literal["fits", "recomputed", "no"]


@dataclass(frozen=True, slots=True)
class Estimate:
    """One method on a model of one size, one sequence at a time.

    Attributes:
        method: its name in the table.
        size: of the model.
        bytes: needed with the activations kept.
        recomputed: needed with the activations recomputed.
        verdict: whether it fits, only with recomputation, or not.
    """

    method: str
    size: str
    bytes: int
    recomputed: int
    verdict: Verdict


def estimates(free: int, *, bf16: bool, gpu: bool) -> list[Estimate]:
    """Every method of ``assets/shapes.yaml`` on every size, method by method.

    Args:
        free: bytes that a run may use.
        bf16: whether runs compute in bfloat16.
        gpu: whether they run on a GPU (its attention keeps no weights).
    """
    content = read_yaml(FILE)
    shapes = {size: counted(numbers) for size, numbers in content["sizes"].items()}
    found = []
    for method, options in content["methods"].items():
        precision = {} if options.get("pure_bf16") else {"bf16": bf16}
        config = build(TrainConfig, {**precision, **options}, where=str(FILE))
        for size, (shape, small) in shapes.items():
            trainable = _extended([trainable_parameters(one, config) for one in small], shape.layers)
            needed = [
                memory_needed(shape, trainable, config, _load(content["tokens"], config, recompute, gpu))
                for recompute in (False, True)
            ]
            limit = SAFETY * free
            verdict: Verdict = "fits" if needed[0] <= limit else "recomputed" if needed[1] <= limit else "no"
            found.append(Estimate(method, size, needed[0], needed[1], verdict))
    return found


def counted(numbers: Mapping[str, Any]) -> tuple[Shape, tuple[Shape, ...]]:
    """The shape of a model, and those of its first few layers, from which it is extended.

    Args:
        numbers: of its configuration.
    """
    from transformers import Qwen2Config

    small = tuple(read_shape(Qwen2Config(**{**numbers, "num_hidden_layers": count})) for count in FEW)
    layers = numbers["num_hidden_layers"]
    grown = {
        field.name: _extended([getattr(one, field.name) for one in small], layers)
        for field in fields(Shape)
        if isinstance(getattr(small[0], field.name), int)
    }
    return replace(small[0], **grown), small


def _extended(values: list[int], layers: int) -> int:
    first, second = values
    return first + (layers - FEW[0]) * (second - first)


def _load(tokens: int, config: TrainConfig, recompute: bool, gpu: bool) -> Load:
    half = config.compute.bf16 or config.compute.pure_bf16
    return Load(
        tokens=tokens,
        longest=tokens,
        checkpointing=recompute,
        activation_bytes=2 if half else 4,
        explicit_attention=not gpu,
    )
