"""What a served model loses where its rows are kept in fewer bits, on labelled samples."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from runtime.places import Place
from scheduler import ConfigError
from serving import Model
from serving.form.making import WhenMaking
from serving.loading import predictor_of
from serving.rows.quantized import RowsAs
from serving.source import Source
from synchromesh.evaluation import evaluation_of
from worker.data.reading import Reader
from worker.inference import Predictor
from worker.metrics import exact_auc

MAX_AUC_LOSS = 0.0005
MAX_SAMPLES = 200_000


@dataclass(frozen=True, slots=True)
class RowsLoss:
    """Both ways of keeping rows, on the same samples.

    Args:
        auc: with the rows as they were trained; of several tasks that of the one that loses most.
        auc_kept: of the same with the rows as they are kept.
        samples: that were scored.
        vector_bytes: of the vectors as they were trained.
        vector_bytes_kept: as they are kept.
        bytes_kept: of the whole form, its indexes and the dense parameters included.
    """

    auc: float
    auc_kept: float
    samples: int
    vector_bytes: int
    vector_bytes_kept: int
    bytes_kept: int

    @property
    def loss(self) -> float:
        return self.auc - self.auc_kept


def rows_loss(
    source: str | Path,
    *,
    rows: RowsAs,
    forms: str | Path | None = None,
    data: Sequence[str] | None = None,
    when_making: WhenMaking | None = None,
) -> RowsLoss:
    """Score the newest checkpoint with both, on the first `MAX_SAMPLES` samples of labelled data.

    The form with the rows as they were trained is made beside the other one, and removed.

    Args:
        source: run directory or checkpoint, as `Model.open`.
        rows: how vectors are to be kept.
        forms: as `Model.open`.
        data: files, folders, globs or tables; None: data.eval of the run's job.
        when_making: called as rows are written of a form that is made first.

    Raises:
        ServingError, CheckpointError, ConfigError, DataError: what was named can't be used.
    """
    with Model.open(source, forms=forms, rows=rows, when_making=when_making) as kept:
        place = Source.at(source, forms)
        checkpoint = place.path
        if place.follows:
            checkpoint = place.path / kept.version.checkpoint
        with (
            tempfile.TemporaryDirectory(prefix="compared-", dir=place.forms) as beside,
            Model.open(str(checkpoint), forms=beside, when_making=when_making) as trained,
        ):
            found = _aucs(source, checkpoint, data, [trained, kept])
            return RowsLoss(
                auc=found[0],
                auc_kept=found[1],
                samples=int(found[2]),
                vector_bytes=trained.current.form.vector_bytes,
                vector_bytes_kept=kept.current.form.vector_bytes,
                bytes_kept=kept.current.form.num_bytes,
            )


def _aucs(
    source: str | Path, checkpoint: Place, data: Sequence[str] | None, models: Sequence[Model]
) -> tuple[float, float, int]:
    plan, spec = evaluation_of(source, checkpoint, data=data)
    if not spec.features.has_labels:
        raise ConfigError("the labelled data must have a label column, the job names none")
    predictors: list[Predictor] = [predictor_of(model.current) for model in models]
    logits: list[list[np.ndarray]] = [[] for _ in models]
    labels: list[np.ndarray] = []
    weights: list[np.ndarray] = []
    samples = 0
    reader = Reader(plan, spec.features, on_bad_file=spec.on_bad_file, cache_bytes=0)
    try:
        for number in range(plan.total_batches):
            batch, _ = reader.read(number)
            for predictor, out in zip(predictors, logits, strict=True):
                out.append(predictor.logits(batch))
            labels.append(batch.labels.copy())
            weights.append(
                np.ones(batch.num_samples) if batch.weights is None else batch.weights.copy()
            )
            samples += batch.num_samples
            if samples >= MAX_SAMPLES:
                break
    finally:
        reader.close()
    known, weight = np.concatenate(labels), np.concatenate(weights)
    scored = [_by_task(np.concatenate(each), known, weight) for each in logits]
    found = [pair for pair in zip(*scored, strict=True) if not np.isnan(pair[0])]
    if not found:
        raise ConfigError(f"{samples} samples of one label alone have no AUC; name others")
    one, other = max(found, key=lambda pair: pair[0] - pair[1])
    return one, other, samples


def _by_task(logits: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> list[float]:
    """Return the AUC of each task, of the samples that count in it; NaN where a class is missing.

    Args:
        logits, labels: float32[n], of several tasks float32[n, tasks].
    """
    n, found = len(logits), []
    for own, known in zip(logits.reshape(n, -1).T, labels.reshape(n, -1).T, strict=True):
        counts = ~np.isnan(known)
        found.append(exact_auc(own[counts], known[counts], weights[counts]))
    return found
