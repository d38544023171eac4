"""Settings of FSDP2 and DeepSpeed: by a name from assets/distributed, from a file, or as a mapping."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from danlu.core.config import read_yaml
from danlu.core.console import note
from danlu.core.errors import ConfigError, did_you_mean
from danlu.tune.options.parallel import ParallelOptions

FOLDER = Path(__file__).parents[2] / "assets" / "distributed"
WORDS = {"full_shard", "shard_grad_op", "auto_wrap", "offload", "fsdp", "fsdp2"}
"""Words that older versions of transformers took for `fsdp`."""


WITHOUT_EFFECT = frozenset(
    {
        *("state_dict_type", "cpu_ram_efficient_loading", "use_orig_params", "sync_module_states"),
        *("forward_prefetch", "backward_prefetch", "backward_prefetch_policy", "limit_all_gathers"),
        *("auto_wrap_policy", "min_num_params", "sharding_strategy", "xla", "xla_fsdp_v2", "xla_fsdp_grad_ckpt"),
    }
)
"""Settings of accelerate and FSDP1 that ask for nothing here: groups are layers, checkpoints are whole."""

KNOWN = (
    *("version", "reshard_after_forward", "cpu_offload", "offload_params"),
    *("transformer_layer_cls_to_wrap", "activation_checkpointing"),
)


@dataclass(frozen=True, slots=True)
class ShardingPlan:
    """How weights are divided.

    Attributes:
        reshard: give a layer's weights up after its forward pass, and gather them again for the backward pass.
        offload: keep what is divided in the memory of the CPU.
        layers: names of the classes that are groups; those of the model's decoder layers when empty.
    """

    reshard: bool = True
    offload: bool = False
    layers: tuple[str, ...] = ()


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


def sharding_plan(options: ParallelOptions) -> ShardingPlan | None:
    """What the options ask for, or None.

    Raises:
        ConfigError: for a setting that is unknown, or would have no effect although it should.
    """
    settings = fsdp_settings(options)
    if settings is None:
        return None
    for key in settings:
        if key not in KNOWN and key not in WITHOUT_EFFECT:
            raise ConfigError(f"FSDP2 has no setting {key!r}", where="fsdp_config", hint=did_you_mean(key, KNOWN))
    if idle := sorted(WITHOUT_EFFECT & set(settings)):
        note(f"not needed with FSDP2: {', '.join(idle)}")
    if _truth(settings.get("activation_checkpointing", False)):
        raise ConfigError(
            "activations are recomputed by the model itself",
            where="fsdp_config:activation_checkpointing",
            hint="Use gradient_checkpointing=true.",
        )
    layers = settings.get("transformer_layer_cls_to_wrap") or ()
    return ShardingPlan(
        reshard=_truth(settings.get("reshard_after_forward", True)),
        offload=_truth(settings.get("cpu_offload", settings.get("offload_params", False))),
        layers=(layers,) if isinstance(layers, str) else tuple(layers),
    )


def _truth(value: Any) -> bool:
    return str(value).lower() not in ("false", "0", "no", "none", "")


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


def divided(options: ParallelOptions) -> tuple[bool, bool]:
    """Whether the weights, and whether the optimizer's state, are divided among the processes."""
    if options.fsdp:
        return True, True
    stage = int(((deepspeed_settings(options) or {}).get("zero_optimization") or {}).get("stage", 0))
    return stage >= 3, stage >= 1
