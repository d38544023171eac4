"""From a session to an :class:`Experience`: who answers, who scores, in which precision, among how many processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from danlu.core.console import note
from danlu.data.branching import answer_of, prompt_of
from danlu.data.schema import Row, row_key
from danlu.data.tokens import TokenStore
from danlu.engine.protocol import GenerationOptions
from danlu.engine.text import decode
from danlu.models.prefix import PrefixModel
from danlu.tune.config import TrainConfig
from danlu.tune.initial import InitialWeights
from danlu.tune.online.experience import Ask, Experience, Surroundings
from danlu.tune.online.plan import RolloutPlan, keeps_first_weights
from danlu.tune.online.rewards import Rewards
from danlu.tune.online.rollout import Answer, Sampler
from danlu.tune.online.samples import Sample

if TYPE_CHECKING:
    from danlu.tune.learner import Learner
    from danlu.tune.trainer import DanluTrainer


@dataclass(frozen=True, slots=True)
class Rollouts:
    """What a session needs to learn from the model's own answers.

    Attributes:
        rows: folder of a token store → the rows that it was made of.
        rewards: score answers.
        tokenizer: of the model.
        stop_ids: tokens that end an answer.
    """

    rows: Mapping[str, Sequence[Row]]
    rewards: Rewards
    tokenizer: Any
    stop_ids: frozenset[int]

    def sample_of(self, store: TokenStore, item: int, answer: Answer) -> Sample:
        """An answer as rewards see it."""
        row = self.rows[str(store.folder)][int(store.rows[item])]
        ids = answer.ids[:-1] if answer.finished and answer.ids[-1] in self.stop_ids else answer.ids
        return Sample(
            prompt=prompt_of(row),
            answer=decode(self.tokenizer, ids),
            reference=answer_of(row),
            tokens=len(answer.ids),
            finished=answer.finished,
            key=row_key(row),
        )


def make_experience(
    trainer: DanluTrainer,
    config: TrainConfig,
    rollouts: Rollouts,
    store: TokenStore,
    members: NDArray[np.int64],
    folder: Path,
) -> Experience:
    """The feed of a trainer; its model must be as it is before training."""
    learner, args = trainer.model, trainer.args
    if silence_dropout(learner):
        note(f"dropout is off in stage {config.task.stage}: it would make noise of the probability ratios")
    continued = bool(config.model.adapter_name_or_path) and not config.model.create_new_adapter
    initial = InitialWeights(learner, new_prefix=not continued) if keeps_first_weights(config) else None
    around = Surroundings(
        prompts=store,
        members=members.tolist(),
        sample_of=rollouts.sample_of,
        rewards=rollouts.rewards,
        ask=asking(trainer, config, rollouts),
        folder=folder,
        precision=trainer.accelerator.autocast,
        process=args.process_index,
    )
    plan = RolloutPlan.of(config, len(members), args.world_size)
    return Experience(learner, plan, around, initial)


def asking(trainer: DanluTrainer, config: TrainConfig, rollouts: Rollouts) -> Ask:
    """Has the model of a trainer answer, as it is at that moment."""
    rollout = config.rollout
    options = GenerationOptions(
        do_sample=True,
        temperature=rollout.rollout_temperature,
        top_p=rollout.rollout_top_p,
        top_k=rollout.rollout_top_k,
        max_new_tokens=config.generate.max_new_tokens,
        seed=config.compute.seed,
    )
    sampler = Sampler(options, rollouts.stop_ids, pad=rollouts.tokenizer.pad_token_id or 0)

    def ask(prompts: Sequence[Sequence[int]], count: int, keys: Sequence[str]) -> list[list[Answer]]:
        learner: Learner = trainer.model
        model = learner.model if learner.prefix is None else PrefixModel(learner.model, learner.prefix)
        with trainer.accelerator.autocast():
            return sampler.ask(model, prompts, count, keys)

    return ask


def silence_dropout(learner: nn.Module) -> int:
    """Switch dropout off for good; how many layers had any."""
    found = [module for module in learner.modules() if isinstance(module, nn.Dropout) and module.p > 0]
    for module in found:
        module.p = 0.0
    attention = [module for module in learner.modules() if getattr(module, "attention_dropout", 0.0)]
    for module in attention:
        module.attention_dropout = 0.0
    return len(found) + len(attention)
