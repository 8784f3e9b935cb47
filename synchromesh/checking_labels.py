"""Hold the labels of a stream of their own against its samples: do keys fit?"""

from dataclasses import dataclass

import numpy as np

from scheduler.job.config import JobConfig
from scheduler.job.specs import arriving_features, label_features
from scheduler.job.streams import labels_there
from worker.data.plan import Plan
from worker.data.task_join import UNKNOWN
from worker.data.waiting_rows import keys_in, labels_in


@dataclass(slots=True)
class LabelCheck:
    """What was seen of `data.label_stream`.

    Args:
        rows: labels that were read.
        label_mean: share of them that are positive; None: there are none.
        of_samples: share of them whose key a sample has that was read; None as above.
        samples: that were read for it.
    """

    rows: int
    label_mean: float | None
    of_samples: float | None
    samples: int

    def warnings(self) -> list[str]:
        """Return what people should know."""
        if not self.rows:
            return ["data.label_stream has no labels yet: whether keys fit can't be told"]
        if self.of_samples == 0.0:
            return [
                f"none of {self.rows:,} labels has the key of one of {self.samples:,} samples that"
                " were read. Where data.label_stream.key does not hold the same in both streams,"
                " all samples will be trained as negatives"
            ]
        return []


def check_labels(config: JobConfig, plan: Plan, *, rows: int) -> LabelCheck:
    """Read the first labels that are there, and the keys of the first samples.

    Args:
        plan: of the first file of samples.
        rows: most labels that are read; the file in which the last of them is, to its end.

    Raises:
        StorageError, ConfigError, DataError: see `labels_there`.
    """
    # Of a stream the plan has one file, the first.
    samples = keys_in(plan.files[0], arriving_features(config))
    num_rows = positives = matched = 0
    features = label_features(config)
    for file in labels_there(config):
        keys, labels = labels_in(file, features)
        labels = labels.reshape(keys.size, -1)  # of several tasks a row may say nothing of some
        known = labels != UNKNOWN
        num_rows += int(np.count_nonzero(known))
        positives += int(np.count_nonzero(labels == 1))
        matched += int(np.count_nonzero(known[np.isin(keys, samples)]))
        if num_rows >= rows:
            break
    return LabelCheck(
        rows=num_rows,
        label_mean=positives / num_rows if num_rows else None,
        of_samples=matched / num_rows if num_rows else None,
        samples=samples.size,
    )
