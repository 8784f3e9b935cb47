"""Labels of recorded rows, told some time after the rows: what clicks are to impressions."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from runtime.near_names import near_name

Delay = Literal["exponential", "fixed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelDelay:
    """Which labels come when.

    Args:
        labels: columns of labels; positives are told, of negatives nobody hears.
        key: column by which samples and labels find each other.
        seconds: of delay of each of them, or their mean.
        kind: how delays are spread.
        seed: of what is drawn.
    """

    labels: tuple[str, ...] = ("label",)
    key: str = "sample_id"
    seconds: tuple[float, ...] = (10.0,)
    kind: Delay = "exponential"
    seed: int = 0


class DelayedLabels:
    """Takes the labels out of rows, and gives them back when they are due.

    Args:
        delay: of each.
    """

    def __init__(self, delay: LabelDelay) -> None:
        self._delay = delay
        self._random = np.random.default_rng(delay.seed)
        self._waiting: list[pa.Table] = []  # with a column `_due`

    @property
    def key(self) -> str:
        """The column by which samples and labels find each other."""
        return self._delay.key

    @property
    def next_due(self) -> float | None:
        """When the next of the labels is due, seconds since 1970; None: none waits."""
        return min((pc.min(each["_due"]).as_py() for each in self._waiting), default=None)

    def split(self, table: pa.Table, now: float) -> pa.Table:
        """Return rows that happen now without their labels, which wait.

        Raises:
            ValueError: they have no label.
        """
        delay = self._delay
        for label, seconds in zip(delay.labels, delay.seconds, strict=True):
            if label not in table.column_names:
                near = near_name(label, table.column_names)
                raise ValueError(
                    f"the rows have no column {label!r}"
                    + (f", but {near!r}" if near else "")
                    + "; name the one that holds their labels"
                )
            positive = self._positive(table, label)
            drawn = np.full(positive.num_rows, seconds)
            if delay.kind == "exponential":
                drawn = self._random.exponential(seconds, positive.num_rows)
            if positive.num_rows:
                self._waiting.append(positive.append_column("_due", pa.array(now + drawn)))
        return table.drop_columns(list(delay.labels))

    def _positive(self, table: pa.Table, label: str) -> pa.Table:
        """Return the keys of positives and their label; the other labels are null there."""
        names = [self._delay.key, *self._delay.labels]
        found = table.select(names).filter(pc.equal(table[label].cast(pa.float64()), 1.0))
        for at, name in enumerate(names):
            if name not in (self._delay.key, label):
                kind = found.schema.field(name).type
                found = found.set_column(at, name, pa.nulls(found.num_rows, kind))
        return found

    def due(self, now: float) -> pa.Table | None:
        """Return, once, the labels that are due by now, in the order of their time."""
        if not self._waiting:
            return None
        whole = pa.concat_tables(self._waiting)
        is_due = pc.less_equal(whole["_due"], now)
        rest = whole.filter(pc.invert(is_due))
        self._waiting = [rest] if rest.num_rows else []
        found = whole.filter(is_due).sort_by("_due").drop_columns(["_due"])
        return found if found.num_rows else None
