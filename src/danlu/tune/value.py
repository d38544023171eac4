"""How a value head begins: as an earlier run of the same stage left it, or new."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from danlu.core.checkpoints import follow
from danlu.core.console import note
from danlu.core.files import read_json
from danlu.models.value_head import ValueHead, read_head
from danlu.tune.config import TrainConfig


def begin(head: ValueHead, config: TrainConfig, base: Path) -> None:
    """Take up the head of the run that is continued; without one, ppo begins with the value 0 everywhere.

    Args:
        head: just made.
        config: the run's options.
        base: folder of the base model; after full or freeze tuning the earlier run itself.

    Raises:
        RunError: when the earlier head was made for a model of another width.
    """
    stage = config.task.stage
    adapters = config.model.adapter_name_or_path
    earlier = follow(Path(adapters[-1]).expanduser()) if adapters else base
    if earlier.is_dir() and read_head(earlier) is not None:
        made_by = _stage(earlier)
        if made_by == stage:
            head.load(earlier)
            return
        note(f"the value head of {earlier} is of stage {made_by}; stage {stage} begins with a new one")
    if stage == "ppo":
        nn.init.zeros_(head.summary.weight)  # nothing is expected before anything was seen


def _stage(folder: Path) -> str:
    """What a head was trained for; one of another tool is taken for a reward model's."""
    manifest = folder / "manifest.json"
    return str((read_json(manifest).get("stage") if manifest.is_file() else None) or "rm")
