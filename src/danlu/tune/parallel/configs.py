"""Settings of FSDP2 and DeepSpeed: by a name from assets/distributed, from a file, or as a mapping."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from danlu.core.config import read_yaml
from danlu.core.errors import ConfigError, did_you_mean
from danlu.tune.options.parallel import ParallelOptions

FOLDER = Path(__file__).parents[2] / "assets" / "distributed"
WORDS = {"full_shard", "shard_grad_op", "auto_wrap", "offload", "fsdp", "fsdp2"}
"""Words that older versions of transformers took for `fsdp`."""


def deepspeed_settings(options: ParallelOptions) -> dict[str, Any] | None:
    """A DeepSpeed configuration, or None when it is not asked for.

    Raises:
        ConfigError: when there is no such name or file.
    """
    given = options.deepspeed
    if not given:
        return None
    if isinstance(given, Mapping):
        return dict(given)
    named = re.fullmatch(r"(?:ds_)?(z[23])(_offload)?(?:_config)?(?:\.json)?", Path(given).name)
    if Path(given).is_file() or not named:
        return read_yaml(_existing(given, "deepspeed"))
    return read_yaml(FOLDER / f"ds_{named[1]}{named[2] or ''}.json")


def fsdp_settings(options: ParallelOptions) -> dict[str, Any] | None:
    """Transformers' `fsdp_config`, or None when FSDP2 is not asked for.

    Raises:
        ConfigError: when there is no such name or file.
    """
    given = options.fsdp
    if not given:
        return None
    if isinstance(given, Mapping):
        settings = dict(given)
    elif set(words := given.replace(",", " ").split()) <= WORDS:
        settings = read_yaml(FOLDER / ("fsdp2_offload.yaml" if "offload" in words else "fsdp2.yaml"))
        settings["reshard_after_forward"] = "shard_grad_op" not in words
    elif given == "fsdp2_offload":
        settings = read_yaml(FOLDER / "fsdp2_offload.yaml")
    else:
        settings = read_yaml(_existing(given, "fsdp"))
    inner = settings.get("fsdp_config")
    settings = _bare(inner if isinstance(inner, Mapping) else settings) | _bare(options.fsdp_config)
    if str(settings.setdefault("version", 2)) != "2":
        raise ConfigError("only version 2 of FSDP is supported", where="fsdp_config:version")
    return settings


def _bare(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Without the prefix that accelerate's files have."""
    return {key.removeprefix("fsdp_"): value for key, value in settings.items()}


def _existing(given: str, where: str) -> Path:
    path = Path(given).expanduser()
    if not path.is_file():
        known = sorted(file.stem.removeprefix("ds_") for file in FOLDER.iterdir() if file.is_file())
        known = [name for name in known if name.startswith("fsdp") == (where == "fsdp")]
        hint = did_you_mean(given, known) or f"Known names: {', '.join(known)}."
        raise ConfigError(f"there is no file {given!r}", where=where, hint=hint)
    return path
