"""What is decided once for all processes of a training, and how it reaches them."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from danlu.core.ranks import Ranks, ranks
from danlu.tune.config import TrainConfig

VARIABLE = "DANLU_START"
"""The environment variable in which the launcher hands it to its workers."""


@dataclass(frozen=True, slots=True)
class Start:
    """What all processes must agree on.

    Attributes:
        values: the options, with the run directory.
        checkpoint: where to go on, or None.
        checkpointing: whether activations are recomputed.
    """

    values: dict[str, Any]
    checkpoint: str | None
    checkpointing: bool

    @classmethod
    def of(cls, config: TrainConfig, checkpoint: Any, checkpointing: bool) -> Start:
        """From what one process decided."""
        values = config.model_dump(mode="json", exclude_unset=True)
        return cls(values, str(checkpoint) if checkpoint else None, checkpointing)

    @classmethod
    def read(cls, text: str) -> Start:
        """From the text of :meth:`text`."""
        return cls(**json.loads(text))

    def text(self) -> str:
        """For a file, a variable or a store."""
        return json.dumps(asdict(self))

    @property
    def config(self) -> TrainConfig:
        """The options."""
        return TrainConfig.model_validate(self.values)


def planned(config: TrainConfig) -> Ranks:
    """The place of this process, or that of the first of the processes that will be started."""
    place, options = ranks(), config.parallel
    if place.world > 1:
        return place
    local = options.nproc
    return Ranks(0, local * options.nnodes, 0, local, options.node_rank)


def needs_launcher(config: TrainConfig) -> bool:
    """Whether processes must be started: for more than one, and for what works in a process group only."""
    options = config.parallel
    return planned(config).world > 1 or bool(options.fsdp or options.deepspeed)
