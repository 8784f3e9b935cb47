"""Which rows of a model's weights belong to which input, so that weights can follow names."""

from collections.abc import Hashable, Sequence

import numpy as np
import numpy.typing as npt

from worker.models.protocol import Parameter
from worker.models.wide_deep import is_linear
from worker.spec import FeatureSpec, ModelSpec

Names = dict[str, list[Hashable]]


def input_names(spec: ModelSpec, features: FeatureSpec) -> Names | None:
    """Return what each row of the parameters that meet the inputs belongs to, by the parameter.

    Names are of features, a feature's column among those of its vector, or two features that
    interact. None where nobody knows: a custom model's.
    """
    dense: list[Hashable] = [("dense", name) for name in features.dense]
    lookups = [(features.sparse[lookup.feature].name, lookup) for lookup in spec.lookups]
    if spec.type == "dlrm":
        vectors = [("sparse", name) for name, _ in lookups]
        first: list[Hashable] = []
        if features.dense:
            first = [("bottom", column) for column in range(spec.lookups[0].dim)]
            vectors.insert(0, ("bottom", ""))
        pairs = [frozenset((vectors[i], vectors[j])) for i in range(len(vectors)) for j in range(i)]
        return {"bottom.0.weight": dense, "top.0.weight": [*first, *pairs]}
    if spec.type in ("wide_deep", "deepfm"):
        embeddings: list[Hashable] = [
            ("sparse", name, column)
            for name, lookup in lookups
            if not is_linear(lookup)
            for column in range(lookup.dim)
        ]
        return {"linear.weight": dense, "mlp.0.weight": [*embeddings, *dense]}
    if spec.type == "linear":
        return {"linear.weight": dense}
    return None


def sources_of(
    before: Sequence[Parameter],
    names_before: Names,
    after: Sequence[Parameter],
    names_after: Names,
    *,
    reshaped: bool = False,
) -> tuple[npt.NDArray[np.int64], list[str]]:
    """Return from where in an old vector of parameters each of a new one comes.

    Args:
        before, after: the parameters in their order.
        names_before, names_after: as `input_names`.
        reshaped: whether parameters may differ in something else than their inputs, as where a
            layer is as wide as a vector: these begin anew.

    Returns:
        int64[P], -1 where there is none; and what begins anew, in words.

    Raises:
        ValueError: parameters differ in something else than their inputs.
    """
    begins: dict[str, tuple[int, Parameter]] = {}
    at = 0
    for parameter in before:
        begins[parameter.name] = (at, parameter)
        at += parameter.size
    parts, anew = [], []
    for parameter in after:
        begin, old = begins.get(parameter.name, (0, None))
        rows = names_after.get(parameter.name)
        if old is None:
            parts.append(np.full(parameter.size, -1))
            anew.append(parameter.name)
            continue
        is_input = rows is not None and parameter.name in names_before
        if old.shape[is_input:] != parameter.shape[is_input:]:
            if reshaped:
                parts.append(np.full(parameter.size, -1))
                anew.append(parameter.name)
                continue
            raise ValueError(
                f"parameter {parameter.name} has shape {list(old.shape)} in the checkpoint,"
                f" {list(parameter.shape)} in the job"
            )
        if rows is None or not is_input:
            parts.append(np.arange(begin, begin + parameter.size))
            continue
        places = {name: row for row, name in enumerate(names_before[parameter.name])}
        found = np.array([places.get(name, -1) for name in rows], np.int64)
        width = int(np.prod(parameter.shape[1:], dtype=np.int64))
        source = begin + found[:, None] * width + np.arange(width)
        parts.append(np.where(found[:, None] < 0, -1, source).reshape(-1))
        if (found < 0).any():
            anew.append(f"{int((found < 0).sum())} of {found.size} inputs of {parameter.name}")
    return np.concatenate([np.empty(0, np.int64), *parts]), anew
