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


@pytest.mark.parametrize("name", ["dcn:DcnV2", "dlrm:Dlrm"])
def test_models_of_pooled_vectors_refuse_sequences(name: str) -> None:
    with pytest.raises(UserCodeError, match=r"'seen' has combiner none, and d.* takes one"):
        made(name)
