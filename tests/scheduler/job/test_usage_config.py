"""`track_usage` in the job file: on where something needs it, or where it is asked for."""

from typing import Any

import pytest

from scheduler import ConfigError, JobConfig
from scheduler.job.specs import model_spec, store_spec


def tracked(embedding: dict[str, Any], **table: Any) -> set[str]:
    """Return the tables that track usage; `table` is what C2 has different."""
    config = JobConfig.from_dict(
        {
            "data": {"train": "a/*.parquet", "dense": ["x"], "sparse": ["C1", "C2"]},
            "embedding": embedding,
            "tables": {"C2": table} if table else {},
            "model": {"type": "dlrm", "bottom_mlp": [8], "top_mlp": [8]},
            "run": {"dir": "runs/x"},
        }
    )
    return {spec.name for spec in store_spec(config, model_spec(config)).tables if spec.track_usage}


def test_it_is_off_where_nothing_needs_it() -> None:
    assert tracked({}) == set()
    assert tracked({"eviction": {"l2_weight_threshold": 0.1}}) == set()


@pytest.mark.parametrize(
    "rule", [{"steps_to_live": 100}, {"max_rows": 2**20}, {"max_bytes": 2**34}], ids=str
)
def test_eviction_turns_it_on_for_its_tables(rule: dict[str, int]) -> None:
    assert tracked({"eviction": rule}) == {"C1", "C2"}
    assert tracked({}, eviction=rule) == {"C2"}


def test_blocks_by_frequency_turn_it_on_for_the_block_that_is_asked() -> None:
    composition = {"type": "dynamic_dimension", "min_counts": [3]}

    assert tracked({}, composition=composition) == {"C2"}


def test_static_rows_have_none_for_an_eviction_that_they_do_not_have() -> None:
    table: dict[str, Any] = {
        "composition": {"type": "adaptive", "static_rows": 4096},
        "admission": {"type": "counter", "min_count": 2},
    }

    assert tracked({}, **table, eviction={"steps_to_live": 5}) == {"C2"}
    assert tracked({}, **table, track_usage=True) == {"C2", "C2_static"}


def test_it_can_be_asked_for() -> None:
    assert tracked({"track_usage": True}) == {"C1", "C2"}
    assert tracked({"track_usage": True}, track_usage=False) == {"C1"}
    assert tracked({}, track_usage=True) == {"C2"}


@pytest.mark.parametrize(
    ("embedding", "table", "field"),
    [
        ({"track_usage": False, "eviction": {"steps_to_live": 9}}, {}, "embedding.track_usage"),
        ({"eviction": {"steps_to_live": 9}}, {"track_usage": False}, "tables.C2.track_usage"),
    ],
)
def test_it_can_not_be_off_where_eviction_needs_it(
    embedding: dict[str, Any], table: dict[str, Any], field: str
) -> None:
    with pytest.raises(ConfigError, match=f"{field} can't be false: eviction of table C"):
        tracked(embedding, **table)
