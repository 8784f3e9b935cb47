"""Rows of a checkpoint for a table that has another optimizer, or another dim, than they had."""

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from embedding import EmbeddingVariable, TableEntries, TableSpec, rule_for
from embedding.spec.optimizers import Optimizer

Float32Array = npt.NDArray[np.float32]


def state_of(optimizer: Optimizer) -> str:
    """Say which state an optimizer keeps: its type, and its slots where an option chooses them."""
    names = [slot.name for slot in rule_for(optimizer, sparse=True).slots]
    return f"{optimizer.type} with momentum" if "momentum" in names else optimizer.type


def adapted(rows: TableEntries, saved: TableSpec, table: EmbeddingVariable) -> TableEntries:
    """Return rows as a table keeps them.

    Vectors are cut to the table's dim, or filled with what their keys would have started with.
    Slots go with them, where the optimizer is the one that they are of; else they begin anew.
    """
    spec = table.spec
    same_state = state_of(saved.optimizer) == state_of(spec.optimizer)
    if same_state and saved.dim == spec.dim:
        return rows
    vectors = rows.vectors[:, : spec.dim]
    if saved.dim < spec.dim:
        vectors = np.hstack([rows.vectors, table.initial(rows.keys)[:, saved.dim :]])
    rule = rule_for(spec.optimizer, sparse=True)
    slots = np.tile(rule.initial_slots(spec.dim), (len(rows.keys), 1))
    if same_state:
        columns = zip(rule.columns(saved.dim), rule.columns(spec.dim), strict=True)
        for old, new in columns:
            kept = min(old.stop - old.start, new.stop - new.start)
            slots[:, new.start : new.start + kept] = rows.slots[:, old.start : old.start + kept]
    return replace(rows, vectors=np.ascontiguousarray(vectors), slots=slots)
