"""The stream that a job file names, and the first of its samples."""

import atexit
import logging
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa

from scheduler.job.config import JobConfig
from scheduler.job.errors import ConfigError
from scheduler.job.labels import task_labels
from scheduler.job.sources import (
    FolderSource,
    LabelFolderConfig,
    LabelTopicConfig,
    TopicSource,
)
from scheduler.job.specs import arriving_features, label_features, training_data
from worker.contract import ColumnKind
from worker.data.arrivals import Arrivals
from worker.data.column_types import check_schema
from worker.data.directory_stream import DirectoryStream
from worker.data.joined_arrivals import JoinedArrivals, first_position
from worker.data.kafka_client import read_client_file, require_kafka
from worker.data.kafka_stream import KafkaStream, KafkaTopic
from worker.data.label_join import LabelJoin
from worker.data.messages import MessageDecoder, arrow_decoder, avro_decoder, json_decoder
from worker.data.plan import FilePlan, Plan
from worker.data.planning import plan_arrived, plan_of_sample
from worker.data.streams import Position, Stream
from worker.data.task_join import TaskJoin
from worker.errors import DataError
from worker.spec import DataSpec, FeatureSpec

_log = logging.getLogger(__name__)

_POLL_SECONDS = 0.1


def arrivals_of(
    config: JobConfig,
    kinds: Sequence[ColumnKind],
    position: Position,
    *,
    skipped: tuple[int, int],
    spool: Path,
    aside: Path,
    note: Callable[[str], None],
) -> Arrivals | JoinedArrivals:
    """Return what arrives for a job.

    Args:
        kinds: what the sparse columns hold in the job's first file.
        position: where in the stream, or in both, to go on.
        skipped: files and rows that were left out before.
        spool: folder for what has no files of its own.
        aside: folder for what can't be used.
        note: tells a person something.

    Raises:
        StorageError: a source can't be opened.
        ConfigError: a setting is wrong, or a package is missing.
        DataError: what waited for labels is not known any more.
    """
    settings, labels = config.data.stream, config.data.label_stream
    assert settings is not None, "the job is one of a stream"
    agreed: dict[tuple[str, str], tuple[str, str]] = {}

    def arrivals(
        where: str, source: FolderSource | TopicSource, features: FeatureSpec, folder: str
    ) -> Arrivals:
        return Arrivals(
            stream_of(
                config, where, source, features,
                spool=spool / folder, aside=aside / folder, note=note,
            ),
            features,
            kinds=kinds,
            on_bad_file=config.data.on_bad_file,
            on_bad_record=config.data.on_bad_record,
            aside=aside / folder,
            skipped=skipped,
            agreed=agreed,
        )  # fmt: skip

    features = training_data(config).features
    made: Arrivals | JoinedArrivals
    if labels is None:
        made = arrivals("data.stream", settings, features, "")
    else:
        made = JoinedArrivals(
            arrivals("data.stream", settings, arriving_features(config), "samples"),
            arrivals("data.label_stream", labels, label_features(config), "labels"),
            features=features,
            make_join=lambda: _make_join(config, labels),
            folder=spool,
            most_remembered=labels.max_waiting,
        )
    made.seek(position)
    return made


def _make_join(
    config: JobConfig, labels: LabelFolderConfig | LabelTopicConfig
) -> LabelJoin | TaskJoin:
    if config.data.labels is None:
        return LabelJoin(
            window_seconds=labels.window_seconds,
            late_seconds=labels.remembered_seconds(),
            again=config.training.loss == "fake_negative_weighting",
        )
    windows = {each.column: each.window_seconds for each in config.data.labels.values()}
    joins = [
        LabelJoin(
            window_seconds=labels.window_seconds if window is None else window,
            late_seconds=labels.remembered_seconds(window),
            again=False,
        )
        for window in windows.values()
    ]
    tasks = task_labels(config.data.labels)
    return TaskJoin(joins, tasks, together=labels.tasks == "together")


def stream_of(
    config: JobConfig,
    where: str,
    source: FolderSource | TopicSource,
    features: FeatureSpec,
    *,
    spool: Path,
    aside: Path | None = None,
    note: Callable[[str], None] = _log.warning,
) -> Stream:
    """Return a stream of a job.

    Args:
        where: the section of the job file that names the source.
        features: columns that messages must have.
        spool: folder for the files of a stream that has none of its own.
        aside: folder for messages that are refused.
        note: tells a person something.

    Raises:
        StorageError: it can't be opened.
        ConfigError: a setting is wrong, or a package is missing.
    """
    if isinstance(source, FolderSource):
        return _directory(source)
    try:
        require_kafka()
        return KafkaStream(
            KafkaTopic(
                brokers=source.brokers,
                topic=source.topic,
                group=source.group or f"synchromesh-{config.name}",
                start=source.start,
                on_lost=source.on_lost,
                settings=read_client_file(source.client_file),
            ),
            _decoder(source, features),
            spool=spool,
            on_bad_record=config.data.on_bad_record,
            aside=aside,
            note=note,
        )
    except (ValueError, ImportError) as error:
        raise ConfigError(f"{where}: {error}") from error


def _directory(settings: FolderSource) -> DirectoryStream:
    return DirectoryStream(
        settings.dir,
        late_seconds=settings.late_seconds,
        settle_seconds=settings.settle_seconds,
        after=settings.after,
        removes=settings.trained_files == "remove",
        archive=settings.archive,
    )


def _decoder(settings: TopicSource, features: FeatureSpec) -> MessageDecoder:
    """Return what reads the messages of a topic; raises ValueError, ImportError."""

    def check(schema: pa.Schema) -> str | None:
        try:
            check_schema(schema, features, settings.topic)
        except DataError as error:
            return str(error)
        return None

    if settings.format == "json":
        return json_decoder(settings.columns)
    if settings.format == "arrow":
        return arrow_decoder(check)
    assert settings.avro_schema is not None, "it was checked"
    confluent = settings.avro_framing == "confluent"
    try:
        return avro_decoder(settings.avro_schema, confluent=confluent)
    except ImportError as error:
        raise ImportError(
            "Avro is read by the package fastavro, which is not installed: pip install"
            " 'synchromesh[kafka]'"
        ) from error
    except OSError as error:
        raise ValueError(f"avro_schema can't be read: {error}") from error


def begin_stream(config: JobConfig, data: DataSpec) -> tuple[Plan, Position]:
    """Wait for the first samples of a stream.

    Returns:
        A plan of their file, which tells what the columns hold, and where the stream begins.

    Raises:
        StorageError: the source is not there, or can't be asked.
        ConfigError: a setting of it is wrong.
        DataError: a file can't be used, with `on_bad_file: fail`, or a message.
    """
    spool = Path(tempfile.mkdtemp(prefix="synchromesh-"))
    atexit.register(shutil.rmtree, spool, ignore_errors=True)  # the plan is of a file there
    settings, labels = config.data.stream, config.data.label_stream
    assert settings is not None, "the job is one of a stream"
    if labels is None:
        stream = stream_of(config, "data.stream", settings, data.features, spool=spool)
        return _first_of(stream, config, data, {})
    # Where labels begin is noted before the first sample is waited for.
    features, agreed = label_features(config), dict[tuple[str, str], tuple[str, str]]()
    stream = stream_of(config, "data.label_stream", labels, features, spool=spool / "labels")
    try:
        if isinstance(stream, DirectoryStream) and labels.start == "now":
            stream.skip_what_is_there()
        labels_begin = stream.position
        if isinstance(stream, DirectoryStream) and config.data.on_bad_file == "fail":
            # One that is there already says soon what is wrong with all of them.
            for arrival in stream.poll(most=1, now=time.time()):
                plan_arrived(arrival.path, features, (), agreed)
    finally:
        stream.close()
    data = replace(data, features=arriving_features(config))
    stream = stream_of(config, "data.stream", settings, data.features, spool=spool)
    plan, samples_begin = _first_of(stream, config, data, agreed)
    return plan, first_position(samples_begin, labels_begin)


def labels_there(config: JobConfig) -> Iterator[FilePlan]:
    """Yield files of the labels that are there now, one after another, from the first on.

    Raises:
        StorageError: the source is not there, or can't be asked.
        ConfigError: a setting of it is wrong.
        DataError: a file, or a message, can't be used.
    """
    labels = config.data.label_stream
    assert labels is not None, "the job has one"
    features, agreed = label_features(config), dict[tuple[str, str], tuple[str, str]]()
    with tempfile.TemporaryDirectory(prefix="synchromesh-") as spool:
        stream = stream_of(config, "data.label_stream", labels, features, spool=Path(spool))
        try:
            while arrived := stream.poll(most=1, now=time.time()):
                for arrival in arrived:
                    yield plan_arrived(arrival.path, features, (), agreed)
        finally:
            stream.close()


def _first_of(
    stream: Stream,
    config: JobConfig,
    data: DataSpec,
    agreed: dict[tuple[str, str], tuple[str, str]],
) -> tuple[Plan, Position]:
    """Wait for the first samples; the stream is closed then.

    Args:
        agreed: what columns hold that samples must agree with.
    """
    try:
        return _first_sample(stream, config, data, agreed)
    finally:
        stream.close()


def _first_sample(
    stream: Stream,
    config: JobConfig,
    data: DataSpec,
    agreed: dict[tuple[str, str], tuple[str, str]],
) -> tuple[Plan, Position]:
    newest, settings = None, config.data.stream
    assert settings is not None, "the job is one of a stream"
    if isinstance(stream, DirectoryStream) and settings.start == "now":
        newest = stream.skip_what_is_there()
    begins = stream.position
    said = False
    while True:
        arrived = [] if newest else [a.path for a in stream.poll(most=1, now=time.time())]
        for path in [newest] if newest is not None else arrived:
            try:
                return plan_of_sample(plan_arrived(path, data.features, (), agreed), data), begins
            except DataError:
                if data.on_bad_file == "fail":
                    raise
        newest = None
        if not said:
            _log.warning("waiting for the first samples in %s", stream.folder)
            said = True
        time.sleep(_POLL_SECONDS)
