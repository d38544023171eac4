"""Which of several processes this is, as torchrun and its like say in the environment."""

from __future__ import annotations

import os
from dataclasses import dataclass

OWN_LOG = "DANLU_LAUNCHER"
"""Set, to the launcher's process id, in a process whose output goes to a file of its own."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """The place of a process among those that train together.

    Attributes:
        rank: its number among all; 0 writes the files and speaks to the user.
        world: how many there are.
        local_rank: its number on this machine.
        local_world: how many are on this machine.
        machine: number of this machine.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1
    machine: int = 0

    @property
    def machines(self) -> int:
        """How many machines take part; each has as many processes as this one."""
        return -(-self.world // self.local_world)


def ranks() -> Ranks:
    """The place of this process: alone, unless ``WORLD_SIZE`` says otherwise."""
    world = _number("WORLD_SIZE", 1)
    if world <= 1 or "RANK" not in os.environ:
        return Ranks()
    rank, local_world = _number("RANK", 0), _number("LOCAL_WORLD_SIZE", world)
    return Ranks(
        rank=rank,
        world=world,
        local_rank=_number("LOCAL_RANK", rank % local_world),
        local_world=local_world,
        machine=_number("GROUP_RANK", rank // local_world),
    )


def is_main() -> bool:
    """Whether this process writes the files of a run."""
    return ranks().rank == 0


def is_heard() -> bool:
    """Whether what this process says reaches the user once: it is the first, or has a log of its own."""
    return is_main() or OWN_LOG in os.environ


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, "")
    return int(text) if text.isdigit() else default
