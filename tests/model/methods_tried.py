"""The methods as the tests try them, what each may train, and a look at the model in memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from danlu.tune.session import Session

METHODS: dict[str, dict[str, Any]] = {
    "full": {"finetuning_type": "full"},
    "freeze": {"finetuning_type": "freeze", "freeze_trainable_layers": 2},
    "lora": {"finetuning_type": "lora"},
    "p_tuning_v2": {"finetuning_type": "p_tuning_v2", "pre_seq_len": 8, "learning_rate": 5e-2},
    "projection": {"finetuning_type": "p_tuning_v2", "pre_seq_len": 8, "prefix_projection": True},
    "pissa": {"lora_target": "q_proj, down_proj", "pissa_init": True, "lora_rank": 4},
    "olora": {"init_lora_weights": "olora", "use_rslora": True, "lora_alpha": 8},
    "rslora": {"use_rslora": True, "loraplus_lr_ratio": 4.0},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "dora": {"use_dora": True, "init_lora_weights": "gaussian"},
    "adalora": {"finetuning_type": "adalora", "adalora_init_r": 6, "adalora_target_r": 3, "learning_rate": 2e-2},
    "vera": {"finetuning_type": "vera", "vera_rank": 16, "learning_rate": 5e-2},
    "oft": {"finetuning_type": "oft", "learning_rate": 2e-2},
    "ia3": {"finetuning_type": "ia3", "learning_rate": 5e-2},
    "ln_tuning": {"finetuning_type": "ln_tuning", "learning_rate": 2e-2},
    "prefix_tuning": {"finetuning_type": "prefix_tuning", "pre_seq_len": 8, "prefix_hidden_size": 32},
    "p_tuning-mlp": {"finetuning_type": "p_tuning", "pre_seq_len": 8, "encoder_hidden_size": 32},
    "p_tuning-lstm": {
        "finetuning_type": "p_tuning",
        "pre_seq_len": 8,
        "encoder_reparameterization_type": "lstm",
        "encoder_hidden_size": 32,
    },
    "prompt_tuning": {"finetuning_type": "prompt_tuning", "pre_seq_len": 8, "learning_rate": 5e-2},
    "houlsby": {"finetuning_type": "adapter", "adapter_length": 16},
    "pfeiffer": {"finetuning_type": "adapter", "adapter_length": 16, "adapter_placement": "pfeiffer"},
}
"""Variants of all methods, with options that learn in a few steps."""


def kind_of(method: str) -> str:
    """The method that a variant is one of."""
    return str(METHODS[method].get("finetuning_type", "lora"))


def allowed(method: str, name: str) -> bool:
    """Whether a parameter belongs to what a method trains."""
    match kind_of(method):
        case "full":
            return not name.startswith("value_head.")
        case "freeze":
            return ".layers.1." in name or ".layers.2." in name
        case "lora" | "adalora":
            return "lora_" in name
        case "vera":
            return "vera_lambda" in name
        case "oft" | "ia3" | "ln_tuning" as kind:
            return f".{kind}_" in name
        case "adapter":
            return ".danlu_bottlenecks." in name
    return name.startswith("prefix.")


class Watch:
    """Keeps the model of the last session: its weights before training and the model in memory after it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        own, own_trainer = Session._learner, Session._trainer

        def watched(session: Session, members: Any) -> Any:
            self.learner, self.tuned = own(session, members)
            self.before = {name: p.detach().clone() for name, p in self.learner.named_parameters()}
            return self.learner, self.tuned

        def watched_trainer(session: Session, *arguments: Any) -> Any:
            self.trainer = own_trainer(session, *arguments)
            return self.trainer

        monkeypatch.setattr(Session, "_learner", watched)
        monkeypatch.setattr(Session, "_trainer", watched_trainer)

    def moved(self) -> set[str]:
        """Names of the parameters that differ from before training."""
        return {n for n, p in self.learner.named_parameters() if not torch.equal(p.detach(), self.before[n])}

    def model(self) -> Any:
        """The model as trained, able to answer plain calls."""
        from danlu.models.prefix import PrefixModel

        inner = self.tuned.model.eval()
        return inner if self.tuned.prefix is None else PrefixModel(inner, self.tuned.prefix).eval()
