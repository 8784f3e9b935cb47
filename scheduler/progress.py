"""What a person sees while a job runs: a live line in a terminal, a line an interval elsewhere."""

import sys
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from scheduler.config import JobConfig
from worker.plan import Plan


class Progress:
    """Shows phases, intervals and notes on standard error."""

    def __init__(self, config: JobConfig, plan: Plan) -> None:
        planned = plan.rows_per_epoch * plan.epochs
        self._total = min(planned, config.training.max_samples or planned)
        self._console = Console(stderr=True)
        self._bar: RichProgress | None = None
        if sys.stderr.isatty():
            self._bar = RichProgress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.percentage:>3.0f}%"),
                TimeRemainingColumn(),
                console=self._console,
                transient=True,
            )
            self._task = self._bar.add_task(config.name, total=self._total)

    def __enter__(self) -> "Progress":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def phase(self, text: str) -> None:
        """Say what begins."""
        self._print(text)

    def note(self, text: str) -> None:
        """Say something that a person should know of."""
        self._print(f"note: {text}")

    def show(self, line: dict[str, Any]) -> None:
        """Show the metrics of an interval."""
        rate, loss = line["samples_per_second"], line["train_loss"]
        stale = line["staleness"]["parameter"]["mean"]
        if self._bar is not None:
            self._bar.update(self._task, completed=line["samples"])
            if loss is not None:
                text = f"{rate:,.0f} samples/s  loss {loss:.4f}"
                self._bar.update(self._task, description=text)
            return
        parts = [
            f"samples={line['samples']}/{self._total}",
            f"step={line['global_step']}",
            f"samples_per_second={rate:.0f}",
            f"loss={loss:.4f}" if loss is not None else "loss=-",
            f"staleness={stale:.2f}",
            f"rows={sum(line['rows'].values())}",
        ]
        if line["samples_dropped"]:
            parts.append(f"dropped={line['samples_dropped']}")
        if line["eval_auc"] is not None:
            parts.append(f"eval_auc={line['eval_auc']:.4f}")
        self._print(" ".join(parts))

    def _print(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)
