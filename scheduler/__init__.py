"""Jobs: configuration, ledger, coordination, launching and supervision."""

from scheduler.config import JobConfig
from scheduler.config_errors import ConfigError
from scheduler.errors import RunDirectoryError, StartError, TrainingError

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
        from scheduler import trainer

        return getattr(trainer, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
