"""LoRA: W + (alpha / r) B A, with A (r, in) and B (out, r) trained and W frozen (Hu et al. 2021)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from danlu.core.errors import ConfigError, did_you_mean
from danlu.models import adapters
from danlu.models.adapters import attach, merge
from danlu.models.runs import adapter_chain
from danlu.tune.config import TrainConfig
from danlu.tune.methods import Tuned
from danlu.tune.methods.low_rank import speed_up
from danlu.tune.methods.old_names import known_names
from danlu.tune.options.methods import LoraOptions


def apply(model: Any, config: TrainConfig) -> Tuned:
    """Put adapters beside the chosen linear layers, or continue the last of the given adapters.

    Raises:
        ConfigError: when a target module does not exist.
    """
    from peft import LoraConfig, get_peft_model

    model.requires_grad_(False)
    given = list(adapter_chain(config.model.adapter_name_or_path))
    continued = None if config.model.create_new_adapter or not given else given.pop()
    model = merge(model, given) if given else model
    if continued:
        adapter = attach(model, continued, trainable=True)
        speed_up(adapter)
        return Tuned(adapter.get_base_model(), adapter)
    options = config.lora
    _check_whole_modules(model, options.additional_target)
    settings = LoraConfig(
        task_type="CAUSAL_LM",
        r=options.lora_rank,
        lora_alpha=_whole(options.lora_alpha if options.lora_alpha is not None else 2 * options.lora_rank),
        lora_dropout=options.lora_dropout,
        target_modules=targets(model, options),
        modules_to_save=list(options.additional_target) or None,
        use_rslora=options.use_rslora,
        use_dora=options.use_dora,
        init_lora_weights=_init(options),
    )
    adapter = get_peft_model(model, settings)
    speed_up(adapter)
    return Tuned(adapter.get_base_model(), adapter)


def _check_whole_modules(model: Any, wanted: tuple[str, ...]) -> None:
    names = {name.rsplit(".", 1)[-1] for name, _ in model.named_modules() if name}
    for name in wanted:
        if name not in names:
            raise ConfigError(
                f"the model has no module named {name!r}",
                where="additional_target",
                hint=did_you_mean(name, names) or f"It has {', '.join(sorted(n for n in names if not n.isdigit()))}.",
            )


def _whole(value: float) -> float:
    return int(value) if float(value).is_integer() else value


def _init(options: LoraOptions) -> bool | str:
    if not options.pissa_init:
        return True
    return "pissa" if options.pissa_iter < 0 else f"pissa_niter_{options.pissa_iter}"


def targets(model: Any, options: LoraOptions) -> list[str]:
    """Names of the linear layers to adapt.

    Raises:
        ConfigError: when a name fits no linear layer of the model.
    """
    head = model.get_output_embeddings()
    linear = {
        name.rsplit(".", 1)[-1]
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head
    }
    chosen: list[str] = []
    for name in (part for given in options.lora_target for part in known_names(given, linear)):
        if name == "all":
            chosen += sorted(linear)
        elif name in linear:
            chosen.append(name)
        else:
            raise ConfigError(
                f"the model has no linear layer named {name!r}",
                where="lora_target",
                hint=did_you_mean(name, linear) or f"It has {', '.join(sorted(linear))}; all means every one.",
            )
    return list(dict.fromkeys(chosen))


def save(tuned: Tuned, folder: Path) -> None:
    """Write adapter_config.json and adapter_model.safetensors."""
    adapters.save(tuned.adapter, folder)


def load(tuned: Tuned, folder: Path) -> None:
    """Read the adapter's weights back."""
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    set_peft_model_state_dict(tuned.adapter, load_file(folder / "adapter_model.safetensors"))
