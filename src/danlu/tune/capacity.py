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
            kept, recomputed = (
                memory_needed(shape, trainable, config, _load(content["tokens"], config, recompute, gpu))
                for recompute in (False, True)
            )
            found.append(Estimate(method, size, kept, recomputed, _verdict(kept, recomputed, free)))
    return found


def similar(parameters: Mapping[str, int], free: int, *, bf16: bool, gpu: bool) -> list[Estimate]:
    """Every method on models of other sizes, from the models of ``assets/shapes.yaml`` next to them in size.

    Bytes are taken to grow in a straight line between two sizes, and in proportion to the weights outside them.

    Args:
        parameters: number of weights of each model, by the name that its estimates get as ``size``.
        free: bytes that a run may use.
        bf16: whether runs compute in bfloat16.
        gpu: whether they run on a GPU.
    """
    known = estimates(free, bf16=bf16, gpu=gpu)
    counts = {size: counted(numbers)[0].parameters for size, numbers in read_yaml(FILE)["sizes"].items()}
    found = []
    for name, count in parameters.items():
        for method in dict.fromkeys(estimate.method for estimate in known):
            points = [(counts[one.size], one.bytes, one.recomputed) for one in known if one.method == method]
            kept, recomputed = (_on_line(count, [(point[0], point[which]) for point in points]) for which in (1, 2))
            found.append(Estimate(method, name, kept, recomputed, _verdict(kept, recomputed, free)))
    return found


def _on_line(place: int, points: list[tuple[int, int]]) -> int:
    (first, low), (last, high) = points[0], points[-1]
    if not first < place < last:
        return int(low * place / first) if place <= first else int(high * place / last)
    above = next(number for number, (count, _) in enumerate(points) if count > place)
    (left, low), (right, high) = points[above - 1], points[above]
    return int(low + (high - low) * (place - left) / (right - left))


def _verdict(kept: int, recomputed: int, free: int) -> Verdict:
    limit = SAFETY * free
    return "fits" if kept <= limit else "recomputed" if recomputed <= limit else "no"


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
