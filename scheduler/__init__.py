"""Jobs: configuration, ledger, coordination, launching and supervision."""

from typing import TYPE_CHECKING

from scheduler.errors import RunDirectoryError, StartError, TrainingError
from scheduler.job.config import JobConfig
from scheduler.job.errors import ConfigError

if TYPE_CHECKING:
    from scheduler.driver.trainer import Result, Trainer

__all__ = [
    "ConfigError",
    "JobConfig",
    "Result",
    "RunDirectoryError",
    "StartError",
    "Trainer",
    "TrainingError",
]


def __getattr__(name: str) -> object:
    """Import the trainer, and with it Ray, only when it is asked for."""
    if name in ("Trainer", "Result"):
        from scheduler.driver import trainer

        return getattr(trainer, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
