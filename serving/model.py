"""A trained model that is only read: versions that are swapped, and predictions of each."""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ps.checkpoint.errors import CheckpointError
from serving.calls import OUTPUT
from serving.errors import RequestError, ServingError
from serving.form.making import WhenMaking
from serving.form.opening import Form
from serving.loading import Loaded, Loader, predictor_of
from serving.published import PublishedRun, is_published
from serving.requests import RequestSchema, Samples
from serving.rows.paging import RowCacheFigures
from serving.rows.quantized import RowsAs
from serving.source import Source
from serving.source_apart import APART_FROM_ROWS, SourceApart
from serving.versions import Version, VersionStore
from worker.errors import DataError
from worker.inference import Predictor, probabilities
from worker.spec_json import SavedModel

Float32s = npt.NDArray[np.float32]

KEPT_VERSIONS = 3
MAX_ROWS = 16384
# An overlay is merged into a new base once it says something of this part of the base's rows.
MERGE_FROM = 0.2
_LEAST_MERGED = 10_000

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a request gets.

    Args:
        values: float32[n], the probability of label 1 of each sample; of a model of several tasks
            float32[n, tasks].
        version: that all of it was computed with.
        outputs: names of the tasks, in the order of the values' columns; or `prediction`.
    """

    values: Float32s
    version: Version
    outputs: tuple[str, ...] = (OUTPUT,)


class Model:
    """A model of a run directory or a checkpoint, without Ray: use `Model.open`.

    Any number of threads may predict. Each prediction is of one version; a newer one takes its
    place between two predictions.

    Attributes:
        schema: what requests must look like.
    """

    def __init__(
        self,
        source: Source,
        *,
        keep_versions: int,
        max_rows: int,
        memory_bytes: int | None = None,
    ) -> None:
        self._source: Source | SourceApart = source
        self._loader = Loader(memory_bytes)
        self._to_remove = False
        self._store = VersionStore(keep=keep_versions)
        self._lock = threading.Lock()  # over the store and what is loaded
        self._changing = threading.Lock()  # one change of versions at a time
        self._loaded: dict[str, Loaded] = {}
        self._current: Loaded | None = None
        self._of_thread = threading.local()
        self._merger = ThreadPoolExecutor(1, "merge")
        self._merged: Future[Path] | None = None
        # What a merge makes, or has made last. Newer overlays come to lie on it, also where its own
        # version is not kept any more once it is there.
        self._merging = ""
        self._follower: threading.Thread | None = None
        self._closed = threading.Event()
        self._news = threading.Event()  # there may be something newer
        self._published: PublishedRun | None = None
        self._told: list[Callable[[Loaded], None]] = []
        if self.refresh() is None:
            reasons = "; ".join(self._store.refused.values())
            text = f"{source.path} has no checkpoint that can be served"
            raise CheckpointError(f"{text}. {reasons}") if reasons else ServingError(text)
        saved = self.current.form.model
        self.schema = RequestSchema(saved.features, saved.contract, max_rows=max_rows)

    @classmethod
    def open(
        cls,
        run_or_checkpoint: str | Path,
        *,
        forms: str | Path | None = None,
        keep_versions: int = KEPT_VERSIONS,
        max_rows: int = MAX_ROWS,
        follow_seconds: float = 0.0,
        publish_token: str | None = None,
        rows: RowsAs = "float32",
        memory_bytes: int | None = None,
        when_making: WhenMaking | None = None,
    ) -> "Model":
        """Open a checkpoint, or the newest one of a run directory, and make its form if needed.

        Args:
            run_or_checkpoint: a run directory or a checkpoint, or the URL of a checkpoint or of
                where a run's checkpoints are; or `tcp://HOST:PORT`, where a job publishes them.
            forms: where serving forms are kept; None: folder `serving` of the run, which must be a
                local one.
            keep_versions: how many versions are kept for `rollback`.
            max_rows: most samples of one request.
            follow_seconds: how often a run directory is looked at for newer checkpoints; 0: only
                when `refresh` is called.
            publish_token: what the job that publishes wants followers to know.
            rows: how vectors are kept: as they were trained (`float32`), or rounded to `bf16`
                or `int8`, where that takes less. Nothing checks here what that costs.
            memory_bytes: of vectors in memory: those that are asked for most; the others are read
                from the disk that forms are on. None: all of them are mapped.
            when_making: called as rows are written of a form that is made first.

        Raises:
            ServingError, CheckpointError, ModelError: what was named can't be served.
        """
        with contextlib.ExitStack() as opened:
            published: PublishedRun | None = None
            if is_published(run_or_checkpoint):
                published = PublishedRun(str(run_or_checkpoint), publish_token, forms)
                opened.callback(published.close)
                published.wait()
                source = Source(published.checkpoints, published.forms, True, rows)
            else:
                source = Source.at(run_or_checkpoint, forms, rows)
            source.when_making = when_making
            model = cls(
                source,
                keep_versions=keep_versions,
                max_rows=max_rows,
                memory_bytes=memory_bytes,
            )
            if published is not None:
                model._published = published
                published.brought = model._news.set
            opened.pop_all()
        if follow_seconds > 0:
            model.follow(follow_seconds)
        return model

    # Predictions ------------------------------------------------------------------------------

    def predict(
        self,
        samples: Sequence[Mapping[str, Any]] | Mapping[str, Any],
        *,
        context: Mapping[str, Any] | None = None,
    ) -> Prediction:
        """Return the probability of label 1 of each sample, as `synchromesh predict` writes it.

        Args:
            samples: rows, each {column: value}, or columns, {column: values or Arrow array}.
            context: {column: value}, what all samples have in common and is then not in `samples`:
                it is computed once, and changes no bit.

        Raises:
            RequestError: a column is missing, not known, or not of the job's type.
        """
        if isinstance(samples, Mapping):
            shared = {name: [value] for name, value in (context or {}).items()}
            return self.predict_batch(self.schema.batch_of_columns(samples, shared))
        return self.predict_batch(self.schema.batch_of_rows(samples, context))

    def predict_batch(self, batch: Samples) -> Prediction:
        """Return the prediction of a batch that is laid out as training's.

        Raises:
            RequestError: the model gives NaN.
        """
        predictor, loaded = self._predictor()
        values = predicted(predictor, batch)
        return Prediction(values, loaded.version, self.schema.outputs)

    def _predictor(self) -> tuple[Predictor, Loaded]:
        """Return this thread's predictor, of the version that is served now."""
        current = self.current
        mine = getattr(self._of_thread, "predictor", None)
        if mine is None:
            mine = self._of_thread.predictor = predictor_of(current)
        elif self._of_thread.loaded is not current:
            mine.take(current.tables, current.dense, step=current.version.step)
        self._of_thread.loaded = current
        return mine, current

    def when_swapped(self, tell: Callable[[Loaded], None]) -> None:
        """Have a function called with each version that is served from now on."""
        self._told.append(tell)

    # Versions ---------------------------------------------------------------------------------

    @property
    def current(self) -> Loaded:
        """The version that is served."""
        assert self._current is not None, "opened"
        return self._current

    @property
    def version(self) -> Version:
        return self.current.version

    @property
    def saved(self) -> SavedModel:
        """The dense model, features and contract."""
        return self.current.form.model

    @property
    def versions(self) -> list[Version]:
        """Those that are kept, the newest last."""
        with self._lock:
            return self._store.kept

    @property
    def refused(self) -> dict[str, str]:
        """Checkpoints that are newer than all that are kept, and why they can't be used."""
        with self._lock:
            return self._store.refused

    @property
    def pinned(self) -> bool:
        """Whether a rollback holds the served version."""
        with self._lock:
            return self._store.pinned

    @property
    def row_cache(self) -> RowCacheFigures | None:
        """Where vectors were that were asked for; None: all are mapped."""
        cache = self.current.cache
        return None if cache is None else cache.figures()

    def age(self, now: float | None = None) -> float:
        """Return the seconds since the job was at the served step."""
        return self.version.age(time.time() if now is None else now)

    def refresh(self) -> Version | None:
        """Look for a newer checkpoint; load and serve it. Returns it, None where there is none.

        One that is damaged, or that lies on nothing that is there, is not taken: see `refused`.
        """
        with self._changing:
            self._remove_forms()
            self._take_merged()
            while True:
                with self._lock:
                    newest = self._store.newest
                found = self._source.find(None if newest is None else newest.place)
                for checkpoint, reason in found.refused:
                    self._refuse(checkpoint, reason)
                if found.form is None:
                    return None
                try:
                    form = self._loader.open(found.form)
                    self._check_same_model(form)
                    loaded = self._loader.load(form)
                except ServingError as error:
                    if not self._source.follows:
                        raise
                    self._source.skip(found.checkpoint, str(error))
                    self._refuse(found.checkpoint, str(error))
                    continue
                self._give(loaded)
                self._begin_merge(loaded)
                return loaded.version

    def _refuse(self, checkpoint: str, reason: str) -> None:
        _log.warning("checkpoint %s is not served: %s", checkpoint, reason)
        with self._lock:
            self._store.refuse(checkpoint, reason)

    def _check_same_model(self, form: Form) -> None:
        if self._current is None:
            return
        ours, other = self._current.form.model, form.model
        if (ours.spec, ours.features) != (other.spec, other.features):
            raise ServingError(
                f"{form.manifest.checkpoint} is of another model or of other features than what is"
                " served; serve it by itself"
            )

    def _give(self, loaded: Loaded) -> None:
        with self._lock:
            gone = [self._loaded.pop(each.seal) for each in self._store.give(loaded.version)]
            before = self._loaded.get(loaded.version.seal)
            self._loaded[loaded.version.seal] = loaded
            kept = [each.form for each in self._loaded.values()]
        gone += [] if before is None else [before]
        self._swap()
        for form in [each.form for each in gone]:
            if not any(form.has_base_of(other) for other in kept):
                form.let_go_of_base()
        self._to_remove = True

    def _remove_forms(self) -> None:
        """Remove what no version needs, once threads have left what they had mapped of it.

        The pages of a file that has no name are freed by who unmaps it last, be it a thread that
        answers requests.
        """
        if not self._to_remove:
            return
        self._to_remove = False
        with self._lock:
            forms = self._store.forms | {self._merging}
        self._source.remove_forms(forms)

    def _swap(self) -> None:
        """Serve what the store says."""
        with self._lock:
            served = self._store.served
            assert served is not None, "given"
            changed = self._loaded[served.seal] is not self._current
            self._current = self._loaded[served.seal]
        for tell in self._told if changed else ():
            tell(self._current)

    def _begin_merge(self, loaded: Loaded) -> None:
        base, changed = loaded.form.num_rows
        if self._merged is None and changed >= max(MERGE_FROM * base, _LEAST_MERGED):
            self._merging = self._source.base_name(loaded.version)
            self._merged = self._merger.submit(self._source.base_of, loaded.version.checkpoint)

    def _take_merged(self) -> None:
        """Serve a version from a new base where its overlay was merged."""
        if self._merged is None or not self._merged.done():
            return
        merged, self._merged = self._merged, None
        try:
            form = self._loader.open(merged.result())
            if any(each.seal == form.manifest.seal for each in self.versions):
                self._give(self._loader.load(form))
        except (CheckpointError, ServingError, OSError) as error:
            _log.warning("an overlay could not be merged: %s", error)

    def rollback(self, step: int | None = None) -> Version:
        """Serve a kept version of a step, None: the one before; it stays until `release`.

        Raises:
            UnknownVersionError: there is none.
        """
        with self._changing:
            with self._lock:
                version = self._store.rollback(step)
            self._swap()
            return version

    def release(self) -> Version:
        """End a rollback: serve the newest version, and newer ones from then on."""
        with self._changing:
            with self._lock:
                self._store.release()
            self._swap()
            return self.version

    # Following --------------------------------------------------------------------------------

    def follow(self, seconds: float | None = None) -> None:
        """Refresh every so many seconds, in a thread, until `close`; None: as is usual there."""
        if self._follower is not None or not self._source.follows:
            return
        seconds = self._source.usual_seconds if seconds is None else seconds
        with self._changing:  # from now on requests are answered meanwhile
            large = self.current.form.num_rows[0] >= APART_FROM_ROWS
            if large and isinstance(self._source, Source):
                self._source = SourceApart(self._source)
        self._follower = threading.Thread(
            target=self._run_follower, args=(seconds,), name="follow", daemon=True
        )
        self._follower.start()

    def _run_follower(self, seconds: float) -> None:
        told = ""
        while True:
            self._news.wait(seconds)
            self._news.clear()
            if self._closed.is_set():
                return
            try:
                self.refresh()
                told = ""
            except Exception as error:  # what is served goes on being served
                if self._closed.is_set():
                    return
                if str(error) != told:
                    _log.exception("looking for newer checkpoints failed; it is tried again")
                told = str(error)

    def close(self) -> None:
        """End following and merging; mapped files go with the last prediction."""
        self._closed.set()
        self._news.set()
        if self._published is not None:
            self._published.close()
        if isinstance(self._source, SourceApart):
            self._source.close()
        if self._follower is not None:
            self._follower.join()
        self._merger.shutdown(cancel_futures=True)

    def __enter__(self) -> "Model":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def first_row(found: npt.NDArray[np.bool_]) -> int:
    """Return the first row with something true in it, of bool[n] or bool[n, tasks]."""
    return int(np.argmax(found.reshape(len(found), -1).any(axis=1)))


def predicted(predictor: Predictor, batch: Samples) -> Float32s:
    """Return float32[n], the probability of label 1 of each sample; of several tasks [n, tasks].

    Raises:
        RequestError: the model gives NaN, or sequences are too long.
    """
    try:
        logits = predictor.logits(batch)
    except DataError as error:
        raise RequestError(str(error)) from error
    undefined = np.isnan(logits)
    if undefined.any():
        raise RequestError(
            f"the model gives NaN for row {first_row(undefined)}: its parameters have diverged"
        )
    return probabilities(logits)
