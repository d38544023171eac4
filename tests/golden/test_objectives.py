"""Loss values of the objectives over preferences, worked out by hand from given log-probabilities."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest

from danlu.core.config import build
from danlu.tune.config import TrainConfig

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.golden

POLICY = [[[-0.5, -1.5], [-2.0, -0.5, -0.5]], [[-1.0, -1.0, -1.0], [-0.25]]]
"""Log-probabilities of the tokens: two pairs, better and worse answer, of 2, 3, 3 and 1 tokens."""
REFERENCE = [[-2.5, -2.0], [-2.0, -1.0]]
"""Of whole answers, before training."""
SUMS = [[-2.0, -3.0], [-3.0, -0.25]]
MEANS = [[-1.0, -1.0], [-1.0, -0.25]]
H = [(-2.0 + 2.5) - (-3.0 + 2.0), (-3.0 + 2.0) - (-0.25 + 1.0)]
"""1.5 and -1.75."""


class Given:
    """Stands for a learner: what the model says of every token is given."""

    def __init__(self, stage: str, tokens: Any = None, rewards: Any = None, **options: Any) -> None:
        from danlu.tune.objectives import OBJECTIVES
        from danlu.tune.tally import Tally

        self.settings = build(TrainConfig, {"stage": stage, **options}, where="test")
        self.objective, self.tally = OBJECTIVES[stage], Tally()
        self.tokens, self.rewards = tokens, rewards

    def see(self, batch: Any) -> None:
        return None

    def log_probs(self, seen: None, batch: Any, temperature: float = 1.0) -> tuple[Any, Any]:
        return self.tokens, torch.zeros_like(self.tokens)

    def numbers(self, seen: None, places: Any) -> Any:
        return self.rewards[places]

    def loss(self, batch: Any) -> Any:
        return self.objective.loss(self, batch)


def told(stage: str, values: Sequence[float] = (math.nan, math.nan), **options: Any) -> tuple[float, Any, Given]:
    """Loss of the two pairs, its gradient with respect to the log-probability of each answer (2, 2), the learner."""
    answers = [answer for pair in POLICY for answer in pair]
    tokens = torch.tensor([number for answer in answers for number in answer], requires_grad=True)
    owners = torch.tensor([place for place, answer in enumerate(answers) for _ in answer])
    learner = Given(stage, tokens, **options)
    batch = {
        "owners": owners,
        "ends": torch.zeros(len(answers), dtype=torch.long),
        "reference": torch.tensor(REFERENCE),
        "values": torch.tensor(values),
    }
    loss = learner.loss(batch)
    (slope,) = torch.autograd.grad(loss, tokens)
    for answer in range(len(answers)):  # every token of an answer counts the same
        assert slope[owners == answer].unique().numel() == 1
    first = [owners.tolist().index(answer) for answer in range(len(answers))]
    return loss.item(), slope[first].view(2, 2), learner


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x))


def better_up_worse_down(slope: Any) -> bool:
    """A step against the gradient raises the better answer and lowers the worse one."""
    return bool((slope[:, 0] < 0).all() and (slope[:, 1] > 0).all())


@pytest.mark.parametrize("margin", [None, 0.75])
def test_rm(margin: float | None) -> None:
    rewards = torch.tensor([9.0, 0.5, -0.25, 9.0, 1.0, 2.0], requires_grad=True)
    learner = Given("rm", rewards=rewards)
    values = torch.tensor([math.nan if margin is None else margin, math.nan])
    loss = learner.loss({"ends": torch.tensor([1, 2, 4, 5]), "values": values})
    first = 0.75 - (margin or 0.0)
    assert loss.item() == pytest.approx(-log_sigmoid(first) - log_sigmoid(-1.0), rel=1e-6)
    (slope,) = torch.autograd.grad(loss, rewards)
    assert slope[[0, 3]].tolist() == [0, 0]  # only the last tokens of answers count
    assert float(slope[1]) == pytest.approx(-1 / (1 + math.exp(first)), rel=1e-6)
    assert better_up_worse_down(slope[[1, 2, 4, 5]].view(2, 2))
    assert learner.tally.means() == pytest.approx(
        {"accuracy": 0.5, "margin": -0.125, "reward_chosen": 0.75, "reward_rejected": 0.875}
    )


def test_dpo_sigmoid() -> None:
    loss, slope, learner = told("dpo")
    assert loss == pytest.approx(-log_sigmoid(0.15) - log_sigmoid(-0.175), rel=1e-6)
    assert float(slope[0, 0]) == pytest.approx(-0.1 / (1 + math.exp(0.15)), rel=1e-5)
    assert better_up_worse_down(slope)
    assert learner.tally.means() == pytest.approx(
        {
            "accuracy": 0.5,
            "margin": 0.1 * (H[0] + H[1]) / 2,
            "reward_chosen": 0.1 * (0.5 - 1.0) / 2,
            "reward_rejected": 0.1 * (-1.0 + 0.75) / 2,
            "logps_chosen": -2.5,
            "logps_rejected": -1.625,
        },
        rel=1e-5,
    )


def test_dpo_hinge() -> None:
    loss, slope, _ = told("dpo", pref_loss="hinge", pref_beta=0.5)
    assert loss == pytest.approx((1 - 0.75) + (1 + 0.875), rel=1e-6)
    assert slope.tolist() == [[-0.5, 0.5], [-0.5, 0.5]]
    loss, slope, _ = told("dpo", pref_loss="hinge", pref_beta=1.0)
    assert loss == pytest.approx(1 + 1.75, rel=1e-6)  # the first margin is wide enough
    assert slope.tolist() == [[0, 0], [-1, 1]]


def test_dpo_label_smoothing() -> None:
    loss, slope, _ = told("dpo", dpo_label_smoothing=0.2, pref_beta=1.0)
    expected = sum(-0.8 * log_sigmoid(h) - 0.2 * log_sigmoid(-h) for h in H)
    assert loss == pytest.approx(expected, rel=1e-6)
    sigmoid = 1 / (1 + math.exp(-H[0]))
    assert float(slope[0, 0]) == pytest.approx(sigmoid - 0.8, rel=1e-5)  # zero where σ(h) = 1 - ε


def test_dpo_with_the_likelihood_of_the_better_answer() -> None:
    loss, slope, _ = told("dpo", pref_ftx=0.3)
    assert loss == pytest.approx(-log_sigmoid(0.15) - log_sigmoid(-0.175) + 0.3 * 1.0 + 0.3 * 1.0, rel=1e-6)
    _, plain, _ = told("dpo")
    assert (slope - plain)[:, 0].tolist() == pytest.approx([-0.3 / 2, -0.3 / 3], rel=1e-5)
    assert (slope - plain)[:, 1].tolist() == [0, 0]


def test_ipo() -> None:
    loss, slope, _ = told("ipo", pref_beta=0.25)
    per_token = [0.5 / 2 - -1.0 / 3, -1.0 / 3 - 0.75 / 1]
    assert loss == pytest.approx(sum((h - 2) ** 2 for h in per_token), rel=1e-6)
    assert float(slope[0, 0]) == pytest.approx(2 * (per_token[0] - 2) / 2, rel=1e-5)
    assert better_up_worse_down(slope)
    loss, _, _ = told("ipo", pref_beta=0.25, pref_ftx=0.5)
    assert loss == pytest.approx(sum((h - 2) ** 2 for h in per_token) + 0.5 * (1 + 1), rel=1e-6)


def test_orpo() -> None:
    loss, slope, learner = told("orpo", pref_beta=0.5)
    odds = [[math.log(math.exp(mean) / (1 - math.exp(mean))) for mean in pair] for pair in MEANS]
    ratios = [better - worse for better, worse in odds]
    assert loss == pytest.approx(1 + 1 - 0.5 * sum(map(log_sigmoid, ratios)), rel=1e-6)
    assert better_up_worse_down(slope)
    assert learner.tally.means()["log_odds_ratio"] == pytest.approx(sum(ratios) / 2, rel=1e-6)


def test_orpo_of_an_answer_that_is_certain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "POLICY", [[[0.0, 0.0], [-1.0]], [[-1.0], [0.0]]])
    loss, slope, _ = told("orpo")
    assert math.isfinite(loss)
    assert bool(torch.isfinite(slope).all())


def test_simpo() -> None:
    loss, slope, _ = told("simpo")
    assert loss == pytest.approx(-log_sigmoid(2.0 * 0.0 - 0.5) - log_sigmoid(2.0 * -0.75 - 0.5), rel=1e-6)
    assert better_up_worse_down(slope)
    loss, _, _ = told("simpo", pref_beta=1.5, simpo_gamma=0.25, pref_ftx=0.1)
    assert loss == pytest.approx(-log_sigmoid(-0.25) - log_sigmoid(1.5 * -0.75 - 0.25) + 0.1 * 2, rel=1e-6)


def test_kto_wanted_and_unwanted() -> None:
    """The KL estimate is the mean log-ratio of the foreign answers (the second of each pair), not below 0."""
    loss, slope, learner = told("kto", [1.0, 0.0], pref_beta=0.5)
    z = max(0.0, (-1.0 + 0.75) / 2)  # -0.125: nothing is left of it
    wanted, unwanted = 0.5 * (0.5 - z), 0.5 * (-1.0 - z)
    expected = (1 - 1 / (1 + math.exp(-wanted))) + (1 - 1 / (1 + math.exp(unwanted)))
    assert loss == pytest.approx(expected, rel=1e-6)
    assert slope[0, 0] < 0 < slope[1, 0]
    assert slope[:, 1].tolist() == [0, 0]  # the estimate carries no gradient
    means = learner.tally.means()
    assert means["kl"] == 0
    assert (means["reward_chosen"], means["reward_rejected"]) == pytest.approx((0.25, -0.5))
    assert means["accuracy"] == 1


def test_kto_weights_and_a_divergence_above_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "REFERENCE", [[-2.5, -4.0], [-2.0, -1.0]])
    loss, _, learner = told("kto", [1.0, 0.0], pref_beta=0.5, kto_chosen_weight=2.0, kto_rejected_weight=0.25)
    z = (1.0 + 0.75) / 2
    wanted, unwanted = 0.5 * (0.5 - z), 0.5 * (-1.0 - z)
    expected = 2 * (1 - 1 / (1 + math.exp(-wanted))) + 0.25 * (1 - 1 / (1 + math.exp(unwanted)))
    assert loss == pytest.approx(expected, rel=1e-6)
    assert learner.tally.means()["kl"] == pytest.approx(z)
    assert learner.tally.means()["reward_chosen"] == pytest.approx(0.5 * 0.5)  # β log(π / ref), as in dpo


def test_what_a_loss_is_divided_by() -> None:
    learner = Given("dpo")
    assert learner.objective.count({"values": torch.zeros(3)}) == 3
