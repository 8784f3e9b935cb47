"""A trained model in one process: a checkpoint that scores batches, without Ray or servers."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NotRequired, Protocol, TypedDict

import numpy as np
import numpy.typing as npt
import threadpoolctl
from numba import njit

from embedding import TableSpec
from embedding.spec.composition import Part
from ps.checkpoint.errors import CheckpointError, UnfitCheckpointError
from ps.checkpoint.read import CheckpointReader
from ps.checkpoint.restore import load_tables
from ps.client.deduplicate import Deduplicated, Deduplicator
from ps.routing import Routing
from runtime.places import Place
from worker.contract import DataContract, check_kinds
from worker.data.batch import Batch, SingleKeys
from worker.data.plan import Plan
from worker.data.reading import Reader
from worker.data.shared import SharedBatch
from worker.models import PackedParameters, SharedInputs, build_model, num_parameters
from worker.models.layers import RowBuffer
from worker.score_sums import ScoreSums, TaskResult
from worker.spec import DataSpec, FeatureSpec, Lookup, ModelSpec
from worker.spec_json import SavedModel, saved_model_from_json
from worker.step.choosing import choose_rows
from worker.step.computing import Computation
from worker.step.preparing import Preparer
from worker.step.scoring import scores_of

Float32s = npt.NDArray[np.float32]
Int64s = npt.NDArray[np.int64]

# Below so many samples a run it takes longer to begin sums of each run than to repeat them.
_LEAST_RUN = 4
_NO_RUNS = np.empty(0, np.int64)


class ModelError(ValueError):
    """The model of a checkpoint can't be built here."""


class Scores(TypedDict):
    """What an evaluation gives: NaN where a class (for the AUC) or every sample is missing.

    Where the data have groups, `gauc` and what it is of. Of a model of several tasks `tasks`, by
    name, and the scores beside are those of the first.
    """

    auc: float
    auc_error_bound: float
    logloss: float
    samples: int
    samples_skipped: int
    gauc: NotRequired[float | None]
    gauc_groups: NotRequired[int]
    gauc_samples: NotRequired[int]
    tasks: NotRequired[dict[str, dict[str, Any]]]


class ReadTable(Protocol):
    """A table as far as it is read: `EmbeddingVariable`, or one that can do nothing else."""

    @property
    def spec(self) -> TableSpec: ...

    def pull(
        self,
        keys: npt.NDArray[np.int64],
        counts: None,
        values: Float32s,
        admitted: npt.NDArray[np.uint8],
        /,
    ) -> None: ...


class RowReader(Protocol):
    """Reads rows of samples that have one key for each lookup, for all lookups at once."""

    def read(
        self,
        keys: Int64s,
        starts: Int64s,
        shared: Int64s,
        firsts: Int64s,
        out: Float32s,
        /,
    ) -> None:
        """Write vectors to the pooled input, float32[n, W].

        Args:
            keys: int64, those of a lookup after those of another: of each sample, where it is
                shared of each run.
            starts: int64[lookups + 1].
            shared: int64[lookups], 1 where the lookup is.
            firsts: int64[runs], the samples for which vectors of runs are written.
        """
        ...


class Predictor:
    """Scores batches by the path of training's evaluation: de-duplicate, pull, pool, predict.

    Pulls are pure reads with count 0: a key without a row gets its initial vector, or the table's
    default value where it would have to be admitted first. For use by one thread.

    Args:
        model: the dense model and its lookups.
        features: of the batches; a label is not needed.
        tables: the tables that the lookups name; kept and never written.
        dense: float32[dense parameters]; kept, or copied to where predictions read them; or the
            `dense` of another predictor of the same model, which both then read.
        step: global step of the checkpoint.
        contract: what the keys of batches must be; None: not known.
        threads: compute threads. A batch is cut into as many parts, so with a custom model another
            number may change the last bits of a logit.
        reader_of: returns what reads the rows of samples of one key for each lookup from given
            tables, as their pulls would; None: pulls do, once for each distinct key.

    Raises:
        ValueError: the model can't be built, or a table is missing or has another dim.

    Example:
        predictor = Predictor.from_checkpoint("runs/criteo-dlrm/checkpoints/full-000000000123")
        logits = predictor.logits(batch)
    """

    def __init__(
        self,
        *,
        model: ModelSpec,
        features: FeatureSpec,
        tables: Mapping[str, ReadTable],
        dense: Float32s | PackedParameters,
        step: int = 0,
        contract: DataContract | None = None,
        threads: int = 1,
        reader_of: Callable[[Sequence[Lookup], Mapping[str, ReadTable]], RowReader | None]
        | None = None,
    ) -> None:
        self.model = model
        self.features = features
        self.step = step
        self.contract = contract
        self._computation = Computation(model, threads=threads)
        self.dense = self._computation.packed(dense)
        self._tables = _used(model, tables)
        self._reader_of = reader_of if self.predicts_by_sample else None
        self._reader = None if self._reader_of is None else self._reader_of(model.lookups, tables)
        self._pooled = RowBuffer(model.pooled_width)
        # Whether each feature is looked up once, in the order of the batch.
        self._features_of = np.array([lookup.feature for lookup in model.lookups], np.int64)
        self._each_once = self._features_of.tolist() == list(range(len(features.sparse)))
        self._none_shared = np.zeros(len(model.lookups), np.int64)
        self._preparer = Preparer(
            tables=[table.spec.name for table in self._tables],
            sparse=features.sparse,
            lookups=model.lookups,
            deduplicator=Deduplicator([t.spec.dim for t in self._tables], Routing.even(1)),
        )
        # As in workers: bits are promised for BLAS on one thread alone.
        self._blas = threadpoolctl.ThreadpoolController().select(user_api="blas")

    @classmethod
    def from_checkpoint(cls, path: str | Place, *, threads: int = 1) -> "Predictor":
        """Load a whole checkpoint into this process.

        Raises:
            CheckpointError: there is none, it is damaged, or its parts don't fit each other.
            ModelError: the class of a custom model can't be imported or made.
        """
        reader = CheckpointReader(path)
        saved = saved_model(reader)
        check_size(saved.spec, reader.store.dense_size, path)
        try:
            return cls(
                model=saved.spec,
                features=saved.features,
                tables=load_tables(reader, [part.table for part in _parts(saved.spec)]),
                dense=reader.dense_vector(),
                step=reader.manifest.step,
                contract=saved.contract,
                threads=threads,
            )
        except CheckpointError:
            raise
        except ValueError as error:
            raise CheckpointError(f"{path} is damaged: {error}") from error

    @property
    def predicts_by_sample(self) -> bool:
        """Whether a sample's logit is the same in any batch, to the last bit."""
        return self._computation.predicts_by_sample

    def take(
        self,
        tables: Mapping[str, ReadTable],
        dense: Float32s | PackedParameters,
        *,
        step: int,
    ) -> None:
        """Go on with another state of the same model.

        Raises:
            ValueError: a table is missing or has another dim; nothing has changed.
        """
        self._tables = _used(self.model, tables)
        self.dense = self._computation.packed(dense)
        if self._reader_of is not None:
            self._reader = self._reader_of(self.model.lookups, tables)
        self.step = step

    def logits(self, batch: Batch | SharedBatch | SingleKeys) -> Float32s:
        """Return the logit of each sample, float32[n]; the batch is only read.

        Those of a model of several tasks are float32[n, tasks].

        What runs of samples share is computed once for each, and changes no bit.
        """
        if isinstance(batch, SingleKeys):
            if self._reader is not None:
                return self._read_singles(self._reader, batch)
            batch = batch.batch()
        shared = None
        if isinstance(batch, SharedBatch):
            if self.predicts_by_sample and batch.num_samples >= _LEAST_RUN * batch.num_runs:
                alike = [batch.sparse[lookup.feature] for lookup in self.model.lookups]
                shared = SharedInputs.of(batch.group, alike, dense=batch.dense)
                batch = batch.batch
            else:
                batch = batch.expanded()
        if self._reader is not None and _has_single_keys(batch):
            if shared is not None:
                return self._read_shared(self._reader, batch, shared)
            keys = np.concatenate([bags.keys for bags in batch.sparse] or [_NO_RUNS])
            singles = SingleKeys(batch.dense, keys.reshape(len(batch.sparse), -1))
            return self._read_singles(self._reader, singles)
        prepared = self._preparer(batch)
        values, admitted = self._pull(prepared.unique)
        prepared, _ = choose_rows(prepared, admitted)
        with self._blas.limit(limits=1):
            logits = self._computation.predict(prepared, values, self.dense, shared)
        self._preparer.give_back(prepared)
        return logits

    def _read_shared(self, reader: RowReader, batch: Batch, shared: SharedInputs) -> Float32s:
        keys = [batch.sparse[lookup.feature].keys for lookup in self.model.lookups]
        starts = np.zeros(len(keys) + 1, np.int64)
        np.cumsum([each.size for each in keys], out=starts[1:])
        alike = np.array(shared.lookups, np.int64)
        pooled = self._pooled.rows(batch.num_samples)
        reader.read(np.concatenate([_NO_RUNS, *keys]), starts, alike, shared.firsts, pooled)
        return self._computation.predict_pooled(batch.dense, pooled, self.dense, shared)

    def _read_singles(self, reader: RowReader, batch: SingleKeys) -> Float32s:
        """As `logits`, of samples whose rows are read in one call."""
        n = batch.num_samples
        keys = batch.keys if self._each_once else batch.keys[self._features_of]
        pooled = self._pooled.rows(n)
        starts = np.arange(0, keys.size + 1, n)
        reader.read(keys.reshape(-1), starts, self._none_shared, _NO_RUNS, pooled)
        return self._computation.predict_pooled(batch.dense, pooled, self.dense)

    def evaluate(self, plan: Plan, data: DataSpec) -> Scores:
        """Score every batch of a plan once, in order.

        For the same batches and threads the scores are those of training's own evaluation, bit
        for bit.

        Args:
            plan: of the files, with one epoch.
            data: that the plan was made with. Its features must be the model's but for the label's
                column.

        Raises:
            DataError: as `Reader.read`, or the data's keys are not those of the model.
            ValueError: the data have no label, or a logit is NaN.
        """
        if not data.features.has_labels:
            raise ValueError("an evaluation needs a label column, the features have none")
        if self.contract is not None:
            check_kinds(data.features, plan.kinds, self.contract.keys, "the checkpoint")
        features = data.features
        grouped = features.group is not None
        sums = ScoreSums(self.model.tasks, weighted=features.weight is not None, grouped=grouped)
        skipped = 0
        # Batches come in order, so no row group but the newest is wanted again.
        reader = Reader(plan, features, on_bad_file=data.on_bad_file, cache_bytes=0)
        try:
            for batch_id in range(plan.total_batches):
                batch, missing = reader.read(batch_id)
                skipped += missing
                sums.add(batch_id, scores_of(self.logits(batch), batch))
        finally:
            reader.close()
        results = sums.results()
        return scores_told(results, skipped, several=bool(self.model.tasks), grouped=grouped)

    def _pull(self, unique: Deduplicated) -> tuple[Float32s, npt.NDArray[np.uint8]]:
        """Return the rows and the admitted bits of all keys, as a worker's pull fills them."""
        values = np.empty(unique.value_starts[-1], np.float32)
        admitted = np.empty(unique.keys.size, np.uint8)
        start = value_start = 0
        for table, size in zip(self._tables, unique.sizes[0].tolist(), strict=True):
            stop, value_stop = start + size, value_start + size * table.spec.dim
            table.pull(
                unique.keys[start:stop],
                None,
                values[value_start:value_stop].reshape(size, table.spec.dim),
                admitted[start:stop],
            )
            start, value_start = stop, value_stop
        return values, admitted


def scores_told(
    results: Sequence[TaskResult], skipped: int, *, several: bool, grouped: bool
) -> Scores:
    """Return what tasks came to, as it is told: that of the first, and by task where asked for."""
    first = results[0]
    told = Scores(
        auc=first.auc,
        auc_error_bound=first.auc_error_bound,
        logloss=first.logloss,
        samples=first.samples,
        samples_skipped=skipped,
    )
    if grouped:
        told["gauc"] = first.gauc
        told["gauc_groups"] = first.gauc_groups
        told["gauc_samples"] = first.gauc_samples
    if several:
        told["tasks"] = {result.name: result.figures() for result in results}
    return told


def _has_single_keys(batch: Batch) -> bool:
    return all(bags.offsets is None and bags.weights is None for bags in batch.sparse)


def saved_model(reader: CheckpointReader) -> SavedModel:
    """Return the specs of the model and the features that a checkpoint was written with.

    Raises:
        CheckpointError: the manifest has none, or damaged ones.
    """
    try:
        return saved_model_from_json(reader.manifest.model)
    except ValueError as error:
        raise CheckpointError(
            f"the manifest of {reader.directory} does not describe a model: {error}"
        ) from error


def check_model(reader: CheckpointReader) -> None:
    """Refuse a checkpoint whose tables and dense parameters are not those of the model it names.

    One that names none is taken. Of a class of the user's own the size is not looked at: that would
    import what the checkpoint names.

    Raises:
        CheckpointError: names what does not fit.
    """
    if not reader.manifest.model:
        return
    saved = saved_model(reader)
    specs = {spec.name: spec for spec in reader.store.tables}
    for part in _parts(saved.spec):
        spec = specs.get(part.table)
        if spec is None or spec.dim != part.dim:
            found = "it has none" if spec is None else f"its own has {spec.dim}"
            raise CheckpointError(
                f"the manifest of {reader.directory} names a model that reads table"
                f" {part.table!r} of dim {part.dim}, {found}"
            )
    if saved.spec.is_users:
        return
    try:
        check_size(saved.spec, reader.store.dense_size, reader.directory)
    except ModelError as error:
        raise CheckpointError(str(error)) from error


def probabilities(logits: Float32s) -> Float32s:
    """Return 1 / (1 + exp(-z)) of each logit, computed in float64 so that none overflows."""
    out = np.empty_like(logits, order="C")
    _probabilities(np.ascontiguousarray(logits).reshape(-1), out.reshape(-1))
    return out


def any_undefined(values: Float32s) -> bool:
    """Return whether there is NaN among probabilities."""
    return bool(_any_nan(values.reshape(-1)))


@njit(cache=True, nogil=True)
def _any_nan(values):  # type: ignore[no-untyped-def]
    found = False
    for value in values:
        found |= np.isnan(value)
    return found


@njit(cache=True, nogil=True)
def _probabilities(logits, out):  # type: ignore[no-untyped-def]
    """All at once: by NumPy each of eight calls takes longer than a few samples."""
    for i in range(logits.size):
        z = np.float64(logits[i])
        e = math.exp(-abs(z))
        out[i] = (1.0 if z >= 0 else e) / (1.0 + e)


def check_size(spec: ModelSpec, held: int, path: str | Place) -> None:
    """Refuse a number of dense parameters that is not the model's.

    Raises:
        CheckpointError: it is another one.
        ModelError: the model can't be built.
    """
    size = _model_size(spec, path)
    if size != held:
        text = f"{path} holds {held} dense parameters, its {spec.type} model has {size}"
        if spec.is_users:
            raise UnfitCheckpointError(f"{text}; its class has changed since")
        raise CheckpointError(text)


def _model_size(spec: ModelSpec, path: str | Place) -> int:
    """Return the number of parameters; raises ModelError where the model can't be built."""
    try:
        return num_parameters(build_model(spec))
    except Exception as error:  # whatever the module of a custom model raises
        text = f"the model of {path} can't be built: {str(error) or type(error).__name__}"
        if spec.is_users:
            text += ". Put the folder that holds the class's module on PYTHONPATH"
        raise ModelError(text) from error


def _parts(model: ModelSpec) -> list[Part]:
    return [part for lookup in model.lookups for part in lookup.physical]


def _used(model: ModelSpec, tables: Mapping[str, ReadTable]) -> list[ReadTable]:
    """Return the tables of the lookups, each once, in the order in which they name them."""
    return list({part.table: _table(tables, part) for part in _parts(model)}.values())


def _table(tables: Mapping[str, ReadTable], part: Part) -> ReadTable:
    table = tables.get(part.table)
    if table is None or table.spec.dim != part.dim:
        found = "there is none" if table is None else f"its dim is {table.spec.dim}"
        raise ValueError(f"the model needs table {part.table!r} of dim {part.dim}, {found}")
    return table
