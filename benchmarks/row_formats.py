"""What rows of fewer bits cost and save: one JSON line for each way of keeping them.

    python benchmarks/row_formats.py --data DIR --seeds 5     # AUC, of a job in one process
    python benchmarks/row_formats.py --speed                  # CPU time of a pull and an apply
    python benchmarks/row_formats.py --quick                  # small: see that it runs

DIR is a data set in Criteo's layout with folders train and test; without it one is generated.
What each line means: docs/performance.md.
"""

import argparse
import math
import statistics
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import threadpoolctl

from bench.keys import Size, keys_of, zipf
from bench.lines import alternate, emit
from bench.tables import Table, new_keys
from bench.training_data import generated
from bench.virtual_job import VirtualJob
from embedding.spec.table import ValueDtype
from runtime.strict_json import json_text
from scheduler import ConfigError, JobConfig
from scheduler.driver.resolved import resolve
from worker.errors import DataError
from worker.step.preparing import Prepared

ROOT = Path(__file__).resolve().parents[1]
DTYPES: tuple[ValueDtype, ...] = get_args(ValueDtype)
_NANO = 1e9


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="default: generated rows")
    parser.add_argument("--job", type=Path, default=ROOT / "jobs" / "dlrm.yaml")
    parser.add_argument("--batch", type=int, default=256, help="default: %(default)s")
    parser.add_argument("--seeds", type=int, default=5, help="default: %(default)s")
    parser.add_argument(
        "--optimizers",
        nargs="*",
        default=["adagrad", "rowwise_adagrad"],
        help="of the tables; default: adagrad rowwise_adagrad",
    )
    parser.add_argument("--speed", action="store_true", help="CPU time in place of AUC")
    parser.add_argument("--rows", type=int, default=2_000_000, help="of --speed")
    parser.add_argument("--dim", type=int, default=16, help="of --speed")
    parser.add_argument("--repeats", type=int, default=7, help="of --speed")
    parser.add_argument("--quick", action="store_true", help="small: see that it runs")
    parser.add_argument("overrides", nargs="*", help="of the job file, KEY=VALUE")
    arguments = parser.parse_intermixed_args(argv)
    if arguments.quick:
        arguments.seeds, arguments.rows, arguments.repeats = 2, 20_000, 2
    for name in ("batch", "seeds", "rows", "dim", "repeats"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name} must be >= 1, got {getattr(arguments, name)}")
    return arguments


# AUC ----------------------------------------------------------------------------------------------


def config_of(
    arguments: argparse.Namespace, data: Path, seed: int, overrides: Sequence[str]
) -> JobConfig:
    return JobConfig.from_yaml(
        str(arguments.job),
        [
            f"data.train={data.resolve()}/train/*.parquet",
            f"data.eval={data.resolve()}/test/*.parquet",
            f"data.batch_size={arguments.batch}",
            f"training.global_batch={2 * arguments.batch}",
            "training.mode=sync",
            "cluster.workers=2",
            "cluster.servers=1",
            "embedding.admission=null",  # which a job on a virtual clock can't have
            f"seed={seed}",
            *arguments.overrides,
            *overrides,
        ],
    )


def trained(config: JobConfig, prepared: dict[int, Prepared]) -> tuple[float, float]:
    """Train a job; return its AUC and the bytes of a row, all that a table takes over its rows."""
    job = VirtualJob(resolve(config), slower=1, seed=0, prepared=prepared)
    auc = job.run().auc
    tables = job.shards[0].tables
    return auc, sum(t.memory()["total"] for t in tables) / sum(map(len, tables))


def accuracies(arguments: argparse.Namespace, data: Path) -> Iterator[dict[str, Any]]:
    """Yield a line for each type of values and optimizer, compared with the first of all."""
    cases = [(optimizer, dtype) for optimizer in arguments.optimizers for dtype in DTYPES]
    found: dict[tuple[str, str], list[tuple[float, float]]] = {case: [] for case in cases}
    for seed in range(1, arguments.seeds + 1):
        prepared: dict[int, Prepared] = {}
        for optimizer, dtype in cases:
            overrides = [f"embedding.value_dtype={dtype}", f"embedding.optimizer.type={optimizer}"]
            config = config_of(arguments, data, seed, overrides)
            found[optimizer, dtype].append(trained(config, prepared))
    base = [auc for auc, _ in found[cases[0]]]
    for case in cases:
        aucs = [auc for auc, _ in found[case]]
        differences = [auc - other for auc, other in zip(aucs, base, strict=True)]
        error = None
        if len(differences) > 1:
            error = round(statistics.stdev(differences) / math.sqrt(len(differences)), 5)
        yield {
            "optimizer": case[0],
            "value_dtype": case[1],
            "seeds": len(aucs),
            "auc": round(statistics.mean(aucs), 5),
            "difference": round(statistics.mean(differences), 5),
            "standard_error": error,
            "differences": [round(difference, 5) for difference in differences],
            "bytes_a_row": round(statistics.mean(size for _, size in found[case]), 1),
        }


# Speed --------------------------------------------------------------------------------------------


def speed(arguments: argparse.Namespace) -> None:
    """Print the CPU time of a key in a pull and an apply, of tables that take turns."""
    batch = min(16_384, arguments.rows // 10)
    size = Size(
        rows=arguments.rows, dim=arguments.dim, batch=batch, repeats=arguments.repeats, seed=7
    )
    drawn = [keys_of(np.unique(numbers)) for numbers in zipf(size, 32)]
    keys = sum(batch.size for batch in drawn)
    tables = {dtype: Table(size, value_dtype=dtype) for dtype in DTYPES}
    for table in tables.values():
        table.apply(new_keys(size))
    for name in ("pull", "apply"):
        runs = [partial(getattr(table, name), drawn) for table in tables.values()]
        times = alternate(size.repeats, *runs)
        first = statistics.median(times[0].cpu)
        for (dtype, table), each in zip(tables.items(), times, strict=True):
            emit(
                name,
                _NANO * statistics.median(each.cpu) / keys,
                "ns of CPU a key",
                value_dtype=dtype,
                times_float32=statistics.median(each.cpu) / first,
                min=_NANO * min(each.cpu) / keys,
                bytes_a_row=table.rows.memory()["total"] / len(table.rows),
                rows=size.rows,
                dim=size.dim,
                keys_per_batch=keys / len(drawn),
            )


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    try:
        with threadpoolctl.threadpool_limits(1):
            if arguments.speed:
                speed(arguments)
                return 0
            data = arguments.data or generated(20_000 if arguments.quick else 400_000, 50_000)
            for line in accuracies(arguments, data):
                print(json_text(line), flush=True)
    except (ConfigError, DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
