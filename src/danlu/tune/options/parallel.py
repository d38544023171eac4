"""How many processes train together, and how they share the weights."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from danlu.core.config import Options
from danlu.tune.options.fields import Count, Mapping, option, path_or_mapping, text_or_bool


def _fsdp(value: Any) -> Any:
    """``false`` and an empty text are nothing; a list is its words."""
    value = text_or_bool(" ".join(map(str, value)) if isinstance(value, list) else path_or_mapping(value))
    return None if value in (False, "", None) else "fsdp2" if value is True else value


class ParallelOptions(Options):
    """More than one process or machine."""

    nproc: Count = option(1, "processes on this machine; one for each GPU")
    nnodes: Count = option(1, "machines; the same command is started on each, with its own node_rank")
    node_rank: int = option(0, "number of this machine, from 0", ge=0)
    master_addr: str = option("127.0.0.1", "address of machine 0")
    master_port: Annotated[int, Field(ge=0, le=65535)] = option(0, "port on machine 0; a free one on a single machine")
    ddp_timeout: Count = option(1800, "seconds before a silent process group is given up")
    fsdp: Annotated[str | dict[str, Any] | None, BeforeValidator(_fsdp)] = option(
        None, "share weights, gradients and optimizer state (FSDP2): fsdp2, fsdp2_offload, a file or a mapping"
    )
    fsdp_config: Mapping = option({}, "single settings of FSDP2 on top")
    deepspeed: Annotated[str | dict[str, Any] | None, BeforeValidator(path_or_mapping)] = option(
        None, "DeepSpeed ZeRO: z2, z2_offload, z3, z3_offload, a file or a mapping"
    )

    @model_validator(mode="after")
    def _makes_sense(self) -> ParallelOptions:
        if self.node_rank >= self.nnodes:
            raise ValueError(f"node_rank {self.node_rank} needs nnodes of {self.node_rank + 1} or more")
        if self.nnodes > 1 and not self.master_port:
            raise ValueError("with more than one machine, master_port must be given, the same on each")
        if self.fsdp and self.deepspeed:
            raise ValueError("fsdp and deepspeed exclude each other; keep one")
        return self
