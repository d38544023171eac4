"""The run directory: everything one training leaves behind, and whether it may be written to again.

runs/2026-11-23-alpaca-lora/
  run.yaml  manifest.json  events.jsonl  train_rows.u64
  adapter_config.json  adapter_model.safetensors  trainer_log.jsonl  …
  last  best               the newest checkpoint, and the one that was measured best
  checkpoint-500/          a run directory of its own: it can be moved and used alone
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from danlu.core import checkpoints
from danlu.core.checkpoints import follow, give_name
from danlu.core.config import Options, OptionsT, build, read_yaml
from danlu.core.config_text import to_yaml
from danlu.core.errors import RunError
from danlu.core.events import EventLog
from danlu.core.files import read_json, replacing, write_json, write_text
from danlu.core.manifest import Manifest

CONFIG = "run.yaml"
MANIFEST = "manifest.json"
EVENTS = "events.jsonl"
ROW_KEYS = "train_rows.u64"
MERGED, EXPORTED = "danlu_merge.json", "danlu_export.json"
"""What danlu merge and danlu export leave: folders that are no runs."""

TRAINED = ("adapter_config.json", "trainer_state.json", "train_results.json", "finetuning_args.json")
WEIGHTS = ("*.safetensors", "*.bin")
TRAINED_PATTERNS = (*WEIGHTS, "checkpoint-*")
"""Files that only a training leaves: a folder that has one belongs to a run."""

LEFT_BEHIND = (CONFIG, MANIFEST, EVENTS, ROW_KEYS, *TRAINED, "trainer_log.jsonl", "all_results.json")
LEFT_BEHIND_PATTERNS = (
    *TRAINED_PATTERNS,
    "*.index.json",
    "training_*.png",
    "*_results.json",
    "*_predictions.jsonl",
    "runs/*/events.out.tfevents.*",
)
"""Files that are removed when a run is started again in its folder."""


class RunDirectory:
    """One run directory, or one checkpoint of it. Creating the object touches nothing on disk."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __repr__(self) -> str:
        return f"RunDirectory({str(self.path)!r})"

    @property
    def events(self) -> EventLog:
        """The run's log."""
        return EventLog(self.path / EVENTS)

    def read_manifest(self) -> Manifest:
        """The lineage of the run.

        Raises:
            RunError: when the file is missing or damaged.
        """
        path = self.path / MANIFEST
        try:
            return Manifest.model_validate(read_json(path))
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]
            where = ":".join([str(path), *map(str, problem["loc"])])
            raise RunError(f"the manifest is damaged ({problem['msg']})", where=where) from error

    def write_manifest(self, manifest: Manifest) -> None:
        """Write the lineage, atomically."""
        write_json(self.path / MANIFEST, manifest.model_dump(mode="json"))

    def write_config(self, config: Options) -> None:
        """Write ``run.yaml``: every option with its meaning. Secrets are left out."""
        head = "# Every option of this run. `danlu train run.yaml` does it again.\n\n"
        write_text(self.path / CONFIG, head + to_yaml(public(config)))

    def read_config(self, model: type[OptionsT]) -> OptionsT:
        """Read ``run.yaml`` back.

        Raises:
            ConfigError: when it is missing or has keys that this version does not know.
        """
        path = self.path / CONFIG
        return build(model, read_yaml(path), where=str(path))

    def differences(self, config: Options, free: Collection[str] = ()) -> list[str]:
        """Keys whose value in ``run.yaml`` differs from ``config``, as ``group.key: before → now``.

        Args:
            config: what is asked for now.
            free: groups and ``group.key`` that may differ.
        """
        before = flatten(read_yaml(self.path / CONFIG))
        now = flatten(json.loads(public(config).model_dump_json()))
        return [
            f"{key}: {_shown(before[key])} → {_shown(now[key])}"
            for key in now
            if key in before and not {key, key.partition(".")[0]} & set(free) and not _same(before[key], now[key])
        ]

    def checkpoints(self) -> list[Path]:
        """The checkpoints, oldest first."""
        return checkpoints.checkpoints(self.path)

    def write_row_keys(self, keys: Iterable[int]) -> str:
        """Write the 64-bit keys of the trained rows, 8 bytes each in little-endian order; the file's name."""
        values = np.fromiter(keys, dtype="<u8")
        with replacing(self.path / ROW_KEYS) as temporary:
            values.tofile(temporary)
        return ROW_KEYS

    def row_keys(self) -> npt.NDArray[np.uint64]:
        """The keys of the trained rows, memory-mapped, in training order; empty when there is no file.

        Raises:
            RunError: when the file was cut off.
        """
        path = self.path / ROW_KEYS
        if not path.is_file() or path.stat().st_size == 0:
            return np.empty(0, dtype="<u8")
        if path.stat().st_size % 8:
            raise RunError("the file was cut off: its size is no multiple of 8", where=str(path))
        return np.memmap(path, dtype="<u8", mode="r")

    def seen(self, keys: Iterable[int]) -> npt.NDArray[np.bool_]:
        """For each key, whether the row was trained on."""
        return np.isin(np.fromiter(keys, dtype="<u8"), self.row_keys())

    def stamp_checkpoint(self, checkpoint: Path, step: int) -> None:
        """Make a checkpoint usable by itself: its own manifest, configuration and row keys."""
        target = RunDirectory(checkpoint)
        target.write_manifest(self.read_manifest().model_copy(update={"step": step}))
        shutil.copyfile(self.path / CONFIG, checkpoint / CONFIG)
        if (self.path / ROW_KEYS).is_file():
            _link(self.path / ROW_KEYS, checkpoint / ROW_KEYS)


def is_run(path: Path) -> bool:
    """Whether ``path`` is a run directory of danlu, or one of its checkpoints."""
    return (path / MANIFEST).is_file() or (path / CONFIG).is_file()


def resolve_run(path: Path) -> RunDirectory:
    """The run that ``--run`` names: its directory, a checkpoint in it (also ``best`` or ``last``), or a file in either.

    Raises:
        RunError: when there is no finished or checkpointed run.
    """
    path = follow(path.expanduser())
    if not path.exists():
        raise RunError("there is no such run", where=str(path), hint=_nearby(path))
    place = path.parent if path.is_file() else path
    if (place / MANIFEST).is_file():
        return RunDirectory(place)
    if (place / CONFIG).is_file():
        raise RunError(
            "the run stopped before its first step",
            where=str(place),
            hint=f"Start it again: danlu train {place / CONFIG}",
        )
    _made_by_danlu(place)
    if (place / "adapter_config.json").is_file() or (place / "config.json").is_file():
        raise RunError(
            "this folder was not written by danlu, so what it was trained with is not known",
            where=str(place),
            hint="Name it with model_name_or_path or adapter_name_or_path instead of run.",
        )
    raise RunError("this is no run directory", where=str(place), hint=_nearby(place / "x"))


def _made_by_danlu(place: Path) -> None:
    """Tell folders that danlu wrote, but no training, from those of strangers.

    Raises:
        RunError: with the options that open them.
    """
    if (place / MERGED).is_file():
        base = read_json(place / MERGED).get("base") or "BASE"
        raise RunError(
            "this folder holds adapters that were added up, and is no run",
            where=str(place),
            hint=f"Use --model {base} --adapter {place} instead of --run. It has no value head: it cannot score.",
        )
    if (place / EXPORTED).is_file():
        raise RunError(
            "this folder is an export, and no run",
            where=str(place),
            hint=f"Use --model {place} instead of --run; what it was trained with is in its README.md.",
        )


def open_existing(path: Path) -> RunDirectory | None:
    """The run at ``path``, or None when there is none yet."""
    return RunDirectory(path) if is_run(path) else None


def prepare(
    path: Path,
    config: Options,
    *,
    overwrite: bool = False,
    free: Collection[str] = (),
    insist: bool = False,
) -> RunDirectory:
    """The directory for a training: new, started again, or the same run to be resumed.

    Args:
        path: where the run goes.
        config: what is to be done; written to ``run.yaml``.
        overwrite: remove what an earlier run left here.
        free: groups and keys that may change between start and resume.
        insist: resume although other keys changed (a checkpoint was named by hand).

    Raises:
        RunError: when the directory holds another run's files, or the same run with other options.
    """
    run = RunDirectory(path)
    if path.exists() and not path.is_dir():
        raise RunError("this is a file, not a directory", where=str(path), hint="Choose another output_dir.")
    if overwrite and not insist:
        clear(path)
    elif (path / CONFIG).is_file():
        changed = run.differences(config, free)
        if changed and not insist and (_trained(path) or (path / EVENTS).exists()):
            raise RunError(
                f"this directory holds a run with other options ({'; '.join(changed)})",
                where=str(path),
                hint="Choose another output_dir, or start again with overwrite_output_dir=true.",
            )
    elif found := _trained(path):
        raise RunError(
            f"this directory holds another run's files ({', '.join(found[:4])})",
            where=str(path),
            hint="Choose another output_dir, or replace them with overwrite_output_dir=true.",
        )
    path.mkdir(parents=True, exist_ok=True)
    run.write_config(config)
    return run


def clear(path: Path) -> None:
    """Remove what a run left in a directory; other files stay."""
    for name in checkpoints.NAMES:
        give_name(path, name, None)
    files = [path / name for name in LEFT_BEHIND]
    files += [file for pattern in LEFT_BEHIND_PATTERNS for file in path.glob(pattern)]
    for file in files:
        if file.is_dir() and not file.is_symlink():
            shutil.rmtree(file)
        else:
            file.unlink(missing_ok=True)


def config_sha256(config: Options) -> str:
    """Digest of a configuration's values, whatever its comments and order of writing."""
    text = json.dumps(json.loads(public(config).model_dump_json()), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def public(config: OptionsT) -> OptionsT:
    """The configuration without secrets (``trainer.hub_token``)."""
    passed = getattr(config, "trainer", None)
    if not passed or not any(key.endswith("token") for key in passed):
        return config
    kept = {key: value for key, value in passed.items() if not key.endswith("token")}
    return config.model_copy(update={"trainer": kept})


def flatten(values: Mapping[str, Any]) -> dict[str, Any]:
    """``{group: {key: value}}`` as ``{"group.key": value}``."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= {f"{key}.{inner}": item for inner, item in value.items()}
        else:
            flat[key] = value
    return flat


def _same(before: Any, now: Any) -> bool:
    try:
        return bool(before == now or float(before) == float(now))
    except (TypeError, ValueError):
        return False


def _shown(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) if not isinstance(value, str) else value


def _trained(path: Path) -> list[str]:
    found = [name for name in TRAINED if (path / name).exists()]
    return found + sorted(file.name for pattern in TRAINED_PATTERNS for file in path.glob(pattern))


def _nearby(path: Path) -> str | None:
    """The runs beside ``path`` that can be named instead, as a hint."""
    if not path.parent.is_dir():
        return None
    runs = [child for child in sorted(path.parent.iterdir()) if child.is_dir() and is_run(child)]
    finished = [run.name for run in runs if _has_weights(run)]
    newest = {run.name: checkpoints.newest(run) for run in runs if run.name not in finished}
    stopped = [f"{name}/{checkpoint.name}" for name, checkpoint in newest.items() if checkpoint]
    told = []
    if finished:
        told.append(f"Runs in {path.parent}: {', '.join(finished[-8:])}.")
    if stopped:
        told.append(f"Runs that stopped, by their last checkpoint{'' if told else f', in {path.parent}'}: ")
        told[-1] += f"{', '.join(stopped[-8:])}."
    if empty := len(newest) - len(stopped):
        told.append(f"{empty} that stopped before the first checkpoint cannot be used.")
    return " ".join(told) if finished or stopped else None


def _has_weights(run: Path) -> bool:
    return (run / MANIFEST).is_file() and any(next(run.glob(kind), None) for kind in WEIGHTS)


def _link(source: Path, target: Path) -> None:
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
