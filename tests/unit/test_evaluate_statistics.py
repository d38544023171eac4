from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from danlu.evaluate import statistics
from danlu.evaluate.statistics import (
    bootstrap_draws,
    bootstrap_interval,
    bootstrap_sums,
    jackknife_interval,
    mcnemar_test,
    paired_bootstrap,
    paired_difference,
    permutation_test,
    wilson_interval,
)

values = st.lists(st.floats(0, 100), min_size=1, max_size=30)


def test_wilson_against_published_numbers():
    interval = wilson_interval(673, 1346)
    assert (interval.low, interval.high) == pytest.approx((0.473327, 0.526673), abs=1e-6)
    # by hand with z = 1.959964: 0 of 10 → z²/(n+z²)
    assert wilson_interval(0, 10).high == pytest.approx(3.841459 / 13.841459, abs=1e-6)
    assert wilson_interval(0, 10).low == 0.0
    assert wilson_interval(10, 10).high == 1.0


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_holds_the_proportion_and_is_symmetric(case):
    successes, n = case
    interval, mirror = wilson_interval(successes, n), wilson_interval(n - successes, n)
    assert 0 <= interval.low <= successes / n <= interval.high <= 1
    assert interval.low == pytest.approx(1 - mirror.high)


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (-1, 3), (4, 3)])
def test_wilson_refuses_what_is_no_proportion(successes, n):
    with pytest.raises(ValueError, match="not a proportion"):
        wilson_interval(successes, n)


def test_mcnemar_literals():
    assert mcnemar_test(10, 3) == pytest.approx(0.0922852, abs=1e-7)
    assert mcnemar_test(0, 5) == pytest.approx(2 / 32)
    assert mcnemar_test(0, 0) == 1.0
    assert mcnemar_test(4, 4) == 1.0
    assert mcnemar_test(700, 800) == pytest.approx(mcnemar_test(800, 700))
    assert 0.009 < mcnemar_test(700, 800) < 0.0112  # the normal approximation gives 0.0106 with continuity correction
    with pytest.raises(ValueError, match="negative"):
        mcnemar_test(-1, 2)


def test_bootstrap_is_the_exact_distribution_in_the_limit():
    # two rows 0 and 1: a resample has mean 0, ½, 1 with chance ¼, ½, ¼
    draws = bootstrap_draws([0.0, 1.0], resamples=20_000)
    shares = [float((draws == value).mean()) for value in (0, 0.5, 1)]
    assert shares == pytest.approx([0.25, 0.5, 0.25], abs=0.015)


def test_bootstrap_width_is_the_standard_error():
    rows = np.random.default_rng(0).normal(50, 10, 400)
    interval = bootstrap_interval(rows, resamples=4000)
    error = rows.std() / math.sqrt(400)
    assert interval.low == pytest.approx(rows.mean() - 1.96 * error, abs=0.15)
    assert interval.high == pytest.approx(rows.mean() + 1.96 * error, abs=0.15)
    assert interval.method == "bootstrap"


def test_bootstrap_is_deterministic_by_seed_and_does_not_depend_on_portions(monkeypatch):
    rows = np.arange(50.0)
    first = bootstrap_draws(rows, resamples=300, seed=1)
    assert np.array_equal(first, bootstrap_draws(rows, resamples=300, seed=1))
    assert not np.array_equal(first, bootstrap_draws(rows, resamples=300, seed=2))
    monkeypatch.setattr(statistics, "_CELLS", 50 * 7)
    assert np.allclose(first, bootstrap_draws(rows, resamples=300, seed=1))


@given(values)
@settings(deadline=None, max_examples=40)
def test_bootstrap_stays_inside_the_rows(rows):
    interval = bootstrap_interval(rows, resamples=200)
    assert min(rows) - 1e-9 <= interval.low <= interval.high <= max(rows) + 1e-9


def test_bootstrap_of_a_ratio_of_sums():
    counts = np.array([[1.0, 2.0], [3.0, 4.0], [0.0, 2.0]])
    interval = bootstrap_interval(counts, lambda sums, _n: sums[..., 0] / sums[..., 1])
    assert interval.low == 0.0
    assert interval.high == 0.75


def test_scores_taken_together_see_the_same_samples():
    rows = np.random.default_rng(2).normal(size=(40, 3))
    together = bootstrap_sums(rows, resamples=50)
    apart = [bootstrap_sums(rows[:, place], resamples=50)[:, 0] for place in range(3)]
    assert np.allclose(together, np.stack(apart, axis=1))
    assert bootstrap_sums(np.ones(40), resamples=50)[:, 0].tolist() == [40.0] * 50


def test_no_rows_is_an_error():
    with pytest.raises(ValueError, match="n > 0"):
        bootstrap_interval([])


def test_jackknife_of_a_mean_is_the_standard_error():
    rows = np.array([1.0, 2.0, 4.0, 9.0])
    left_out = (rows.sum() - rows) / 3
    interval = jackknife_interval(4.0, left_out)
    error = rows.std(ddof=1) / 2
    assert interval.high - 4.0 == pytest.approx(1.959964 * error, abs=1e-5)
    assert 4.0 - interval.low == pytest.approx(1.959964 * error, abs=1e-5)


def test_exact_sign_flips_by_hand():
    # differences 1, 2, 3: sums of ±1±2±3 are ±6, ±4, ±2, 0, 0; at least 6 in size: 2 of 8
    assert permutation_test([0, 0, 0], [1, 2, 3]) == (0.25, "exact permutation")
    # 1, 1, -1: |sum| = 1 in all 8 cases but +++ and ---, which are larger
    assert permutation_test([0, 0, 1], [1, 1, 0])[0] == 1.0
    assert permutation_test([5, 5], [5, 5])[0] == 1.0


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=8))
@settings(deadline=None)
def test_exact_test_counts_all_exchanges(pairs):
    first, second = (np.array([pair[side] for pair in pairs], float) for side in (0, 1))
    steps = second - first
    sums = [
        abs(sum(sign * step for sign, step in zip(signs, steps)))
        for signs in itertools.product((1, -1), repeat=len(steps))
    ]
    expected = sum(total >= abs(steps.sum()) - 1e-9 for total in sums) / len(sums)
    assert permutation_test(first, second)[0] == pytest.approx(expected)


@given(values.flatmap(lambda rows: st.tuples(st.just(rows), st.permutations(rows))))
@settings(deadline=None, max_examples=30)
def test_p_values_are_symmetric_and_positive(case):
    one, two = case
    p_value, _ = permutation_test(one, two)
    assert 0 < p_value <= 1
    if len(one) <= 10:
        assert p_value == permutation_test(two, one)[0]


def test_drawn_test_agrees_with_the_exact_one(monkeypatch):
    generator = np.random.default_rng(4)
    first, second = generator.normal(0, 1, 12), generator.normal(0.6, 1, 12)
    exact, name = permutation_test(first, second)
    assert name == "exact permutation"
    monkeypatch.setattr(statistics, "EXACT_UP_TO", 5)
    drawn, name = permutation_test(first, second)
    assert name == "permutation, 10000 draws"
    assert drawn == pytest.approx(exact, abs=0.015)


def test_p_values_are_uniform_when_nothing_differs():
    generator = np.random.default_rng(8)
    found = [permutation_test(*generator.normal(0, 1, (2, 30)), draws=400)[0] for _ in range(200)]
    assert 0.01 <= np.mean(np.array(found) < 0.05) <= 0.1
    assert np.mean(found) == pytest.approx(0.5, abs=0.08)


def test_paired_bootstrap_uses_the_pairing():
    base = np.random.default_rng(1).normal(50, 20, 100)
    interval = paired_bootstrap(base, base + 1)
    assert (interval.low, interval.high) == pytest.approx((1, 1))


def test_paired_difference_of_yes_and_no():
    difference = paired_difference([0, 0, 0, 1, 0, 0], [100, 100, 100, 100, 100, 100], yes_or_no=True)
    assert difference.test == "McNemar"
    first = paired_difference([0.0] * 5 + [1.0], [1.0] * 6, yes_or_no=True)
    assert first.value == pytest.approx(5 / 6)
    assert first.p_value == pytest.approx(2 / 32)


def test_pairs_need_the_same_rows():
    with pytest.raises(ValueError, match="same rows"):
        paired_difference([1, 2], [1, 2, 3])
