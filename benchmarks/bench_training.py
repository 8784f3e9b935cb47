"""Measure training end to end, beside the machine's limits and torch: one JSON line a figure.

    python benchmarks/bench_training.py                                # the headline cases
    python benchmarks/bench_training.py --topologies 1+1,2+1 --modes sync,gba --batches 512,2048
    python benchmarks/bench_training.py --quick                        # small: see that it runs

Generates the data where they are missing. Exits 2 where it can't be run as it was called, 1 where
a job failed. What each line means: docs/performance.md.
"""

import argparse
import importlib
import os
import platform
import sys
import tempfile
from itertools import pairwise, product
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np

from bench.command_line import finish, some_of
from bench.limits import copying
from bench.lines import GIGA, alternate, emit, emit_rate
from bench.matrix_products import ProductsBound, layers_of
from bench.runs import Row
from bench.torch_dlrm import BagTables, MergedTables, TorchDlrm, table_sizes
from bench.training_data import decoding, find_data
from bench.training_jobs import MODES, Case, Jobs, job_of
from embedding import Adagrad, Adam
from scheduler.driver.resolved import JobSpecs, resolve
from worker.data.reading import Reader
from worker.models import build_model

TOPOLOGIES = ("1+1", "1+2", "2+1", "2+2")
BATCHES = ("512", "2048", "8192")
HEADLINE = (
    *(Case(2, servers, mode, 2048) for servers in (1, 2) for mode in ("async", "gba")),
    *(Case(1, servers, "sync", 2048) for servers in (1, 2)),
)
PARTS = ("limits", "torch", "jobs")
_QUICK = {"rows": 16_384, "repeats": 1, "bound_seconds": 0.05, "look_seconds": 0.5}


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--topologies", type=some_of(TOPOLOGIES), help=f"workers+servers: {','.join(TOPOLOGIES)}"
    )
    parser.add_argument("--modes", type=some_of(MODES), help=",".join(MODES))
    parser.add_argument("--batches", type=some_of(BATCHES), help=",".join(BATCHES))
    parser.add_argument("--only", type=some_of(PARTS), default=PARTS, help=",".join(PARTS))
    parser.add_argument("--rows", type=int, default=1_000_000, help="default: %(default)s")
    parser.add_argument("--repeats", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--data", type=Path, default=Path("data/criteo-like"), help="%(default)s")
    parser.add_argument("--out", type=Path, help="keep the run directories here")
    parser.add_argument(
        "--torch-rows", type=int, default=100_000, help="most rows of a torch table (%(default)s)"
    )
    parser.add_argument("--quick", action="store_true", help="small sizes: see that it runs")
    parser.set_defaults(bound_seconds=0.3, look_seconds=2.0)
    arguments = parser.parse_args(argv)
    if arguments.quick:
        parser.set_defaults(**_QUICK)
        arguments = parser.parse_args(argv)
    for name in ("rows", "repeats", "torch_rows"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be >= 1, got {getattr(arguments, name)}")
    return arguments


def cases_of(arguments: argparse.Namespace) -> list[Case]:
    """Return the cases that were asked for; of what was not named all, of nothing the headline."""
    if not (arguments.topologies or arguments.modes or arguments.batches):
        return list(HEADLINE)
    chosen = product(
        arguments.topologies or TOPOLOGIES, arguments.modes or MODES, arguments.batches or BATCHES
    )
    return [
        Case(int(topology[0]), int(topology[2]), mode, int(batch))
        for topology, mode, batch in chosen
    ]


def emit_machine(arguments: argparse.Namespace, cores: int) -> None:
    """Print what all figures depend on."""
    emit(
        "machine",
        None,
        "",
        cores=cores,
        load=os.getloadavg()[0],
        python=platform.python_version(),
        numpy=np.__version__,
        rows=arguments.rows,
        repeats=arguments.repeats,
    )


def limits(arguments: argparse.Namespace, specs: JobSpecs) -> None:
    """Print how fast memory is copied and Parquet is decoded, each on one core."""
    num_bytes = 1 << (22 if arguments.quick else 28)
    copy, _ = copying(num_bytes)
    (times,) = alternate(arguments.repeats, copy)
    emit_rate("limit_memcpy", num_bytes / GIGA, times, "GB/s")
    decode, rows = decoding(specs, arguments.rows)
    (times,) = alternate(arguments.repeats, decode)
    emit_rate("limit_parquet", rows, times, "samples/s")


def beside_torch(arguments: argparse.Namespace, specs: JobSpecs, cores: int) -> None:
    """Print what torch does on the same batches, where it is installed; else say so."""
    try:
        torch: Any = importlib.import_module("torch")
    except ImportError:
        emit("torch", None, "", error="torch is not installed: pip install '.[bench]'")
        return
    sparse, dense = specs.store.tables[0].optimizer, specs.store.dense_optimizer
    assert isinstance(sparse, Adagrad), "what torch trains here"
    assert isinstance(dense, Adam), "what torch trains here"
    sizes = table_sizes(arguments.torch_rows)
    batches = -(-arguments.rows // specs.data.batch_size)
    for tables in (BagTables, MergedTables):
        rates, aucs = [], []
        for repeat in range(arguments.repeats):
            torch.manual_seed(repeat)
            rows = tables(
                torch, sizes, lr=sparse.learning_rate, accumulator=sparse.initial_accumulator
            )
            model = TorchDlrm(torch, rows, lr=dense.learning_rate, threads=cores)
            rates.append(model.train(_reader(specs), batches))
            aucs.append(_auc(model, specs))
        emit(
            "torch_bags" if tables is BagTables else "torch_merged",
            median(rates),
            "samples/s",
            min=min(rates),
            max=max(rates),
            repeats=len(rates),
            batch=specs.data.batch_size,
            auc=median(aucs),
            rows_of_tables=sum(sizes),
            version=torch.__version__,
        )


def _reader(specs: JobSpecs) -> Reader:
    return Reader(specs.plan, specs.data.features)


def _auc(model: TorchDlrm, specs: JobSpecs) -> float:
    plan = specs.evaluation_plan
    assert plan is not None
    return model.auc(Reader(plan, specs.data.features), plan.batches_per_epoch)


def measure(case: Case, jobs: Jobs, bound: ProductsBound, repeats: int) -> None:
    """Train a case, with the bound inside every run, then once undisturbed, and print its line."""
    around = [bound.samples_per_second()]
    rows: list[Row] = []
    for repeat in range(repeats):
        rows.append(jobs.interrupted(case, repeat, bound.samples_per_second))
        around.append(bound.samples_per_second())
    # Stages, CPU time and memory are those of a run that nothing stopped.
    undisturbed = jobs(case, repeats)
    inside = all(row["measured"] for row in rows)
    if inside:
        limits = [mean(row["measured"]) for row in rows]
    else:  # a run was over before it could be stopped
        limits = [mean(pair) for pair in pairwise(around)]
    rates = [row["samples_per_second"] for row in rows]
    ratios = [rate / limit for rate, limit in zip(rates, limits, strict=True)]
    emit(
        "train",
        median(rates),
        "samples/s",
        limit=median(limits),
        limit_name="bound_products",
        limit_measured="inside" if inside else "before and after",
        bounds_inside=sum(len(row["measured"]) for row in rows),
        stopped_share=sum(row["stopped_seconds"] for row in rows)
        / sum(row["train_seconds"] for row in rows),
        ratio=median(ratios),
        ratio_min=min(ratios),
        ratio_max=max(ratios),
        target=case.target,
        min=min(rates),
        max=max(rates),
        repeats=repeats,
        topology=case.topology,
        mode=case.mode,
        batch=case.batch,
        batches_per_step=case.batches_per_step,
        auc=median(row["auc"] for row in rows),
        undisturbed=undisturbed["samples_per_second"],
        **{name: undisturbed[name] for name in _OF_A_RUN},
    )


_OF_A_RUN = (
    "worker_ms_per_batch",
    "server_ms_per_batch",
    "cpu_seconds_per_million",
    "peak_memory_mb",
    "wire_bytes_per_sample",
    "cores_used",
    "cores_used_by_others",
)


def run(arguments: argparse.Namespace, out: Path) -> None:
    cores = len(os.sched_getaffinity(0))
    cases = cases_of(arguments)
    data = find_data(arguments.data, arguments.rows)
    emit_machine(arguments, cores)
    specs = resolve(job_of(cases[0], data))
    if "limits" in arguments.only:
        limits(arguments, specs)
    if "torch" in arguments.only:
        beside_torch(arguments, specs, cores)
    layers = layers_of(build_model(specs.model).parameters)
    jobs = Jobs(out, data, cores=cores, seconds=arguments.look_seconds)
    for batch in sorted({case.batch for case in cases}):
        bound = ProductsBound(layers, batch, cores=cores, seconds=arguments.bound_seconds)
        emit_bound(bound, batch, sum(layer.flops_per_sample for layer in layers), arguments.repeats)
        for case in cases:
            if case.batch == batch and "jobs" in arguments.only:
                measure(case, jobs, bound, arguments.repeats)


def emit_bound(bound: ProductsBound, batch: int, flops_per_sample: int, repeats: int) -> None:
    """Print how many samples a second the matrix products alone allow."""
    rates = [bound.samples_per_second() for _ in range(repeats)]
    emit(
        "bound_products",
        median(rates),
        "samples/s",
        min=min(rates),
        max=max(rates),
        repeats=repeats,
        batch=batch,
        flops_per_sample=flops_per_sample,
        gflops_per_second=median(rates) * flops_per_sample / GIGA,
    )


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)

    def work() -> None:
        with tempfile.TemporaryDirectory(prefix="bench-training-") as temporary:
            run(arguments, arguments.out or Path(temporary))

    return finish(work)


if __name__ == "__main__":
    sys.exit(main())
