"""LoRA: W + (alpha / r) B A, with A (r, in) and B (out, r) trained and W frozen (Hu et al. 2021)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from danlu.core.errors import ConfigError, did_you_mean
from danlu.tune.config import TrainConfig
from danlu.tune.methods import Tuned
from danlu.tune.methods import low_rank_start as start
from danlu.tune.methods.low_rank import speed_up
from danlu.tune.methods.peft_adapters import expert_names, put_on, targets
from danlu.tune.methods.peft_adapters import load as load_adapter
from danlu.tune.methods.peft_adapters import save as save_adapter
from danlu.tune.options.methods import LoraOptions


def apply(model: Any, config: TrainConfig) -> Tuned:
    """Put adapters beside the chosen linear layers, or continue the last of the given adapters.

    Raises:
        ConfigError: when a target module does not exist, the start does not go with the other options, or there are
            no experts although they are to be adapted.
    """
    tuned, new = put_on(model, config, lambda base: _settings(base, config))
    if new and initial(config.lora) in start.CHANGES_BASE:
        tuned.start = start.remember(tuned.adapter)
    speed_up(tuned.adapter)
    return tuned


def _settings(model: Any, config: TrainConfig) -> Any:
    from peft import LoraConfig

    options = config.lora
    _check_whole_modules(model, options.additional_target)
    _check_start(config)
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=options.lora_rank,
        lora_alpha=whole(alpha(options, options.lora_rank)),
        lora_dropout=options.lora_dropout,
        target_modules=targets(model, options.lora_target, "lora_target"),
        target_parameters=_experts(model, config) if options.lora_experts else None,
        modules_to_save=list(options.additional_target) or None,
        use_rslora=options.use_rslora,
        use_dora=options.use_dora,
        init_lora_weights=_init(options),
    )


def _experts(model: Any, config: TrainConfig) -> list[str]:
    """Names of the experts' tensors, (experts, out, in) each, without the number of the layer."""
    options = config.lora
    odd = {
        "lora_dropout": options.lora_dropout > 0,
        "use_dora": options.use_dora,
        "init_lora_weights": initial(options) != "default",
        "quantization_bit": bool(config.quant.quantization_bit),
    }
    for name, given in odd.items():
        if given:
            raise ConfigError(f"{name} does not go with adapters on experts", where=f"lora_experts, {name}")
    names = expert_names(model)
    if not names:
        raise ConfigError(
            f"a {model.config.model_type} model has no experts that are one tensor a layer",
            where="lora_experts",
            hint="Leave lora_experts out.",
        )
    return names


def _check_whole_modules(model: Any, wanted: tuple[str, ...]) -> None:
    names = {name.rsplit(".", 1)[-1] for name, _ in model.named_modules() if name}
    for name in wanted:
        if name not in names:
            raise ConfigError(
                f"the model has no module named {name!r}",
                where="additional_target",
                hint=did_you_mean(name, names) or f"It has {', '.join(sorted(n for n in names if not n.isdigit()))}.",
            )


def _check_start(config: TrainConfig) -> None:
    chosen = initial(config.lora)
    if chosen == "orthogonal" and config.lora.lora_rank % 2:
        raise ConfigError(
            f"the orthogonal start needs an even rank, lora_rank is {config.lora.lora_rank}",
            where="init_lora_weights",
            hint="Choose an even lora_rank.",
        )
    if chosen in start.CHANGES_BASE and config.quant.quantization_bit:
        raise ConfigError(
            f"the start {chosen} changes the frozen weights, and quantised ones cannot be changed",
            where="init_lora_weights, quantization_bit",
            hint="Use the default start, or leave quantization_bit out.",
        )


def alpha(options: LoraOptions, rank: int) -> float:
    """The scale that was given, or twice the rank."""
    return options.lora_alpha if options.lora_alpha is not None else 2 * rank


def whole(value: float) -> float:
    """An integer where the number is one, as adapter_config.json usually has it."""
    return int(value) if float(value).is_integer() else value


def initial(options: LoraOptions) -> str:
    """How A and B begin; ``pissa_init`` is LLaMA-Factory's switch for one of the starts.

    Raises:
        ConfigError: when the two options contradict each other.
    """
    if options.pissa_init and options.init_lora_weights not in ("default", "pissa"):
        raise ConfigError(
            f"pissa_init and init_lora_weights={options.init_lora_weights} contradict each other",
            hint="Keep one of them.",
        )
    return "pissa" if options.pissa_init else options.init_lora_weights


def _init(options: LoraOptions) -> bool | str:
    chosen = initial(options)
    if chosen == "pissa" and options.pissa_iter >= 0:
        return f"pissa_niter_{options.pissa_iter}"
    return True if chosen == "default" else chosen


def save(tuned: Tuned, folder: Path) -> None:
    """Write adapter_config.json and adapter_model.safetensors; always an adapter for the unchanged base."""
    if tuned.start is None:
        save_adapter(tuned, folder)
    else:
        start.save_for_unchanged_base(tuned.adapter, tuned.start, folder)


def load(tuned: Tuned, folder: Path) -> None:
    """Read the adapter's weights back."""
    if tuned.start is None:
        load_adapter(tuned, folder)
    else:
        start.load_for_unchanged_base(tuned.adapter, tuned.start, folder)
