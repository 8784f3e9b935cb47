"""How a job begins that starts from the checkpoint of another one: what it takes over, and how.

What decides a key or an input must be as it was, or the job file says that a change is meant.
Tables go by their names, dense weights by those of the features at their inputs.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, fields

import numpy as np
import numpy.typing as npt

from embedding import NUM_BUCKETS
from ps.checkpoint.adapting import state_of
from ps.checkpoint.errors import UnfitCheckpointError
from ps.checkpoint.read import CheckpointReader
from ps.checkpoint.restore import check_fits
from ps.spec import StoreSpec
from scheduler.coordinator.start import InitFeatures, InitTables, Start, start_from
from scheduler.job.config import JobConfig
from scheduler.job.errors import ConfigError
from scheduler.run.directory import latest_checkpoint
from scheduler.run.saved_cuts import SavedCut
from worker.contract import ColumnKind, check_contract, check_kinds
from worker.inference import saved_model
from worker.models import build_model
from worker.models.inputs import input_names, sources_of
from worker.spec import FeatureSpec, Lookup, ModelSpec, SparseFeature
from worker.spec_json import SavedModel

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Beginning:
    """Where a job begins; its defaults are one that takes nothing over.

    Args:
        checkpoint: the directory of the checkpoint, or None.
        start: step and clock.
        keys: kinds of the features' keys, as far as the checkpoint knows them.
        is_over: whether the job has gone on from a cut of its own, and what it began from may be
            another one by now.
        adapts: whether tables have another dim or optimizer than the checkpoint's.
        dense_sources: int64[P], from where in the checkpoint's dense parameters each comes, -1
            where it has an initial value. None: all from their own place.
    """

    checkpoint: str | None = None
    start: Start = field(default_factory=Start)
    keys: dict[str, str] = field(default_factory=dict)
    is_over: bool = False
    adapts: bool = False
    dense_sources: npt.NDArray[np.int64] | None = None


def beginning_of(
    config: JobConfig,
    *,
    features: FeatureSpec,
    kinds: Sequence[ColumnKind],
    model: ModelSpec,
    store: StoreSpec,
) -> Beginning:
    """Check a job against the checkpoint that it starts from.

    Args:
        kinds: what the training data hold.

    Raises:
        ConfigError: features or tables differ in a way that `run.init_features` and
            `run.init_tables` do not say.
        CheckpointError, DataError: tables, dense parameters or data do not fit the checkpoint.
    """
    if config.run.init_from is None:
        return Beginning()
    reader = CheckpointReader(latest_checkpoint(config.run.init_from))
    saved = saved_model(reader)
    where = str(reader.directory)
    changes = changes_of(saved.features, features)
    check_said(changes, config.run.init_features, where)
    _check_compositions(saved.spec, model)
    keys = _keys_of(saved, features)
    if saved.contract is None:
        check_contract(features, kinds, None, where)
    check_kinds(features, kinds, keys, where)
    tables = table_changes_of(reader.store, store)
    check_tables_said(tables, config.run.init_tables, where)
    for change in tables:
        _log.warning("%s", change.text)
    sources = None
    reshaped = any(change.how == "dim" for change in tables)
    same_inputs = not (changes or reshaped)
    _check_model(saved.spec, model, same_inputs=same_inputs)
    check_fits(reader.store, store, dense_size=same_inputs, adapt=bool(tables))
    if not same_inputs:
        sources = _dense_sources(saved, model, features, reshaped=reshaped)
    return Beginning(
        checkpoint=where,
        start=start_from(
            reader, global_batch=config.global_batch, init_clock=config.run.init_clock
        ),
        keys=keys,
        adapts=bool(tables),
        dense_sources=sources,
    )


def beginning_before(cut: SavedCut, store: StoreSpec) -> Beginning:
    """Return how a job began that goes on from a cut of its own.

    Raises:
        CheckpointError: the cut is not of this job's tables and dense parameters.
    """
    check_fits(cut.reader.store, store)
    contract = saved_model(cut.reader).contract
    keys = {} if contract is None else contract.keys
    return Beginning(start=cut.state.start, keys=keys, is_over=True)


@dataclass(frozen=True, slots=True)
class Change:
    """One difference between the features of a checkpoint and of a job."""

    how: str
    name: str
    text: str


def changes_of(before: FeatureSpec, after: FeatureSpec) -> list[Change]:
    """Return how the inputs of a job differ from a checkpoint's; the label may be another one."""
    found = []
    for what, old, new in (
        ("dense", list(before.dense), list(after.dense)),
        ("sparse", [f.name for f in before.sparse], [f.name for f in after.sparse]),
    ):
        found += [Change("added", n, f"{what} feature {n!r} is new") for n in new if n not in old]
        found += [
            Change("removed", n, f"{what} feature {n!r} is gone") for n in old if n not in new
        ]
        was, now = [n for n in old if n in new], [n for n in new if n in old]
        if was != now:
            text = f"data.{what} has the order {', '.join(now)}, it was {', '.join(was)}"
            found.append(Change("moved", "", text))
    by_name = {feature.name: feature for feature in before.sparse}
    for feature in after.sparse:
        old_feature = by_name.get(feature.name, feature)
        for option, old_value, value in _differences(old_feature, feature):
            text = f"{option} of sparse feature {feature.name!r} is {value!r}, it was {old_value!r}"
            found.append(Change("changed", feature.name, text))
    if before.dense_transform != after.dense_transform and set(before.dense) & set(after.dense):
        text = (
            f"data.dense_transform is {after.dense_transform!r}, it was {before.dense_transform!r}"
        )
        found.append(Change("changed", "dense_transform", text))
    return found


def _differences(old: SparseFeature, new: SparseFeature) -> list[tuple[str, object, object]]:
    values = [(f.name, getattr(old, f.name), getattr(new, f.name)) for f in fields(SparseFeature)]
    return [(name, was, now) for name, was, now in values if was != now]


def check_said(changes: Sequence[Change], said: InitFeatures, where: str) -> None:
    """Raise ConfigError unless `run.init_features` says each change."""
    names = {"added": said.added, "removed": said.removed, "changed": said.changed}
    unsaid = [
        change
        for change in changes
        if not (said.moved if change.how == "moved" else change.name in names[change.how])
    ]
    if not unsaid:
        return
    wanted = [
        f"{how}: [{', '.join(dict.fromkeys(c.name for c in changes if c.how == how))}]"
        for how in names
        if any(change.how == how for change in changes)
    ]
    if any(change.how == "moved" for change in changes):
        wanted.append("moved: true")
    raise ConfigError(
        "the features are not those of the checkpoint that run.init_from names:"
        f" {'; '.join(change.text for change in unsaid)} ({where}). Keep them as they were, or, if"
        f" that is meant, say run.init_features: {{{', '.join(wanted)}}}"
    )


def table_changes_of(saved: StoreSpec, wanted: StoreSpec) -> list[Change]:
    """Return of which tables that both have the dim or the type of the optimizer is another."""
    found = []
    before = {table.name: table for table in saved.tables}
    for table in wanted.tables:
        old = before.get(table.name, table)
        optimizers = state_of(old.optimizer), state_of(table.optimizer)
        if optimizers[0] != optimizers[1]:
            text = (
                f"table {table.name}: the optimizer is {optimizers[1]}, it was {optimizers[0]}: its"
                " slots begin anew"
            )
            found.append(Change("optimizer", table.name, text))
        if old.dim != table.dim:
            what = "vectors are cut" if old.dim > table.dim else "the rest has initial values"
            text = f"table {table.name}: the dim is {table.dim}, it was {old.dim}: {what}"
            found.append(Change("dim", table.name, text))
    return found


def check_tables_said(changes: Sequence[Change], said: InitTables, where: str) -> None:
    """Raise ConfigError unless `run.init_tables` says each change."""
    names = {"optimizer": said.optimizer, "dim": said.dim}
    unsaid = [change for change in changes if change.name not in names[change.how]]
    if not unsaid:
        return
    wanted = [
        f"{how}: [{', '.join(change.name for change in changes if change.how == how)}]"
        for how in names
        if any(change.how == how for change in changes)
    ]
    raise ConfigError(
        "tables are not those of the checkpoint that run.init_from names:"
        f" {'; '.join(change.text for change in unsaid)} ({where}). Keep them as they were, or, if"
        f" that is meant, say run.init_tables: {{{', '.join(wanted)}}}"
    )


def _keys_of(saved: SavedModel, features: FeatureSpec) -> dict[str, str]:
    """Return the kind of keys that the rows of each feature's table were trained for."""
    if saved.contract is None:
        return {}
    tables = {feature.name: feature.table for feature in saved.features.sparse}
    keys = {}
    for feature in features.sparse:
        of_table = {
            saved.contract.keys[name]
            for name, table in tables.items()
            if table == feature.table and name in saved.contract.keys
        }
        if tables.get(feature.name) == feature.table and feature.name in saved.contract.keys:
            keys[feature.name] = saved.contract.keys[feature.name]
        elif len(of_table) == 1:
            keys[feature.name] = of_table.pop()
    return keys


def _dense_sources(
    saved: SavedModel, model: ModelSpec, features: FeatureSpec, *, reshaped: bool
) -> npt.NDArray[np.int64]:
    """Return from where each dense parameter comes; say which ones begin anew."""
    old_names = input_names(saved.spec, saved.features)
    new_names = input_names(model, features)
    after = build_model(model).parameters
    if old_names is None or new_names is None or saved.spec.type != model.type:
        _log.warning(
            "the features of a %s model have changed, and nobody knows which dense parameters"
            " belong to which: all of them begin anew",
            model.type,
        )
        return np.full(sum(parameter.size for parameter in after), -1)
    before = build_model(saved.spec).parameters
    try:
        sources, anew = sources_of(before, old_names, after, new_names, reshaped=reshaped)
    except ValueError as error:
        raise UnfitCheckpointError(
            f"model: {error}; a job with other features must keep it"
        ) from error
    if anew:
        _log.warning("dense parameters that begin anew: %s", "; ".join(anew))
    return sources


def _check_model(saved: ModelSpec, wanted: ModelSpec, *, same_inputs: bool) -> None:
    """Refuse dense parameters of another model, be they as many: they mean something else."""
    keep = "a job that starts from a checkpoint must keep it"
    if saved.type != wanted.type:
        raise UnfitCheckpointError(
            f"model.type is {saved.type} in the checkpoint, {wanted.type} in the job; {keep}"
        )
    if not same_inputs:
        return
    if saved.tasks != wanted.tasks:
        was, now = (", ".join(tasks) or "none" for tasks in (saved.tasks, wanted.tasks))
        raise UnfitCheckpointError(
            f"data.labels: the tasks are {was} in the checkpoint, {now} in the job; {keep}"
        )
    try:
        before = {p.name: list(p.shape) for p in build_model(saved).parameters}
    except Exception:
        if not saved.is_users:
            raise
        return  # a class that is no longer there, or takes other options: nobody knows
    after = {p.name: list(p.shape) for p in build_model(wanted).parameters}
    for name in [*after, *before]:
        old, new = before.get(name, "none"), after.get(name, "none")
        if old != new:
            raise UnfitCheckpointError(
                f"model: the shape of parameter {name} is {old} in the checkpoint, {new} in the"
                f" job; {keep}"
            )


def _check_compositions(saved: ModelSpec, wanted: ModelSpec) -> None:
    """Refuse a checkpoint whose tables are composed otherwise: its rows mean something else."""
    before = {lookup.table: lookup for lookup in saved.lookups}
    for lookup in wanted.lookups:
        old = before.get(lookup.table, lookup)
        if (old.parts, old.operation) != (lookup.parts, lookup.operation):
            raise UnfitCheckpointError(
                f"tables.{lookup.table}.composition: the checkpoint has {_described(old)}, the job"
                f" {_described(lookup)}. Keep the composition as it was, or give the table of the"
                " feature another name to train it anew"
            )


def _described(lookup: Lookup) -> str:
    """Say what a table is made of."""
    if lookup.operation is None:
        return "a plain table"
    numbers = {"own": "", "static": f" (static_rows {lookup.parts[-1].divisor * NUM_BUCKETS})"}
    parts = (
        part.table + numbers.get(part.keys, f" (modulus {part.divisor})") for part in lookup.parts
    )
    return f"{', '.join(parts)} by {lookup.operation}"
