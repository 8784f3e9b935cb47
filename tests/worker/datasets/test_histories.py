"""Generated histories: what a seed fixes, and that what was seen counts where it fits the offer."""

import itertools
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from worker.datasets.planted import draw
from worker.datasets.planted_histories import (
    DECAY,
    ITEMS,
    MOST_SEEN,
    SEEN_BIAS,
    SEEN_WEIGHT,
    TOPICS,
    Histories,
    draw_histories,
)
from worker.datasets.synthetic import CriteoLike, write_criteo_like


@pytest.fixture(scope="module")
def histories() -> Histories:
    return draw_histories(seed=7, split="train", chunk=0)


def test_the_same_arguments_give_the_same_histories_and_others_others(
    histories: Histories,
) -> None:
    again = draw_histories(seed=7, split="train", chunk=0)
    others = [
        draw_histories(seed=8, split="train", chunk=0),
        draw_histories(seed=7, split="test", chunk=0),
        draw_histories(seed=7, split="train", chunk=1),
    ]

    for name in ("items", "frequencies", "seen", "offsets", "logits"):
        np.testing.assert_array_equal(getattr(again, name), getattr(histories, name))
    assert all((other.items != histories.items).mean() > 0.9 for other in others)


def test_what_was_seen_counts_by_its_topic_and_its_age(histories: Histories) -> None:
    # Which items are of one topic is seen of the samples of one item with a single kind of history.
    lengths = np.diff(histories.offsets)
    assert 0 == lengths.min() < lengths.mean() < lengths.max() == MOST_SEEN
    nothing = histories.logits[lengths == 0]
    np.testing.assert_array_equal(nothing, SEEN_BIAS)

    known = np.expm1((histories.logits - SEEN_BIAS) / SEEN_WEIGHT)
    of_same_item = np.zeros(len(lengths))
    for i in range(len(lengths)):
        seen = histories.seen[histories.offsets[i] : histories.offsets[i + 1]]
        ages = np.arange(seen.size)[::-1]
        of_same_item[i] = (DECAY**ages)[seen == histories.items[i]].sum()
    assert (of_same_item <= known + 1e-9).all(), "an item is of its own topic"
    assert 0 < of_same_item.mean() < 0.2 * known.mean(), "and others are, too"


def test_items_are_as_frequent_as_it_says(histories: Histories) -> None:
    items, first, counts = np.unique(histories.items, return_index=True, return_counts=True)
    expected = histories.frequencies[first] * len(histories.items) / 1e9

    assert items.size < TOPICS * ITEMS
    often = expected > 15
    assert often.sum() > 30
    assert counts[often].sum() == pytest.approx(expected[often].sum(), rel=0.1)
    assert (np.abs(counts - expected)[often] < 5 * np.sqrt(expected[often])).all()


def test_a_data_set_has_them_beside_the_same_inputs(tmp_path: Path) -> None:
    plain = CriteoLike(rows=300, test_rows=200, files=2)
    write_criteo_like(tmp_path / "plain", plain)
    about = write_criteo_like(
        tmp_path / "with", CriteoLike(rows=300, test_rows=200, files=2, histories=True)
    )

    one, other = (pq.read_table(tmp_path / name / "train") for name in ("plain", "with"))
    assert other.column_names == [*one.column_names, "item", "item_frequency", "seen"]
    names = one.column_names[1:]
    assert other.select(names).equals(one.select(names))
    histories = draw_histories(seed=7, split="train", chunk=0)
    labels = draw(seed=7, split="train", chunk=0, beside=histories.logits).labels
    np.testing.assert_array_equal(other["label"].to_numpy(), labels[:300])
    stops = itertools.pairwise(histories.offsets[:301])
    expected = [histories.seen[start:stop].tolist() for start, stop in stops]
    assert other["seen"].to_pylist() == expected
    assert other["item"].to_pylist() == histories.items[:300].tolist()
    told = json.loads((tmp_path / "with" / "about.json").read_text())
    assert told["columns"]["histories"] == ["item", "item_frequency", "seen"]
    assert about["best_auc"] > 0.8
