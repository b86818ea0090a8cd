"""Statistics against SciPy and hand values."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from fsr.errors import UsageError
from fsr.evaluation.statistics import bootstrap_means, interval, mcnemar, mean_of_ratios, paired, ratio_of_means


@pytest.mark.parametrize(("gains", "losses"), [(0, 0), (1, 0), (5, 5), (3, 9), (9, 3), (40, 13), (700, 900), (2000, 0)])
def test_mcnemar_is_the_exact_binomial_test(gains, losses):
    expected = 1.0 if gains + losses == 0 else stats.binomtest(gains, gains + losses, 0.5).pvalue
    assert mcnemar(gains, losses) == pytest.approx(expected, rel=1e-9, abs=1e-300)


def test_mcnemar_by_hand():
    # 1 of 5: 2 * (1 + 5) / 32
    assert mcnemar(1, 4) == 0.375
    with pytest.raises(UsageError):
        mcnemar(-1, 2)


def test_interval_of_single_questions_is_scipys():
    rng = np.random.default_rng(3)
    values = (rng.random(400) < 0.7).astype(float)
    ours = interval(values, np.arange(400))
    theirs = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=4000, rng=np.random.default_rng(1))
    assert ours.value == values.mean()
    assert ours.low == pytest.approx(theirs.confidence_interval.low, abs=0.008)
    assert ours.high == pytest.approx(theirs.confidence_interval.high, abs=0.008)


def test_questions_of_one_picture_count_as_one():
    """Nine copies of each answer under one picture: the interval must stay that of the pictures."""
    rng = np.random.default_rng(4)
    values = (rng.random(200) < 0.6).astype(float)
    alone = interval(values, np.arange(200))
    copies = interval(np.repeat(values, 9), np.repeat(np.arange(200), 9))
    careless = interval(np.repeat(values, 9), np.arange(1800))
    assert copies.high - copies.low == pytest.approx(alone.high - alone.low, rel=1e-9)
    assert careless.high - careless.low < 0.5 * (alone.high - alone.low)


def test_clusters_of_unequal_size_weigh_by_their_questions():
    values, clusters = np.array([1.0, 1.0, 1.0, 0.0]), np.array([7, 7, 7, 2])
    # two draws of two pictures: both the large one 1, both the small one 0, one each 3 / 4
    assert set(np.round(bootstrap_means(values, clusters, resamples=200), 6)) == {0.0, 0.75, 1.0}
    both = bootstrap_means(np.stack([values, 1 - values], axis=1), clusters, resamples=50)
    np.testing.assert_allclose(both.sum(1), 1)


def test_paired_on_a_synthetic_case():
    first = np.array([1, 1, 1, 1, 0, 0, 1, 0], bool)
    second = np.array([1, 0, 0, 0, 1, 0, 1, 0], bool)
    result = paired(first, second, np.arange(8))
    assert (result.gains, result.losses) == (3, 1)
    assert result.difference.value == 0.25
    assert result.difference.low <= 0.25 <= result.difference.high
    assert result.p == 2 * (1 + 4) / 16
    back = paired(second, first, np.arange(8))
    assert (back.gains, back.losses, back.difference.value) == (1, 3, -0.25)
    assert back.p == result.p
    with pytest.raises(UsageError):
        paired(first, second[:7], np.arange(8))


def test_both_shares_of_the_unpruned_accuracy():
    full, pruned = {"a": 0.8, "b": 0.2}, {"a": 0.4, "b": 0.2}
    assert ratio_of_means(pruned, full) == pytest.approx(0.6)
    assert mean_of_ratios(pruned, full) == pytest.approx(0.75)
    assert ratio_of_means(pruned, full | {"c": 0.0}) == pytest.approx(0.6)
    with pytest.raises(UsageError):
        mean_of_ratios(pruned, {"a": 0.0})
