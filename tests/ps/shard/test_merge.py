from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ps.messages.pull_push import Contribution
from ps.shard.merge import MergedStep, add_weighted, merge

DIMS = [1, 3, 2]

a_key = st.one_of(st.integers(0, 6), st.sampled_from([2**63 - 1, -(2**63), 4096]))
a_bit = st.integers(0, 1)
a_float = st.floats(width=32, min_value=-(2.0**100), max_value=2.0**100) | st.just(-0.0)
a_weight = st.sampled_from([1.0, 1.0, 0.5, 0.25, 0.1, 0.3])


def contribution(
    tables: list[list[int]], counts: list[int], admitted: list[int], gradients: np.ndarray
) -> Contribution:
    return Contribution(
        0, 0, 0, 0, 0, 0, 4, 0,
        table_sizes=tuple(map(len, tables)),
        keys=np.array([key for table in tables for key in table], np.int64),
        counts=np.array(counts, np.uint32),
        gradients=gradients,
        dense=np.empty(0, np.float32),
        admitted=np.array(admitted, np.uint8),
    )  # fmt: skip


@st.composite
def contributions(draw: Any, bits: st.SearchStrategy[int] = a_bit) -> Contribution:
    tables = [draw(st.lists(a_key, max_size=5, unique=True)) for _ in DIMS]
    n = sum(map(len, tables))
    admitted = draw(st.lists(bits, min_size=n, max_size=n))
    width = [dim for table, dim in zip(tables, DIMS, strict=True) for _ in table]
    size = sum(dim for dim, bit in zip(width, admitted, strict=True) if bit)
    values = np.array(draw(st.lists(a_float, min_size=size, max_size=size)), np.float32)
    counts = draw(st.lists(st.integers(0, 5), min_size=n, max_size=n))
    return contribution(tables, counts, admitted, values)


def reference(
    parts: list[Contribution], weights: list[float], accepted: list[np.ndarray | None]
) -> list[dict[int, list[Any]]]:
    """For each table {key: [count, gradient or None]}, in float32, left to right."""
    tables: list[dict[int, list[Any]]] = [{} for _ in DIMS]
    for part, weight, mask in zip(parts, weights, accepted, strict=True):
        number = source = 0
        for t, (size, dim) in enumerate(zip(part.table_sizes, DIMS, strict=True)):
            for i in range(number, number + size):
                row = None
                if part.admitted[i]:
                    row = np.float32(weight) * part.gradients[source : source + dim]
                    source += dim
                if mask is not None and not mask[i]:
                    continue
                entry = tables[t].setdefault(int(part.keys[i]), [0, None])
                entry[0] += int(part.counts[i])
                if row is not None:
                    entry[1] = row if entry[1] is None else entry[1] + row
            number += size
    return tables


def as_tables(merged: MergedStep) -> list[dict[int, list[Any]]]:
    tables = []
    for part in map(merged.of, range(len(DIMS))):
        flags = np.ones(part.keys.size) if part.has_gradient is None else part.has_gradient
        assert part.gradients.dtype == np.float32
        assert part.gradients.shape[0] == part.keys.size == part.counts.size == flags.size
        rows = zip(part.keys.tolist(), part.counts.tolist(), part.gradients, flags, strict=True)
        tables.append({k: [count, g if flag else None] for k, count, g, flag in rows})
        assert len(tables[-1]) == part.keys.size, "keys are distinct"
    return tables


def assert_same_bits(got: list[dict[int, list[Any]]], wanted: list[dict[int, list[Any]]]) -> None:
    for a, b in zip(got, wanted, strict=True):
        assert list(a) == list(b), "in the order of first appearance"
        for key in a:
            assert a[key][0] == b[key][0]
            assert (a[key][1] is None) == (b[key][1] is None)
            if a[key][1] is not None:
                assert a[key][1].tobytes() == b[key][1].tobytes(), (a[key], b[key])


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_sums_are_the_reference_bit_for_bit(data: Any) -> None:
    parts = data.draw(st.lists(contributions(), min_size=1, max_size=4))
    weights = data.draw(st.lists(a_weight, min_size=len(parts), max_size=len(parts)))
    accepted = [
        data.draw(
            st.none()
            | st.lists(st.integers(0, 1), min_size=p.keys.size, max_size=p.keys.size).map(
                lambda bits: np.array(bits, np.uint8)
            )
        )
        for p in parts
    ]

    got = merge(parts, weights, accepted, DIMS)

    assert_same_bits(as_tables(got), reference(parts, weights, accepted))


@given(contributions())
@settings(max_examples=100, deadline=None)
def test_one_contribution_alone_is_merged_as_several_are(part: Contribution) -> None:
    """Which path is taken may differ from shard to shard."""
    alone = merge([part], [1.0], [None], DIMS)
    general = merge([part], [1.0], [np.ones(part.keys.size, np.uint8)], DIMS)

    assert_same_bits(as_tables(alone), as_tables(general))


@given(st.lists(contributions(st.integers(0, 255)), min_size=1, max_size=3))
@settings(max_examples=60, deadline=None)
def test_any_nonzero_bit_means_admitted(parts: list[Contribution]) -> None:
    """A byte from a message is not always 0 or 1, and must not move what is read."""
    accepted: list[np.ndarray | None] = [None] * len(parts)

    got = merge(parts, [1.0] * len(parts), accepted, DIMS)

    assert_same_bits(as_tables(got), reference(parts, [1.0] * len(parts), accepted))


def test_a_key_with_and_without_gradients_in_a_step_has_their_sum() -> None:
    g = np.array([2, 3], np.float32)
    parts = [
        contribution([[], [], [7]], [2], [0], np.empty(0, np.float32)),
        contribution([[], [], [7, 8]], [1, 1], [1, 0], g),
        contribution([[], [], [8, 7]], [5, 1], [0, 1], g),
    ]

    merged = merge(parts, [1.0, 0.5, 1.0], [None] * 3, DIMS).of(2)

    assert merged.has_gradient is not None
    assert merged.keys.tolist() == [7, 8]
    assert merged.counts.tolist() == [4, 6], "counts are not weighted"
    assert merged.has_gradient.tolist() == [1, 0]
    assert merged.gradients[0].tolist() == [3.0, 4.5]


def test_the_order_of_contributions_is_the_order_of_the_sum() -> None:
    values = [np.float32(1e8), np.float32(3.0), np.float32(-1e8)]
    parts = [contribution([[1], [], []], [1], [1], np.array([v])) for v in values]

    forward = merge(parts, [1.0] * 3, [None] * 3, DIMS).of(0).gradients[0, 0]
    swapped = merge([parts[0], parts[2], parts[1]], [1.0] * 3, [None] * 3, DIMS).of(0)

    assert forward == np.float32(np.float32(1e8 + 3.0) - np.float32(1e8)) != 3.0
    assert swapped.gradients[0, 0] == 3.0


@pytest.mark.parametrize("num_keys", [0, 1, 5000])
def test_many_keys_are_merged_in_any_table(num_keys: int) -> None:
    rng = np.random.default_rng(num_keys)
    parts = []
    for _ in range(3):
        tables = [rng.choice(2 * num_keys + 1, num_keys, replace=False).tolist() for _ in DIMS]
        n = 3 * num_keys
        admitted = rng.integers(0, 2, n)
        size = sum(
            int(admitted[t * num_keys : (t + 1) * num_keys].sum()) * d for t, d in enumerate(DIMS)
        )
        values = rng.normal(size=size).astype(np.float32)
        parts.append(contribution(tables, [1] * n, admitted.tolist(), values))

    got = merge(parts, [1.0, 0.3, 0.7], [None] * 3, DIMS)

    assert_same_bits(as_tables(got), reference(parts, [1.0, 0.3, 0.7], [None] * 3))


def test_inputs_are_not_written() -> None:
    part = contribution([[1], [2], []], [1, 1], [1, 1], np.ones(4, np.float32))
    arrays = (part.keys, part.counts, part.gradients, part.admitted)
    for array in arrays:
        array.flags.writeable = False

    merge([part], [1.0], [None], DIMS)
    merge([part, part], [1.0, 0.5], [None, None], DIMS)


@pytest.mark.parametrize("weight", [1.0, 0.1])
def test_weighted_sums_have_no_fused_or_reordered_arithmetic(weight: float) -> None:
    rng = np.random.default_rng(1)
    total = rng.normal(size=1001).astype(np.float32)
    values = rng.normal(size=1001).astype(np.float32)
    expected = total + np.float32(weight) * values

    add_weighted(total, values, np.float32(weight))

    assert total.tobytes() == expected.tobytes()


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_means_of_contributors_are_the_reference_in_float64(data: Any) -> None:
    parts = data.draw(st.lists(contributions(), min_size=1, max_size=4))
    for part in parts:
        part.samples = data.draw(st.integers(1, 9))
    weights = data.draw(st.lists(a_weight, min_size=len(parts), max_size=len(parts)))
    dropped = data.draw(st.sampled_from([None, *range(len(parts))]))
    accepted = [np.zeros(p.keys.size, np.uint8) if i == dropped else None
                for i, p in enumerate(parts)]  # fmt: skip

    got = merge(parts, weights, accepted, DIMS, mean_of_contributors=True)

    sums = as_tables(merge(parts, weights, accepted, DIMS))
    for t, (table, wanted) in enumerate(zip(as_tables(got), sums, strict=True)):
        assert list(table) == list(wanted)
        for key, (count, gradient) in table.items():
            starts = [sum(p.table_sizes[:t]) for p in parts]
            having = [
                p.samples
                for i, (p, start) in enumerate(zip(parts, starts, strict=True))
                if i != dropped and key in p.keys[start : start + p.table_sizes[t]]
            ]
            assert count == wanted[key][0]
            assert (gradient is None) == (wanted[key][1] is None)
            if gradient is not None:
                exact = wanted[key][1].astype(np.float64) / sum(having)
                np.testing.assert_allclose(gradient, exact, rtol=1e-6, atol=1e-40)


def test_a_contributor_counts_whole_whatever_its_weight_and_admission() -> None:
    g = np.array([8.0], np.float32)
    parts = [
        contribution([[1, 2], [], []], [1, 1], [1, 0], g),
        contribution([[2, 1], [], []], [1, 1], [1, 1], np.array([6.0, 2.0], np.float32)),
    ]
    parts[0].samples, parts[1].samples = 3, 5

    merged = merge(parts, [1.0, 0.5], [None, None], DIMS, mean_of_contributors=True).of(0)

    assert merged.keys.tolist() == [1, 2]
    np.testing.assert_allclose(merged.gradients[:, 0], [(8 + 1) / 8, 3 / 8], rtol=1e-6)


@pytest.mark.parametrize("admitted", [[1, 1], [1, 0]])
def test_the_mean_of_one_contributor_is_the_same_bits_on_either_path(admitted: list[int]) -> None:
    values = np.array([0.3, -0.7][: sum(admitted)], np.float32)
    part = contribution([[5, 6], [], []], [1, 1], admitted, values)
    part.samples = 7
    part.gradients.flags.writeable = False

    alone = merge([part], [1.0], [None], DIMS, mean_of_contributors=True)
    general = merge([part], [1.0], [np.ones(2, np.uint8)], DIMS, mean_of_contributors=True)

    assert_same_bits(as_tables(alone), as_tables(general))
