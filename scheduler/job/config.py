"""The job file: one YAML document, validated with messages that name the field.

A public contract in the words of docs/design.md; `key.path=value` overrides any key of it.
"""

from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StrictInt,
    StrictStr,
    field_validator,
    model_validator,
)

from ps.checkpoint.chain import MAX_CHAIN
from ps.messages.pull_push import MAX_STEP_BATCHES
from ps.spec import SparseMean
from scheduler.coordinator.modes.policy import PolicyOptions
from scheduler.coordinator.modes.rules import SHIFTABLE, Mode, ModeOptions, OnStale, PlannedShift
from scheduler.coordinator.modes.stale_weights import Cutoff, StaleWeight
from scheduler.coordinator.start import InitClock, InitFeatures, InitTables
from scheduler.job.errors import ConfigError, validated
from scheduler.job.faults import InjectConfig, check_targets
from scheduler.job.gpus import Gpus, check_gpus
from scheduler.job.job_yaml import JobYamlError, read_yaml
from scheduler.job.labels import TasksConfig, check_labels, check_windows, one_kind_of_label
from scheduler.job.model import EmbeddingConfig, ModelConfig, TableConfig
from scheduler.job.names import Name, check_table_name
from scheduler.job.online import OnlineConfig, check_online, check_scored
from scheduler.job.publishing import PublishConfig
from scheduler.job.quantities import (
    MAX_WORKERS,
    RELAYS_FROM,
    WORKERS_OF_A_RELAY,
    Amount,
    Count,
    CountOrNone,
    Cpus,
    PathText,
    PositiveFloat32,
    Relays,
    Seconds,
)
from scheduler.job.roles import LabelsConfig, ResourcesConfig, check_bounds
from scheduler.job.sources import (
    KafkaConfig,
    LabelStreamConfig,
    StreamConfig,
    check_label_stream,
)
from scheduler.scaling.decisions import ScalingOptions
from worker.data.arrivals import OnBadRecord
from worker.protocol import MAX_SCORES, MAX_TOKENS
from worker.spec import Combiner, Keep, Loss

StaleWeightConfig = Annotated[StaleWeight, Field(discriminator="type")]
Resume = Literal["never", "auto", "require"]
_MODES = ModeOptions()


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class SparseConfig(_Section):
    """One sparse feature. A plain column name in the job file is short for {column: NAME}."""

    column: Name
    name: Name | None = Field(None, min_length=1)
    table: Name | None = Field(None, min_length=1)
    combiner: Combiner = "sum"
    weights: Name | None = None
    max_length: Count | None = None
    keep: Keep | None = None
    pad: StrictStr | Annotated[StrictInt, Field(ge=-(2**63), lt=2**64)] | None = None
    max_norm: PositiveFloat32 | None = None

    @field_validator("pad", mode="before")
    @classmethod
    def _is_a_value(cls, value: Any) -> Any:
        if isinstance(value, bool) or not isinstance(value, int | str | None):
            raise ValueError(f"must be a whole number or text, as the column has it, got {value!r}")
        return value

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        if isinstance(value, dict) and "column" not in value and "name" in value:
            return {**value, "column": value["name"]}
        return value if isinstance(value, dict | SparseConfig) else {"column": value}

    @model_validator(mode="after")
    def _legal_table(self) -> "SparseConfig":
        check_table_name(self.column, self.feature, self.table_name)
        return self

    @model_validator(mode="after")
    def _no_weights_without_use(self) -> "SparseConfig":
        if self.combiner in ("max", "none") and self.weights is not None:
            raise ValueError(
                f"combiner {self.combiner} takes no weights; leave weights out or use mean"
            )
        return self

    @model_validator(mode="after")
    def _keeps_of_what_is_cut(self) -> "SparseConfig":
        if self.keep is not None and self.max_length is None:
            raise ValueError(
                f"keep is {self.keep}, and says which keys of a list that max_length cuts are kept;"
                " give max_length too, or leave keep out"
            )
        return self

    @property
    def feature(self) -> str:
        return self.name or self.column

    @property
    def table_name(self) -> str:
        return self.table or self.feature


class DataConfig(_Section):
    """Where samples come from and how they become batches."""

    train: list[PathText] | None = Field(None, min_length=1)
    stream: StreamConfig | None = None
    label_stream: LabelStreamConfig | None = None
    eval: list[PathText] | None = Field(None, min_length=1)
    label: Name | None = "label"
    labels: TasksConfig | None = None
    weight: Name | None = None
    dense: list[Name] = []
    dense_transform: Literal["none", "log1p"] = "none"
    sparse: list[SparseConfig] = Field(min_length=1)
    batch_size: Count = 2048
    eval_batch_size: int = Field(8192, ge=1, le=MAX_SCORES)
    eval_group_by: Name | None = None
    epochs: Count = 1
    shuffle: Literal["none", "files", "rows"] = "none"
    order: Literal["lanes", "sequential"] = "lanes"
    on_bad_file: Literal["fail", "skip"] = "fail"
    on_bad_record: OnBadRecord = "fail"
    cache_bytes: Amount = 1 << 30

    @model_validator(mode="before")
    @classmethod
    def _lists(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        wrapped = {k: [value[k]] for k in ("train", "eval") if isinstance(value.get(k), str)}
        return one_kind_of_label({**value, **wrapped})

    @property
    def label_columns(self) -> list[str]:
        """The columns of the labels, one or several."""
        columns = [] if self.label is None else [self.label]
        columns += [each.column for each in (self.labels or {}).values()]
        return list(dict.fromkeys(columns))

    @property
    def label_in_stream(self) -> list[str]:
        """The columns of `label_stream` that hold the labels."""
        named = None if self.label_stream is None else self.label_stream.label
        return self.label_columns if named is None else [named]

    @model_validator(mode="after")
    def _of_files_or_of_a_stream(self) -> "DataConfig":
        if self.label_stream is not None:
            check_label_stream(self.label_stream, self.stream, self.label_in_stream)
        if self.stream is None:
            if self.on_bad_record != "fail":
                raise ValueError(
                    "data.on_bad_record looks through files as they arrive, and needs data.stream"
                )
            if not self.train:
                raise ValueError("data.train or data.stream must say where samples come from")
            return self
        if self.train:
            raise ValueError("data.train and data.stream are both given; leave one of them out")
        if isinstance(self.stream, KafkaConfig):
            weights = [each.weights for each in self.sparse if each.weights is not None]
            answers = self.label_columns
            if self.label_stream is not None:
                answers = [self.label_stream.key]
            columns = [*answers, *self.dense, *(each.column for each in self.sparse), *weights]
            columns += [self.weight] if self.weight is not None else []
            self.stream.check_columns(dict.fromkeys(columns))
        for name, value, only in (("epochs", self.epochs, 1), ("shuffle", self.shuffle, "none")):
            if value != only:
                raise ValueError(
                    f"data.{name} is {value}, and data.stream gives each sample once, as it"
                    f" arrives; leave it out, or write {name}: {only}"
                )
        return self

    @model_validator(mode="after")
    def _distinct(self) -> "DataConfig":
        for what, names in (
            ("data.dense", self.dense),
            ("data.sparse", [sparse.feature for sparse in self.sparse]),
        ):
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise ValueError(f"{what} lists {twice[0]!r} twice")
        return self

    @model_validator(mode="after")
    def _inputs_are_no_answers(self) -> "DataConfig":
        """Whoever lists all columns of a file would train on the label, or on a weight as a key."""
        weights = {sparse.weights for sparse in self.sparse if sparse.weights is not None}
        if self.labels is not None:
            inputs = {*weights, *self.dense, *(sparse.column for sparse in self.sparse)}
            later = self.label_stream
            check_labels(self.labels, inputs=inputs, weight=self.weight)
            check_windows(self.labels, later)
        elif self.label_stream is not None and self.label_stream.tasks != "together":
            raise ValueError(
                "data.label_stream.tasks is of the tasks that data.labels names, and there is one"
                " label; leave it out"
            )
        if self.label is not None and self.label in (*weights, self.weight):
            raise ValueError(f"the label {self.label!r} is given as weights; leave it out there")
        for what, names in (
            ("data.dense", self.dense),
            ("data.sparse", [sparse.column for sparse in self.sparse]),
        ):
            if self.label in names:
                raise ValueError(
                    f"{what} lists {self.label!r}, the label: a model that is given its answers"
                    " learns nothing else; leave it out, or name another column in data.label"
                )
            if self.weight in names:
                raise ValueError(
                    f"{what} lists {self.weight!r}, which data.weight names: it says how much a"
                    " sample counts, and predictions don't have it; leave it out in one of the two"
                    " places"
                )
            listed = sorted(weights & set(names))
            if listed:
                raise ValueError(
                    f"{what} lists {listed[0]!r}, which holds the weights of a feature; leave it"
                    " out in one of the two places"
                )
        return self


class TrainingConfig(_Section):
    """How local batches become steps."""

    mode: Literal[Mode, "auto"] = "async"
    auto: PolicyOptions = PolicyOptions()
    begin_in_sync: bool = True
    shifts: list[PlannedShift] = []
    global_batch: Count | None = None
    sparse_mean: SparseMean = "global"
    staleness_bound: CountOrNone = _MODES.staleness_bound
    stale_weight: StaleWeightConfig = _MODES.stale_weight
    on_stale: OnStale | None = None
    async_learning_rate_scale: float = Field(_MODES.async_learning_rate_scale, gt=0)
    ssp_slack: CountOrNone = _MODES.ssp_slack
    backup_batches: Count = _MODES.backup_batches
    eval_every_steps: CountOrNone = 0
    max_samples: Amount | None = None
    max_seconds: Seconds | None = None
    loss: Loss = "log_loss"
    on_non_finite: Literal["fail", "skip"] = "fail"
    max_consecutive_non_finite: Count | None = 100
    mixed_cpus: bool = False
    online: OnlineConfig = OnlineConfig()

    @property
    def mode_options(self) -> ModeOptions:
        again = isinstance(self.stale_weight, Cutoff)
        return ModeOptions(
            staleness_bound=self.staleness_bound,
            stale_weight=self.stale_weight,
            on_stale=self.on_stale or ("reissue" if again else "drop"),
            async_learning_rate_scale=self.async_learning_rate_scale,
            ssp_slack=self.ssp_slack,
            backup_batches=self.backup_batches,
        )

    @model_validator(mode="after")
    def _shifts_in_order(self) -> "TrainingConfig":
        if self.shifts and self.mode not in SHIFTABLE:
            raise ValueError(
                f"shifts can't be planned in mode {self.mode}; begin in one of"
                f" {', '.join(SHIFTABLE)}"
            )
        times = [0, *(shift.at for shift in self.shifts)]
        if times[-1] >= 2**62:
            raise ValueError(f"shifts must be at times below 2^62, got {times[-1]}")
        if any(after <= before for before, after in pairwise(times)):
            raise ValueError(f"shifts must be at rising times above 0, got {times[1:]}")
        return self

    @model_validator(mode="after")
    def _something_is_stale(self) -> "TrainingConfig":
        if self.on_stale == "reissue" and not isinstance(self.stale_weight, Cutoff):
            raise ValueError(
                "on_stale: reissue trains again what weighs 0, and with stale_weight"
                f" {self.stale_weight.type} everything counts; use cutoff, or on_stale: drop"
            )
        return self


class ClusterConfig(_Section):
    """How many processes of each role, and what they may use."""

    workers: int = Field(2, gt=0, le=MAX_WORKERS)
    min_workers: int = Field(1, gt=0, le=MAX_WORKERS)
    max_workers: int | None = Field(None, gt=0, le=MAX_WORKERS)
    servers: int = Field(2, gt=0, le=4096)
    standby: int = Field(0, ge=0, le=1)
    min_servers: int | None = Field(None, gt=0, le=4096)
    max_servers: int | None = Field(None, gt=0, le=4096)
    autoscale: bool = False
    rebalance: Literal["never", "auto"] = "never"
    scaling: ScalingOptions = ScalingOptions()
    worker_threads: int = Field(1, gt=0, le=1024)
    worker_gpus: Gpus = 0
    worker_cpus: Cpus = 0.5
    server_cpus: Cpus = 0.25
    coordinator_cpus: Cpus = 0.25
    relays: Relays = "auto"
    resources: ResourcesConfig = ResourcesConfig()
    labels: LabelsConfig = LabelsConfig()
    start_timeout_seconds: Seconds = 120
    # A worker holds those that it pushes besides.
    prefetch_batches: int = Field(2, ge=1, le=MAX_TOKENS // 2)
    buffer_bytes: Amount = 1 << 30
    max_worker_restarts: CountOrNone = 10
    max_failures: int = Field(-1, ge=-1, le=2**31 - 1)
    restart_window_seconds: Seconds = 3600
    heartbeat_timeout_seconds: Seconds = 60
    lease_timeout_seconds: Seconds | None = 60
    server_timeout_seconds: float = Field(10, ge=6, le=86400)  # it is spoken to once a second
    stall_seconds: Seconds = 120
    retry_seconds: Seconds = 20
    compress: bool = False
    inject: list[InjectConfig] = []

    @property
    def num_relays(self) -> int:
        """How many relays pass on what workers report; 0: these speak to the coordinator."""
        if self.relays != "auto":
            return self.relays
        workers = max(self.workers, self.max_workers or 0)
        return 0 if workers < RELAYS_FROM else -(-workers // WORKERS_OF_A_RELAY)


class CheckpointConfig(_Section):
    """When checkpoints are written while the job trains, and which of them are kept."""

    every_steps: Count | None = None
    every_seconds: Seconds | None = 600
    full_every: int = Field(10, ge=1, le=MAX_CHAIN)
    keep: Count = 3
    path: PathText | None = None
    compression: Literal["none", "lz4", "zstd"] = "none"
    publish: PublishConfig | None = None


class RunConfig(_Section):
    """Where a run's files go, and whether it goes on from those that are there."""

    dir: PathText
    overwrite: bool = False
    resume: Resume = "never"
    progress_every_seconds: Seconds = 5
    init_from: PathText | None = None
    init_clock: InitClock = "continue"
    init_features: InitFeatures = InitFeatures()
    init_tables: InitTables = InitTables()
    allow_faults: bool = False
    tensorboard: bool = False

    @model_validator(mode="after")
    def _goes_on_or_begins_anew(self) -> "RunConfig":
        if self.overwrite and self.resume != "never":
            raise ValueError(
                f"overwrite: true removes the run that resume: {self.resume} would go on from;"
                " leave one of them out"
            )
        return self


class JobConfig(_Section):
    """One training job."""

    name: str = "job"
    seed: int = Field(0, ge=0, lt=2**63)
    data: DataConfig
    embedding: EmbeddingConfig = EmbeddingConfig()
    tables: dict[Name, TableConfig] = {}
    model: ModelConfig
    training: TrainingConfig = TrainingConfig()
    cluster: ClusterConfig = ClusterConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    run: RunConfig

    @property
    def global_batch(self) -> int:
        """G; by default one local batch for each worker."""
        return self.training.global_batch or self.data.batch_size * self.cluster.workers

    @property
    def max_workers(self) -> int:
        """Most workers that a running job may be asked to have; by default 8 times the first."""
        return self.cluster.max_workers or min(8 * self.cluster.workers, MAX_WORKERS)

    @property
    def min_servers(self) -> int:
        """Least servers that scaling may want; by default as many as there are."""
        return self.cluster.min_servers or self.cluster.servers

    @property
    def max_servers(self) -> int:
        """Most servers that scaling may want; by default as many as there are."""
        return self.cluster.max_servers or self.cluster.servers

    @property
    def group_size(self) -> int:
        """M, local batches of a global batch."""
        return self.global_batch // self.data.batch_size

    @model_validator(mode="after")
    def _consistent(self) -> "JobConfig":
        if self.global_batch % self.data.batch_size:
            raise ValueError(
                f"training.global_batch must be a multiple of data.batch_size"
                f" ({self.data.batch_size}), got {self.global_batch}"
            )
        if self.group_size > MAX_STEP_BATCHES:
            raise ValueError(
                f"training.global_batch may be at most {MAX_STEP_BATCHES} times data.batch_size"
                f" ({self.data.batch_size}), as a step's record names each of its batches, got"
                f" {self.group_size} times; raise data.batch_size"
            )
        check_gpus(self.cluster.worker_gpus, self.model)
        backup = self.training.backup_batches
        if self.training.mode == "backup" and backup >= self.group_size:
            raise ValueError(
                f"training.backup_batches must be less than the {self.group_size} local batches of"
                f" a global batch, got {backup}"
            )
        check_bounds(
            "workers",
            self.cluster.workers,
            least=self.cluster.min_workers,
            most=self.max_workers,
        )
        if self.data.stream is not None and self.training.mode == "backup":
            raise ValueError("training.mode backup is for files; with data.stream use another one")
        if self.data.stream is not None and self.training.max_samples is not None:
            raise ValueError(
                "training.max_samples is for files; a job on data.stream ends by"
                " training.online.until, training.max_seconds or synchromesh control RUN stop"
            )
        check_bounds("servers", self.cluster.servers, least=self.min_servers, most=self.max_servers)
        weight = None if self.data.weight is None else "data.weight"
        group = None if self.data.eval_group_by is None else "data.eval_group_by"
        tasks, rows = len(self.data.labels or "1"), self.data.eval_batch_size
        check_scored("data.eval_batch_size", rows, weight, group=group, tasks=tasks)
        check_online(self.training.online, self.data.stream, self.data.batch_size, weight, tasks)
        for key, value in (
            ("training.eval_every_steps", self.training.eval_every_steps),
            ("data.eval_group_by", self.data.eval_group_by),
        ):
            if value and self.data.eval is None:
                raise ValueError(f"{key} needs data.eval")
        if self.cluster.inject and not self.run.allow_faults:
            raise ValueError(
                "cluster.inject disturbs the job on purpose, for experiments; it is refused unless"
                " run.allow_faults is true"
            )
        cluster, scales = self.cluster, self.cluster.autoscale
        workers = self.max_workers if scales else cluster.workers
        check_targets(cluster.inject, workers=workers, servers=cluster.servers, scales=scales)
        return self

    @staticmethod
    def from_yaml(path: str | Path, overrides: list[str] | None = None) -> "JobConfig":
        """Read a job file and apply `key.path=value` overrides.

        Raises:
            ConfigError: the file can't be read, or a field is wrong; the message names it.
        """
        try:
            text = Path(path).read_text()
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror or error}") from error
        except UnicodeDecodeError as error:
            raise ConfigError(f"{path} is not a text file: {error}") from error
        try:
            data = read_yaml(text)
        except JobYamlError as error:
            raise ConfigError(f"{path}: {error}") from error
        if not isinstance(data, dict):
            raise ConfigError(f"{path} must hold a mapping of sections, got {type(data).__name__}")
        for override in overrides or []:
            _override(data, override)
        return validated(JobConfig, data, where=str(path))

    @staticmethod
    def from_dict(data: dict[str, Any]) -> "JobConfig":
        """Validate a job given as a mapping; raises ConfigError."""
        return validated(JobConfig, data, where="job")

    def to_yaml(self) -> str:
        """Return the whole job, defaults included, as YAML."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def _override(data: dict[str, Any], text: str) -> None:
    """Set one `key.path=value`; the value is read as YAML, list items go by their number."""
    path, equals, value = text.partition("=")
    if not equals or not path:
        raise ConfigError(f"an override must look like key.path=value, got {text!r}")
    try:
        parsed = read_yaml(value)
    except JobYamlError as error:
        raise ConfigError(f"the value of override {text!r}: {error}") from error
    *parents, last = path.split(".")
    node: Any = data
    for depth, part in enumerate(parents):
        if isinstance(node, dict):
            if node.get(part) is None:
                node[part] = {}
            node = node[part]
        elif isinstance(node, list) and part.isdigit() and int(part) < len(node):
            node = node[int(part)]
        else:
            raise ConfigError(f"override {text!r}: {'.'.join(parents[: depth + 1])} does not exist")
    if isinstance(node, dict):
        node[last] = parsed
    elif isinstance(node, list) and last.isdigit() and int(last) < len(node):
        node[int(last)] = parsed
    else:
        raise ConfigError(f"override {text!r}: {'.'.join(parents)} has no key {last!r}")
