"""Serving: forms, predictions in process and over HTTP beside other libraries, sessions, swaps.

The model is that of jobs/dlrm.yaml with random rows. onnxruntime, torch and TensorFlow have the
same dense part and the rows as one array; what is not installed is left out. Prints a line of JSON
for each figure.

    .venv/bin/python benchmarks/bench_serving.py                 # 10 million rows: 3 GB, 10 minutes
    .venv/bin/python benchmarks/bench_serving.py --only shared,process
    .venv/bin/python benchmarks/bench_serving.py --only swaps --swaps 1000 --rows 2000000
    .venv/bin/python benchmarks/bench_serving.py --quick         # small: see that it runs
"""

import argparse
import contextlib
import itertools
import json
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil

from bench.command_line import finish, some_of
from bench.dense_products import DenseProducts
from bench.http_load import Load, run_load
from bench.lines import Times, alternate, emit
from bench.other_models import KINDS, Predict, open_other, write_other
from bench.served_model import SavedDlrm, columns_of
from bench.serving_processes import other_server, our_server, served_step, tensors
from serving import Model
from serving.rows.quantized import ROWS_AS
from serving.wire import inference, rows
from serving.wire.layouts import Decoder

GROUPS = ("form", "rows", "process", "shared", "http", "sessions", "swaps", "memory")
ITEMS = (1, 8, 64, 256)
CLIENTS = (1, 2, 4, 8, 16, 32)
P99_MS = 10.0
_BATCHES = 16  # different requests that are asked in turns
_CHANGED = 0.4  # of all rows, by all swaps together
_SLICE_SECONDS = 5.0
_HTTP_SECONDS = 0.7  # of each of more than a hundred figures: all within five minutes
_ITEM_COLUMNS = 6  # of 26 columns of keys; the others and all dense ones are the user's


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How much is measured."""

    rows: int
    repeats: int
    seconds: float
    swaps: int
    items: tuple[int, ...] = ITEMS
    clients: tuple[int, ...] = CLIENTS


FULL = Sizes(rows=10_000_000, repeats=200, seconds=1.5, swaps=100)
QUICK = Sizes(rows=100_000, repeats=12, seconds=0.3, swaps=3, items=(1, 64), clients=(1, 4))


@dataclass(slots=True)
class Bench:
    """What groups measure with."""

    sizes: Sizes
    saved: SavedDlrm
    other: Path
    libraries: list[str]

    @property
    def run(self) -> Path:
        return self.saved.run

    def batches(self, items: int) -> list[Any]:
        rng = np.random.default_rng(items)
        return [self.saved.batch(items, rng) for _ in range(_BATCHES)]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, help="in all tables (default: 10 million)")
    parser.add_argument("--only", type=some_of(GROUPS), default=GROUPS, metavar="A,B")
    parser.add_argument("--swaps", type=int, help="versions that are swapped (default: 100)")
    parser.add_argument("--quick", action="store_true", help="small sizes: see that it runs")
    options = parser.parse_args(arguments)
    sizes = QUICK if options.quick else FULL
    if options.swaps is not None:
        sizes = replace(sizes, swaps=options.swaps)
    total = sizes.rows if options.rows is None else options.rows
    if total < 26_000:
        print(f"error: --rows must be >= 26000, got {total}", file=sys.stderr)
        return 2
    if sizes.swaps < 1:
        print(f"error: --swaps must be >= 1, got {sizes.swaps}", file=sys.stderr)
        return 2
    return finish(lambda: measure(options.only, sizes, total))


def measure(groups: Sequence[str], sizes: Sizes, total: int) -> None:
    """Save a model in a temporary folder and measure with it."""
    with tempfile.TemporaryDirectory() as folder:
        saved = SavedDlrm(Path(folder) / "run", total)
        saved.cut()
        bench = Bench(sizes, saved, Path(folder) / "other", _libraries())
        form(bench)  # the others read it
        if bench.libraries and {"process", "http"} & {*groups}:
            write_other(saved, bench.other)
        for group in GROUPS[1:]:
            if group in groups:
                _GROUPS[group](bench)


def _libraries() -> list[str]:
    found = []
    for kind in KINDS:
        try:
            __import__(kind)
            __import__("onnx")
        except ImportError:
            print(f"{kind} or onnx is not installed and left out", file=sys.stderr)
            continue
        found.append(kind)
    return found


def form(bench: Bench) -> None:
    """What a serving form costs to make and to open."""
    began = time.perf_counter()
    with Model.open(bench.run) as model:
        made = time.perf_counter() - began
        size = model.current.form.num_bytes
    began = time.perf_counter()
    with Model.open(bench.run):
        opened = time.perf_counter() - began
    emit("form_make", made, "s", rows=bench.saved.rows, form_bytes=size)
    emit("form_open", opened, "s", rows=bench.saved.rows)


def kinds_of_rows(bench: Bench) -> None:
    """Memory and speed of rows in fewer bits; `synchromesh serve --rows` tells what they lose."""
    batches = bench.batches(64)
    with contextlib.ExitStack() as opened:
        models = [opened.enter_context(Model.open(bench.run, rows=kind)) for kind in ROWS_AS]
        times = alternate(bench.sizes.repeats, *(_asking(m.predict_batch, batches) for m in models))
        for kind, model, taken in zip(ROWS_AS, models, times, strict=True):
            emit(
                f"rows_{kind}",
                1000 * median(taken.wall),
                "ms",
                items=64,
                vector_bytes=model.current.form.vector_bytes,
                form_bytes=model.current.form.num_bytes,
            )


def process(bench: Bench) -> None:
    """Predictions without a server, on one thread, in turns with other libraries."""
    others = {kind: open_other(kind, bench.other) for kind in bench.libraries}
    with Model.open(bench.run) as model:
        for items in bench.sizes.items:
            batches = bench.batches(items)
            runs = [_asking(model.predict_batch, batches)]
            for predict in others.values():
                _check(predict, model, bench, batches[0])
                given = [_arrays(bench.saved, batch) for batch in batches]
                runs.append(_asking(partial(_predict, predict), given))
            ours, *theirs = [1000 * median(t.wall) for t in alternate(bench.sizes.repeats, *runs)]
            figures = dict(zip(others, theirs, strict=True))
            ratios = {f"times_{kind}": value / ours for kind, value in figures.items()}
            emit("in_process", ours, "ms", items=items, **figures, **ratios)
    for items in bench.sizes.items:
        _emit_products(bench, items)


def _emit_products(bench: Bench, items: int) -> None:
    """What the layers alone take: no server of this model can take less."""
    products = DenseProducts(bench.saved.model, items)
    runs = products.runs(bench.libraries)
    times = alternate(bench.sizes.repeats, *runs.values())
    ours, *theirs = [1000 * median(t.wall) for t in times]
    emit(
        "products",
        ours,
        "ms",
        items=items,
        gflops=products.operations / ours / 1e6,
        **dict(zip([*runs][1:], theirs, strict=True)),
    )


def _predict(predict: Predict, arrays: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    return predict(*arrays)


def _asking(run: Callable[[Any], object], given: Sequence[Any]) -> Callable[[], object]:
    """Return what runs with the next one of the given at every call."""
    turns = itertools.cycle(given)
    return lambda: run(next(turns))


def _arrays(saved: SavedDlrm, batch: Any) -> tuple[np.ndarray, np.ndarray]:
    starts = np.arange(len(batch.sparse)) * saved.rows_each
    ids = np.stack([bags.keys for bags in batch.sparse], axis=1) + starts
    return np.expm1(batch.dense), ids


def _check(predict: Predict, model: Model, bench: Bench, batch: Any) -> None:
    """Refuse to compare what does not compute the same."""
    ours, other = model.predict_batch(batch).values, predict(*_arrays(bench.saved, batch))
    if not np.allclose(ours, other, rtol=1e-3, atol=1e-5):
        raise RuntimeError("the libraries do not give the same predictions")


def shared(bench: Bench) -> None:
    """A user with 256 items, against the same samples with all their columns."""
    items = 256 if 256 in bench.sizes.items else max(bench.sizes.items)
    features = bench.saved.features
    sparse = [feature.column for feature in features.sparse]
    with Model.open(bench.run) as model:
        schema, decoder = model.schema, Decoder(model.schema)

        def json_request(body: bytes) -> bytes:
            batch, name = rows.decode(body, schema)
            return rows.encode(model.predict_batch(batch).values, name, {})

        def binary_request(request: bytes) -> Any:
            body = request.split(b"\r\n\r\n", 1)[1]
            size = int(request.split(b"Inference-Header-Content-Length: ")[1].split(b"\r\n")[0])
            batch, wanted = decoder.decode(body, size)
            return inference.encode(model.predict_batch(batch).values, wanted, "m", {"step": 1})

        for layout, of_items in (
            ("users_first", sparse[-_ITEM_COLUMNS:]),
            ("items_first", sparse[:_ITEM_COLUMNS]),
        ):
            columns = [columns_of(bench.saved, batch) for batch in bench.batches(items)]
            for each in columns:
                for name in each.keys() - {*of_items}:
                    each[name][:] = each[name][0]
            for form_name, whole, part, run in (
                ("compute", *_batches(columns, of_items, schema), model.predict_batch),
                ("json", *_json_bodies(columns, of_items), json_request),
                ("binary", *_binary_bodies(columns, of_items), binary_request),
            ):
                long, short = alternate(
                    bench.sizes.repeats, _asking(run, whole), _asking(run, part)
                )
                _emit_shared(f"shared_{form_name}", layout, items, long, short)


def _batches(columns: Any, of_items: Sequence[str], schema: Any) -> tuple[list[Any], list[Any]]:
    import pyarrow as pa

    whole, part = [], []
    for each in columns:
        arrays = {name: pa.array(array) for name, array in each.items()}
        own = {name: arrays[name] for name in of_items}
        user = {name: array.slice(0, 1) for name, array in arrays.items() if name not in own}
        whole.append(schema.batch_of_columns(arrays))
        part.append(schema.batch_of_columns(own, user))
    return whole, part


def _json_bodies(columns: Any, of_items: Sequence[str]) -> tuple[list[bytes], list[bytes]]:
    whole, part = [], []
    for each in columns:
        lists = {name: array.tolist() for name, array in each.items()}
        count = len(lists[of_items[0]])
        user = {name: values[0] for name, values in lists.items() if name not in of_items}
        items = [{name: lists[name][i] for name in of_items} for i in range(count)]
        whole.append({"instances": [user | item for item in items]})
        part.append({"context": user, "instances": items})
    return (
        [json.dumps(each, allow_nan=False).encode() for each in whole],
        [json.dumps(each, allow_nan=False).encode() for each in part],
    )


def _binary_bodies(columns: Any, of_items: Sequence[str]) -> tuple[list[bytes], list[bytes]]:
    whole = [tensors(each) for each in columns]
    part = [
        tensors({n: array if n in of_items else array[:1] for n, array in each.items()})
        for each in columns
    ]
    return whole, part


def _emit_shared(name: str, layout: str, items: int, expanded: Times, shared: Times) -> None:
    long, short = expanded.wall, shared.wall
    mean, p99 = float(np.mean(short)), float(np.quantile(short, 0.99))
    emit(
        name,
        1000 * mean,
        "ms",
        layout=layout,
        items=items,
        p99_ms=1000 * p99,
        expanded_ms=1000 * float(np.mean(long)),
        expanded_p99_ms=1000 * float(np.quantile(long, 0.99)),
        mean_less=1 - mean / float(np.mean(long)),
        median_less=1 - median(short) / median(long),
        cpu_less=1 - median(shared.cpu) / median(expanded.cpu),
        p99_less=1 - p99 / float(np.quantile(long, 0.99)),
    )


def http(bench: Bench) -> None:
    """Requests a second with p99 <= 10 ms, the most over numbers of clients, by turns."""
    with contextlib.ExitStack() as opened:
        servers = {"ours": opened.enter_context(our_server(bench.run))}
        for kind in bench.libraries:
            for where in ("loop", "thread"):
                server = other_server(kind, bench.other, where)
                servers[f"{kind}, {where}"] = opened.enter_context(server)
        for items in bench.sizes.items:
            request = tensors(columns_of(bench.saved, bench.batches(items)[0]))
            best: dict[str, float] = dict.fromkeys(servers, 0.0)
            most = dict(best)  # whatever the time
            used: dict[str, float] = {}
            out: set[str] = set()
            for port, _ in servers.values():
                run_load(port, request, clients=2, seconds=0.2)
            for clients in bench.sizes.clients:
                for name, (port, process) in servers.items():
                    if name in out:
                        continue
                    before = sum(process.cpu_times()[:2])
                    load = _asked(port, request, clients, min(bench.sizes.seconds, _HTTP_SECONDS))
                    cpu = 1e6 * (sum(process.cpu_times()[:2]) - before) / len(load.milliseconds)
                    used[name] = min(used.get(name, cpu), cpu)
                    most[name] = max(most[name], load.rate)
                    if load.p99 <= P99_MS:
                        best[name] = max(best[name], load.rate)
                    else:
                        out.add(name)
            others = [rate for name, rate in best.items() if name != "ours"]
            ratio = best["ours"] / max(others) if others and max(others) > 0 else None
            fields = {name: rate for name, rate in best.items() if name != "ours"}
            emit(
                "http_rate",
                best["ours"],
                "1/s",
                items=items,
                **fields,
                times_best=ratio,
                whatever_p99=most,
                least_cpu_microseconds=used,
            )


def _asked(port: int, request: bytes, clients: int, seconds: float) -> Load:
    load = run_load(port, request, clients=clients, seconds=seconds)
    if load.failed:
        raise RuntimeError(f"{load.failed} requests were not answered by 200: {load.answered}")
    return load


def sessions(bench: Bench) -> None:
    """Sessions in processes against one process with all threads."""
    request = tensors(columns_of(bench.saved, bench.batches(64)[0]))
    with contextlib.ExitStack() as opened:
        ports = {
            count: opened.enter_context(our_server(bench.run, "--sessions", str(count)))[0]
            for count in (0, 1, 2)
        }
        rates: dict[int, list[float]] = {count: [] for count in ports}
        for _ in range(3):
            for count, port in ports.items():
                load = _asked(port, request, 8, bench.sizes.seconds)
                rates[count].append(load.rate)
        alone = median(rates[0])
        for count in (1, 2):
            rate = median(rates[count])
            emit("sessions_rate", rate, "1/s", sessions=count, alone=alone, more=rate / alone - 1)


def swaps(bench: Bench) -> None:
    """Requests while versions are swapped, and how long a cut takes until it is served.

    Cuts are made before, so that what trains takes nothing from who serves. All together change a
    good part of the rows, so that overlays are merged into new bases on the way. Clients ask by a
    clock, half of what the server answers at most.
    """
    request = tensors(columns_of(bench.saved, bench.batches(64)[0]))
    sizes = bench.sizes
    changed = max(int(_CHANGED * bench.saved.rows_each / sizes.swaps), 10)
    cuts = [_kept_back(bench, changed) for _ in range(sizes.swaps)]
    fresh: list[float] = []
    slices: list[Load] = []
    with our_server(bench.run, "--follow-seconds", "0.05") as (port, _):
        most = _asked(port, request, 2, 2 * sizes.seconds)
        ask = partial(run_load, port, request, clients=2, rate=most.rate / 2)
        quiet = ask(seconds=4 * sizes.seconds)
        over = threading.Event()

        def asking() -> None:
            while not over.is_set():
                slices.append(ask(seconds=_SLICE_SECONDS))

        thread = threading.Thread(target=asking)
        thread.start()
        try:
            for cut in cuts:
                fresh.append(_served(port, bench.run, cut))
        finally:
            over.set()
            thread.join()
    times = np.sort(np.concatenate([each.milliseconds for each in slices]))
    p99 = float(np.quantile(times, 0.99))
    emit(
        "swaps_slowest",
        float(times[-1]),
        "ms",
        swaps=len(fresh),
        p99_ms=p99,
        median_ms=float(np.median(times)),
        times_p99=float(times[-1]) / p99,
        beyond_twice_p99=int((times > 2 * p99).sum()),
        failed=sum(each.failed for each in slices),
        requests=len(times),
        rate=most.rate / 2,
        p99_without_ms=quiet.p99,
        slowest_without_ms=float(quiet.milliseconds[-1]),
    )
    emit("cut_to_served", median(fresh), "s", slowest=max(fresh), swaps=len(fresh))


def _kept_back(bench: Bench, changed: int) -> Path:
    """Write a cut in which so many rows of each table are changed; return where it waits."""
    bench.saved.train(changed)
    cut = bench.saved.cut()
    waiting = bench.run / "waiting"
    waiting.mkdir(exist_ok=True)
    return cut.rename(waiting / cut.name)


def _served(port: int, run: Path, cut: Path) -> float:
    """Give a cut to who follows; return the seconds until it is served."""
    cut.rename(run / "checkpoints" / cut.name)
    given, step = time.monotonic(), int(cut.name.split("-")[1])
    while served_step(port) != step:
        time.sleep(0.02)
    return time.monotonic() - given


def memory(bench: Bench) -> None:
    """What is each session's own, and what all processes have together."""
    request = tensors(columns_of(bench.saved, bench.batches(64)[0]))
    for count in (1, 2, 4):
        with our_server(bench.run, "--sessions", str(count)) as (port, server):
            _asked(port, request, 4, bench.sizes.seconds)
            (template,) = _children(server, "serving.session_template")
            own = [each.memory_full_info() for each in template.children()]
            emit(
                "session_memory",
                median(each.uss for each in own) / 1e6,
                "MB",
                sessions=count,
                resident_mb=median(each.rss for each in own) / 1e6,
                server_mb=server.memory_full_info().uss / 1e6,
                template_mb=template.memory_full_info().uss / 1e6,
                proportional_mb=sum(each.pss for each in own) / 1e6,
                forms_mb=sum(
                    each.memory_full_info().uss
                    for each in _children(server, "serving.source_process")
                )
                / 1e6,
            )


def _children(server: psutil.Process, module: str) -> list[psutil.Process]:
    return [each for each in server.children() if module in each.cmdline()]


_GROUPS: dict[str, Callable[[Bench], None]] = {
    "rows": kinds_of_rows,
    "process": process,
    "shared": shared,
    "http": http,
    "sessions": sessions,
    "swaps": swaps,
    "memory": memory,
}


if __name__ == "__main__":
    sys.exit(main())
