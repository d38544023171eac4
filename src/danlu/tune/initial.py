"""The model as it was before training, without a second model in memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from danlu.tune.learner import Learner


class InitialWeights:
    """Copies of the weights that will be trained; everything else is shared with the model in training.

    Args:
        learner: before its first step.
        new_prefix: whether its prefix is a new one, so that the model before training has none.

    The copies are exact, so a resumed run must make them before it loads its checkpoint.
    """

    def __init__(self, learner: Learner, *, new_prefix: bool) -> None:
        self.learner, self.new_prefix = learner, new_prefix
        self._copies = {
            name: parameter.detach().clone()
            for name, parameter in learner.named_parameters()
            if parameter.requires_grad and not name.startswith("value_head.")
        }

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The learner computes with its first weights, without gradients; afterwards with its present ones again."""
        now: dict[str, torch.Tensor] = {}
        prefix = self.learner.prefix
        try:
            for name, parameter in self.learner.named_parameters():
                if name in self._copies:
                    now[name], parameter.data = parameter.data, self._copies[name]
            if self.new_prefix:
                self.learner.prefix = None
            with torch.no_grad():
                yield
        finally:
            self.learner.prefix = prefix
            for name, parameter in self.learner.named_parameters():
                if name in now:
                    parameter.data = now[name]
