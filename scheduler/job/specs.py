"""From a job file to the specs that the other packages take."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from embedding import rows_per_bucket
from embedding.spec.composition import Composed, compose
from embedding.spec.eviction import needs_usage
from embedding.spec.initial_values import Constant
from embedding.spec.table import TableSpec
from embedding.spec.tiers import Tiers
from ps.spec import StoreSpec
from runtime.fingerprint import FloatModeError, check_float_mode
from scheduler.job.config import JobConfig
from scheduler.job.errors import ConfigError, nearest
from scheduler.job.labels import task_labels
from scheduler.job.model import EmbeddingConfig, TableConfig
from worker.data.task_join import columns_of, joined_tasks
from worker.models import (
    FIRST_ORDER_MODELS,
    build_model,
    needed_lookups,
    num_parameters,
    takes_weights,
)
from worker.models.protocol import custom_class
from worker.models.wide_deep import LINEAR_SUFFIX
from worker.spec import DataSpec, FeatureSpec, Lookup, ModelSpec, SparseFeature, TaskLabel
from worker.step.sequences import check_room

_log = logging.getLogger(__name__)


def feature_spec(config: JobConfig) -> FeatureSpec:
    """The columns that a job reads."""
    sparse = tuple(
        SparseFeature(
            name=feature.feature,
            column=feature.column,
            table=feature.table_name,
            combiner=feature.combiner,
            weights=feature.weights,
            max_length=feature.max_length,
            keep=feature.keep or "first",
            pad=feature.pad,
            max_norm=feature.max_norm,
        )
        for feature in config.data.sparse
    )
    return FeatureSpec(
        label=config.data.label,
        dense=tuple(config.data.dense),
        dense_transform=config.data.dense_transform,
        sparse=sparse,
        weight=config.data.weight,
        tasks=task_labels(config.data.labels),
    )


def training_data(config: JobConfig) -> DataSpec:
    """How training files become batches."""
    segment = config.training.online.segment
    features = feature_spec(config)
    if config.data.label_stream is not None:
        features = replace(features, tasks=joined_tasks(features.tasks))
    return DataSpec(
        features=features if segment is None else replace(features, segment=segment.column),
        batch_size=config.data.batch_size,
        lanes=config.group_size if config.data.order == "lanes" else 1,
        epochs=config.data.epochs,
        shuffle=config.data.shuffle,
        seed=config.seed,
        on_bad_file=config.data.on_bad_file,
    )


def arriving_features(config: JobConfig) -> FeatureSpec:
    """The columns of samples that arrive, and get their labels from another stream."""
    labels = config.data.label_stream
    assert labels is not None, "labels are in a stream of their own"
    return replace(training_data(config).features, label=None, tasks=(), key=labels.key)


def label_features(config: JobConfig) -> FeatureSpec:
    """The columns of the stream of labels."""
    labels = config.data.label_stream
    assert labels is not None, "labels are in a stream of their own"
    tasks = task_labels(config.data.labels)
    first = {task.column: task.name for task in reversed(tasks)}
    columns = columns_of(tasks)
    return FeatureSpec(
        label=None if tasks else config.data.label_in_stream[0],
        tasks=tuple(TaskLabel(name=first[c], column=c, missing="mask") for c in columns),
        dense=(),
        dense_transform="none",
        sparse=(),
        key=labels.key,
    )


def evaluation_data(config: JobConfig) -> DataSpec:
    """How evaluation files become batches: in order, once."""
    return DataSpec(
        features=replace(feature_spec(config), group=config.data.eval_group_by),
        batch_size=config.data.eval_batch_size,
        on_bad_file=config.data.on_bad_file,
    )


def model_spec(config: JobConfig) -> ModelSpec:
    """The dense model and its lookups; raises ConfigError naming the option that is wrong."""
    sparse = feature_spec(config).sparse
    labels = config.data.labels or {}
    _check_tasks(config)
    names = {feature.table for feature in sparse}
    dims = {name: _table(config, name).dim for name in names}
    try:
        lookups = needed_lookups(config.model.type, config.model.options, sparse, dims)
        lookups = (
            *(_with_parts(config, lookup) for lookup in lookups[: len(sparse)]),
            *lookups[len(sparse) :],
        )
        spec = ModelSpec(
            type=config.model.type,
            options=config.model.options,
            optimizer=config.model.optimizer,
            num_dense=len(config.data.dense),
            lookups=lookups,
            seed=config.seed,
            loss=config.training.loss,
            lookup_names=_names_of(config, lookups, sparse),
            dense_names=tuple(config.data.dense) if config.model.type == "torch" else (),
            tasks=tuple(labels),
            task_weights=tuple(each.weight for each in labels.values()),
        )
        check_room(spec, max(config.data.batch_size, config.data.eval_batch_size))
        model = build_model(spec)
        examine = getattr(model, "examine", None)
        if examine is not None:
            examine()
            if not config.training.mixed_cpus:
                check_float_mode()  # a library may have changed it, as workers would find
    except ConfigError:
        raise
    except (ValueError, TypeError, ImportError, FloatModeError) as error:
        raise ConfigError(f"model: {error}") from error
    if config.model.type == "custom" and config.training.loss != "log_loss":
        raise ConfigError(
            f"training.loss is {config.training.loss}, and a custom model computes its loss itself;"
            " leave it out, and write that into the model's train"
        )
    if config.data.weight is not None and not takes_weights(model):
        raise ConfigError(
            f"data.weight is {config.data.weight!r}, and train of model.class"
            f" {config.model.options.get('class')!r} takes no weights: give it a last argument,"
            " weights, float32[n], by which it multiplies each sample's loss (docs/models.md)"
        )
    _check_tables(config, lookups, num_features=len(sparse))
    _check_esmm(config)
    return spec


def _check_esmm(config: JobConfig) -> None:
    """Refuse ESMM labels one by one, as it multiplies them.

    Warns where conversions are learnt of all impressions: it multiplies their probability too.
    """
    labels = config.data.labels or {}
    if config.model.type != "torch" or len(labels) < 2:
        return
    from worker.models.torch.esmm import Esmm

    if not issubclass(custom_class(config.model.options), Esmm):
        return
    if config.data.label_stream is not None and config.data.label_stream.tasks == "apart":
        raise ConfigError(
            "data.label_stream.tasks is apart, and Esmm learns click and conversion of one sample"
            " together, a product of both: leave it out, or take another class"
        )
    (click, _), (convert, label), *_ = labels.items()
    if label.where != click:
        _log.warning(
            "data.labels.%s has no where: %s, and Esmm takes the second task for conversions of"
            " the first, %s. Without it their scores are of all impressions; where the order is"
            " another one, write the click first",
            convert, click, click,
        )  # fmt: skip


def _check_tasks(config: JobConfig) -> None:
    """Refuse several tasks of a model that has one logit, or with a loss for one."""
    if config.data.labels is None:
        return
    if config.model.type != "torch":
        raise ConfigError(
            f"data.labels names several tasks, and a model of type {config.model.type} has one"
            " logit; take model.type torch (docs/torch.md has models of several tasks), or name one"
            " label in data.label"
        )
    if config.training.loss != "log_loss":
        raise ConfigError(
            f"training.loss {config.training.loss} is for one label; with data.labels leave it out"
        )


def _names_of(
    config: JobConfig, lookups: Sequence[Lookup], sparse: Sequence[SparseFeature]
) -> tuple[str, ...]:
    """Return the features' names, lookup by lookup, for a model that has its inputs by name."""
    if config.model.type != "torch":
        return ()
    return tuple(sparse[lookup.feature].name for lookup in lookups)


def store_spec(config: JobConfig, model: ModelSpec) -> StoreSpec:
    """Tables and dense parameters, in the order of the lookups."""
    dims = {lookup.table: lookup.dim for lookup in model.lookups}
    tables: dict[str, TableSpec] = {}
    for name, dim in dims.items():
        for table in _physical_tables(config, name, dim):
            if table.name in tables or (table.name != name and table.name in dims):
                raise ConfigError(
                    f"tables.{name}.composition: its table {table.name} has the name of another"
                    " table; rename one of them"
                )
            tables[table.name] = table
    return StoreSpec(
        tables=tuple(tables.values()),
        dense_size=num_parameters(build_model(model)),
        dense_optimizer=config.model.optimizer,
        num_shards=config.cluster.servers,
        dense_clip_norm=config.model.clip_global_norm,
        sparse_mean=config.training.sparse_mean,
    )


def table_tiers(config: JobConfig, model: ModelSpec) -> dict[str, Tiers]:
    """Where the values of tables are that memory is not to hold all, by table."""
    found: dict[str, Tiers] = {}
    for name, dim in {lookup.table: lookup.dim for lookup in model.lookups}.items():
        own = config.tables.get(name, TableConfig()).tiers
        tiers = config.embedding.tiers if own is None else own
        if tiers is not None:
            found.update({t.name: tiers for t in _physical_tables(config, name, dim)})
    return found


def _physical_tables(config: JobConfig, name: str, dim: int) -> tuple[TableSpec, ...]:
    """The tables that hold the rows of a table of the job file: itself, or its composition's."""
    composed = _composed(config, name)
    return (_table(config, name, dim=dim),) if composed is None else composed.tables


def _with_parts(config: JobConfig, lookup: Lookup) -> Lookup:
    composed = _composed(config, lookup.table)
    if composed is None:
        return lookup
    return replace(lookup, parts=composed.parts, operation=composed.operation)


def _composed(config: JobConfig, name: str) -> Composed | None:
    composition = config.tables.get(name, TableConfig()).composition
    if composition is None:
        return None
    table = _table(config, name)
    try:
        return compose(table, composition)
    except ValueError as error:
        raise ConfigError(f"tables.{name}.composition: {error}") from error


def _table(config: JobConfig, name: str, dim: int | None = None) -> TableSpec:
    """One table: its overrides over the defaults; a linear weight starts at 0 by default."""
    defaults: EmbeddingConfig | TableConfig = config.embedding
    own = config.tables.get(name, TableConfig())
    if _is_first_order(config, name):
        own = _with_rules_of_feature(config, name, own)
    values = {
        field: getattr(own, field) if getattr(own, field) is not None else getattr(defaults, field)
        for field in EmbeddingConfig.model_fields
        if field in TableConfig.model_fields and field != "tiers"
    }
    first_order = config.embedding.first_order_optimizer
    if first_order is not None and own.optimizer is None and _is_first_order(config, name):
        values["optimizer"] = first_order
    if dim is not None:
        values["dim"] = dim
        if _is_first_order(config, name) and own.initializer is None:
            values["initializer"] = Constant(value=0.0)
    needed = needs_usage(values["eviction"])
    if values["track_usage"] is None:
        values["track_usage"] = needed
    if needed and not values["track_usage"]:
        where = "embedding" if own.track_usage is None else f"tables.{name}"
        raise ConfigError(
            f"{where}.track_usage can't be false: eviction of table {name} by steps_to_live,"
            " max_rows or max_bytes needs it; leave it out"
        )
    try:
        table = TableSpec(name=name, seed=config.seed, **values)
    except ValueError as error:
        raise ConfigError(f"tables.{name}, with the defaults of embedding: {error}") from error
    try:
        rows_per_bucket(table)
    except ValueError as error:
        where = "embedding" if own.eviction is None else f"tables.{name}"
        raise ConfigError(f"{where}.eviction: {error} for table {name}") from error
    return table


def _is_first_order(config: JobConfig, name: str) -> bool:
    """Whether a table is one of a model's own; its features' tables can't have such names."""
    return config.model.type in FIRST_ORDER_MODELS and name.endswith(LINEAR_SUFFIX)


def _with_rules_of_feature(config: JobConfig, name: str, own: TableConfig) -> TableConfig:
    """Give first-order weights the rules that the table of their feature has for itself.

    A key has both or none then, unless the job says otherwise. A threshold of weight is not passed
    on: it is chosen for vectors of another dim, and these start at 0.
    """
    feature = config.tables.get(name.removesuffix(LINEAR_SUFFIX), TableConfig())
    given: dict[str, Any] = {}
    if own.admission is None:
        given["admission"] = feature.admission
    eviction = feature.eviction
    if own.eviction is None and eviction is not None and needs_usage(eviction):
        given["eviction"] = replace(eviction, l2_weight_threshold=None)
        if own.track_usage is None:
            given["track_usage"] = feature.track_usage
    return own.model_copy(update=given)


def _check_tables(config: JobConfig, lookups: Sequence[Lookup], *, num_features: int) -> None:
    known = sorted({lookup.table for lookup in lookups})
    first_order = {lookup.table for lookup in lookups[num_features:]}
    if config.embedding.first_order_optimizer is not None and not first_order:
        raise ConfigError(
            f"embedding.first_order_optimizer: a model of type {config.model.type} has no tables of"
            " first-order weights; leave it out, or set embedding.optimizer"
        )
    for name, table in config.tables.items():
        if name in first_order and table.composition is not None:
            raise ConfigError(
                f"tables.{name}.composition: first-order weights are kept by key; leave it out"
            )
        if name not in known:
            raise ConfigError(f"tables.{name}: no feature uses this table{nearest(name, known)}")
