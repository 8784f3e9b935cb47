"""inspect_table.py as a user runs it, on a checkpoint of a small store."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_here import run_here

from embedding import CounterEntries, TableEntries, TableSpec
from embedding.spec.admission import BloomAdmission, CounterAdmission
from embedding.spec.eviction import Eviction
from embedding.spec.optimizers import Adagrad
from ps.checkpoint.manifest import Manifest, write_manifest
from ps.checkpoint.write import write_shard
from ps.shard.shard import Shard
from ps.spec import StoreSpec
from synchromesh.commands.main import main

USER, ITEM, NEVER_SEEN, PLAIN = TABLES = (
    TableSpec(
        name="user",
        dim=16,
        admission=CounterAdmission(min_count=3),
        eviction=Eviction(steps_to_live=1000),
    ),
    TableSpec(name="item", dim=2, admission=BloomAdmission(min_count=3, max_elements=5000)),
    TableSpec(name="never_seen", dim=4),
    TableSpec(name="plain", dim=1, track_usage=False),
)
LARGEST_KEY = -(2**63)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Table `user` has keys 1 to 1,000, key 1 seen most, and -(2^63), seen 2^40 times."""
    folder = tmp_path_factory.mktemp("checkpoint")
    store = StoreSpec(tables=TABLES, dense_size=1, dense_optimizer=Adagrad(), num_shards=1)
    shard = Shard(store, 0)
    shard.initialize(0, dense=np.zeros(1, np.float32))
    keys = np.append(np.arange(1, 1001), LARGEST_KEY)
    frequency = np.append(3000 // keys[:-1], 2**40)
    vectors = np.random.default_rng(0).normal(size=(1001, 16)).astype(np.float32)
    user, item, _, plain = shard.tables
    user.import_rows(TableEntries(keys, frequency, keys % 77, vectors, vectors + 9))
    plain.import_rows(TableEntries(keys, keys, keys, vectors[:, :1], vectors[:, :1]))
    unadmitted = np.array([5001, 5002, 5003])
    user.import_counters(CounterEntries(unadmitted, np.array([1, 2, 2]), unadmitted))
    none = np.zeros(3, np.int64)
    item.import_counters(CounterEntries(unadmitted, np.array([1, 2, 2]), none))
    files = write_shard(folder, shard)
    manifest = Manifest(
        kind="full",
        step=1234,
        recovery_epoch=0,
        store=store.to_json(),
        model={},
        job={},
        files=tuple(files),
    )
    write_manifest(folder, manifest)
    return folder


def shown(*arguments: object, **environment: str) -> list[str]:
    done = run_here("inspect", *arguments, **environment)
    assert (done.returncode, done.stderr) == (0, "")
    return [line.rstrip() for line in done.stdout.splitlines()]


def object_of(*arguments: object) -> dict[str, Any]:
    (line,) = shown(*arguments, "--json")

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(line, parse_constant=refuse)


# For people ---------------------------------------------------------------------------------------


def test_each_table_has_a_line(checkpoint: Path) -> None:
    lines = shown(checkpoint, COLUMNS="120")

    assert lines[0] == f"Checkpoint {checkpoint}, step 1,234"
    assert lines[2].split() == [
        "table", "rows", "unadmitted", "files", "dim", "optimizer", "admission", "eviction",
    ]  # fmt: skip
    assert lines[3].split()[:3] == ["user", "1,001", "3"]
    assert lines[3].split()[5:] == [
        "16", "adagrad", "counter,", "min_count", "3", "steps_to_live", "1000",
    ]  # fmt: skip
    assert lines[4].split()[:3] == ["item", "0", "unknown"]
    assert " ".join(lines[5].split()[4:]) == "bytes 4 adagrad all keys never"
    assert lines[-1].startswith("4 tables: 2,002 rows, ")


def test_a_table_is_shown_in_80_columns(checkpoint: Path) -> None:
    lines = shown(
        checkpoint,
        "user",
        "--top",
        "2",
        "--key",
        "2",
        "--key",
        "5002",
        "--key",
        "77777",
        COLUMNS="80",
    )

    body = lines[1:]  # the first has the path
    assert max(map(len, body)) <= 80
    assert not any("…" in line for line in body), "nothing is cut"
    facts = dict(line.split("  ", 1) for line in body[1:10])
    assert facts["rows"].strip() == "1,001"
    assert facts["optimizer"].strip() == "adagrad, learning_rate 0.05, initial_accumulator 1e-08"
    assert facts["admission"].strip() == "counter, min_count 3"
    keys = [*range(1, 1001), LARGEST_KEY]
    versions = sorted(key % 77 for key in keys)
    wanted = [versions[max(math.ceil(q * 1001) - 1, 0)] for q in (0, 0.1, 0.5, 0.9, 0.99, 1)]
    assert ["version", *map(str, wanted)] in [line.split() for line in body]
    assert any(line.startswith(f"{LARGEST_KEY}    1.1e+12 ") for line in body)
    assert any(line.startswith(f"{1:20}      3,000        1 ") for line in body)
    texts = [line for line in body if line.startswith("Key ")]
    assert texts[0].startswith("Key 2: a row, seen 1,500 times, last changed by step 2")
    assert texts[1:] == [
        "Key 5002: no row but a counter, seen 2 times, last at step 5,002",
        "Key 77777: absent, it has neither row nor counter",
    ]


def test_the_chart_counts_every_row_and_every_unadmitted_key(checkpoint: Path) -> None:
    lines = shown(checkpoint, "user", "--top", "0")

    start = lines.index("Rows by how often their key was seen") + 1
    chart = lines[start : lines.index("", start)]
    rows = [
        re.fullmatch(r" *(\S.*?) +([\d,]+)(  +(?:< )?[\d.]+ %  [█▏▎▍▌▋▊▉]+)?", c) for c in chart
    ]
    assert all(rows), chart
    assert sum(int(row[2].replace(",", "")) for row in rows if row) == 1001
    assert "2^40 to 2^41-1" in chart[-1]
    assert chart[-1].endswith("▏")
    unadmitted = lines[lines.index("Unadmitted keys by how often they were seen") + 1 :]
    assert unadmitted[0].split()[:4] == ["1", "1", "33.3", "%"]
    assert unadmitted[1].split()[:6] == ["2", "to", "3", "2", "66.7", "%"]
    assert unadmitted[0].count("█") * 2 == unadmitted[1].count("█") == 40


def test_there_are_no_colours_and_block_characters_where_they_do_not_belong(
    checkpoint: Path,
) -> None:
    command = [sys.executable, "-m", "synchromesh", "inspect", checkpoint, "user"]
    piped, ascii_only = (
        subprocess.run(
            command,
            stdout=subprocess.PIPE,
            encoding=encoding,
            timeout=120,
            check=True,
            env={**os.environ, "PYTHONIOENCODING": encoding},
        ).stdout
        for encoding in ("utf-8", "ascii")
    )

    assert "\x1b" not in piped
    assert "█" in piped
    assert ascii_only.isascii()
    assert "########" in ascii_only


def test_a_table_without_rows_is_shown(checkpoint: Path) -> None:
    lines = shown(checkpoint, "never_seen", "--key", "-1")

    assert lines[-1] == "Key -1: absent, it has neither row nor counter"
    assert not any("by how often" in line for line in lines)


def test_a_table_without_usage_is_ranked_by_norm(checkpoint: Path) -> None:
    lines = shown(checkpoint, "plain", "--top", "1", "--key", "2")
    found = object_of(checkpoint, "plain", "--top", "1", "--key", "2")

    assert "usage              not tracked (track_usage)" in lines
    assert "Rows that are highest by norm" in lines
    assert not any("frequency" in line or "version" in line for line in lines)
    assert not any("by how often" in line for line in lines)
    assert re.fullmatch(r"Key 2: a row, norm [\d.]+", lines[-3])
    assert list(found["ranges"]) == ["norm"]
    (highest,) = found["top"]["rows"]
    assert found["top"]["by"] == "norm"
    assert highest["norm"] == found["ranges"]["norm"]["max"]
    assert highest.keys() == {"key", "norm", "vector", "slot_accumulator"}
    assert found["frequencies"] == []


def test_a_bloom_filter_says_what_it_knows(checkpoint: Path) -> None:
    lines = shown(checkpoint, "item", "--key", "5001", "--key", "5002")

    assert lines[-3:] == [
        "Key 5001: no row; by the Bloom filter seen once at most",
        "",
        "Key 5002: no row; by the Bloom filter seen 2 times at most",
    ]
    assert any("unknown: a Bloom filter counts without keeping keys" in line for line in lines)


# For programs -------------------------------------------------------------------------------------


def test_json_of_a_checkpoint_has_the_specs_and_the_sizes(checkpoint: Path) -> None:
    found = object_of(checkpoint)

    assert (found["checkpoint"], found["step"]) == (str(checkpoint), 1234)
    user, item, never_seen, plain = found["tables"]
    assert (user["name"], user["rows"], user["unadmitted"]) == ("user", 1001, 3)
    assert user["admission"] == {"type": "counter", "min_count": 3}
    assert (item["unadmitted"], never_seen["rows"]) == (None, 0)
    assert (user["track_usage"], plain["track_usage"]) == (True, False)
    assert user["file_bytes"] > 1001 * (24 + 128)
    assert user["memory_bytes"] > 1001 * (16 + 128)


def test_json_of_a_table_has_everything(checkpoint: Path) -> None:
    found = object_of(
        checkpoint,
        "user",
        "--top",
        "3",
        "--by",
        "version",
        "--key",
        "2",
        "--key",
        "5003",
        "--key",
        "9999",
    )

    assert (found["step"], found["table"]["name"]) == (1234, "user")
    assert found["ranges"]["frequency"]["max"] == 2**40
    assert (found["sampled_rows"], found["nonfinite_rows"]) == (1001, 0)
    assert sum(one["rows"] for one in found["frequencies"]) == 1001
    assert found["frequencies"][0] == {"from": 1, "to": 1, "rows": 0, "unadmitted": 1}
    assert found["frequencies"][-1]["from"] == 2**40
    assert found["top"]["by"] == "version"
    assert [row["key"] for row in found["top"]["rows"]] == [76, 153, 230]
    assert len(found["top"]["rows"][0]["vector"]) == 16
    row, counter, absent = found["keys"]
    assert (row["key"], row["state"], row["frequency"]) == (2, "row", 1500)
    assert np.float32(row["slot_accumulator"]) == pytest.approx(np.float32(row["vector"]) + 9)
    assert counter == {"key": 5003, "state": "counter", "frequency": 2, "version": 5003}
    assert absent == {"key": 9999, "state": "absent", "frequency": 0, "version": None}


# Mistakes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["NOWHERE"], "neither a checkpoint nor a run directory"),
        (["CHECKPOINT", "users"], "has no table 'users'; did you mean 'user'?"),
        (["CHECKPOINT", "--top", "3"], "--top needs TABLE"),
        (["CHECKPOINT", "--by", "norm"], "--by needs TABLE"),
        (["CHECKPOINT", "--key", "3"], "--key needs TABLE"),
        (["CHECKPOINT", "user", "--top", "-1"], "-1 is not in the range x>=0"),
        (
            ["CHECKPOINT", "user", "--by", "age"],
            "'age' is not one of 'frequency'",
        ),
        (["CHECKPOINT", "plain", "--by", "version"], "so its rows have no version; take --by norm"),
        (["CHECKPOINT", "user", "--key", "x"], "'x' is not a valid integer"),
        (["CHECKPOINT", "user", "--key", str(2**63)], "is not in the range"),
    ],
)
def test_mistakes_exit_2(
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.setattr("signal.signal", lambda *_: None)  # this process keeps its own
    places = {"CHECKPOINT": str(checkpoint), "NOWHERE": str(tmp_path / "nowhere")}

    code = main(["inspect", *(places.get(a, a) for a in arguments)])

    said = capsys.readouterr()
    assert (code, said.out) == (2, "")
    assert message in said.err.splitlines()[-1]


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_damaged_file_is_named_in_one_line(
    checkpoint: Path, tmp_path: Path, options: list[str]
) -> None:
    copy = shutil.copytree(checkpoint, tmp_path / "copy")
    (damaged,) = copy.glob("tables/user/counters-*")
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)

    done = run_here("inspect", copy, "user", *options)

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"error: failed: {damaged} is damaged: bytes 0 to ")
    assert len(done.stderr.splitlines()) == 1
    assert run_here("inspect", copy, "never_seen").returncode == 0


def test_help_says_what_it_takes() -> None:
    done = run_here("inspect", "--help")

    assert done.returncode == 0
    assert "CHECKPOINT_OR_RUN [TABLE]" in done.stdout
