"""AUC and logloss: against their definitions, in any order, within the stated bound."""

import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from worker.metrics import (
    StreamingAuc,
    auc_text,
    bin_of,
    exact_auc,
    log_loss_sum,
    log_losses,
    why_no_auc,
    why_no_log_loss,
)

Floats = npt.NDArray[np.float32]
any_logit = st.floats(width=32, allow_nan=False)


def naive_auc(scores: Floats, labels: Floats) -> float:
    wins, pairs = 0.0, 0
    for positive in scores[labels == 1]:
        for negative in scores[labels == 0]:
            wins += 1.0 if positive > negative else 0.5 if positive == negative else 0.0
            pairs += 1
    return wins / pairs if pairs else math.nan


@st.composite
def samples(draw: st.DrawFn, logit: st.SearchStrategy[float] = any_logit) -> tuple[Floats, Floats]:
    n = draw(st.integers(0, 40))
    logits = draw(hnp.arrays(np.float32, n, elements=logit))
    labels = draw(hnp.arrays(np.float32, n, elements=st.sampled_from([0.0, 1.0])))
    return logits, labels


def streamed(logits: Floats, labels: Floats, *, num_bins: int = 1 << 16) -> StreamingAuc:
    auc = StreamingAuc(num_bins)
    auc.add(logits, labels)
    return auc


@settings(deadline=None)  # the first call compiles
@given(samples(st.sampled_from([-math.inf, -1.0, 0.0, 0.5, 0.75, math.inf])))
def test_exact_auc_is_the_fraction_of_pairs_ranked_right(data: tuple[Floats, Floats]) -> None:
    logits, labels = data

    np.testing.assert_allclose(exact_auc(logits, labels), naive_auc(logits, labels), rtol=1e-12)


@settings(deadline=None)  # the first call compiles
@given(samples(), st.sampled_from([2, 16, 1 << 16]))
def test_streaming_auc_is_within_its_stated_bound(
    data: tuple[Floats, Floats], num_bins: int
) -> None:
    auc = streamed(*data, num_bins=num_bins)
    exact = exact_auc(*data)

    if math.isnan(exact):
        assert math.isnan(auc.value())
        assert math.isnan(auc.error_bound())
    else:
        assert abs(auc.value() - exact) <= auc.error_bound() + 1e-12


@settings(deadline=None)  # the first call compiles
@given(samples(), st.randoms(use_true_random=False))
def test_counts_are_bit_equal_for_any_order_and_any_split(
    data: tuple[Floats, Floats], random: "np.random.Generator"
) -> None:
    logits, labels = data
    order = list(range(len(logits)))
    random.shuffle(order)
    cut = len(order) // 3

    merged = streamed(logits[order[cut:]], labels[order[cut:]])
    merged.add_counts(streamed(logits[order[:cut]], labels[order[:cut]]).counts)

    whole = streamed(logits, labels)
    np.testing.assert_array_equal(merged.counts, whole.counts)
    assert merged.total == len(logits)
    assert math.isnan(whole.value()) or merged.value() == whole.value()


@settings(deadline=None, max_examples=300)
@given(st.lists(any_logit, min_size=2), st.sampled_from([2, 10, 1 << 16, (1 << 31) - 2]))
def test_a_larger_logit_never_has_a_smaller_bin(logits: list[float], num_bins: int) -> None:
    bins = bin_of(np.sort(np.array(logits, np.float32)), num_bins)

    assert (np.diff(bins) >= 0).all()
    assert bins[0] >= 0
    assert bins[-1] < num_bins


def test_infinite_logits_have_the_outer_bins() -> None:
    bins = bin_of(np.array([-np.inf, -0.0, 0.0, np.inf], np.float32), 1 << 16)

    assert bins.tolist() == [0, 32768, 32768, 65535]


def test_half_the_bins_lie_within_four_of_zero() -> None:
    bins = bin_of(np.array([-12, -4, 4, 12], np.float32), 1 << 10)

    np.testing.assert_allclose(bins / 1024, [1 / 8, 1 / 4, 3 / 4, 7 / 8], atol=1 / 512)


@pytest.mark.parametrize("mean", [-3.4, 0.0, 5.0])
@pytest.mark.parametrize("width", [0.8, 1.4, 4.0])
def test_bound_is_below_1e_4_for_typical_logits(mean: float, width: float) -> None:
    random = np.random.default_rng(3)
    logits = np.clip(random.normal(mean, width, 200_000), -12, 12).astype(np.float32)
    labels = (random.random(logits.size) < 1 / (1 + np.exp(-logits))).astype(np.float32)

    auc = streamed(logits, labels)

    assert auc.error_bound() < 1e-4
    assert abs(auc.value() - exact_auc(logits, labels)) <= auc.error_bound()


def test_log_loss_is_the_sum_of_minus_log_probability() -> None:
    logits = np.array([-3, -0.5, 0, 2, 30], np.float32)
    labels = np.array([0, 1, 1, 0, 1], np.float32)
    probability = 1 / (1 + np.exp(-logits.astype(np.float64)))

    expected = -np.log(np.where(labels == 1, probability, 1 - probability)).sum()

    np.testing.assert_allclose(log_loss_sum(logits, labels), expected, rtol=1e-12)


def test_log_loss_of_extreme_logits_does_not_overflow() -> None:
    right = log_loss_sum(
        np.array([-np.inf, np.inf, -1e30], np.float32), np.array([0, 1, 0], np.float32)
    )
    wrong = log_loss_sum(np.array([-1e30], np.float32), np.array([1], np.float32))

    assert right == 0.0
    assert wrong == pytest.approx(1e30)
    assert log_loss_sum(np.array([np.inf], np.float32), np.array([0], np.float32)) == math.inf


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        ([0.0, np.nan], [0, 1], "gives NaN for sample 1: its parameters have diverged"),
        ([0.0], [0.5], "sample 0 .* label 0.5"),
        ([0.0], [np.nan], "sample 0 .* label nan"),
        ([0.0, 1.0], [0], "one length"),
    ],
)
def test_unusable_samples_are_refused_and_not_counted(
    logits: list[float], labels: list[float], message: str
) -> None:
    auc = StreamingAuc()

    with pytest.raises(ValueError, match=message):
        auc.add(np.array(logits, np.float32), np.array(labels, np.float32))

    assert auc.total == 0


def test_counts_of_another_number_of_bins_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(2, 16\), got \(2, 8\)"):
        StreamingAuc(16).add_counts(StreamingAuc(8).counts)


@pytest.mark.parametrize("num_bins", [0, 3, 1 << 31])
def test_an_odd_or_impossible_number_of_bins_is_refused(num_bins: int) -> None:
    with pytest.raises(ValueError, match=f"num_bins must be even .* got {num_bins}"):
        StreamingAuc(num_bins)


@pytest.mark.parametrize(
    ("auc", "bound", "text"),
    [
        (0.79123, 0.0, "0.7912"),
        (0.79123, 0.000049, "0.7912"),
        (0.79123, 0.00005, "0.7912 +- 0.0001"),
        (0.79123, 0.00301, "0.7912 +- 0.0031"),
        (0.5, 0.5, "0.5000 +- 0.5000"),
        (0.79123, None, "0.7912"),
        (math.nan, math.nan, "none"),
        (None, None, "none"),
    ],
)
def test_a_bound_is_told_where_it_shows_in_the_digits(
    auc: float | None, bound: float | None, text: str
) -> None:
    assert auc_text(auc, bound) == text


def test_what_has_no_number_says_why() -> None:
    assert why_no_log_loss(0.3) is None
    assert why_no_log_loss(math.nan) == "no sample was scored that weighs anything"
    assert why_no_log_loss(math.inf) == "an infinite logit has the wrong sign"
    assert why_no_auc(0.5, 2) is None
    assert why_no_auc(math.nan, 0) == "no sample was scored"
    assert why_no_auc(math.nan, 3) == "all labels are of one class"


def test_logits_of_ten_million_have_a_bound_that_covers_the_exact_auc() -> None:
    logits = np.array([-3e7, -1e7, 1e7, 2e7, 3e7, 4e7], np.float32)
    labels = np.array([0, 1, 1, 0, 1, 1], np.float32)

    auc = streamed(logits, labels)

    assert exact_auc(logits, labels) == 0.75
    assert auc_text(auc.value(), auc.error_bound()) == "0.6250 +- 0.2500"


@settings(deadline=None)  # the first call compiles
@given(samples(), st.data())
def test_a_weight_counts_as_so_many_samples(
    data: tuple[Floats, Floats], draw: st.DataObject
) -> None:
    logits, labels = data
    times = draw.draw(hnp.arrays(np.int64, logits.size, elements=st.integers(0, 3)))
    weights = times.astype(np.float32)
    repeated = np.repeat(logits, times), np.repeat(labels, times)
    expected = streamed(*repeated)

    auc = StreamingAuc(weighted=True)
    auc.add(logits, labels, weights)

    assert auc.total == times.sum()
    np.testing.assert_array_equal(auc.counts, expected.counts)
    np.testing.assert_equal(auc.value(), expected.value())
    np.testing.assert_equal(auc.error_bound(), expected.error_bound())
    np.testing.assert_equal(exact_auc(logits, labels, weights), exact_auc(*repeated))
    loss = log_loss_sum(logits, labels, weights)
    np.testing.assert_allclose(loss, log_loss_sum(*repeated), rtol=1e-12)


@settings(deadline=None)  # the first call compiles
@given(samples())
def test_losses_of_samples_sum_to_the_loss_of_all(data: tuple[Floats, Floats]) -> None:
    logits, labels = data
    weights = np.arange(len(logits), dtype=np.float32)

    for weight in (None, weights):
        expected = log_loss_sum(logits, labels, weight)
        np.testing.assert_allclose(log_losses(logits, labels, weight).sum(), expected, rtol=1e-12)


def test_weights_that_are_no_whole_numbers_weigh_pairs_by_their_product() -> None:
    logits, labels = np.array([2, 1, 0, 1], np.float32), np.array([1, 1, 0, 0], np.float32)
    weights = np.array([0.5, 2, 0.25, 3], np.float32)
    auc = StreamingAuc(weighted=True)

    auc.add(logits, labels, weights)

    # 2 above both; 1 above 0, and a tie with the other 1.
    right = 0.5 * (0.25 + 3) + 2 * (0.25 + 3 / 2)
    assert auc.value() == pytest.approx(right / (2.5 * 3.25))


def test_an_infinite_loss_that_weighs_nothing_adds_nothing() -> None:
    logits, labels = np.array([np.inf, 0], np.float32), np.array([0, 1], np.float32)

    assert log_loss_sum(logits, labels, np.array([0, 2], np.float32)) == 2 * math.log(2)
