"""How prompts, answers, batches and optimizer steps add up in a training on the model's own answers. No torch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from danlu.core.console import note
from danlu.core.errors import UsageError
from danlu.tune.config import TrainConfig
from danlu.tune.methods import family

GROUP = {"ppo": 1, "grpo": 8}
"""Answers to each prompt where nothing is said."""


def keeps_first_weights(config: TrainConfig) -> bool:
    """Whether the model before training is asked again and again, so that its weights must be kept."""
    if config.task.stage == "ppo":
        return config.ppo.kl_coef > 0
    return config.task.stage == "grpo" and config.grpo.grpo_beta > 0


def check_room(config: TrainConfig, longest: int, context: int | None) -> None:
    """See whether prompts and answers fit into what the model can read, before anything is loaded.

    Args:
        config: the run's options.
        longest: tokens of the longest prompt.
        context: longest sequence of the model, or None when it does not say.

    Raises:
        UsageError: when the longest prompt leaves no room for an answer.
    """
    if context is None:
        return
    virtual = config.prefix.pre_seq_len if family(config.method.finetuning_type).kind == "prompt" else 0
    room = context - virtual
    if longest >= room:
        raise UsageError(
            f"the longest prompt has {longest} tokens and leaves no room for an answer: the model takes {room} tokens",
            where="cutoff_len",
            hint=f"Set cutoff_len={max(room - config.generate.max_new_tokens, room // 2)}.",
        )
    if longest + config.generate.max_new_tokens > room:
        note(
            f"answers to the longest prompts end after {room - longest} instead of {config.generate.max_new_tokens} "
            f"tokens: the model takes {room}"
        )


@dataclass(frozen=True, slots=True)
class RolloutPlan:
    """The arithmetic of rollouts, for one process among several.

    Attributes:
        group: answers to each prompt.
        batch: answers in one forward pass of one process.
        accumulation: forward passes in one optimizer step.
        steps: optimizer steps that share a rollout, each with answers of its own.
        passes: over the answers of a rollout.
        prompts: rows to ask.
        processes: that share the work.
        seed: decides the order of the prompts.
    """

    group: int
    batch: int
    accumulation: int
    steps: int
    passes: int
    prompts: int
    processes: int
    seed: int

    @classmethod
    def of(cls, config: TrainConfig, prompts: int, processes: int = 1) -> RolloutPlan:
        """The plan of a configuration.

        Raises:
            UsageError: when groups do not fit into batches.
        """
        stage, options = config.task.stage, config.optimizer
        passes = config.ppo.ppo_epochs if stage == "ppo" else config.grpo.num_iterations
        group = config.rollout.num_generations or GROUP[stage]
        batch = options.per_device_train_batch_size
        if stage == "grpo" and group < 2:
            raise UsageError(
                "grpo compares the answers to a prompt with each other, so there must be at least two",
                where="num_generations",
                hint="Set num_generations to 2 or more; 8 is usual.",
            )
        answers = batch * options.gradient_accumulation_steps * config.rollout.steps_per_generation
        if group % batch and batch % group:
            raise UsageError(
                f"groups of {group} answers do not fit into batches of {batch}",
                where="num_generations, per_device_train_batch_size",
                hint="One of them has to be a multiple of the other.",
            )
        if answers % group:
            raise UsageError(
                f"a rollout has {answers} answers, which is no multiple of the {group} answers to each prompt",
                where="num_generations",
                hint=f"Set gradient_accumulation_steps to a multiple of {group // batch}.",
            )
        return cls(
            group=group,
            batch=batch,
            accumulation=options.gradient_accumulation_steps,
            steps=config.rollout.steps_per_generation,
            passes=passes,
            prompts=prompts,
            processes=processes,
            seed=config.compute.seed,
        )

    @property
    def answers(self) -> int:
        """Answers of one rollout in one process."""
        return self.batch * self.accumulation * self.steps

    @property
    def asked(self) -> int:
        """Prompts of one rollout, over all processes."""
        return self.answers // self.group * self.processes

    @property
    def steps_per_rollout(self) -> int:
        """Optimizer steps until new answers are needed."""
        return self.steps * self.passes

    @property
    def rollouts_per_epoch(self) -> int:
        """Rollouts until every prompt has been asked."""
        return -(-self.prompts // self.asked)

    @property
    def batches_per_epoch(self) -> int:
        """Forward passes of one process in one epoch."""
        return self.rollouts_per_epoch * self.steps_per_rollout * self.accumulation

    def rollout_of(self, step: int) -> tuple[int, int, int]:
        """The rollout that an optimizer step learns from, the pass over it, and the step within that pass."""
        rollout, within = divmod(step, self.steps_per_rollout)
        return rollout, *divmod(within, self.steps)

    def chosen(self, rollout: int, process: int) -> NDArray[np.int64]:
        """The prompts that a process asks in a rollout; the last one of an epoch is filled up from its beginning."""
        epoch, number = divmod(rollout, self.rollouts_per_epoch)
        order = np.random.default_rng((self.seed, epoch)).permutation(self.prompts)
        places = np.arange(number * self.asked, (number + 1) * self.asked) % self.prompts
        own: NDArray[np.int64] = order[places][process :: self.processes]
        return own

    def order(self, rollout: int, number: int) -> NDArray[np.int64]:
        """The order of a process's prompts in one pass over a rollout."""
        count = self.answers // self.group
        return np.random.default_rng((self.seed, rollout, number)).permutation(count) if number else np.arange(count)
