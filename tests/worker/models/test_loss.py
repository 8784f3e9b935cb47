import math

import numpy as np
import pytest

from worker.models.loss import fake_negative_weighted_loss, log_loss, weighted_log_loss


def test_the_loss_and_its_gradient_equal_their_definition():
    generator = np.random.default_rng(0)
    logits = generator.normal(0, 3, 50).astype(np.float32)
    labels = (generator.random(50) < 0.5).astype(np.float32)
    grad = np.empty(50, np.float32)

    loss = log_loss(logits, labels, grad)

    probability = 1 / (1 + np.exp(-logits.astype(np.float64)))
    expected = -np.sum(labels * np.log(probability) + (1 - labels) * np.log(1 - probability))
    assert math.isclose(loss, expected, rel_tol=1e-12)
    np.testing.assert_allclose(grad, probability - labels, rtol=1e-6)


def test_the_gradient_equals_finite_differences_of_the_loss():
    labels, grad, unused = np.ones(1, np.float32), np.empty(1, np.float32), np.empty(1, np.float32)
    for z in (-5.0, -0.5, 0.0, 0.25, 4.0):
        step = 2.0**-7
        log_loss(np.array([z], np.float32), labels, grad)
        above = log_loss(np.array([z + step], np.float32), labels, unused)
        below = log_loss(np.array([z - step], np.float32), labels, unused)

        assert math.isclose(grad[0], (above - below) / (2 * step), rel_tol=1e-4)


def test_no_logit_overflows():
    logits = np.array([1e30, -1e30, 1e30, -1e30], np.float32)
    labels = np.array([1, 0, 0, 1], np.float32)
    grad = np.empty(4, np.float32)

    assert log_loss(logits[:2], labels[:2], grad[:2]) == 0.0
    assert log_loss(logits, labels, grad) == 2 * float(np.float32(1e30))
    np.testing.assert_array_equal(grad, [0, 0, 1, -1])


def test_confident_mistakes_of_either_sign_cost_the_same():
    grad = np.empty(1, np.float32)
    one, zero = np.ones(1, np.float32), np.zeros(1, np.float32)

    assert log_loss(np.float32([-40]), one, grad) == log_loss(np.float32([40]), zero, grad) > 39.9


def test_the_loss_of_a_logit_that_is_not_a_number_is_not_a_number():
    grad = np.empty(1, np.float32)

    assert math.isnan(log_loss(np.array([np.nan], np.float32), np.ones(1, np.float32), grad))
    assert math.isnan(grad[0])


def test_losses_are_summed_in_float64():
    n = 100_000
    grad = np.empty(n, np.float32)

    loss = log_loss(np.zeros(n, np.float32), np.zeros(n, np.float32), grad)

    assert math.isclose(loss, n * math.log(2), rel_tol=1e-10)


def test_no_samples_have_no_loss():
    empty = np.empty(0, np.float32)

    assert log_loss(empty, empty, empty) == 0.0


def test_a_weight_multiplies_a_samples_loss_and_gradient():
    generator = np.random.default_rng(0)
    logits = generator.normal(0, 3, 50).astype(np.float32)
    labels = (generator.random(50) < 0.5).astype(np.float32)
    weights = generator.exponential(1.0, 50).astype(np.float32)
    grad, alone = np.empty(50, np.float32), np.empty(50, np.float32)

    loss = weighted_log_loss(logits, labels, weights, grad)

    losses = [log_loss(logits[i : i + 1], labels[i : i + 1], alone[i : i + 1]) for i in range(50)]
    assert math.isclose(loss, np.dot(weights.astype(np.float64), losses), rel_tol=1e-12)
    np.testing.assert_allclose(grad, weights * alone, rtol=1e-6)


def test_weights_of_1_change_no_bit():
    generator = np.random.default_rng(1)
    logits = generator.normal(0, 30, 999).astype(np.float32)
    labels = (generator.random(999) < 0.5).astype(np.float32)
    grad, plain = np.empty(999, np.float32), np.empty(999, np.float32)

    loss = weighted_log_loss(logits, labels, np.ones(999, np.float32), grad)

    assert loss == log_loss(logits, labels, plain)
    assert grad.tobytes() == plain.tobytes()


def test_a_sample_that_weighs_nothing_adds_nothing():
    logits, labels = np.array([np.inf, -np.inf], np.float32), np.array([0, 1], np.float32)
    grad = np.empty(2, np.float32)

    assert weighted_log_loss(logits, labels, np.zeros(2, np.float32), grad) == 0.0
    np.testing.assert_array_equal(grad, [0, 0])


def true_and_seen(p):
    """A probability, and the share of positives among what comes where each is a negative first."""
    return p, p / (1 + p)


@pytest.mark.parametrize("p", [0.001, 0.03, 0.5, 0.9])
def test_fake_negatives_lead_to_the_true_probability(p):
    """At the logit of p the gradients of what comes cancel; log loss's cancel at another one."""
    p, seen = true_and_seen(p)
    z = np.full(2, math.log(p / (1 - p)), np.float32)
    labels = np.array([1, 0], np.float32)
    shares = np.array([seen, 1 - seen], np.float32)
    grad, plain = np.empty(2, np.float32), np.empty(2, np.float32)

    fake_negative_weighted_loss(z, labels, shares, grad)
    weighted_log_loss(z, labels, shares, plain)

    assert abs(grad.sum()) < 1e-5 * abs(grad).max()
    assert plain.sum() > 0.4 * p * abs(plain).max()


def test_fake_negative_weights_are_those_of_the_paper():
    generator = np.random.default_rng(3)
    logits = generator.normal(0, 3, 60).astype(np.float32)
    labels = (generator.random(60) < 0.5).astype(np.float32)
    weights = generator.exponential(1.0, 60).astype(np.float32)
    grad, plain = np.empty(60, np.float32), np.empty(60, np.float32)
    p = 1 / (1 + np.exp(-logits.astype(np.float64)))
    importance = np.where(labels == 1, 1 + p, (1 - p) * (1 + p))

    for own in (np.empty(0, np.float32), weights):
        loss = fake_negative_weighted_loss(logits, labels, own, grad)

        times = (importance * (own if own.size else 1)).astype(np.float32)
        assert math.isclose(loss, weighted_log_loss(logits, labels, times, plain), rel_tol=1e-6)
        np.testing.assert_allclose(grad, plain, rtol=1e-5)


def test_fake_negative_weighting_overflows_for_no_logit():
    logits, labels = np.float32([1e30, -1e30, 1e30, -1e30]), np.float32([1, 0, 0, 1])
    grad = np.empty(4, np.float32)

    loss = fake_negative_weighted_loss(logits, labels, np.empty(0, np.float32), grad)

    # A negative that the model takes for a positive is one that came too early.
    assert loss == float(np.float32(1e30))
    np.testing.assert_array_equal(grad, [0, 0, 0, -1])
