"""Batches of the model's own answers: asked, scored, compared, and laid out for the objectives ppo and grpo.

One rollout is answered by the model as it is, and serves several optimizer steps. Everything that a step needs follows
from its number, the seed and the weights; what a rollout has gathered is part of a checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from danlu.core.console import warn
from danlu.data.tokens import TokenStore
from danlu.tune.batches import Batch, lay_out
from danlu.tune.initial import InitialWeights
from danlu.tune.learner import Learner
from danlu.tune.online.advantages import gae, group_advantages, token_rewards, whiten
from danlu.tune.online.control import KLController, stop_if_exploded
from danlu.tune.online.moments import Moments
from danlu.tune.online.plan import RolloutPlan
from danlu.tune.online.rewards import Rewards
from danlu.tune.online.rollout import Answer
from danlu.tune.online.samples import Sample
from danlu.tune.parallel.together import added_up

Ask: TypeAlias = Callable[[Sequence[Sequence[int]], int, Sequence[str]], list[list[Answer]]]
"""(prompts, answers to each, a key for each prompt) → the answers; the keys decide the random numbers."""

LAST_LOOK = 16
"""Most prompts that each process asks once more after the last update."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What an experience needs besides the model.

    Attributes:
        prompts: the tokenised prompts.
        members: which items of it to ask.
        sample_of: (store, item, answer) → what the reward is told.
        rewards: score samples.
        ask: has the model answer.
        folder: the run directory.
        precision: what training computes in.
        process: number of this process.
    """

    prompts: TokenStore
    members: Sequence[int]
    sample_of: Callable[[TokenStore, int, Answer], Sample]
    rewards: Rewards
    ask: Ask
    folder: Path
    precision: Callable[[], AbstractContextManager[Any]] = nullcontext
    process: int = 0


@dataclass(slots=True)
class Piece:
    """A prompt with some of its answers: what is computed together.

    Attributes:
        prompt: token ids.
        answers: token ids of each answer.
        columns: name → one number for each token of the answers (t), end to end.
    """

    prompt: list[int]
    answers: list[list[int]]
    columns: dict[str, Tensor] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        """Tokens of all its answers."""
        return sum(map(len, self.answers))


class Experience:
    """A :class:`danlu.tune.feed.Feed` of the model's own answers.

    Args:
        learner: the model in training.
        plan: how many of everything.
        around: what else it needs.
        initial: the model before training, where the objective is held to it.
    """

    def __init__(
        self, learner: Learner, plan: RolloutPlan, around: Surroundings, initial: InitialWeights | None
    ) -> None:
        self.learner, self.plan, self.around, self.initial = learner, plan, around, initial
        settings = learner.settings
        self.ppo = settings.ppo if settings.task.stage == "ppo" else None
        beta = settings.grpo.grpo_beta if self.ppo is None else self.ppo.kl_coef
        target, horizon = (None, 1) if self.ppo is None else (self.ppo.ppo_target, self.ppo.ppo_horizon)
        self.controller = KLController(beta, target=target, horizon=horizon)
        self.moments = Moments()
        self.rollout = -1
        self.warned = False
        self.pieces: list[Piece] = []

    def __len__(self) -> int:
        return self.plan.batches_per_epoch

    def batches(self, step: int, count: int) -> list[Batch]:
        """The batches of an optimizer step; see :class:`danlu.tune.feed.Feed`.

        Raises:
            RunError: when the model has left the reference too far behind.
            DanluError: when the reward cannot be computed.
        """
        rollout, number, place = self.plan.rollout_of(step)
        if rollout != self.rollout:
            self.pieces = self._gather(rollout, step)
            self.rollout = rollout
        ordered = self._ordered(self.plan.order(rollout, number).tolist())
        made = list(self._batches(ordered))
        start = place * self.plan.accumulation
        return made[start : start + count]

    def evaluate(self, prompts: TokenStore, members: Sequence[int]) -> dict[str, float]:
        """Mean reward of one answer to each prompt; the same random numbers every time, so values compare."""
        given = self.around.ask([prompts[item][0].tolist() for item in members], 1, [f"eval:{i}" for i in members])
        samples = [self.around.sample_of(prompts, item, answer) for item, (answer,) in zip(members, given)]
        scores = self.around.rewards.score(samples).total
        count = max(len(samples), 1)
        return {
            "reward": sum(scores) / count,
            "length": sum(sample.tokens for sample in samples) / count,
            "finished": sum(sample.finished for sample in samples) / count,
        }

    def save(self, folder: Path) -> None:
        """Write the rollout that the next steps still learn from; each process its own."""
        state = {
            "rollout": self.rollout,
            "controller": self.controller.state(),
            "moments": self.moments.state(),
            "pieces": [(piece.prompt, piece.answers, piece.columns) for piece in self.pieces],
        }
        torch.save(state, folder / self._file)

    def load(self, folder: Path) -> None:
        """Read it back. In another number of processes the rollout is asked anew."""
        path = folder / self._file
        if not path.is_file():
            path = folder / "rollout_0.pt"
        state = torch.load(path, weights_only=True)
        self.controller.load(state["controller"])
        self.moments.load(state["moments"])
        pieces = [Piece(*item) for item in state["pieces"]]
        if path.name == self._file and sum(len(piece.answers) for piece in pieces) == self.plan.answers:
            self.pieces, self.rollout = pieces, state["rollout"]

    @property
    def _file(self) -> str:
        return f"rollout_{self.around.process}.pt"

    def _ordered(self, groups: Sequence[int]) -> list[Piece]:
        """The pieces, group by group in some order."""
        each = len(self.pieces) // len(groups)
        return [self.pieces[group * each + place] for group in groups for place in range(each)]

    def _batches(self, pieces: Sequence[Piece]) -> list[Batch]:
        together = max(self.plan.batch // self.plan.group, 1)
        return [self._joined(pieces[start : start + together]) for start in range(0, len(pieces), together)]

    def _joined(self, pieces: Sequence[Piece]) -> Batch:
        batch = lay_out(
            [
                [(np.asarray(piece.prompt, dtype=np.int32), np.zeros(len(piece.prompt), dtype=np.bool_))]
                + [(np.asarray(ids, dtype=np.int32), np.ones(len(ids), dtype=np.bool_)) for ids in piece.answers]
                for piece in pieces
            ]
        )
        for name in pieces[0].columns:
            batch[name] = torch.cat([piece.columns[name] for piece in pieces])
        answers = sum(len(piece.answers) for piece in pieces)
        alike = self.ppo is not None or self.learner.settings.grpo.grpo_loss == "token"
        batch["units"] = torch.tensor(len(batch["targets"]) if alike else answers)
        return batch

    def _gather(self, rollout: int, step: int) -> list[Piece]:
        """Ask, score, and work out what every token was worth."""
        plan, around = self.plan, self.around
        places = plan.chosen(rollout, around.process)
        items = [int(around.members[place]) for place in places]
        prompts = [around.prompts[item][0].tolist() for item in items]
        keys = [f"{rollout}:{around.process + number * plan.processes}" for number in range(len(items))]
        answers = around.ask(prompts, plan.group, keys)
        samples = [
            around.sample_of(around.prompts, item, answer) for item, given in zip(items, answers) for answer in given
        ]
        scores = self._scores(samples)
        together = min(plan.batch, plan.group)
        pieces = [
            Piece(prompt, [list(answer.ids) for answer in given[start : start + together]])
            for prompt, given in zip(prompts, answers)
            for start in range(0, plan.group, together)
        ]
        self._look_back(pieces)
        kl = self._divergence(pieces)
        self._tell(scores, samples, kl)
        mean, count = (0.0, 0) if kl is None else self._held(kl, step)
        columns = self._worth_by_value(pieces, scores) if self.ppo else self._worth_in_group(pieces, scores)
        _spread(pieces, columns)
        if kl is not None:
            self.controller.update(mean, count)
        return pieces

    def finish(self, step: int) -> None:
        """See whether the last updates have left the reference behind, on answers to a few prompts.

        Raises:
            RunError: when they have.
        """
        if self.initial is None:
            return
        around, plan = self.around, self.plan
        places = plan.chosen(plan.rollout_of(step)[0], around.process)[:LAST_LOOK]
        prompts = [around.prompts[int(around.members[place])][0].tolist() for place in places]
        keys = [f"end:{around.process + number * plan.processes}" for number in range(len(prompts))]
        pieces = [
            Piece(prompt, [list(answer.ids)])
            for prompt, (answer,) in zip(prompts, around.ask(prompts, 1, keys), strict=True)
        ]
        self._look_back(pieces)
        kl = self._divergence(pieces)
        assert kl is not None, "there is a reference"
        self._held(kl, step)

    def _held(self, kl: Tensor, step: int) -> tuple[float, int]:
        """Mean divergence of the answers of all processes, and how many there are; refused beyond the limit."""
        count, summed = added_up(torch.stack([kl.new_tensor(len(kl)), kl.sum()])).tolist()
        stop_if_exploded(summed / count, self.learner.settings.rollout.kl_limit, step, self.around.folder)
        return summed / count, int(count)

    def _scores(self, samples: Sequence[Sample]) -> Tensor:
        """Rewards of the answers (n), the penalty for unfinished ones taken off."""
        found = self.around.rewards.score(samples)
        if len(found.parts) > 1:
            parts = {f"reward_{label}": torch.tensor(values) for label, values in found.parts.items()}
            self.learner.tally.add(**parts)
        unfinished = torch.tensor([not sample.finished for sample in samples], dtype=torch.float64)
        penalty = self.learner.settings.rollout.missing_eos_penalty
        return torch.tensor(found.total, dtype=torch.float64) - penalty * unfinished

    @torch.no_grad()
    def _look_back(self, pieces: Sequence[Piece]) -> None:
        """Log-probabilities (and values) of the answers under the model that gave them, and under the reference."""
        was_training = self.learner.training
        self.learner.eval()
        self._columns(pieces, "old_log_p", values=self.ppo is not None)
        if self.initial is not None:
            with self.initial.in_place():
                self._columns(pieces, "reference_log_p", values=False)
        self.learner.train(was_training)

    def _columns(self, pieces: Sequence[Piece], name: str, *, values: bool) -> None:
        learner, together = self.learner, max(self.plan.batch // self.plan.group, 1)
        temperature = learner.settings.rollout.rollout_temperature
        device = learner.model.device
        for start in range(0, len(pieces), together):
            part = pieces[start : start + together]
            batch = {key: value.to(device) for key, value in self._joined([_bare(piece) for piece in part]).items()}
            with self.around.precision():
                seen = learner.see(batch)
                found = {name: learner.log_probs(seen, batch, temperature)[0]}
                if values:
                    found["old_values"] = learner.numbers(seen, batch["at"])
            _spread(part, {key: value.float().cpu() for key, value in found.items()})

    def _divergence(self, pieces: Sequence[Piece]) -> Tensor | None:
        """The estimated divergence of each answer from the reference, summed over its tokens (n)."""
        if self.initial is None:
            return None
        owners = _owners(pieces)
        difference = _column(pieces, "old_log_p") - _column(pieces, "reference_log_p")
        return torch.zeros(int(owners[-1]) + 1).index_add(0, owners, difference)

    def _worth_by_value(self, pieces: Sequence[Piece], scores: Tensor) -> dict[str, Tensor]:
        """Advantages and returns of all tokens, by generalised advantage estimation."""
        assert self.ppo is not None, "only ppo has values"
        options = self.ppo
        if options.ppo_score_norm:
            count, summed = added_up(torch.stack([scores.new_tensor(len(scores)), scores.sum()])).tolist()
            squares = float(added_up((scores - summed / count).square().sum()))
            self.moments.add(count, summed, squares)
            scores = (scores - self.moments.mean) / self.moments.deviation
        owners, values = _owners(pieces), _column(pieces, "old_values")
        kl = _column(pieces, "old_log_p") - _column(pieces, "reference_log_p") if self.initial else values * 0
        rewards = token_rewards(scores, kl, owners, self.controller.beta)
        if options.ppo_whiten_rewards:
            rewards = whiten(rewards, shift_mean=False, reduce=added_up)
        advantages, returns = gae(rewards, values, owners, gamma=options.gamma, lam=options.lam)
        return {"advantages": whiten(advantages, reduce=added_up), "returns": returns}

    def _worth_in_group(self, pieces: Sequence[Piece], scores: Tensor) -> dict[str, Tensor]:
        """Advantages of all tokens, by comparison with the other answers, and what each token weighs."""
        options = self.learner.settings.grpo
        groups = torch.arange(len(scores)) // self.plan.group
        found = group_advantages(scores, groups, scale=options.scale_rewards, leave_one_out=options.leave_one_out)
        self.learner.tally.add(even_groups=torch.arange(found.groups) < found.even)
        if found.even == found.groups and not self.warned:
            self.warned = True
            warn("all answers to each prompt of this rollout got the same reward, so nothing can be learnt from it")
        owners = _owners(pieces)
        lengths = torch.bincount(owners).float()
        longest = float(self.learner.settings.generate.max_new_tokens)
        weights = {
            "token": torch.ones(len(owners)),
            "sequence": 1 / lengths[owners],
            "constant": torch.full((len(owners),), 1 / longest),
        }[options.grpo_loss]
        return {"advantages": found.values[owners], "weights": weights}

    def _tell(self, scores: Tensor, samples: Sequence[Sample], kl: Tensor | None) -> None:
        tally = self.learner.tally
        tally.add(
            reward=scores,
            length=torch.tensor([sample.tokens for sample in samples]),
            finished=torch.tensor([sample.finished for sample in samples]),
        )
        if kl is not None:
            tally.add(kl=kl, kl_coef=torch.tensor([self.controller.beta]))


def _bare(piece: Piece) -> Piece:
    return Piece(piece.prompt, piece.answers)


def _owners(pieces: Sequence[Piece]) -> Tensor:
    """The number of the answer that each token belongs to (T)."""
    lengths = torch.tensor([len(ids) for piece in pieces for ids in piece.answers])
    return torch.repeat_interleave(torch.arange(len(lengths)), lengths)


def _column(pieces: Sequence[Piece], name: str) -> Tensor:
    return torch.cat([piece.columns[name] for piece in pieces])


def _spread(pieces: Sequence[Piece], columns: dict[str, Tensor]) -> None:
    """Give every piece its part of some columns (T)."""
    for name, column in columns.items():
        for piece, part in zip(pieces, column.split([piece.tokens for piece in pieces]), strict=True):
            piece.columns[name] = part.clone()
