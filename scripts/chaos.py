"""Seeded faults in jobs that really run: nothing may be lost, and in sync no bit may differ.

    python scripts/chaos.py --seed 1 --faults 60
    python scripts/chaos.py --seed 1 --faults 10 --kinds nodes --modes sync
    python scripts/chaos.py --seed 1 --run 17           # what a failure prints, to repeat it

Trains a small job undisturbed once a mode, and then again and again, each time with some faults
that the seed draws. One line of JSON a fault on stdout, then a table by kind and outcome. Exits 1
where a run did not end as it should; its folder is kept. Linux only; `disk_full` mounts a small
file system in memory, which takes the right to do so.
"""

import argparse
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from injection.doing import NO_CHANCE, Done, Injector
from injection.draw import KINDS, PlannedRun, draw_run
from injection.nodes import Nodes
from injection.processes import adopt_orphans
from injection.training import FaultFoundError, Training
from injection.verdict import abandoned_folders, wrong_with_result, wrong_with_run
from runtime.strict_json import json_text
from worker.datasets.synthetic import CriteoLike, write_criteo_like

MODES = ("sync", "gba", "async")
ROWS, TEST_ROWS, EPOCHS = 8192, 1024, 12
BATCH, GLOBAL_BATCH = 128, 256
# A job as long as it takes for some faults, on a machine with little to compute by.
LEAST_BATCH_SECONDS = 0.06
DISK_BYTES = 192 << 20


def job(data: Path, mode: str) -> dict[str, Any]:
    """Return the job file of all runs: tables of several kinds, small, with a cut every second."""
    adagrad = {"type": "adagrad", "initial_accumulator": 1e-4}
    return {
        "name": "chaos",
        "seed": 5,
        "data": {
            "train": str(data / "train" / "*.parquet"),
            "eval": str(data / "test" / "*.parquet"),
            "dense": ["I1", "I2", "I3"],
            "dense_transform": "log1p",
            "sparse": ["C1", "C2", "C3", "C4"],
            "batch_size": BATCH,
            "epochs": EPOCHS,
        },
        "embedding": {"dim": 8, "optimizer": adagrad},
        "tables": {
            "C2": {"optimizer": {"type": "adam", "learning_rate": 0.003}},
            "C3": {
                "admission": {"type": "counter", "min_count": 2},
                "eviction": {"steps_to_live": 60, "every_steps": 10},
            },
            "C4": {"admission": {"type": "bloom", "min_count": 2, "max_elements": 20000}},
        },
        "model": {"type": "dlrm", "bottom_mlp": [16], "top_mlp": [16]},
        "training": {"mode": mode, "global_batch": GLOBAL_BATCH, "eval_every_steps": 150},
        "cluster": {
            "workers": 2,
            "servers": 2,
            "heartbeat_timeout_seconds": 10,
            "retry_seconds": 10,
            # Kernels may have to be compiled first, and the machine may be busy.
            "start_timeout_seconds": 220,
            # Faults of a run, and workers that go down with a server.
            "max_worker_restarts": 100,
        },
        "checkpoint": {"every_steps": 20, "full_every": 4, "keep": 2},
        "run": {"resume": "auto", "progress_every_seconds": 0.25},
    }


def slowed(job: dict[str, Any]) -> dict[str, Any]:
    """Return a job whose batches take their time, without work for the machine."""
    workers = list(range(job["cluster"]["workers"]))
    slow = {"kind": "slow", "index": workers, "least_seconds": LEAST_BATCH_SECONDS}
    return {
        **job,
        "cluster": {**job["cluster"], "inject": [slow]},
        "run": {**job["run"], "allow_faults": True},
    }


class Chaos:
    """Runs under faults in a folder of its own.

    Args:
        folder: is made; what went wrong stays in it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._data = folder / "data"
        self._undisturbed: dict[str, dict[str, Any]] = {}
        folder.mkdir(parents=True)
        wanted = CriteoLike(rows=ROWS, test_rows=TEST_ROWS, files=4, row_group_rows=1024)
        write_criteo_like(self._data, wanted)

    def undisturbed(self, mode: str) -> dict[str, Any]:
        """Return the result of the job without faults; trained once."""
        if mode not in self._undisturbed:
            folder = self.folder / f"undisturbed-{mode}"
            temporary = Path(tempfile.mkdtemp(prefix="chaos-"))
            folder.mkdir()
            training = Training(
                folder, job(self._data, mode), samples=ROWS * EPOCHS, temporary=temporary
            )
            training.start()
            try:
                training.until_over()
            finally:
                training.stop()
            result = json.loads((training.run / "result.json").read_text())
            wrong = wrong_with_result(result, result, mode=mode, samples=ROWS * EPOCHS)
            _raise(wrong + wrong_with_run(training.run, damaged=()))
            self._undisturbed[mode] = result
            shutil.rmtree(folder)
            shutil.rmtree(temporary)
        return self._undisturbed[mode]

    def run(self, planned: PlannedRun) -> Iterator[dict[str, Any]]:
        """Do a run; yields what came of each fault.

        Raises:
            FaultFoundError: something is not as it should be; the run's folder stays.
        """
        undisturbed = self.undisturbed(planned.mode)
        folder = self.folder / f"run-{planned.number}"
        on_disk = any("full" in fault.kind for fault in planned.faults)
        # Its name is short: those of Ray's sockets lie in it, and may have 107 bytes.
        temporary = Path(tempfile.mkdtemp(prefix="chaos-"))
        with (
            _disk(folder / "disk") if on_disk else _folder(folder / "disk") as disk,
            _nodes(temporary) if planned.place == "nodes" else _no_nodes() as nodes,
        ):
            training = Training(
                folder,
                slowed(job(self._data, planned.mode)),
                samples=ROWS * EPOCHS,
                run=disk / "run",
                temporary=temporary,
                ray_address=None if nodes is None else nodes.address,
            )
            injector = Injector(training, nodes)
            training.start()
            try:
                for fault in planned.faults:
                    done = Done(step=0, whom=[], outcome=NO_CHANCE)
                    if training.until_part(fault.at):
                        done = injector.do(fault)
                    yield _line(planned, fault.kind, fault.at, done)
                training.until_over()
                training.until_gone()
            except (FaultFoundError, subprocess.TimeoutExpired) as error:
                yield _line(
                    planned,
                    fault.kind,
                    fault.at,
                    Done(step=training.reached.step, whom=[], outcome=f"FAILED: {error}"),
                )
                raise
            finally:
                training.stop()
                if on_disk:
                    shutil.copytree(disk / "run", folder / "run", dirs_exist_ok=True)
            result = json.loads((training.run / "result.json").read_text())
            wrong = wrong_with_result(result, undisturbed, mode=planned.mode, samples=ROWS * EPOCHS)
            wrong += wrong_with_run(training.run, damaged=injector.damaged)
            wrong += abandoned_folders(training.temporary)
            _raise(wrong)
        shutil.rmtree(folder)
        shutil.rmtree(temporary, ignore_errors=True)


def _raise(wrong: list[str]) -> None:
    if wrong:
        raise FaultFoundError("; ".join(wrong))


def _line(planned: PlannedRun, kind: str, at: float, done: Done) -> dict[str, Any]:
    return {
        "run": planned.number,
        "mode": planned.mode,
        "kind": kind,
        "at": at,
        "step": done.step,
        "whom": done.whom,
        "outcome": done.outcome,
        "seconds": done.seconds,
        "redone_steps": done.redone_steps,
    }


@contextmanager
def _folder(path: Path) -> Iterator[Path]:
    path.mkdir(parents=True)
    yield path


@contextmanager
def _disk(path: Path) -> Iterator[Path]:
    """Yield a file system of its own, so small that it can be filled."""
    path.mkdir(parents=True)
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "chaos", str(path)], check=True
    )
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


@contextmanager
def _nodes(temporary: Path) -> Iterator[Nodes | None]:
    nodes = Nodes(temporary)
    try:
        yield nodes
    finally:
        nodes.close()


@contextmanager
def _no_nodes() -> Iterator[None]:
    yield None


def table(lines: Iterable[dict[str, Any]]) -> str:
    """Return how often each kind of fault had which outcome, and what it cost."""
    rows: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for line in lines:
        rows[line["kind"], line["outcome"].split(":")[0]].append(line)
    names = f"{'faults':>6} {'mean s':>7} {'most s':>7} {'redone steps':>12}"
    text = [f"{'kind':<20} {'outcome':<28} {names}"]
    for (kind, outcome), found in sorted(rows.items()):
        seconds = [line["seconds"] for line in found]
        redone = sum(line["redone_steps"] for line in found) / len(found)
        text.append(
            f"{kind:<20} {outcome:<28} {len(found):>6} {sum(seconds) / len(found):>7.1f}"
            f" {max(seconds):>7.1f} {redone:>12.1f}"
        )
    return "\n".join(text)


def kinds_of(text: str) -> list[str]:
    """Return the kinds that a list names: kinds, `local`, `nodes` or `all`."""
    named: list[str] = []
    for name in text.split(","):
        if name in KINDS:
            named.append(name)
        elif name in ("local", "nodes", "all"):
            named += [kind for kind, facts in KINDS.items() if name in (facts.place, "all")]
        else:
            raise argparse.ArgumentTypeError(f"{name!r}: there are {', '.join(KINDS)}")
    return list(dict.fromkeys(named))


def modes_of(text: str) -> list[str]:
    """Return the modes that a list names."""
    return text.split(",")


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--faults", type=int, default=30, help="runs go on until so many are done")
    parser.add_argument(
        "--kinds", type=kinds_of, default="local", help="with commas; local, nodes or all"
    )
    parser.add_argument("--modes", type=modes_of, default=",".join(MODES), help="with commas")
    parser.add_argument("--run", type=int, help="this one alone, whatever --faults says")
    parser.add_argument("--first", type=int, default=0, help="the run to begin with")
    parser.add_argument("--seconds", type=float, help="begin no run after so long")
    parser.add_argument("--out", type=Path, help="also append the lines of JSON to this file")
    parser.add_argument(
        "--work", type=Path, default=Path("/tmp/synchromesh-chaos"), help="is made; not long"
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parsed(arguments)
    kinds, modes = options.kinds, options.modes
    # So that what was started is ended where this is stopped.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    adopt_orphans()
    chaos = Chaos(options.work / f"{options.seed}-{int(time.time())}")
    began, lines, failures = time.monotonic(), [], 0
    number = options.first if options.run is None else options.run
    while True:
        planned = draw_run(options.seed, number, kinds=kinds, modes=modes)
        try:
            for line in chaos.run(planned):
                lines.append(line)
                print(json_text(line), flush=True)
                if options.out is not None:
                    with open(options.out, "a") as file:
                        file.write(json_text(line) + "\n")
        except (FaultFoundError, subprocess.TimeoutExpired, OSError, KeyError) as error:
            failures += 1
            print(
                f"run {number} failed: {type(error).__name__}: {error}\n"
                f"  kept in {chaos.folder / f'run-{number}'}; again:\n"
                f"  python scripts/chaos.py --seed {options.seed} --run {number}"
                f" --kinds {','.join(kinds)} --modes {','.join(modes)}",
                flush=True,
            )
        number += 1
        tried = sum(line["outcome"] != NO_CHANCE for line in lines)
        late = options.seconds is not None and time.monotonic() - began > options.seconds
        if options.run is not None or tried >= options.faults or late:
            break
    print(table(lines))
    print(f"{tried} faults, {number - options.first} runs, {failures} failed")
    if not failures:
        with suppress(OSError):
            shutil.rmtree(chaos.folder)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
