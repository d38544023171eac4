"""Optimizers by name: what each needs and keeps. torch is loaded only where one is built.

``optim`` takes the names of transformers and, besides, ``muon`` and ``galore_adamw``, which are built here.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from danlu.core.config import read_yaml
from danlu.core.console import warn
from danlu.core.errors import MissingDependency, UsageError, did_you_mean

if TYPE_CHECKING:
    from danlu.tune.config import TrainConfig

FILE = Path(__file__).parents[2] / "assets" / "optimizers.yaml"
OWN = ("muon", "galore_adamw")
"""Names that transformers does not build here."""

STAND_IN = "adamw_torch_fused"
"""What transformers is told for them; it never builds it."""

Build = Callable[[Any, Any, Collection[str]], Any]
"""(model, TrainingArguments, names of the weights that decay) → an optimizer."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One optimizer; the entries are explained in ``assets/optimizers.yaml``."""

    numbers: int = 0
    bytes: float = 0.0
    factored: bool = False
    low_rank: bool = False
    matrices: bool = False
    whole: bool = False
    package: str = ""
    pip: str = ""
    refused: str = ""


@cache
def kinds() -> Mapping[str, Kind]:
    """Every optimizer by name."""
    content = read_yaml(FILE)
    refused = {name: Kind(refused=why) for name, why in content["refused"].items()}
    return {name: Kind(**entry) for name, entry in content["known"].items()} | refused


def check_optimizer(config: TrainConfig) -> None:
    """Refuse an optimizer that does not exist, cannot go with the other options, or whose package is missing.

    Raises:
        UsageError: naming what to use instead.
        MissingDependency: naming the package.
    """
    name = config.optimizer.optim
    kind = kinds().get(name)
    if kind is None:
        known = [word for word, other in kinds().items() if not other.refused]
        hint = did_you_mean(name, known) or f"Known: {', '.join(known)}."
        raise UsageError(f"there is no optimizer {name!r}", where="optim", hint=hint)
    if kind.refused:
        raise UsageError(f"{name} cannot be used: {kind.refused}", where="optim")
    method = config.method.finetuning_type
    if kind.low_rank and method not in ("full", "freeze"):
        raise UsageError(
            f"{name} projects the gradients of whole matrices, which finetuning_type {method} does not train",
            where="optim",
            hint="Use it with finetuning_type=full or freeze, or leave optim out.",
        )
    split = [key for key in ("fsdp", "deepspeed") if getattr(config.parallel, key)]
    if kind.whole and split:
        raise UsageError(
            f"{name} needs whole matrices and {split[0]} splits them",
            where="optim",
            hint="Use optim=adamw_torch_fused or optim=adafactor there.",
        )
    if name.startswith("schedule_free") and not config.optimizer.lr_scheduler_type.startswith("constant"):
        warn(
            f"{name} needs no schedule and lr_scheduler_type={config.optimizer.lr_scheduler_type} lowers its rate all "
            "the same; lr_scheduler_type=constant leaves it alone"
        )
    _check_package(name, kind)


def _check_package(name: str, kind: Kind) -> None:
    if not kind.package:
        return
    pip = kind.pip or kind.package
    if not find_spec(kind.package):
        raise MissingDependency(pip, f"for optim={name}")
    if kind.package == "bitsandbytes" and _older(pip, (0, 50)):
        import torch

        if not torch.cuda.is_available():
            raise UsageError(
                f"bitsandbytes {version(pip)} may have no optimizers for a CPU; 0.50 and later have",
                where="optim",
                hint="Install it with: pip install -U bitsandbytes",
            )


def _older(package: str, than: tuple[int, ...]) -> bool:
    try:
        numbers = [int(word) for word in version(package).split(".")[: len(than)]]
    except (PackageNotFoundError, ValueError):
        return False
    return tuple(numbers) < than


def builder(config: TrainConfig) -> Build | None:
    """What makes the optimizer if it is not transformers."""
    match config.optimizer.optim:
        case "muon":
            from danlu.tune.optimizers.muon import build_muon

            return build_muon
        case "galore_adamw":
            from danlu.tune.optimizers.galore import build_galore

            return partial(build_galore, options=config.galore)
    return None


def state_bytes(config: TrainConfig, trainable: int, *, hidden: int, tables: int, weight_bytes: int) -> int:
    """Bytes that the optimizer keeps.

    Args:
        config: the run's options.
        trainable: weights that are trained.
        hidden: width of the model: the shorter side of most of its matrices.
        tables: trained weights of embeddings and the head.
        weight_bytes: of one trained weight.
    """
    kind = kinds().get(config.optimizer.optim, Kind(numbers=2))
    inner = trainable - tables
    if kind.factored:
        return round(trainable * 8 / hidden)
    if kind.matrices:
        return (inner + 2 * tables) * weight_bytes
    if kind.low_rank:  # of an h × n matrix: 2 n r numbers of the moments and h r of the projection
        rank = min(config.galore.galore_rank, hidden)
        return round((inner * 3 * rank / hidden + 2 * tables) * weight_bytes)
    return round(trainable * (kind.numbers * weight_bytes + kind.bytes))


@contextmanager
def weights_to_use(optimizer: Any) -> Iterator[None]:
    """While inside, the model has the weights to measure and keep; a schedule-free optimizer trains others.

    Args:
        optimizer: accelerate's wrapper of one, or None.
    """
    switches = all(callable(getattr(optimizer, name, None)) for name in ("train", "eval"))
    if switches:
        optimizer.eval()
    try:
        yield
    finally:
        if switches:
            optimizer.train()
