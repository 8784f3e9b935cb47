"""What a job reads and trains: data, features, model. Plain frozen values."""

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

from embedding.spec.composition import Operation, Part
from embedding.spec.optimizers import Optimizer

Combiner = Literal["sum", "mean", "sqrtn", "max", "none"]
Keep = Literal["first", "last"]
Loss = Literal["log_loss", "fake_negative_weighting"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SparseFeature:
    """One sparse feature: a column of keys, the table that holds their rows, how a bag is pooled.

    Args:
        name: unique among the features.
        column: Parquet column: an integer, string, binary, dictionary or boolean column, or a
            list of one of these.
        table: the table whose rows the keys select; features may share one.
        combiner: how the rows of a bag become one vector: `sum`, `mean` (sum w e / sum w),
            `sqrtn` (sum w e / sqrt(sum w^2)), `max` (of each element; without weights); `none`:
            they do not, the model gets them in their order (without weights).
        max_norm: a longer row is scaled to this Euclidean norm before it is pooled. None: no limit.
        weights: Parquet column of weights, one for each key; None: all 1.
        max_length: longest bag; a longer one is cut. None: no limit.
        keep: which of its keys a bag that is cut has still: the `first` ones, or the `last`.
        pad: value that is no key, as it fills lists up to one length: an integer, or a text where
            the column holds strings. Left out wherever it stands. None: every value is a key.
    """

    name: str
    column: str
    table: str
    combiner: Combiner = "sum"
    weights: str | None = None
    max_length: int | None = None
    keep: Keep = "first"
    pad: int | str | None = None
    max_norm: float | None = None

    def __post_init__(self) -> None:
        if self.combiner in ("max", "none") and self.weights is not None:
            raise ValueError(
                f"sparse feature {self.name}: combiner {self.combiner!r} takes no weights"
            )
        if self.max_norm is not None and not 0 < self.max_norm < math.inf:
            raise ValueError(
                f"sparse feature {self.name}: max_norm must be > 0 and finite, got {self.max_norm}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskLabel:
    """The label of one of several tasks, each of which is something to predict of a sample.

    Args:
        name: of the task, unique among them.
        column: Parquet column of 0 and 1; tasks may share one.
        where: another task: a sample whose label of that one is not 1 is *masked*, it does not
            count in this one. None: every sample counts.
        missing: what a null label of a sample that is not masked already is: `refuse`d, or
            `mask`ed.
    """

    name: str
    column: str
    where: str | None = None
    missing: Literal["refuse", "mask"] = "refuse"


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureSpec:
    """The columns of a sample.

    Args:
        label: column of 0 and 1; None where a sample has no label (prediction), or several.
        tasks: labels of samples that have several, in place of `label`.
        weight: column that says how much each sample counts, >= 0; None: all count 1.
        segment: column by whose values samples are scored apart; None: they are not.
        key: column by which samples find their labels; None: they have them.
        group: column of keys by whose values samples are ranked apart, such as users; None: they
            are not.
        dense: numeric columns, in the order of the model's dense input; null and NaN become 0.
        dense_transform: `log1p` takes log(1 + max(x, 0)).
        sparse: sparse features, in the order of the model's lookups.
    """

    label: str | None
    dense: tuple[str, ...]
    dense_transform: Literal["none", "log1p"]
    sparse: tuple[SparseFeature, ...]
    weight: str | None = None
    segment: str | None = None
    key: str | None = None
    tasks: tuple[TaskLabel, ...] = ()
    group: str | None = None

    def inputs(self) -> "FeatureSpec":
        """Return what a prediction reads: no label, weight, segment, key and group."""
        return replace(self, label=None, tasks=(), weight=None, segment=None, key=None, group=None)

    @property
    def has_labels(self) -> bool:
        """Whether a sample has a label, or several."""
        return self.label is not None or bool(self.tasks)

    @property
    def label_columns(self) -> list[str]:
        """Return the distinct columns of labels."""
        own = [] if self.label is None else [self.label]
        return list(dict.fromkeys([*own, *(task.column for task in self.tasks)]))

    def columns(self) -> list[str]:
        """Return the distinct Parquet columns that a reader needs, in a fixed order."""
        own = (self.weight, self.segment, self.key, self.group)
        names = self.label_columns
        names += [each for each in own if each is not None]
        names += self.dense
        for feature in self.sparse:
            names.append(feature.column)
            if feature.weights:
                names.append(feature.weights)
        return list(dict.fromkeys(names))


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSpec:
    """How files become batches.

    Args:
        features: the columns that are read.
        batch_size: samples in a local batch.
        lanes: number of consecutive parts of an epoch that are read side by side.
        epochs: times that the files are read.
        shuffle: `none`; `files` orders the files anew each epoch; `rows` orders row groups anew
            and rows within each row group.
        seed: of the shuffle.
        on_bad_file: `fail` ends the job at a file or row group that can't be read, `skip` counts
            its samples as skipped.
    """

    features: FeatureSpec
    batch_size: int
    lanes: int = 1
    epochs: int = 1
    shuffle: Literal["none", "files", "rows"] = "none"
    seed: int = 0
    on_bad_file: Literal["fail", "skip"] = "fail"


@dataclass(frozen=True, slots=True, kw_only=True)
class Lookup:
    """One input of the model: vectors that are pooled, or a sequence of them.

    Args:
        feature: position of the sparse feature among `FeatureSpec.sparse`.
        table: table whose rows are pooled, as features name it.
        dim: width of the pooled vector, or of each vector of a sequence.
        column: first column of it in the model's pooled input, float32[batch, sum of widths].
        max_norm: of the feature; None for first-order weights.
        parts: physical tables of a composition, which take the place of `table`.
        operation: how rows of the parts become one vector; None where there are none.
        sequence: whether vectors are given to the model one by one, and not pooled.
        length: of a sequence, to which all are filled up; None: the longest of the batch.

    Raises:
        ValueError: the parts don't give one vector of the lookup's dim.
    """

    feature: int
    table: str
    dim: int
    column: int
    max_norm: float | None = None
    parts: tuple[Part, ...] = ()
    operation: Operation | None = None
    sequence: bool = False
    length: int | None = None

    def __post_init__(self) -> None:
        dims = [part.dim for part in self.physical]
        width = sum(dims) if self.operation == "concatenate" else max(dims)
        alike = self.operation == "concatenate" or len(set(dims)) == 1
        if bool(self.parts) != (self.operation is not None) or width != self.dim or not alike:
            raise ValueError(
                f"the lookup of table {self.table!r} has dim {self.dim}, its parts have {dims}"
                f" and operation {self.operation!r}"
            )

    @property
    def width(self) -> int:
        """Columns of it in the pooled input."""
        return 0 if self.sequence else self.dim

    @property
    def physical(self) -> tuple[Part, ...]:
        """The tables that hold the rows, each with what it is asked for."""
        return self.parts or (Part(table=self.table, dim=self.dim),)

    @property
    def assembled(self) -> bool:
        """Whether an occurrence's vector is something else than one row as it was pulled."""
        return self.max_norm is not None or self.operation not in (None, "select")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """The dense part of a model.

    Args:
        type: `dlrm`, `deepfm`, `wide_deep`, `linear`, `custom` or `torch`.
        options: what the type takes beyond this (layer widths, the class of a custom model).
        optimizer: of the dense parameters.
        num_dense: number of dense inputs.
        lookups: in the order of their columns.
        seed: of the initial parameters.
        loss: what training minimises; a custom model computes its own.
        lookup_names: of a torch model the names by which it is given its lookups, in their order.
        tasks: of a torch model that has several, their names: it gives a logit for each.
        task_weights: what the loss of each task is multiplied by, >= 0.
        dense_names: of a torch model the names of the dense inputs, in their order.
    """

    type: str
    options: dict[str, Any]
    optimizer: Optimizer
    num_dense: int
    lookups: tuple[Lookup, ...]
    seed: int = 0
    loss: Loss = "log_loss"
    lookup_names: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    task_weights: tuple[float, ...] = ()
    dense_names: tuple[str, ...] = ()

    @property
    def is_users(self) -> bool:
        """Whether the model is a class of the user's own."""
        return self.type in ("custom", "torch")

    def logits_shape(self, n: int) -> tuple[int, ...]:
        """Return the shape of the logits of n samples: [n], of several tasks [n, tasks]."""
        return (n, len(self.tasks)) if self.tasks else (n,)

    @property
    def pooled_width(self) -> int:
        """Columns of the pooled input."""
        return sum(lookup.width for lookup in self.lookups)

    @property
    def sequences(self) -> list[int]:
        """Numbers of the lookups that are not pooled."""
        return [number for number, lookup in enumerate(self.lookups) if lookup.sequence]
