"""Advantages, losses and the KL controller against numbers computed by hand."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from danlu.core.errors import RunError  # noqa: E402
from danlu.tune.online.advantages import gae, group_advantages, token_rewards, whiten  # noqa: E402
from danlu.tune.online.control import KLController, stop_if_exploded  # noqa: E402
from danlu.tune.online.losses import kl_estimate, policy_loss, value_loss  # noqa: E402

pytestmark = pytest.mark.golden

OWNERS = torch.tensor([0, 0, 0, 1, 1])


def close(found, wanted, tolerance=1e-6):
    torch.testing.assert_close(found, torch.tensor(wanted), rtol=tolerance, atol=tolerance)


def test_rewards_are_the_penalty_and_the_score_at_the_end():
    kl = torch.tensor([0.1, 0.2, -0.1, 0.0, 0.5])
    close(token_rewards(torch.tensor([1.0, -2.0]), kl, OWNERS, 0.5), [-0.05, -0.1, 1.05, 0.0, -2.25])


def test_gae_by_hand():
    # answer 0: δ = (0 + .9·.4 - .5, 0 + .9·.3 - .4, 1 - .3) = (-.14, -.13, .7), γλ = .72
    # A = (-.14 + .72·.374, -.13 + .72·.7, .7); answer 1: δ = (.1 + .9·1 - .2, -1 - 1) = (.8, -2)
    rewards = torch.tensor([0.0, 0.0, 1.0, 0.1, -1.0])
    values = torch.tensor([0.5, 0.4, 0.3, 0.2, 1.0])
    advantages, returns = gae(rewards, values, OWNERS, gamma=0.9, lam=0.8)
    close(advantages, [0.12928, 0.374, 0.7, -0.64, -2.0])
    close(returns, [0.62928, 0.774, 1.0, -0.44, -1.0])


def test_lambda_1_is_the_discounted_return_and_0_is_one_step():
    generator = torch.Generator().manual_seed(3)
    lengths = torch.tensor([1, 6, 3, 1, 4])
    owners = torch.repeat_interleave(torch.arange(5), lengths)
    rewards, values = torch.randn(2, 15, generator=generator)
    _, returns = gae(rewards, values, owners, gamma=0.9, lam=1.0)
    advantages, _ = gae(rewards, values, owners, gamma=0.9, lam=0.0)
    start = 0
    for length in lengths.tolist():
        reward, value = rewards[start : start + length].tolist(), values[start : start + length].tolist()
        for t in range(length):
            whole = sum(0.9 ** (k - t) * reward[k] for k in range(t, length))
            assert returns[start + t].item() == pytest.approx(whole, abs=1e-5)
            after = value[t + 1] if t + 1 < length else 0.0
            assert advantages[start + t].item() == pytest.approx(reward[t] + 0.9 * after - value[t], abs=1e-5)
        start += length


@pytest.mark.parametrize("owners", [[0, 2], [1, 0], [0, 1, 0]])
def test_tokens_out_of_order_are_a_mistake(owners):
    tokens = torch.tensor(owners)
    with pytest.raises(ValueError, match="answer"):
        gae(torch.zeros(len(tokens)), torch.zeros(len(tokens)), tokens, gamma=1.0, lam=1.0)


def test_whitening_by_hand():
    values = torch.tensor([1.0, 2.0, 3.0, 100.0])
    mask = torch.tensor([True, True, True, False])
    close(whiten(values, mask=mask), [-1.0, 0.0, 1.0, 98.0])
    close(whiten(values[:3], shift_mean=False), [1.0, 2.0, 3.0])
    close(whiten(torch.tensor([2.0, 4.0, 6.0])), [-1.0, 0.0, 1.0])
    close(whiten(torch.tensor([7.0])), [0.0])


def test_whitening_keeps_digits_far_from_zero():
    close(whiten(torch.tensor([9_999.0, 10_000.0, 10_001.0])), [-1.0, 0.0, 1.0])


def test_whitening_over_processes_is_whitening_of_everything():
    values = torch.randn(11, generator=torch.Generator().manual_seed(1)) * 3 + 5
    shares = [values[:4], values[4:], values[:0]]

    class Meeting:
        """Stands for three processes: the sums of the others are known beforehand."""

        def __init__(self, own):
            self.others = [share for share in shares if share is not own]
            self.asked = 0

        def __call__(self, tensor):
            self.asked += 1
            others = torch.cat(self.others).double()
            if self.asked == 1:
                return tensor + torch.stack([others.new_tensor(others.numel()), others.sum()])
            return tensor + (others - values.double().mean()).square().sum()

    together = torch.cat([whiten(share, reduce=Meeting(share)) for share in shares])
    torch.testing.assert_close(together, whiten(values))


def test_group_advantages_by_hand():
    # group 7: 0, 1, 2: mean 1, std 1; group 3: 5, 5; group 9: one answer
    rewards = torch.tensor([0.0, 5.0, 1.0, 2.0, 5.0, 8.0])
    groups = torch.tensor([7, 3, 7, 7, 3, 9])
    found = group_advantages(rewards, groups, epsilon=0.0)
    close(found.values, [-1.0, 0.0, 0.0, 1.0, 0.0, 0.0])
    assert (found.groups, found.even) == (3, 2)
    close(group_advantages(rewards * 3, groups, scale=False).values, [-3.0, 0.0, 0.0, 3.0, 0.0, 0.0])
    # against the mean of the others: 0 - 1.5, 1 - 1, 2 - 0.5
    close(group_advantages(rewards, groups, scale=False, leave_one_out=True).values, [-1.5, 0.0, 0.0, 1.5, 0.0, 0.0])


def test_equal_rewards_that_are_no_round_numbers_give_nothing():
    found = group_advantages(torch.full((7,), 0.1), torch.zeros(7, dtype=torch.long), epsilon=1e-12)
    assert found.values.tolist() == [0.0] * 7
    assert found.even == 1


def test_no_answers_are_no_groups():
    found = group_advantages(torch.zeros(0), torch.zeros(0, dtype=torch.long))
    assert (len(found.values), found.groups, found.even) == (0, 0, 0)


def test_policy_loss_by_hand():
    # ratios 1.5 and 0.5, each with a good and a bad advantage; 1.0 with a good one
    log_p = torch.tensor([1.5, 1.5, 0.5, 0.5, 1.0]).log().requires_grad_()
    advantages = torch.tensor([2.0, -2.0, 2.0, -2.0, 1.0])
    found = policy_loss(log_p, torch.zeros(5), advantages, epsilon_low=0.2, epsilon_high=0.3)
    close(found.values.detach(), [-2.6, 3.0, -1.0, 1.6, -1.0])
    assert found.clipped.tolist() == [True, False, False, True, False]
    # k3 of what answered against the policy: ρ - 1 - log ρ
    wanted = [0.5 - math.log(1.5)] * 2 + [-0.5 - math.log(0.5)] * 2 + [0.0]
    close(found.moved, wanted)
    assert not found.moved.requires_grad
    (slope,) = torch.autograd.grad(found.values.sum(), log_p)
    close(slope, [0.0, 3.0, -1.0, 0.0, -1.0])  # -ρ A, and nothing where it is held back


def test_value_loss_by_hand():
    values = torch.tensor([1.0, 1.0, -1.0, 0.1], requires_grad=True)
    returns = torch.tensor([2.0, -2.0, 0.0, 0.0])
    found = value_loss(values, torch.zeros(4), returns, cliprange_value=0.2)
    # held: .2, .2, -.2, .1; squares (1, 3.24), (9, 4.84), (1, .04), (.01, .01)
    close(found.values.detach(), [1.62, 4.5, 0.5, 0.005])
    assert found.clipped.tolist() == [True, False, False, False]
    (slope,) = torch.autograd.grad(found.values.sum(), values)
    close(slope, [0.0, 3.0, -1.0, 0.1])


def test_kl_estimates_by_hand():
    log_p, other = torch.tensor([0.0, 0.0]), torch.tensor([math.log(2), -math.log(2)])
    close(kl_estimate(log_p, other, "k1"), [-math.log(2), math.log(2)])
    close(kl_estimate(log_p, other, "k2"), [0.5 * math.log(2) ** 2] * 2)
    close(kl_estimate(log_p, other, "k3"), [1 - math.log(2), math.log(2) - 0.5])


@pytest.mark.parametrize("kind", ["k1", "k3"])
def test_kl_estimates_are_unbiased(kind):
    p = torch.tensor([0.5, 0.3, 0.2])
    q = torch.tensor([0.4, 0.4, 0.2])
    exact = (p * (p / q).log()).sum()
    torch.testing.assert_close((p * kl_estimate(p.log(), q.log(), kind)).sum(), exact)


def test_beta_follows_the_target():
    control = KLController(0.2, target=6.0, horizon=1000)
    control.update(60.0, 100)  # the error is held at 0.2
    assert control.beta == pytest.approx(0.2 * 1.02)
    control.update(5.4, 100)  # error -0.1
    assert control.beta == pytest.approx(0.2 * 1.02 * 0.99)
    other = KLController(0.2, target=6.0, horizon=1000)
    other.load(control.state())
    assert other.beta == control.beta


def test_a_fixed_beta_stays():
    control = KLController(0.1)
    control.update(100.0, 64)
    assert control.beta == 0.1


@pytest.mark.parametrize("kl", [50.5, math.nan, math.inf])
def test_an_exploded_divergence_names_the_last_checkpoint(kl, tmp_path: Path):
    with pytest.raises(RunError, match=r"at step 30, more than 50.*No checkpoint"):
        stop_if_exploded(kl, 50.0, 30, tmp_path)
    (tmp_path / "checkpoint-20").mkdir()
    (tmp_path / "checkpoint-20" / "trainer_state.json").write_text("{}")
    with pytest.raises(RunError, match="checkpoint-20"):
        stop_if_exploded(kl, 50.0, 30, tmp_path)


def test_a_divergence_within_the_limit_is_fine(tmp_path: Path):
    stop_if_exploded(49.0, 50.0, 30, tmp_path)
