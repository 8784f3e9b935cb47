"""Run a job on emulated nodes with slow links: a JSON line of its speed and of what nodes carried.

    python benchmarks/job_on_nodes.py --nodes 3 --mbit 400 jobs/dlrm.yaml training.mode=sync \\
        data.eval=null cluster.workers=3 cluster.worker_cpus=1.2 cluster.servers=3

Takes root, and `ip` and `tc`. Each node has a network of its own, and a Ray with `--cpus`;
processors, memory and files are this machine's. The driver runs on the first node.
"""

import argparse
import json
import sys
from pathlib import Path

from bench.command_line import finish
from bench.lines import MEGA, emit
from bench.nodes import Nodes
from bench.ray_on_nodes import RayOnNodes

_MOST_NODES = 32


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=int, default=3, help="(%(default)s)")
    parser.add_argument("--mbit", type=int, default=1000, help="of each link (%(default)s)")
    parser.add_argument("--cpus", type=int, default=2, help="that a node has for Ray (%(default)s)")
    parser.add_argument("--seconds", type=int, default=900, help="at most (%(default)s)")
    parser.add_argument("job", help="JOB.yaml")
    parser.add_argument("overrides", nargs="*", help="key.path=value")
    arguments = parser.parse_args(argv)
    for name in ("nodes", "mbit", "cpus", "seconds"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name} must be >= 1, got {getattr(arguments, name)}")
    if arguments.nodes > _MOST_NODES:
        parser.error(f"--nodes must be at most {_MOST_NODES}, got {arguments.nodes}")
    return arguments


def run(arguments: argparse.Namespace) -> None:
    if not Path(arguments.job).is_file():
        raise ValueError(f"there is no job file {arguments.job}")
    command = [sys.executable, "-m", "synchromesh", "train", arguments.job, *arguments.overrides]
    numbers = range(arguments.nodes)
    with (
        Nodes(arguments.nodes, arguments.mbit) as nodes,
        RayOnNodes(nodes, cpus=arguments.cpus) as ray,
    ):
        before = [nodes.bytes_of(node) for node in numbers]
        printed = ray.run(command, seconds=arguments.seconds)
        after = [nodes.bytes_of(node) for node in numbers]
    result = json.loads(printed.strip().splitlines()[-1])
    carried = [
        [round((now - then) / MEGA) for now, then in zip(*pair, strict=True)]
        for pair in zip(after, before, strict=True)
    ]
    emit(
        "job_on_nodes",
        result["samples_per_second"],
        "samples/s",
        nodes=arguments.nodes,
        mbit=arguments.mbit,
        steps=result["global_step"],
        received_mb=[received for received, _ in carried],
        sent_mb=[sent for _, sent in carried],
        model_digest=result["model_digest"],
        run=result["run"],
    )


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    return finish(lambda: run(arguments))


if __name__ == "__main__":
    sys.exit(main())
