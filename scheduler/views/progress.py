"""What a person sees while a job runs: a live view in a terminal, a line an interval elsewhere."""

import contextlib
import sys
from types import TracebackType
from typing import IO, Any, cast

from rich.console import Console

from scheduler.job.config import JobConfig
from scheduler.views.terminal import LiveView
from worker.data.plan import Plan
from worker.metrics import auc_text


class _Unfailing:
    """A stream for those who watch: what can't be written to it is lost, and ends nothing."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class Progress:
    """Shows phases, intervals and notes on standard error.

    Args:
        config, plan: the job.
        console: where to show; by default standard error. It is a live view where this is a
            terminal that can move its cursor.
    """

    def __init__(self, config: JobConfig, plan: Plan, console: Console | None = None) -> None:
        planned = plan.rows_per_epoch * plan.epochs
        self._total: int | None = None
        if config.data.stream is None:
            self._total = min(planned, config.training.max_samples or planned)
        self._console = console or Console(file=cast(IO[str], _Unfailing(sys.stderr)))
        self._phase = ""
        self._live: LiveView | None = None
        if self._console.is_terminal and not self._console.is_dumb_terminal:
            self._live = LiveView(config.name, self._total, self._console)

    def __enter__(self) -> "Progress":
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()

    @property
    def total_samples(self) -> int | None:
        """Samples that the job is planned to train; None: its end is not known."""
        return self._total

    def phase(self, text: str) -> None:
        """Say what begins; what goes on after a loss or a move has been said."""
        again, self._phase = text == self._phase, text
        if self._live is not None:
            self._live.phase(text)
        elif not again:
            self._print(text)

    def note(self, text: str) -> None:
        """Say something that a person should know of."""
        self._print(f"note: {text}")

    def advance(self, samples: int) -> None:
        """Say how many samples are trained, between two intervals."""
        if self._live is not None:
            self._live.advance(samples)

    def show(self, line: dict[str, Any]) -> None:
        """Show the metrics of an interval."""
        if self._live is not None:
            self._live.show(line)
            return
        rate, loss = line["samples_per_second"], line["train_loss"]
        parts = [
            f"samples={line['samples']}" + ("" if self._total is None else f"/{self._total}"),
            f"step={line['global_step']}",
            *([] if rate is None else [f"samples_per_second={rate:.0f}"]),
            *([] if loss is None else [f"loss={loss:.4f}"]),
            f"staleness={line['staleness']['parameter']['mean']:.2f}",
            f"rows={sum(line['rows'].values())}",
        ]
        if line["samples_dropped"]:
            parts.append(f"dropped={line['samples_dropped']}")
        if line.get("windows"):
            window = line["windows"][-1]
            tasks = window.get("tasks", ())  # the figures are those of the first
            name = f"window_auc.{tasks[0]['name']}" if tasks else "window_auc"
            parts.append(f"{name}={auc_text(window['auc'], None)}")
            parts.append(f"window_ne={window['normalized_entropy']:.3f}")
        if line["eval_auc"] is not None:
            first = {"": {name: line[f"eval_{name}"] for name in ("auc", "auc_error_bound")}}
            for task, scores in (line.get("eval_tasks") or first).items():
                name = f"eval_auc.{task}" if task else "eval_auc"
                auc = auc_text(scores["auc"], scores["auc_error_bound"])
                parts.append(f"{name}={auc.replace(' ', '')}")
        self._print(" ".join(parts))

    def _print(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)
