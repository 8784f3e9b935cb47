"""Models of histories against their published formulas, sample by sample in float64."""

from typing import Any

import numpy as np
import pytest
from torch_sequences import LENGTHS, Arrays, Sequenced, check_gradients, sequence_spec

from worker.models.user_code import UserCodeError

pytest.importorskip("torch")

DIMS = {"item": 4, "kind": 2, "seen": 4, "seen_kinds": 2, "place": 3}
SEEN = {"seen": None, "seen_kinds": None}
BOTH = {"history": ["seen", "seen_kinds"], "target": ["item", "kind"]}


def made(name: str, **options: Any) -> Sequenced:
    path = f"worker.models.torch.{name}"
    return Sequenced(sequence_spec({"class": path, **options}, DIMS, SEEN))


def sigmoid(z: Any) -> Any:
    return 1 / (1 + np.exp(-z))


def log_losses(z: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return np.asarray(np.logaddexp(0, z) - labels * z)


def layer(x: np.ndarray, p: Arrays, name: str) -> np.ndarray:
    return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]


def activated(s: np.ndarray, p: Arrays, name: str, activation: str) -> np.ndarray:
    if activation == "dice":
        on = sigmoid((s - p[f"{name}.mean"]) * p[f"{name}.scale"])
        return np.asarray(on * s + (1 - on) * p[f"{name}.alpha"] * s)
    slope = p[f"{name}.weight"] if activation == "prelu" else 0
    return np.where(s > 0, s, slope * s)


def hidden(x: np.ndarray, p: Arrays, name: str, layers: int, activation: str) -> np.ndarray:
    for at in range(0, 2 * layers, 2):
        x = activated(layer(x, p, f"{name}.{at}"), p, f"{name}.{at + 1}", activation)
    return x


# DIN ----------------------------------------------------------------------------------------------


def din_logits(case: Sequenced, activation: str, arrays: list[np.ndarray]) -> np.ndarray:
    params, pooled, seen, kinds = arrays
    p, vectors = case.named(params), case.vectors(pooled)
    places, found = np.concatenate([seen, kinds], axis=2), []
    for i, length in enumerate(LENGTHS):
        target = np.concatenate([vectors["item"][i], vectors["kind"][i]])
        user = np.zeros(6)
        for e in places[i, :length]:
            pair = np.concatenate([e, target, e - target, e * target])
            weight = layer(
                hidden(pair, p, "attention.hidden", 1, activation), p, "attention.weight.0"
            )
            user += weight[0] * e
        x = np.concatenate([case.dense[i], pooled[i], user])
        found.append(layer(hidden(x, p, "hidden", 2, activation), p, "logit.0")[0])
    return np.array(found)


@pytest.mark.parametrize("activation", ["dice", "prelu"])
def test_din_is_what_is_published_and_its_gradients(activation: str) -> None:
    case = made("din:Din", **BOTH, attention_mlp=[5], mlp=[6, 4], activation=activation)
    case.model.examine()  # type: ignore[attr-defined]

    np.testing.assert_allclose(
        case.predict(), din_logits(case, activation, case.arrays()), rtol=1e-4, atol=1e-5
    )

    def loss(*arrays: np.ndarray) -> float:
        z = din_logits(case, activation, list(arrays))
        return float((case.weights * log_losses(z, case.labels)).sum())

    check_gradients(case, loss, weights=case.weights)


def test_what_was_seen_counts_by_how_it_fits_the_target() -> None:
    case = made("din:Din", **BOTH, attention_mlp=[5], mlp=[6])
    before = case.predict()
    case.pooled[:, :4] += 1.0
    changed = case.predict()
    for each in case.sequences:
        each[:] = 0
    assert not np.isclose(before, changed).any()
    assert np.isclose(case.predict()[0], changed[0])
    assert not np.isclose(case.predict()[1:], changed[1:]).any()


# What is refused ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (
            {"history": "seen", "target": "itme"},
            "no sparse feature 'itme'; did you mean",
        ),
        (
            {"history": "item", "target": "item"},
            "'item' is pooled; let it have combiner none",
        ),
        (
            {"history": "seen", "target": "seen"},
            "model.target of din: .* 'seen' is a seq",
        ),
        (
            {"history": "seen", "target": "item"},
            "'seen_kinds' has combiner none, and din",
        ),
        (
            {"history": ["seen", "seen_kinds"], "target": "item"},
            "history names 2 features and",
        ),
        ({"history": [], "target": []}, "model.history of din must name a feature"),
        (
            {"history": ["seen", "seen_kinds"], "target": ["kind", "item"]},
            "model.history 'seen' has vectors of dim 4, model.target 'kind' of dim 2",
        ),
        (
            {**BOTH, "activation": "dise"},
            "activation 'dise' is not known; did you",
        ),
        ({**BOTH, "mlp": [0]}, r"model.mlp\[0\] must be a whole number"),
    ],
)
def test_what_din_cant_be_made_of_is_told(options: dict[str, Any], told: str) -> None:
    with pytest.raises(UserCodeError, match=told):
        made("din:Din", **options)


def test_sequences_of_the_same_places_have_the_same_lengths() -> None:
    case = made("din:Din", **BOTH, mlp=[6])
    lengths = case.lengths.copy()
    lengths[2] = 1
    inputs = case._inputs
    one, other = inputs.sequences
    broken = type(inputs)(inputs.pooled, (one, type(other)(other.vectors, lengths)))

    with pytest.raises(UserCodeError, match="'seen_kinds' have other lengths than those of 'seen'"):
        case.model.predict(case.params, case.dense, broken)


@pytest.mark.parametrize("name", ["dcn:DcnV2", "dlrm:Dlrm", "mmoe:Mmoe", "ple:Ple", "esmm:Esmm"])
def test_models_of_pooled_vectors_refuse_sequences(name: str) -> None:
    with pytest.raises(UserCodeError, match=r"'seen' has combiner none, and [a-z]* takes one"):
        made(name)


# DIEN ---------------------------------------------------------------------------------------------


def gru_states(x: np.ndarray, p: Arrays) -> list[np.ndarray]:
    """States of the interests, by (2-5) of the paper; torch's update gate is 1 - u."""
    names = ("weight_ih_l0", "bias_ih_l0", "weight_hh_l0", "bias_hh_l0")
    w, b, u, c = (p[f"interests.{name}"] for name in names)
    h, found = np.zeros(x.shape[1]), []
    for e in x:
        (i_r, i_u, i_h), (s_r, s_u, s_h) = np.split(w @ e + b, 3), np.split(u @ h + c, 3)
        update = 1 - sigmoid(i_u + s_u)
        h = (1 - update) * h + update * np.tanh(i_h + sigmoid(i_r + s_r) * s_h)
        found.append(h)
    return found


def evolved(states: list[np.ndarray], attention: np.ndarray, p: Arrays) -> np.ndarray:
    """The last state, by (14-16)."""
    h = np.zeros(len(p["evolution.state.weight"]) // 3)
    for i, a in zip(states, attention, strict=True):
        i_u, i_r, i_h = np.split(layer(i, p, "evolution.input"), 3)
        s_u, s_r, s_h = np.split(p["evolution.state.weight"] @ h, 3)
        update = a * sigmoid(i_u + s_u)
        h = (1 - update) * h + update * np.tanh(i_h + sigmoid(i_r + s_r) * s_h)
    return h


def dien(case: Sequenced, arrays: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and auxiliary losses where there are negatives: the last of the sequences."""
    params, pooled, seen, *others = arrays
    p, vectors = case.named(params), case.vectors(pooled)
    logits, losses = [], []
    for i, length in enumerate(LENGTHS):
        states = gru_states(seen[i, :length], p)
        scores = np.array([h @ (p["near.weight"] @ vectors["item"][i]) for h in states])
        attention = np.exp(scores) / np.exp(scores).sum()
        x = np.concatenate([case.dense[i], pooled[i], evolved(states, attention, p)])
        logits.append(layer(hidden(x, p, "hidden", 1, "dice"), p, "logit.0")[0])
        loss = 0.0
        for at, h in enumerate(states[:-1]):
            for other in others:
                loss -= np.log(sigmoid(h @ seen[i, at + 1]))
                loss -= np.log(1 - sigmoid(h @ other[i, at + 1]))
        losses.append(loss)
    return np.array(logits), np.array(losses)


@pytest.mark.parametrize("auxiliary", [False, True])
def test_dien_is_what_is_published_and_its_gradients(auxiliary: bool) -> None:
    dims, sequences = {"item": 4, "seen": 4, "place": 3}, {"seen": None}
    options: dict[str, Any] = {"history": "seen", "target": "item", "mlp": [6]}
    if auxiliary:
        dims["not_seen"], sequences["not_seen"] = 4, None
        options |= {"negatives": "not_seen", "auxiliary_weight": 0.3}
    path = "worker.models.torch.dien:Dien"
    case = Sequenced(sequence_spec({"class": path, **options}, dims, sequences))
    case.model.examine()  # type: ignore[attr-defined]

    logits, _ = dien(case, case.arrays())
    np.testing.assert_allclose(case.predict(), logits, rtol=1e-4, atol=1e-5)

    def loss(*arrays: np.ndarray) -> float:
        z, beside = dien(case, list(arrays))
        return float((case.weights * (log_losses(z, case.labels) + 0.3 * beside)).sum())

    check_gradients(case, loss, weights=case.weights)
    np.testing.assert_array_equal(case.model.logits, case.predict())  # type: ignore[attr-defined]


def test_negatives_of_dien_go_with_its_history() -> None:
    with pytest.raises(UserCodeError, match=r"negatives has vectors of dims \[2\], model.history"):
        made("dien:Dien", history="seen", target="item", negatives="seen_kinds")
    with pytest.raises(UserCodeError, match=r"auxiliary_weight is of the loss that model"):
        made("dien:Dien", **BOTH, auxiliary_weight=0.5)


# DSSM ---------------------------------------------------------------------------------------------


def tower(parts: list[np.ndarray], p: Arrays, name: str) -> np.ndarray:
    x = np.concatenate(parts)
    for at in range(2):
        x = np.tanh(layer(x, p, f"{name}.layers.{at}"))
    return np.asarray(x / np.linalg.norm(x))


def dssm_scores(case: Sequenced, arrays: list[np.ndarray]) -> np.ndarray:
    """10 cos of each user and each item; the first dense feature is an item's, the last log q."""
    params, pooled, seen = arrays
    p, vectors = case.named(params), case.vectors(pooled)
    users, items = [], []
    for i, length in enumerate(LENGTHS):
        mean = seen[i, :length].sum(0) / max(1, length)
        users.append(tower([case.dense[i, 1:2], mean, vectors["place"][i]], p, "user"))
        items.append(tower([case.dense[i, :1], vectors["item"][i]], p, "item"))
    return 10 * np.array(users) @ np.array(items).T


def dssm(**options: Any) -> Sequenced:
    options = {"class": "worker.models.torch.dssm:Dssm", "item": ["item", "d0"], **options}
    spec = sequence_spec(options, {"item": 4, "seen": 4, "place": 3}, {"seen": None})
    return Sequenced(spec)


def test_dssm_tells_an_item_from_those_of_the_batch_and_its_gradients() -> None:
    case = dssm(log_share="d2", mlp=[5, 3])
    case.model.examine()  # type: ignore[attr-defined]

    scores = dssm_scores(case, case.arrays())
    np.testing.assert_allclose(case.predict(), scores.diagonal(), rtol=1e-4, atol=1e-5)

    def loss(*arrays: np.ndarray) -> float:
        corrected = dssm_scores(case, list(arrays)) - case.dense[:, 2]
        total = 0.0
        for i, (label, weight) in enumerate(zip(case.labels, case.weights, strict=True)):
            candidates = [j for j in range(len(LENGTHS)) if case.weights[j] > 0 or j == i]
            told = np.exp(corrected[i, i]) / np.exp(corrected[i, candidates]).sum()
            total -= weight * label * np.log(told)
        return total

    check_gradients(case, loss, weights=case.weights)


def test_what_weighs_nothing_gets_no_gradient_as_a_negative() -> None:
    case = dssm(mlp=[5, 3])

    _, _, grads = case.train(case.weights)

    (nothing,) = np.flatnonzero(case.weights == 0)
    assert not grads.pooled[nothing].any()
    assert not grads.sequences[0].vectors[nothing].any()
    assert grads.pooled[np.flatnonzero(case.weights)][:, :4].any(axis=1).all()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"item": "itme"}, "model.item names 'itme', no feature; did you mean 'item'"),
        ({"log_share": "item"}, "log_share must be a dense feature that is not in model.item"),
        ({"log_share": "d0"}, "log_share must be a dense feature that is not in model.item"),
        ({"item": ["item", "place", "seen", "d0", "d1", "d2"]}, "no feature for the user's tower"),
        ({"smoothing": 0}, "model.smoothing must be a number > 0, got 0"),
        ({"mlp": []}, "model.mlp must have at least one width"),
    ],
)
def test_what_dssm_cant_be_made_of_is_told(options: dict[str, Any], told: str) -> None:
    with pytest.raises(UserCodeError, match=told):
        dssm(**options)
