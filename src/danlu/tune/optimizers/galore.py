"""GaLore: AdamW on gradients that are projected to a low rank (Zhao et al. 2024), from pytorch-optimizer.

The weights stay whole and all of them move; only the optimizer's two moments are small. Biases, norms, embeddings and
the output head are moved by plain AdamW.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from danlu.core.errors import ConfigError

if TYPE_CHECKING:
    from danlu.tune.options.optimizers import GaloreOptions


def build_galore(
    model: nn.Module, arguments: Any, decayed: Collection[str], options: GaloreOptions
) -> torch.optim.Optimizer:
    """GaLore for the linear layers of a model.

    Args:
        model: with its trained weights marked.
        arguments: transformers' TrainingArguments: rate, decay and betas.
        decayed: names of the weights that decay.
        options: which layers, and how they are projected.

    Raises:
        ConfigError: when no trained weight is chosen.
    """
    from pytorch_optimizer import GaLore
    from pytorch_optimizer.optimizer.utils.galore import GaLoreProjector

    torch.serialization.add_safe_globals([GaLoreProjector])  # it is part of the state that a checkpoint holds
    chosen = _targets(model, options.galore_target)
    if not chosen:
        raise ConfigError(
            f"no trained linear layer is called {', '.join(options.galore_target)}",
            where="galore_target",
            hint="Use all, or names like q_proj and mlp.",
        )
    projected = {
        "rank": options.galore_rank,
        "update_proj_gap": options.galore_update_interval,
        "scale": options.galore_scale,
        "projection_type": options.galore_proj_type,
    }
    groups = []
    for decays in (True, False):
        for low in (True, False):
            weights = [
                weight
                for name, weight in model.named_parameters()
                if weight.requires_grad and (name in decayed) == decays and (id(weight) in chosen) == low
            ]
            decay = arguments.weight_decay if decays else 0.0
            if weights:
                groups.append({"params": weights, "weight_decay": decay, **(projected if low else {})})
    betas = (arguments.adam_beta1, arguments.adam_beta2)
    return GaLore(groups, lr=arguments.learning_rate, betas=betas, eps=arguments.adam_epsilon)


def _targets(model: nn.Module, names: Collection[str]) -> set[int]:
    """Trained weights of the linear layers whose path has one of the names; all = every one but the head."""
    vocabularies = {module.num_embeddings for module in model.modules() if isinstance(module, nn.Embedding)}
    return {
        id(module.weight)
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear) and module.weight.requires_grad
        if ("all" in names and module.out_features not in vocabularies) or any(name in path for name in names)
    }
