"""OFT: inputs of frozen layers are rotated, y = W R x with R block-diagonal and orthogonal (Qiu et al. 2023).

R = (I + Q)(I - Q)⁻¹ with Q skew-symmetric and trained; the inverse is a Neumann series of five terms, PEFT's default.
Paper: arXiv:2306.07280.
"""

from __future__ import annotations

from typing import Any

from danlu.core.errors import ConfigError
from danlu.tune.config import TrainConfig
from danlu.tune.methods import Tuned
from danlu.tune.methods.peft_adapters import linear_names, load, put_on, save, targets

__all__ = ["apply", "load", "save"]


def apply(model: Any, config: TrainConfig) -> Tuned:
    """Put rotations before the chosen linear layers, or continue given ones.

    Raises:
        ConfigError: when a layer does not exist, or its inputs cannot be cut into such blocks.
    """
    options = config.oft

    def settings(base: Any) -> Any:
        from peft import OFTConfig

        chosen = targets(base, options.oft_target, "oft_target")
        _check_blocks(base, chosen, options.oft_rank, options.oft_block_size)
        return OFTConfig(
            task_type="CAUSAL_LM",
            r=options.oft_rank,
            oft_block_size=0 if options.oft_rank else options.oft_block_size,
            module_dropout=options.module_dropout,
            target_modules=chosen,
        )

    return put_on(model, config, settings)[0]


def _check_blocks(model: Any, chosen: list[str], rank: int, size: int) -> None:
    """PEFT would quietly take another size for a layer that cannot be cut evenly."""
    linear = linear_names(model)
    transposed = [name for name in chosen if not hasattr(linear[name][0], "in_features")]
    if transposed:
        raise ConfigError(
            f"oft does not know layers that are stored transposed, as {transposed[0]} is",
            where="oft_target",
            hint="Use another method, for instance finetuning_type=lora.",
        )
    widths = sorted({layer.in_features for name in chosen for layer in linear[name]})
    number, option = (rank, "oft_rank") if rank else (size, "oft_block_size")
    odd = [width for width in widths if width % number]
    if odd:
        fitting = [value for value in range(2, min(widths) + 1) if all(width % value == 0 for width in widths)]
        raise ConfigError(
            f"inputs of {odd[0]} numbers cannot be cut into equal blocks with {option}={number}",
            where=option,
            hint=f"For these layers any of {', '.join(map(str, fitting[-8:]))} works.",
        )
