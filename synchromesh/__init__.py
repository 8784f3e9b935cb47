"""Train recommendation models with parameter servers on Ray. What is named here is the public face.

Everything else, in this package and in `embedding`, `ps`, `worker` and `scheduler`, is internal and
may change between versions; `embedding` can be used on its own for tables without a job, as its
page says.

    from synchromesh import JobConfig, Trainer, evaluate

    result = Trainer(JobConfig.from_yaml("job.yaml", ["run.dir=runs/first"])).fit()
    scores = evaluate(result.checkpoint, job="job.yaml")

Ray, Numba and pyarrow are imported when what needs them is asked for, not before.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from synchromesh.shadowing import refuse_shadows

if TYPE_CHECKING:
    from embedding import EmbeddingVariable, TableSpec
    from ps.checkpoint.manifest import CheckpointError
    from scheduler.driver.trainer import Result, Trainer
    from scheduler.errors import RunDirectoryError, StartError, TrainingError
    from scheduler.job.config import JobConfig
    from scheduler.job.errors import ConfigError
    from serving.errors import ServingError
    from serving.model import Model
    from synchromesh.checkpoints import Checkpoint, open_checkpoint
    from synchromesh.evaluation import evaluate
    from synchromesh.exporting import export_embeddings
    from synchromesh.prediction import predict
    from worker.errors import DataError

__version__ = "0.1.0"

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "EmbeddingVariable",
    "JobConfig",
    "Model",
    "Result",
    "RunDirectoryError",
    "ServingError",
    "StartError",
    "TableSpec",
    "Trainer",
    "TrainingError",
    "__version__",
    "evaluate",
    "export_embeddings",
    "open_checkpoint",
    "predict",
]

_HOMES = {
    "embedding": ("EmbeddingVariable", "TableSpec"),
    "ps.checkpoint.manifest": ("CheckpointError",),
    "scheduler.job.config": ("JobConfig",),
    "scheduler.job.errors": ("ConfigError",),
    "scheduler.errors": ("RunDirectoryError", "StartError", "TrainingError"),
    "scheduler.driver.trainer": ("Result", "Trainer"),
    "serving.errors": ("ServingError",),
    "serving.model": ("Model",),
    "synchromesh.checkpoints": ("Checkpoint", "open_checkpoint"),
    "synchromesh.evaluation": ("evaluate",),
    "synchromesh.exporting": ("export_embeddings",),
    "synchromesh.prediction": ("predict",),
    "worker.errors": ("DataError",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> object:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    refuse_shadows()
    return getattr(import_module(home), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
