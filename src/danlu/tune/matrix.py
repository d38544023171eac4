"""Which method goes with which objective: one table, read by the checks, the tests and the documentation. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from danlu.core.errors import UsageError


@dataclass(frozen=True, slots=True)
class StageFacts:
    """What is known of an objective without loading it.

    Attributes:
        rows: the kind of rows it trains on.
        unit: what its loss is a mean over.
        metrics: numbers that it tells beside the loss.
    """

    rows: str
    unit: str
    metrics: tuple[str, ...] = ()


_PAIRS = "pairs of a better and a worse answer"
_PROMPTS = "conversations, of which it takes the prompts"
_PREFERENCE = ("accuracy", "margin", "reward_chosen", "reward_rejected", "logps_chosen", "logps_rejected")

STAGES: dict[str, StageFacts] = {
    "pt": StageFacts("plain text", "token"),
    "sft": StageFacts("conversations", "token"),
    "rm": StageFacts(_PAIRS, "pair", ("accuracy", "margin", "reward_chosen", "reward_rejected")),
    "dpo": StageFacts(_PAIRS, "pair", _PREFERENCE),
    "ipo": StageFacts(_PAIRS, "pair", _PREFERENCE),
    "kto": StageFacts(
        "answers labelled true or false", "answer", ("accuracy", "reward_chosen", "reward_rejected", "kl")
    ),
    "orpo": StageFacts(_PAIRS, "pair", (*_PREFERENCE, "log_odds_ratio")),
    "simpo": StageFacts(_PAIRS, "pair", _PREFERENCE),
    "ppo": StageFacts(_PROMPTS, "answer token", ("reward", "length", "finished")),
    "grpo": StageFacts(_PROMPTS, "answer token", ("reward", "length", "finished")),
}

ONLINE = frozenset({"ppo", "grpo"})
"""Objectives that learn from answers which the model gives while it trains."""

_STEERS = "a few virtual tokens steer a model; they cannot take up a corpus"

REFUSED: dict[tuple[str, str], str] = {
    ("prompt_tuning", "pt"): _STEERS,
    ("p_tuning", "pt"): _STEERS,
    ("prefix_tuning", "pt"): _STEERS,
    ("p_tuning_v2", "pt"): _STEERS,
}
"""(method, stage) → why it makes no sense."""


def check_combination(method: str, stage: str) -> None:
    """Refuse a method and an objective that make no sense together.

    Raises:
        UsageError: with the reason.
    """
    reason = REFUSED.get((method, stage))
    if reason:
        raise UsageError(
            f"finetuning_type {method} makes no sense with stage {stage}: {reason}",
            hint="Choose another method; docs/en/objectives.md shows which go together.",
        )
