"""A run may be resumed with another number of processes, as long as each step sees the same rows."""

from __future__ import annotations

from collections.abc import Collection

from danlu.core.console import note
from danlu.core.errors import RunError
from danlu.core.run import CONFIG, RunDirectory
from danlu.tune.config import TrainConfig
from danlu.tune.parallel.start import planned

BATCH = frozenset({"optimizer.per_device_train_batch_size", "optimizer.gradient_accumulation_steps"})


def same_batch(config: TrainConfig, run: RunDirectory, free: Collection[str]) -> tuple[TrainConfig, Collection[str]]:
    """Keep the rows of a step when a run goes on with another number of processes.

    A step sees `per_device_train_batch_size × gradient_accumulation_steps × processes` rows, the next ones in the
    order of the epoch, however that product is made up. When only the number of processes is another one,
    gradient_accumulation_steps is changed so that the product stays.

    Args:
        config: what is asked for.
        run: where the run is, or will be.
        free: keys that may differ; returned with those of the batch when the product is the same.

    Raises:
        RunError: when no number of accumulation steps gives the same product.
    """
    if not (run.path / CONFIG).is_file() or not run.checkpoints():
        return config, free
    before = run.read_config(TrainConfig)
    old, new = before.optimizer, config.optimizer
    joint = _rows(before, before.parallel.nproc * before.parallel.nnodes)
    now = _rows(config, planned(config).world)
    if joint == now:
        return config, {*free, *BATCH}
    sizes = ("per_device_train_batch_size", "gradient_accumulation_steps")
    if any(getattr(old, name) != getattr(new, name) for name in sizes) or joint * new.gradient_accumulation_steps % now:
        if before.parallel == config.parallel:
            return config, free  # the ordinary message about changed options
        raise RunError(
            f"a step of this run sees {joint} rows, and would now see {now}",
            where=str(run.path),
            hint="Keep per_device_train_batch_size × gradient_accumulation_steps × processes as it was.",
        )
    steps = joint * new.gradient_accumulation_steps // now
    note(f"gradient_accumulation_steps={steps} keeps the {joint} rows of a step")
    changed = new.model_copy(update={"gradient_accumulation_steps": steps})
    return config.model_copy(update={"optimizer": changed}), {*free, *BATCH}


def _rows(config: TrainConfig, processes: int) -> int:
    options = config.optimizer
    return options.per_device_train_batch_size * options.gradient_accumulation_steps * processes
