"""What is learnt: one group for each family of objectives."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from danlu.core.config import Options
from danlu.tune.online.sources import split_sources
from danlu.tune.options.fields import Count, Numbers, Share, option

Sources = Annotated[tuple[str | dict[str, Any], ...], BeforeValidator(split_sources)]
"""Rewards as they are written; see :mod:`danlu.tune.online.sources`."""


class PreferenceOptions(Options):
    """Learning from preferences (rm, dpo, ipo, kto, orpo, simpo)."""

    pref_beta: float | None = option(
        None, "how strongly the model is held to the reference; 0.1 by default, 2.0 for simpo", gt=0
    )
    pref_loss: Literal["sigmoid", "hinge"] = option("sigmoid", "dpo: the loss of the margin")
    pref_ftx: float = option(0.0, "weight of the plain likelihood of the better answer, added to the loss", ge=0)
    dpo_label_smoothing: float = option(0.0, "dpo: share of pairs that are taken to be labelled wrongly", ge=0, lt=0.5)
    simpo_gamma: float = option(0.5, "simpo: margin that the better answer must have", ge=0)
    kto_chosen_weight: float = option(1.0, "kto: weight of wanted answers", ge=0)
    kto_rejected_weight: float = option(1.0, "kto: weight of unwanted answers", ge=0)


class RolloutOptions(Options):
    """Answers given while training, and their worth (ppo, grpo)."""

    num_generations: Count | None = option(None, "answers to each prompt; 1 for ppo and 8 for grpo by default")
    steps_per_generation: Count = option(1, "optimizer steps that share the answers of one rollout, each with its own")
    rollout_temperature: float = option(1.0, "sampling temperature of the answers", gt=0)
    rollout_top_p: Annotated[float, Field(gt=0, le=1)] = option(1.0, "smallest set of tokens with this probability")
    rollout_top_k: int = option(0, "at most this many tokens; 0 for all", ge=0)
    reward_model: str | None = option(None, "run of stage rm whose number is the reward")
    reward_funcs: Sources = option((), "rewards: a name, file.py:function, package.module:function or a URL; added up")
    reward_weights: Numbers = option((), "weight of each of reward_funcs, then of reward_model; 1 by default")
    missing_eos_penalty: float = option(0.0, "taken off the reward of an answer that did not come to its end", ge=0)
    kl_limit: float = option(100.0, "divergence from the reference, per answer, at which training is stopped", gt=0)


class PpoOptions(Options):
    """Proximal policy optimization."""

    ppo_epochs: Count = option(4, "passes over the answers of a rollout")
    kl_coef: float = option(0.2, "weight of the divergence from the reference, at the start", ge=0)
    ppo_target: float | None = option(6.0, "divergence per answer that the weight is steered to; null keeps it", gt=0)
    ppo_horizon: Count = option(10_000, "answers over which the weight follows")
    cliprange: float = option(0.2, "how far the probability ratio of a token may move", gt=0, lt=1)
    cliprange_value: float = option(0.2, "how far a value may move in one pass", gt=0)
    vf_coef: float = option(0.1, "weight of the value loss", ge=0)
    gamma: Share = option(1.0, "discount of later rewards")
    lam: Share = option(0.95, "lambda of generalised advantage estimation")
    ppo_score_norm: bool = option(False, "scale rewards by the mean and deviation of all seen so far")
    ppo_whiten_rewards: bool = option(False, "scale the rewards of tokens before advantages are estimated")


class GrpoOptions(Options):
    """Group relative policy optimization."""

    grpo_beta: float = option(0.04, "weight of the divergence from the reference; 0 needs no reference", ge=0)
    num_iterations: Count = option(1, "passes over the answers of a rollout")
    epsilon: float = option(0.2, "how far below 1 the probability ratio of a token may fall", gt=0, lt=1)
    epsilon_high: float | None = option(None, "how far above 1 it may rise; as epsilon by default", gt=0)
    scale_rewards: bool = option(True, "divide by the deviation of the group; false as in Dr. GRPO")
    leave_one_out: bool = option(False, "compare with the mean of the other answers (RLOO)")
    grpo_loss: Literal["token", "sequence", "constant"] = option(
        "token", "what weighs alike: every token (DAPO), every answer (GRPO), or tokens up to a constant (Dr. GRPO)"
    )
