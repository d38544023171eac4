"""Muon for the matrices of the layers and AdamW for everything else, as one optimizer.

Muon (Jordan et al. 2024) makes the update of a matrix orthogonal; it means nothing for vectors, embeddings and the
output head. Both halves are torch's own. The update is scaled to the size that AdamW's has (Liu et al. 2025,
"Muon is scalable for LLM training": 0.2 √max(rows, columns)), so one learning rate serves both.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW, Muon, Optimizer

from danlu.core.errors import ConfigError

MARK = "use_muon"
"""Key of a parameter group: which half moves it."""


class MuonWithAdamW(Optimizer):
    """Two optimizers with one list of groups, one state and one learning rate schedule.

    Args:
        matrices: groups for Muon; every weight has two dimensions.
        others: groups for AdamW.
        lr: learning rate of both.
        betas: of AdamW.
        eps: of AdamW.
    """

    def __init__(
        self,
        matrices: list[dict[str, Any]],
        others: list[dict[str, Any]],
        *,
        lr: float,
        betas: tuple[float, float],
        eps: float,
    ) -> None:
        self.halves: list[Optimizer] = [Muon(matrices, lr=lr, adjust_lr_fn="match_rms_adamw")]
        if others:
            self.halves.append(AdamW(others, lr=lr, betas=betas, eps=eps, fused=True))
        for number, half in enumerate(self.halves):
            for group in half.param_groups:
                group[MARK] = number == 0
        super().__init__([group for half in self.halves for group in half.param_groups], {})
        self._share()

    def _share(self) -> None:
        """Let both halves see the groups and the state of the whole, which loading replaces."""
        for number, half in enumerate(self.halves):
            half.param_groups = [group for group in self.param_groups if group[MARK] == (number == 0)]
            half.state = self.state

    def step(self, closure: Any = None) -> Any:
        """One step of both halves."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for half in self.halves:
            half.step()
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a saved state."""
        super().load_state_dict(state_dict)
        self._share()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """A further group; its mark says which half it belongs to."""
        super().add_param_group(param_group)
        if self.state or len(self.param_groups) > sum(len(half.param_groups) for half in self.halves):
            self._share()


def build_muon(model: nn.Module, arguments: Any, decayed: Collection[str]) -> MuonWithAdamW:
    """Muon for the trained matrices of a model.

    Args:
        model: with its trained weights marked.
        arguments: transformers' TrainingArguments: rate, decay and AdamW's betas.
        decayed: names of the weights that decay.

    Raises:
        ConfigError: when the method trains no matrix.
    """
    apart = _embeddings_and_head(model)
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            matrix = weight.ndim == 2 and min(weight.shape) > 1 and id(weight) not in apart
            groups.setdefault((matrix, name in decayed), []).append(weight)
    made = {
        kind: [
            {"params": groups[kind, decays], "weight_decay": arguments.weight_decay if decays else 0.0}
            for decays in (True, False)
            if (kind, decays) in groups
        ]
        for kind in (True, False)
    }
    if not made[True]:
        raise ConfigError(
            "this method trains no matrix, which is all that Muon moves",
            where="optim",
            hint="Use optim=adamw_torch_fused.",
        )
    betas = (arguments.adam_beta1, arguments.adam_beta2)
    return MuonWithAdamW(made[True], made[False], lr=arguments.learning_rate, betas=betas, eps=arguments.adam_epsilon)


def _embeddings_and_head(model: nn.Module) -> set[int]:
    """Weights that have two dimensions and are tables: one row for each token, whatever the module is called."""
    tables = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    sizes = {module.num_embeddings for module in tables}
    heads = [module for module in model.modules() if isinstance(module, nn.Linear) and module.out_features in sizes]
    return {id(weight) for module in (*tables, *heads) for weight in module.parameters(recurse=False)}
