"""Many tables in one process: each gets as much room as the others, on machines of any size."""

import mmap
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from embedding import EmbeddingVariable, TableSpec, make_variables
from embedding.entries import CounterEntries
from embedding.spec.admission import BloomAdmission, CounterAdmission
from embedding.table import machine_limits
from embedding.table.rows import MAX_ROWS
from embedding.table.sharing import budget_of

linux = pytest.mark.skipif(sys.platform != "linux", reason="address space as Linux has it")

TABLE = TableSpec(name="t", dim=16)


def specs_of(number: int) -> list[TableSpec]:
    return [replace(TABLE, name=f"t{i}") for i in range(number)]


def reserved_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE


def rooms_of(tables: list[EmbeddingVariable]) -> list[int]:
    return [len(table._rows.arrays.values) for table in tables]


@pytest.fixture
def machine(monkeypatch):
    """Pretend that the machine has so much memory."""

    def pretend(gib: int) -> None:
        monkeypatch.setattr(machine_limits, "physical_memory_bytes", lambda: gib << 30)
        monkeypatch.setattr(machine_limits, "cgroup_memory_bytes", lambda: None)

    return pretend


@linux
@pytest.mark.parametrize("gib", [512, 2048, 4096])
@pytest.mark.parametrize(("number", "least"), [(200, 10**9), (2000, 10**8)])
def test_the_last_of_many_tables_has_as_much_room_as_the_first(machine, gib, number, least):
    machine(gib)
    tables = make_variables(specs_of(number))

    rooms = rooms_of(tables)

    assert min(rooms) == max(rooms) > least
    np.empty(1 << 30, np.uint8)  # and something is left
    keys = np.arange(1000)
    for table in (tables[0], tables[-1]):
        table.import_counters(CounterEntries(keys, keys, keys))
        values, admitted = np.empty((1000, 16), np.float32), np.empty(1000, np.uint8)
        table.pull(keys, None, values, admitted)
        assert table.num_unadmitted == 1000


@linux
def test_each_of_few_tables_may_fill_the_machine(machine):
    machine(512)

    rooms = rooms_of(make_variables(specs_of(20)))

    row_bytes = 4 * 32 + 8 + 9 + 19  # vector and accumulator, usage, key and flags, index
    assert set(rooms) == {(512 << 30) // row_bytes}


@linux
def test_a_table_that_does_not_count_reserves_no_counters(machine):
    machine(512)
    counting = replace(TABLE, admission=CounterAdmission(min_count=3))
    before = reserved_bytes()
    plain = make_variables([TABLE])
    of_plain = reserved_bytes() - before

    both = make_variables([counting])

    of_both = reserved_bytes() - before - of_plain
    assert of_plain < 1.15 * (512 << 30)
    assert of_both > of_plain + (100 << 30)
    assert rooms_of(plain) == rooms_of(both)


def test_counters_of_another_rule_can_be_taken_over_where_none_were_reserved():
    table = EmbeddingVariable(TABLE)
    keys = np.arange(5000)

    for _ in range(2):
        table.import_counters(CounterEntries(keys, keys + 1, keys + 2))

        assert table.num_unadmitted == 5000
        assert table.frequency(keys[:3]).tolist() == [1, 2, 3]
        assert table.version(keys[:3]).tolist() == [2, 3, 4]
        assert table.evict(1 << 40).tolist() == keys.tolist()
        assert table.num_unadmitted == 0


def test_shares_are_of_what_filters_leave_and_counters_take_one():
    plain, filtered = (
        replace(TABLE, name="p"),
        replace(TABLE, name="f", admission=BloomAdmission(min_count=2, max_elements=10**9)),
    )
    counting = replace(TABLE, name="c", admission=CounterAdmission(min_count=2))

    assert budget_of([plain, counting]).shares == 3
    assert budget_of([plain, filtered]).shares == 2
    assert budget_of([]).shares == 1
    less = budget_of([plain]).address.num_bytes - budget_of([filtered]).address.num_bytes
    assert less >= 10**9 * 8  # bits a key, at least


def test_filters_beyond_the_address_space_are_refused_by_what_makes_them_large():
    rule = BloomAdmission(
        min_count=2, max_elements=2**40, false_positive_probability=1e-6, counter_bits=64
    )

    with pytest.raises(MemoryError, match=r"^Bloom filters need 2\d\d,[\d,]+ bytes .*max_elements"):
        make_variables([replace(TABLE, admission=rule)])


def limited(script: str, *, mib: int) -> str:
    """Run a script that is left so much address space; return what it prints."""
    begin = f"""
import mmap, resource
import numpy as np
from embedding import EmbeddingVariable, TableEntries, TableSpec, make_variables
used = int(open("/proc/self/statm").read().split()[0]) * mmap.PAGESIZE
resource.setrlimit(resource.RLIMIT_AS, (used + ({mib} << 20), resource.RLIM_INFINITY))
"""
    done = subprocess.run(
        [sys.executable, "-c", begin + script], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@linux
def test_under_a_limit_on_address_space_tables_share_what_is_left():
    said = limited(
        """
tables = make_variables([TableSpec(name=f"t{i}", dim=16) for i in range(50)])
np.ones(40 << 20, np.uint8)  # a quarter is left
keys, values = np.arange(1 << 20), np.ones((1 << 20, 16), np.float32)
last = tables[-1]
try:
    last.import_rows(TableEntries(keys, keys, keys, values, values))
except MemoryError as error:
    print(error)
print(len(last))
""",
        mib=1000,
    )

    assert "table t49 has 0 rows of width 32 and can't take 1,048,576 more" in said
    assert "a share of 1/50 in what the limit on virtual memory (ulimit -v) leaves (" in said
    assert "Raise it, use more servers, or evict" in said
    assert said.splitlines()[-1] == "0"


@linux
@pytest.mark.parametrize("how", ["make_variables(specs)", "[EmbeddingVariable(s) for s in specs]"])
def test_tables_without_room_worth_beginning_with_are_refused_when_they_are_made(how):
    said = limited(
        f"""
specs = [TableSpec(name=f"t{{i}}", dim=16) for i in range(2000)]
try:
    {how}
except MemoryError as error:
    print(error)
""",
        mib=400,
    )

    assert "rows and needs room for 4,096 at least" in said
    assert "(ulimit -v) leaves" in said
    alone = "table t" in said and "made alone" in said and "make_variables" in said
    assert alone or "table t0, one of 2000 of this process" in said


def test_a_row_number_limits_a_table_on_the_largest_machines(machine):
    machine(1 << 14)

    assert rooms_of(make_variables([replace(TABLE, dim=1)])) == [MAX_ROWS]
