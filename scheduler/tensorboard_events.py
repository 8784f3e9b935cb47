"""A run's figures as TensorBoard events, for those who compare runs there."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from scheduler.config_errors import ConfigError

FLUSH_SECONDS = 1

Line = dict[str, Any]


def require_tensorboard() -> None:
    """Raise ConfigError where the package that writes events is not installed."""
    if find_spec("tensorboardX") is None:
        raise ConfigError(
            "run.tensorboard is true, but tensorboardX is not installed. Run"
            " pip install 'synchromesh[tensorboard]', or leave the key out"
        )


def scalars_of(line: Line) -> dict[str, float]:
    """Return the figures of a line of metrics.jsonl by their tags; what is null is left out."""
    found = {
        "train/loss": line["train_loss"],
        "train/samples_per_second": line["samples_per_second"],
        "train/global_step": line["global_step"],
        "train/clock": line["clock"],
        "eval/auc": line["eval_auc"],
        "eval/logloss": line["eval_logloss"],
        "samples/dropped": line["samples_dropped"],
        "samples/skipped": line["samples_skipped"],
        **{f"batches/{name}": count for name, count in line["batches"].items()},
        **{f"learning_rate/{name}": rate for name, rate in line["learning_rate"].items()},
        **{f"rows/{name}": rows for name, rows in line["rows"].items()},
        **{f"table_bytes/{name}": size for name, size in line["table_bytes"].items()},
        **{f"shard_lag/{i}": lag for i, lag in enumerate(line["shard_lag"])},
    }
    for number, worker in line["workers"].items():
        found[f"worker_batch_seconds/{number}"] = worker["batch_seconds"]
        found[f"worker_share/{number}"] = worker["share"]
    for role, sizes in line["peak_rss_bytes"].items():
        found |= {f"peak_rss_bytes/{role}-{i}": size for i, size in enumerate(sizes)}
    return {tag: float(value) for tag, value in found.items() if value is not None}


class TensorBoardEvents:
    """Writes events into a folder; the step of an event is the number of samples applied.

    Samples mean the same in every mode, the global step does not.

    Args:
        folder: made where it is missing.
    """

    def __init__(self, folder: Path) -> None:
        from tensorboardX import SummaryWriter  # an extra: only who asks for it needs it

        self._writer = SummaryWriter(str(folder), flush_secs=FLUSH_SECONDS)

    def add(self, line: Line) -> None:
        """Write an interval, in a thread; the file has it soon, at the latest when closed."""
        at = {"global_step": line["samples"], "walltime": line["time"]}
        for tag, value in scalars_of(line).items():
            self._writer.add_scalar(tag, value, **at)
        for shift in line["shifts"]:
            text = f"step {shift['step']}: {shift['from_mode']} to {shift['to_mode']}"
            self._writer.add_text("mode", f"{text}, {shift['reason']}", **at)
        for kind, counts in line["staleness_of_interval"].items():
            if counts:
                self._add_histogram(f"staleness/{kind}", counts, at)

    def close(self) -> None:
        """Write what is left; nothing can be added afterwards."""
        self._writer.close()

    def _add_histogram(self, tag: str, counts: dict[str, int], at: dict[str, float]) -> None:
        """Write exact counts by steps, one bucket for each number of steps."""
        pairs = sorted((int(steps), count) for steps, count in counts.items())
        values = [steps for steps, _ in pairs]
        self._writer.add_histogram_raw(
            tag,
            min=values[0],
            max=values[-1],
            num=sum(count for _, count in pairs),
            sum=sum(steps * count for steps, count in pairs),
            sum_squares=sum(steps * steps * count for steps, count in pairs),
            # A bucket reaches up to its limit; a last one above keeps the highest steps apart.
            bucket_limits=[steps + 0.5 for steps in values],
            bucket_counts=[count for _, count in pairs],
            **at,
        )
