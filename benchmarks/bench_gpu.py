"""Measure the dense step of a model of torch on a GPU beside the CPU: JSON lines.

    python benchmarks/bench_gpu.py
    python benchmarks/bench_gpu.py --batch 8192 --batches 200

From pooled vectors and parameters in the worker's memory to gradients there: on the CPU; on the GPU
with copies in line with what is computed, one batch after another; with copies on streams of their
own, two batches at a time, as workers do; and that by CUDA graphs. The model is that of
benchmarks/bench_torch_models.py. What a line means: docs/performance.md.
"""

import argparse
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from statistics import median
from typing import Any

import numpy as np
from bench_torch_models import DENSE, spec_of

from bench.command_line import finish
from bench.lines import alternate, emit
from worker.models import initial_parameters


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=2048, help="samples (%(default)s)")
    parser.add_argument("--batches", type=int, default=100, help="of a run (%(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="default: %(default)s")
    parser.add_argument(
        "--device", default="cuda:0", help="default: %(default)s; cpu: the same code, for tests"
    )
    arguments = parser.parse_args(argv)
    for name in ("batch", "batches", "repeats"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name} must be >= 1, got {getattr(arguments, name)}")
    return arguments


class Batches:
    """Batches that differ, and where their gradients are written."""

    def __init__(self, samples: int, count: int) -> None:
        self.spec, self.samples, self.count = spec_of("torch"), samples, count
        draw = np.random.default_rng(0)
        width = self.spec.pooled_width
        self.dense = draw.normal(size=(4, samples, DENSE)).astype(np.float32)
        self.pooled = draw.normal(0, 0.1, (4, samples, width)).astype(np.float32)
        self.labels = (draw.random((4, samples)) < 0.25).astype(np.float32)
        self.grad_pooled = np.empty((samples, width), np.float32)

    def of(self, number: int) -> tuple[Any, ...]:
        at = number % 4
        return self.dense[at], self.pooled[at], self.labels[at]

    def trained_at_once(self, model: Any) -> Callable[[], None]:
        """Return what trains all batches, one after another."""
        params, grads = self._parameters(model)

        def run() -> None:
            for number in range(self.count):
                model.train(params, *self.of(number), grads, self.grad_pooled)

        return run

    def trained_beside(self, model: Any) -> Callable[[], None]:
        """Return what trains all batches, each begun before the one before is ended."""
        params, grads = self._parameters(model)

        def run() -> None:
            begun: deque[Any] = deque()
            for number in range(self.count):
                begun.append(model.begin(params, *self.of(number)))
                if len(begun) == 2:
                    model.end(begun.popleft(), grads, self.grad_pooled)
            while begun:
                model.end(begun.popleft(), grads, self.grad_pooled)

        return run

    def _parameters(self, model: Any) -> tuple[Any, Any]:
        params = initial_parameters(model, self.spec.seed)
        return params, np.empty_like(params)


def run(arguments: argparse.Namespace) -> None:
    from worker.models.torch.device_model import DeviceModel
    from worker.models.torch.gpu import gpu_facts
    from worker.models.torch.module_model import ModuleModel

    device = arguments.device
    facts = {"gpu": "none"} if device == "cpu" else gpu_facts()
    batches = Batches(arguments.batch, arguments.batches)
    spec = batches.spec
    runs = {
        "cpu": batches.trained_at_once(ModuleModel(spec)),
        "gpu_in_line": batches.trained_at_once(DeviceModel(spec, device, overlapped=False)),
        "gpu": batches.trained_beside(DeviceModel(spec, device)),
    }
    if device != "cpu":
        graphs = replace(spec, options={**spec.options, "cuda_graphs": True})
        runs["gpu_graphs"] = batches.trained_beside(DeviceModel(graphs, device))
    times = dict(zip(runs, alternate(arguments.repeats, *runs.values()), strict=True))
    samples = arguments.batch * arguments.batches
    for case, taken in times.items():
        emit(
            f"dense_step_{case}",
            samples / median(taken.wall),
            "samples/s",
            batch=arguments.batch,
            milliseconds=1e3 * median(taken.wall) / arguments.batches,
            ratio_to_cpu=median(times["cpu"].wall) / median(taken.wall),
            min=samples / max(taken.wall),
            max=samples / min(taken.wall),
            cpu_milliseconds=1e3 * median(taken.cpu) / arguments.batches,
            repeats=arguments.repeats,
            **facts,
        )


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    return finish(lambda: run(arguments))


if __name__ == "__main__":
    raise SystemExit(main())
