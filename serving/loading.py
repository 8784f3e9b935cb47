"""Versions whose arrays are mapped, and what computes with them."""

import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from numba import njit

from embedding.kernels.arguments import read_only
from ps.checkpoint.errors import CheckpointError
from serving.errors import ServingError
from serving.form.opening import Form
from serving.rows.paging import RowCache, check_memory
from serving.rows.reading import RowReader
from serving.rows.table import ServedTable
from serving.versions import Version
from worker.data.batch import Bags, Batch
from worker.data.shared import SharedBatch, of_one_run
from worker.inference import Predictor, any_undefined, check_size, probabilities
from worker.models import PackedParameters
from worker.spec import FeatureSpec

Float32s = npt.NDArray[np.float32]

_WARM_ROWS = 64
_PAGE = 4096


@dataclass(frozen=True, slots=True)
class Loaded:
    """A version whose arrays are mapped.

    Args:
        dense: its dense parameters as predictions read them, once for all threads.
        cache: what reads its vectors, where they are not mapped.
    """

    version: Version
    form: Form
    tables: dict[str, ServedTable]
    dense: Float32s | PackedParameters
    cache: RowCache | None = None


class Loader:
    """Loads one version after another, for one thread at a time.

    What a version has in common with the one before is not made again: the base stays mapped, its
    pages where they were found.

    Args:
        memory_bytes: of vectors in this process' memory; the others are read from their files as
            they are asked for. None: all are mapped.

    Raises:
        ServingError: they are too few.
    """

    def __init__(self, memory_bytes: int | None = None) -> None:
        if memory_bytes is not None:
            check_memory(memory_bytes)
        self._memory_bytes = memory_bytes
        self._cache: RowCache | None = None
        self._predictor: Predictor | None = None
        self._last: Loaded | None = None
        _read_pages(read_only(np.zeros(1, np.uint8)))  # compiled now

    def open(self, folder: Path) -> Form:
        """Open a form, with the base of the version before where it lies on it.

        Raises:
            ServingError: it is damaged.
        """
        return Form(folder, None if self._last is None else self._last.form)

    def load(self, form: Form) -> Loaded:
        """Map a form and compute with it, so that requests find all in place and compiled.

        What comes to stand in another version's place is in memory then: else the first requests
        would each wait for pages of it.

        Raises:
            ServingError: it is damaged, or its model can't be computed.
            ModelError: the class of a custom model can't be imported or made.
        """
        last = self._last
        cache = self._cache_for(form)
        loaded = Loaded(version_of(form), form, form.tables(cache), form.dense, cache)
        if last is not None:
            _touch(form, last.form)
        predictor = self._predictor_of(loaded)
        loaded = replace(loaded, dense=predictor.dense)
        try:
            batch = _some_batch(form.model.features)
            any_undefined(probabilities(predictor.logits(batch)))
            predictor.logits(_with_context(batch))
        except Exception as error:  # whatever a custom model raises
            self._predictor = None
            raise ServingError(f"{form.folder} can't be computed: {error!r}") from error
        self._last, self._predictor = loaded, predictor
        return loaded

    def _cache_for(self, form: Form) -> RowCache | None:
        """Return what reads a version's vectors; what is in it of other versions stays."""
        if self._memory_bytes is None:
            return None
        if self._cache is None or self._cache.width < form.width:
            self._cache = RowCache(self._memory_bytes, form.width)
        return self._cache

    def _predictor_of(self, loaded: Loaded) -> Predictor:
        last, known = self._last, self._predictor
        if last is None or known is None or loaded.form.model != last.form.model:
            return predictor_of(loaded)
        if loaded.form.dense.size != last.form.dense.size:
            return predictor_of(loaded)  # which refuses it
        known.take(loaded.tables, loaded.dense, step=loaded.version.step)
        return known


def predictor_of(loaded: Loaded) -> Predictor:
    """Return what computes with a version, for one thread.

    Raises:
        ServingError: the tables or the dense parameters are not those of the model.
        ModelError: the class of a custom model can't be imported or made.
    """
    model = loaded.form.model
    try:
        check_size(model.spec, loaded.form.dense.size, loaded.form.folder)
        return Predictor(
            model=model.spec,
            features=model.features,
            tables=loaded.tables,
            dense=loaded.dense,
            step=loaded.version.step,
            contract=model.contract,
            reader_of=RowReader.of,
        )
    except CheckpointError as error:
        raise ServingError(str(error)) from error


def version_of(form: Form) -> Version:
    """Return what a form is a version of."""
    manifest = form.manifest
    return Version(
        checkpoint=manifest.checkpoint,
        seal=manifest.seal,
        step=manifest.step,
        recovery_epoch=manifest.recovery_epoch,
        taken=manifest.taken,
        histories=manifest.histories,
        form=form.folder.name,
        base=form.base_name,
    )


def _some_batch(features: FeatureSpec) -> Batch:
    n = _WARM_ROWS
    keys = np.arange(n) * 0x9E3779B97F4A7
    ones = np.ones(n, np.float32)
    sparse = tuple(Bags(keys, None, ones if each.weights else None) for each in features.sparse)
    return Batch(np.empty(0, np.float32), np.zeros((n, len(features.dense)), np.float32), sparse)


def _with_context(batch: Batch) -> SharedBatch:
    """Return the samples with the first of each column but the last in common."""
    context: list[Bags | None] = [
        Bags(bags.keys[:1], None, None if bags.weights is None else bags.weights[:1])
        for bags in batch.sparse[:-1]
    ]
    return of_one_run([*context, *[None] * (len(batch.sparse) > 0)], batch, dense=True)


def _touch(form: Form, last: Form) -> None:
    """Read each page of what is new since another version, as far as that fits into memory."""
    arrays = form.new_since(last)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if 2 * sum(array.nbytes for array in arrays) < memory:
        for array in arrays:
            _read_pages(read_only(array.reshape(-1).view(np.uint8)))


@njit(cache=True, nogil=True)
def _read_pages(data):  # type: ignore[no-untyped-def]
    """Return a sum that needs a byte of each page."""
    total = 0
    for start in range(0, data.size, _PAGE):
        total += data[start]
    return total
