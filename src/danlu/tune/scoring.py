"""A trained reward model as an engine: conversations in, one number for each out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from danlu.core.config import build
from danlu.data.encode import last_answer_only
from danlu.data.schema import Conversation
from danlu.data.templates import Template
from danlu.models.value_head import ValueHead
from danlu.tune.batches import lay_out
from danlu.tune.config import TrainConfig
from danlu.tune.measuring import learner_of

TOKENS = 4096
"""Most tokens in one forward pass, unless one conversation alone has more."""


class RewardModel:
    """Scores conversations that end with an answer.

    Args:
        model: the language model, opened to answer: plain, with adapters or with a prefix.
        head: its value head.
        template: of the model.
    """

    def __init__(self, model: Any, head: ValueHead, template: Template) -> None:
        self.learner = learner_of(model, build(TrainConfig, {"stage": "rm"}, where="reward model"), head)
        self.template = template

    def score(self, conversations: Sequence[Conversation]) -> list[float]:
        """The reward of the last answer of each conversation: what the value head says of its last trained token.

        Raises:
            TemplateError: when the chat template refuses a conversation.
        """
        encoded = [self._ids(conversation) for conversation in conversations]
        order = sorted(range(len(encoded)), key=lambda number: -len(encoded[number]))
        scores = [0.0] * len(encoded)
        batch: list[int] = []
        for place, number in enumerate(order):
            batch.append(number)
            following = order[place + 1] if place + 1 < len(order) else None
            tokens = sum(len(encoded[member]) for member in batch)
            if following is None or tokens + len(encoded[following]) > TOKENS:
                for member, score in zip(batch, self._forward([encoded[member] for member in batch])):
                    scores[member] = score
                batch = []
        return scores

    def _ids(self, conversation: Conversation) -> list[int]:
        encoded = self.template.encode(last_answer_only(conversation))
        last = max((place for place, trained in enumerate(encoded.trained) if trained), default=len(encoded.ids) - 1)
        return encoded.ids[: last + 1]

    @torch.no_grad()
    def _forward(self, sequences: Sequence[Sequence[int]]) -> list[float]:
        parts = [(np.asarray(ids, dtype=np.int32), np.zeros(len(ids), dtype=np.bool_)) for ids in sequences]
        device = self.learner.model.device
        batch = {name: value.to(device) for name, value in lay_out([[part] for part in parts]).items()}
        found: list[float] = self.learner.numbers(self.learner.see(batch), batch["bounds"][1:] - 1).tolist()
        return found
