"""What is said of a checkpoint's tables, against the tables themselves."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedding import EmbeddingVariable, TableEntries, TableSpec
from embedding.spec.admission import BloomAdmission, CounterAdmission
from embedding.spec.optimizers import AdamAsync, Sgd
from embedding.table.inspection import norms
from ps.checkpoint import summary as table_summary
from ps.checkpoint.read import CheckpointReader
from ps.checkpoint.restore import load_tables
from ps.checkpoint.summary import TableSummary, overview_of, summarize

TABLES = (
    TableSpec(name="counted", dim=3, admission=CounterAdmission(min_count=3)),
    TableSpec(
        name="filtered",
        dim=2,
        optimizer=AdamAsync(),
        admission=BloomAdmission(min_count=3, max_elements=3000, counter_bits=16),
    ),
    TableSpec(name="empty", dim=4),
    TableSpec(name="open", dim=1, optimizer=Sgd()),
)


@pytest.fixture(scope="module")
def reader(small_job: Any, tmp_path_factory: pytest.TempPathFactory) -> CheckpointReader:
    job = small_job(TABLES, num_shards=2, dense_size=10)
    rng = np.random.default_rng(1)
    for step in range(12):
        keys = rng.zipf(1.3, 200) % 1000 - 5
        job.train(step, keys, keys, [], keys[:60])
    return CheckpointReader(job.write_checkpoint(tmp_path_factory.mktemp("checkpoint")))


@pytest.fixture(scope="module")
def tables(reader: CheckpointReader) -> dict[str, EmbeddingVariable]:
    return load_tables(reader)


def summary_of(reader: CheckpointReader, name: str, **options: Any) -> TableSummary:
    (spec,) = (table for table in reader.store.tables if table.name == name)
    return summarize(reader, spec, **{"top": 5, "by": "frequency", **options})


@pytest.mark.parametrize("spec", TABLES, ids=lambda spec: spec.name)
def test_the_manifest_says_what_a_loaded_table_has(
    reader: CheckpointReader, tables: dict[str, EmbeddingVariable], spec: TableSpec
) -> None:
    table = tables[spec.name]

    overview = overview_of(reader, spec)

    filtered = spec.name == "filtered"
    assert (overview.rows, overview.unadmitted) == (
        len(table),
        None if filtered else table.num_unadmitted,
    )
    assert overview.memory_bytes == table.memory()["total"]
    folder = reader.directory / "tables" / spec.name
    assert overview.file_bytes == sum(path.stat().st_size for path in folder.iterdir())


@pytest.mark.parametrize("spec", TABLES, ids=lambda spec: spec.name)
@pytest.mark.parametrize("by", ["frequency", "version", "norm"])
def test_files_say_what_a_loaded_table_says(
    reader: CheckpointReader, tables: dict[str, EmbeddingVariable], spec: TableSpec, by: Any
) -> None:
    table = tables[spec.name]

    found = summary_of(reader, spec.name, top=7, by=by)

    wanted = table.top(7, by)
    for name in ("keys", "frequency", "version", "vectors", "slots"):
        assert getattr(found.top, name).tobytes() == getattr(wanted, name).tobytes()
    assert found.row_histogram.tolist() == table.frequency_histogram().tolist()
    assert found.unadmitted_histogram.tolist() == table.frequency_histogram("unadmitted").tolist()


def test_ranges_are_those_of_all_rows(
    reader: CheckpointReader, tables: dict[str, EmbeddingVariable]
) -> None:
    rows = tables["counted"].export()

    found = summary_of(reader, "counted")

    values = {"frequency": rows.frequency, "version": rows.version, "norm": norms(rows.vectors)}
    for name, all_values in values.items():
        ordered = np.sort(all_values)
        median = ordered[-(-len(ordered) // 2) - 1]
        got = found.ranges[name]
        assert (got["min"], got["p50"], got["max"]) == (ordered[0], median, ordered[-1])
        assert list(got) == ["min", "p10", "p50", "p90", "p99", "max"]
        assert sorted(got.values()) == list(got.values())
    assert all(isinstance(value, int) for value in found.ranges["frequency"].values())
    assert (found.sampled_rows, found.nonfinite_rows) == (len(rows.keys), 0)


def test_a_table_without_rows_has_no_ranges(reader: CheckpointReader) -> None:
    found = summary_of(reader, "empty", keys=[3])

    assert found.ranges == {"frequency": {}, "version": {}, "norm": {}}
    assert (found.row_histogram.sum(), found.top.keys.size, found.sampled_rows) == (0, 0, 0)
    assert found.keys[0].state == "absent"


def test_quantiles_of_large_tables_are_of_a_sample_and_ends_are_not(
    reader: CheckpointReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = summary_of(reader, "counted")
    monkeypatch.setattr(table_summary, "_SAMPLE_ROWS", 10)

    sampled = summary_of(reader, "counted")

    rows = whole.overview.rows
    assert sampled.sampled_rows == -(-rows // -(-rows // 10)) <= 10
    for name, values in sampled.ranges.items():
        assert (values["min"], values["max"]) == (
            whole.ranges[name]["min"],
            whole.ranges[name]["max"],
        )


def test_every_stride_th_value_is_sampled_whatever_the_parts() -> None:
    for parts in ([10], [1] * 10, [4, 0, 5, 1], [2, 8]):
        found = table_summary._Range(3)
        for part in np.split(np.arange(10), np.cumsum(parts)[:-1]):
            found.add(part)

        assert np.concatenate(found._sample).tolist() == [0, 3, 6, 9]


def test_keys_are_found_in_rows_and_counters_or_nowhere(
    reader: CheckpointReader, tables: dict[str, EmbeddingVariable]
) -> None:
    table = tables["counted"]
    rows, counters = table.export(), table.export_counters()
    row, counter, absent = int(rows.keys[4]), int(counters.keys[2]), 2**63 - 1

    found = summary_of(reader, "counted", keys=[absent, row, counter, row]).keys

    assert [(state.key, state.state) for state in found] == [
        (absent, "absent"),
        (row, "row"),
        (counter, "counter"),
        (row, "row"),
    ]
    assert (found[1].frequency, found[1].version) == (rows.frequency[4], rows.version[4])
    assert found[1].row is not None
    assert found[1].row.vectors.tobytes() == rows.vectors[4].tobytes()
    assert found[1].row.slots.tobytes() == rows.slots[4].tobytes()
    assert (found[2].frequency, found[2].version) == (
        counters.frequency[2],
        counters.version[2],
    )
    assert (found[0].frequency, found[0].version, found[2].row) == (0, None, None)


def test_of_keys_without_a_row_the_bloom_filter_is_asked(
    reader: CheckpointReader, tables: dict[str, EmbeddingVariable]
) -> None:
    table = tables["filtered"]
    keys = np.arange(-10, 1000)
    admitted = set(table.export().keys.tolist())

    found = summary_of(reader, "filtered", keys=keys.tolist()).keys

    assert [state.frequency for state in found] == table.frequency(keys).tolist()
    for state in found:
        absent = "counter" if state.frequency else "absent"
        assert state.state == ("row" if state.key in admitted else absent)
    assert {state.state for state in found} == {"row", "counter", "absent"}


def test_rows_that_are_not_numbers_are_counted_and_left_out_of_ranges(
    small_job: Any, tmp_path: Path
) -> None:
    spec = TableSpec(name="t", dim=2, optimizer=Sgd())
    job = small_job([spec])
    keys = np.arange(3)
    vectors = np.array([[3, 4], [np.nan, 0], [np.inf, 1]], np.float32)
    none = np.empty((3, 0), np.float32)
    job.shards[0].tables[0].import_rows(TableEntries(keys, keys, keys, vectors, none))

    found = summary_of(CheckpointReader(job.write_checkpoint(tmp_path)), "t", by="norm")

    assert found.nonfinite_rows == 2
    assert (found.ranges["norm"]["min"], found.ranges["norm"]["max"]) == (5.0, 5.0)
    assert found.ranges["frequency"]["max"] == 2
    assert found.top.keys.tolist() == [1, 2, 0]
