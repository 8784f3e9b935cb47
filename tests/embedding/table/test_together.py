"""Tables that are pulled and updated together are as those that are pulled and updated alone."""

from dataclasses import replace

import numpy as np
import pytest

from embedding import (
    Adagrad,
    Adam,
    CounterAdmission,
    EmbeddingVariable,
    Normal,
    TableSpec,
    Uniform,
    make_variables,
)
from embedding.optimizers.rule import step_scalars
from embedding.table import together
from embedding.table.together import Together

PLAIN = TableSpec(
    name="a",
    dim=16,
    optimizer=Adagrad(learning_rate=0.1, initial_accumulator=0.1),
    initializer=Uniform(scale=0.1),
)
SPECS = [
    PLAIN,
    replace(PLAIN, name="b", initializer=Normal(stddev=0.3), track_usage=True),
    replace(PLAIN, name="alone", admission=CounterAdmission(min_count=3), track_usage=True),
    replace(PLAIN, name="c", dim=3),
    replace(PLAIN, name="d", dim=3, seed=5),
    replace(PLAIN, name="e", dim=3, optimizer=Adam(learning_rate=0.1)),
    replace(PLAIN, name="f", dim=3, optimizer=Adam(learning_rate=0.1)),
    replace(PLAIN, name="half", value_dtype="float16"),
]


class Step:
    """Keys of all tables for one step, each table's part perhaps with room behind it."""

    def __init__(self, rng: np.random.Generator, number: int, *, gaps: bool, of: int) -> None:
        self.number = number
        sizes = [int(rng.integers(0, of)) for _ in SPECS]
        room = [size + 3 * gaps for size in sizes]
        self.starts = np.concatenate([[0], np.cumsum(room)])
        self.sizes = np.array(sizes)
        widths = [n * spec.dim for n, spec in zip(room, SPECS, strict=True)]
        self.gradient_starts = np.concatenate([[0], np.cumsum(widths)])
        self.keys = np.concatenate([rng.permutation(2 * of)[:n] for n in room]) - of // 2
        self.counts = rng.integers(1, 4, self.keys.size)
        self.gradients = rng.normal(size=sum(widths)).astype(np.float32)
        self.has = (rng.random(self.keys.size) < 0.8).astype(np.uint8) if gaps else None
        self.scalars = [
            np.array(step_scalars(spec.optimizer, learning_rate=0.1, step=number)) for spec in SPECS
        ]

    def alone(self, tables: list[EmbeddingVariable]) -> None:
        for t, table in enumerate(tables):
            own = slice(self.starts[t], self.starts[t] + self.sizes[t])
            first, dim = self.gradient_starts[t], table.spec.dim
            table.apply(
                self.keys[own],
                self.counts[own],
                self.gradients[first : first + self.sizes[t] * dim].reshape(-1, dim),
                None if self.has is None else self.has[own],
                step=self.number,
                scale=0.5,
                scalars=self.scalars[t],
            )

    def together(self, tables: Together) -> None:
        tables.apply(
            self.keys,
            self.counts,
            self.gradients,
            self.has,
            starts=self.starts,
            sizes=self.sizes,
            gradient_starts=self.gradient_starts,
            step=self.number,
            scale=0.5,
            scalars=self.scalars,
        )


def assert_same(alone: list[EmbeddingVariable], joined: list[EmbeddingVariable]) -> None:
    for one, other in zip(alone, joined, strict=True):
        a, b = one.export(), other.export()
        for name in ("keys", "frequency", "version", "vectors", "slots"):
            assert getattr(a, name).tobytes() == getattr(b, name).tobytes(), (one.spec.name, name)
        assert one.num_unadmitted == other.num_unadmitted
        assert one.num_non_finite == other.num_non_finite


@pytest.mark.parametrize("gaps", [False, True])
def test_steps_are_those_of_tables_one_by_one(gaps: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(together, "KEYS_AT_ONCE", 700)  # parts that end within a table
    rng = np.random.default_rng(3)
    alone = make_variables(SPECS, on_non_finite="skip")
    joined = make_variables(SPECS, on_non_finite="skip")
    both = Together(joined)
    assert [alike is not None for _, alike in both._runs] == [True, False, True, True, False]

    for number in range(6):
        step = Step(rng, number, gaps=gaps, of=600)
        if number == 3:
            step.gradients[[5, -7]] = np.nan, np.inf  # left out, and counted
        step.alone(alone)
        step.together(both)
        if number == 4:  # rows come by another way, too
            for tables in (alone, joined):
                tables[0].remove(tables[0].export().keys[::2])
                tables[1].import_rows(tables[0].export())

    assert_same(alone, joined)
    assert sum(table.num_non_finite for table in joined) > 0
    assert max(len(table.rows.arrays.entries) for table in joined) > 16, "indexes have grown"


def test_pulls_are_those_of_tables_one_by_one() -> None:
    rng = np.random.default_rng(4)
    tables = make_variables(SPECS)
    both = Together(tables)
    Step(rng, 0, gaps=False, of=900).together(both)
    sizes = [int(rng.integers(0, 900)) for _ in SPECS]
    keys = rng.integers(-600, 1500, sum(sizes))
    counts = rng.integers(1, 5, keys.size).astype(np.uint32)
    starts = np.concatenate([[0], np.cumsum(sizes)])

    for given in (counts, np.empty(0, np.uint32)):
        values = np.empty(sum(n * s.dim for n, s in zip(sizes, SPECS, strict=True)), np.float32)
        admitted = np.full(keys.size, 7, np.uint8)
        both.pull(keys, given, sizes, values, admitted, step=1)
        at = 0
        for t, table in enumerate(tables):
            own = slice(starts[t], starts[t + 1])
            wanted, bits = np.empty((sizes[t], table.spec.dim), np.float32), admitted[own] + 1
            table.pull(keys[own], given[own] if given.size else None, wanted, bits, step=1)
            assert values[at : at + wanted.size].tobytes() == wanted.tobytes()
            assert admitted[own].tobytes() == bits.tobytes()
            at += wanted.size


def test_what_is_frozen_is_saved_before_it_changes() -> None:
    rng = np.random.default_rng(5)
    tables = make_variables(SPECS)
    both = Together(tables)
    Step(rng, 0, gaps=False, of=500).together(both)
    before = [table.export() for table in tables]
    frozen = [table.freeze(changed_only=False) for table in tables]

    Step(rng, 1, gaps=True, of=500).together(both)

    for wanted, of_table in zip(before, frozen, strict=True):
        parts = list(of_table.rows(1 << 20))
        keys = np.concatenate([part.keys for part in parts])
        vectors = np.concatenate([part.vectors for part in parts])
        order, at = np.argsort(keys), np.argsort(wanted.keys)
        assert keys[order].tolist() == wanted.keys[at].tolist()
        assert vectors[order].tobytes() == wanted.vectors[at].tobytes()


def test_a_table_without_room_is_told_of_as_it_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    tables = make_variables(SPECS[:2])
    both = Together(tables)
    monkeypatch.setattr(tables[1].rows, "_room", tables[1].rows._room._replace(rows=5))
    keys = np.arange(12)
    arguments = {
        "starts": np.array([0, 6, 12]),
        "sizes": np.array([6, 6]),
        "gradient_starts": np.array([0, 96, 192]),
        "step": 0,
        "scale": 1.0,
        "scalars": [np.array([0.1])] * 2,
    }
    both = Together(tables)

    with pytest.raises(MemoryError, match="table b has 0 rows"):
        both.apply(keys, np.ones(12, np.int64), np.ones(192, np.float32), None, **arguments)
