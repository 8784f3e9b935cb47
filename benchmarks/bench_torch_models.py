"""Measure the dense step of DLRM in torch beside our own on the same batch: JSON lines.

    python benchmarks/bench_torch_models.py
    python benchmarks/bench_torch_models.py --batch 512 --repeats 20

The model is that of jobs/dlrm.yaml on made-up samples of one key a feature: from pulled rows to the
gradients of rows and dense parameters, on one thread. Needs no data. What a line means:
docs/performance.md.
"""

import argparse
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from bench.command_line import finish
from bench.lines import alternate, emit
from embedding.spec.optimizers import Sgd
from ps.client.deduplicate import Deduplicator
from ps.routing import Routing
from runtime.memory import keep_freed_memory
from worker.data.batch import Bags, Batch
from worker.models import build_model, initial_parameters, needed_lookups
from worker.models.torch.bfloat16 import bfloat16_instructions
from worker.spec import ModelSpec, SparseFeature
from worker.step.computing import Computation
from worker.step.preparing import Prepared, Preparer

DENSE, SPARSE, DIM = 13, 26, 16
TORCH = {"class": "worker.models.torch.dlrm:Dlrm"}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "numpy": ("dlrm", {}),
    "torch": ("torch", TORCH),
    "torch_multiplied_by_torch": ("torch", {**TORCH, "products": "torch"}),
    "torch_multiplied_by_numpy": ("torch", {**TORCH, "products": "numpy"}),
    "torch_bf16": ("torch", {**TORCH, "precision": "bf16"}),
}


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=2048, help="samples (%(default)s)")
    parser.add_argument("--repeats", type=int, default=15, help="default: %(default)s")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), help="of all")
    arguments = parser.parse_args(argv)
    for name in ("batch", "repeats"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name} must be >= 1, got {getattr(arguments, name)}")
    return arguments


def features() -> list[SparseFeature]:
    names = [f"C{number}" for number in range(SPARSE)]
    return [SparseFeature(name=name, column=name, table=name) for name in names]


def spec_of(case: str) -> ModelSpec:
    """Return the model of a case."""
    kind, options = CASES[case]
    sparse = features()
    lookups = needed_lookups(kind, options, sparse, {each.table: DIM for each in sparse})
    names = tuple(each.name for each in sparse) if kind == "torch" else ()
    return ModelSpec(
        type=kind, options=options, optimizer=Sgd(), num_dense=DENSE, lookups=lookups, seed=1,
        lookup_names=names,
    )  # fmt: skip


def prepared_batch(n: int, spec: ModelSpec) -> tuple[Prepared, npt.NDArray[np.float32]]:
    """Return a batch and the rows that it would have pulled."""
    draw, sparse = np.random.default_rng(0), features()
    preparer = Preparer(
        tables=[each.table for each in sparse],
        sparse=sparse,
        lookups=spec.lookups,
        deduplicator=Deduplicator([DIM] * SPARSE, Routing.even(1)),
    )
    keys = [Bags(draw.zipf(1.2, n).astype(np.int64), None, None) for _ in sparse]
    dense = draw.normal(size=(n, DENSE)).astype(np.float32)
    labels = (draw.random(n) < 0.25).astype(np.float32)
    prepared = preparer(Batch(labels, dense, tuple(keys)))
    values = draw.uniform(-0.1, 0.1, int(prepared.unique.value_starts[-1]))
    return prepared, values.astype(np.float32)


def stepper(case: str, n: int) -> Callable[[], None]:
    """Return what trains one batch again and again."""
    spec = spec_of(case)
    computation = Computation(spec)
    params = initial_parameters(build_model(spec), spec.seed)
    prepared, values = prepared_batch(n, spec)

    def step() -> None:
        _, gradients, of_dense = computation.train(prepared, values, params)
        computation.give_back(gradients, of_dense)

    return step


def run(arguments: argparse.Namespace) -> None:
    import torch

    keep_freed_memory()  # as workers do
    cases = ["numpy", *(case for case in arguments.cases if case != "numpy")]
    steps = {case: stepper(case, arguments.batch) for case in cases}
    # One BLAS thread, as workers have.
    with threadpool_limits(limits=1):
        times = dict(zip(steps, alternate(arguments.repeats, *steps.values()), strict=True))
    own = times["numpy"]
    for case, taken in times.items():
        emit(
            f"dense_step_{case}",
            arguments.batch / median(taken.cpu),
            "samples/s of CPU",
            batch=arguments.batch,
            milliseconds=1e3 * median(taken.cpu),
            cpu_ratio_to_numpy=median(own.cpu) / median(taken.cpu),
            min=arguments.batch / max(taken.cpu),
            max=arguments.batch / min(taken.cpu),
            repeats=arguments.repeats,
            cpu_share=taken.cpu_share,
            products=_products(case, torch),
            version=np.__version__ if case == "numpy" else torch.__version__,
        )


def _products(case: str, torch: Any) -> str:
    """Return what makes matrix products of a case here, and the processor's way."""
    from worker.models.torch.products import described, products_of

    kind, options = CASES[case]
    if kind != "torch":
        return described("numpy")
    if "precision" in options:
        return (
            f"oneDNN, with {', '.join(bfloat16_instructions() or ()) or 'no instructions for it'}"
        )
    way = torch.backends.cpu.get_cpu_capability()
    return f"{described(products_of(options.get('products', 'auto')))}, {way}"


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    return finish(lambda: run(arguments))


if __name__ == "__main__":
    raise SystemExit(main())
