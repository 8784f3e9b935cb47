"""Learners of other projects that take one sample after another: Vowpal Wabbit and River."""

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

# Arguments of Vowpal Wabbit beyond those that all have.
VOWPAL_WABBIT = {
    "linear": "",
    "linear, ftrl": "--ftrl --ftrl_alpha 0.05 --ftrl_beta 1",
    "pairs of ids": "--interactions cc -l 0.1",
}
RIVER = ("logistic regression, adagrad", "logistic regression, ftrl")
_MOST_WEIGHTS = 24


@dataclass(frozen=True, slots=True)
class Samples:
    """Samples in the order in which they come.

    Args:
        labels: float32[n] of 0 and 1.
        dense: float32[n, d], transformed.
        ids: int64[n, s], one of each feature.
    """

    labels: npt.NDArray[np.float32]
    dense: npt.NDArray[np.float32]
    ids: npt.NDArray[np.int64]

    @classmethod
    def of(cls, table: pa.Table, *, dense: list[str], sparse: list[str]) -> "Samples":
        """Take a table; dense columns become log(1 + max(x, 0)), 0 where null."""
        columns = [table.column(name).fill_null(0).to_numpy() for name in dense]
        return cls(
            table.column("label").to_numpy().astype(np.float32),
            np.log1p(np.maximum(np.stack(columns, axis=1), 0)).astype(np.float32),
            np.stack([table.column(name).to_numpy() for name in sparse], axis=1),
        )


def vowpal_wabbit(samples: Samples, options: str) -> npt.NDArray[np.float32] | None:
    """Return what each sample was predicted as before it was learnt, as logits; None: not there."""
    module = _module("vowpalwabbit")
    if module is None:
        return None
    arguments = f"--loss_function logistic -b {_MOST_WEIGHTS} --quiet --holdout_off {options}"
    workspace = module.Workspace(arguments)
    logits = np.empty(len(samples.labels), np.float32)
    for number, line in enumerate(_lines(samples)):
        example = workspace.parse(line)
        # Before the update, as a learner's progressive loss is.
        logits[number] = workspace.predict(example)
        workspace.learn(example)
        workspace.finish_example(example)
    workspace.finish()
    return logits


def river(samples: Samples, name: str) -> npt.NDArray[np.float32] | None:
    """Return the probability that each sample had before it was learnt; None: not there."""
    if _module("river") is None:
        return None
    optimizers = importlib.import_module("river.optim")
    linear = importlib.import_module("river.linear_model")
    optimizer = optimizers.AdaGrad(0.05) if "adagrad" in name else optimizers.FTRLProximal(l2=0.0)
    model = linear.LogisticRegression(optimizer, intercept_lr=0.01)
    scores = np.empty(len(samples.labels), np.float32)
    for number, features in enumerate(_mappings(samples)):
        scores[number] = model.predict_proba_one(features)[True]
        model.learn_one(features, bool(samples.labels[number]))
    return scores


def _lines(samples: Samples) -> Iterator[str]:
    """Yield samples as Vowpal Wabbit reads them: ids as names, so that it hashes them."""
    for label, dense, ids in zip(samples.labels, samples.dense, samples.ids, strict=True):
        numbers = " ".join(f"{i}:{value:.6g}" for i, value in enumerate(dense) if value)
        names = " ".join(f"f{i}_{key}" for i, key in enumerate(ids))
        yield f"{1 if label else -1} |d {numbers} |c {names}"


def _mappings(samples: Samples) -> Iterator[dict[str, float]]:
    for dense, ids in zip(samples.dense.tolist(), samples.ids.tolist(), strict=True):
        features = {f"d{i}": value for i, value in enumerate(dense) if value}
        features.update((f"f{i}_{key}", 1.0) for i, key in enumerate(ids))
        yield features


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None
