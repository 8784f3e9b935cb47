#!/usr/bin/env bash
# DuckDB 2.0.1, polars 2.1.0, pandas 3.1.1: hash(), Series.hash and pandas.util.hash_array give the same hash for an id of an int32 and of an
# int64 column, unless it is negative: hash(7::INTEGER) is hash(7::BIGINT), hash(-7::INTEGER) is not hash(-7::BIGINT). So a test with a few
# small ids says that the width doesn't matter, and it does for half of all ids that are themselves signed 32-bit hashes (mmh3.hash,
# Java's hashCode), where one file, table or day has them as int32 and another as int64.
# Expected: the same hash, as = and joins take the two for the same, or another one for every id. Half of the ids of one source are
# strangers to a model that learned from the other, and a split of users by hash % 10 puts them on both sides.
# What to do: cast to BIGINT or int64 before hashing.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check duckdb==2.0.1 pandas==3.1.1 polars==2.1.0 pyarrow==26.0.1
cd "$folder"
venv/bin/python - <<'PYTHON'
import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa

ids = np.random.default_rng(0).integers(-(2**31), 2**31, 10_000)
widths = {"int32": ids.astype(np.int32), "int64": ids}


def by_duckdb(column):
    rows = pa.table({"id": column, "place": np.arange(len(column))})  # DuckDB finds it by its name
    return duckdb.sql("select hash(id) as h from rows order by place").to_arrow_table()["h"].to_numpy()


for name, hashed in (
    ("duckdb", by_duckdb),
    ("pandas", pd.util.hash_array),
    ("pandas, of a Series", lambda column: pd.util.hash_pandas_object(pd.Series(column), index=False).to_numpy()),
    ("polars", lambda column: pl.Series(column).hash().to_numpy()),
):
    short, long = map(hashed, widths.values())
    same = short == long
    print(f"{name}: the same for {same[ids >= 0].mean():.0%} of the others and for {same[ids < 0].mean():.0%} of the negative ids")
    assert same[ids >= 0].all()
    assert not same[ids < 0].any()
assert duckdb.sql("select count(*) from (select -7::integer as i) join (select -7::bigint as l) on i = l").fetchall() == [(1,)]
PYTHON
