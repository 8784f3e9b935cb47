"""The stream that a job file names, and the first of its samples."""

import atexit
import logging
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa

from scheduler.job.config import JobConfig
from scheduler.job.errors import ConfigError
from scheduler.job.online import DirectoryConfig, KafkaConfig
from scheduler.job.specs import feature_spec
from worker.data.column_types import check_schema
from worker.data.directory_stream import DirectoryStream
from worker.data.kafka_client import read_client_file, require_kafka
from worker.data.kafka_stream import KafkaStream, KafkaTopic
from worker.data.messages import MessageDecoder, arrow_decoder, avro_decoder, json_decoder
from worker.data.plan import Plan
from worker.data.planning import plan_arrived, plan_of_sample
from worker.data.streams import Position, Stream
from worker.errors import DataError
from worker.spec import DataSpec, FeatureSpec

_log = logging.getLogger(__name__)

_POLL_SECONDS = 0.1


def stream_of(
    config: JobConfig,
    *,
    spool: Path,
    aside: Path | None = None,
    note: Callable[[str], None] = _log.warning,
) -> Stream:
    """Return the stream of a job.

    Args:
        spool: folder for the files of a stream that has none of its own.
        aside: folder for messages that are refused.
        note: tells a person something.

    Raises:
        StorageError: it can't be opened.
        ConfigError: a setting is wrong, or a package is missing.
    """
    settings = config.data.stream
    assert settings is not None, "the job is one of a stream"
    if isinstance(settings, DirectoryConfig):
        return _directory(settings)
    try:
        require_kafka()
        return KafkaStream(
            KafkaTopic(
                brokers=settings.brokers,
                topic=settings.topic,
                group=settings.group or f"synchromesh-{config.name}",
                start=settings.start,
                on_lost=settings.on_lost,
                settings=read_client_file(settings.client_file),
            ),
            _decoder(settings, feature_spec(config)),
            spool=spool,
            on_bad_record=config.data.on_bad_record,
            aside=aside,
            note=note,
        )
    except (ValueError, ImportError) as error:
        raise ConfigError(f"data.stream: {error}") from error


def _directory(settings: DirectoryConfig) -> DirectoryStream:
    return DirectoryStream(
        settings.dir,
        late_seconds=settings.late_seconds,
        settle_seconds=settings.settle_seconds,
        after=settings.after,
        removes=settings.trained_files == "remove",
        archive=settings.archive,
    )


def _decoder(settings: KafkaConfig, features: FeatureSpec) -> MessageDecoder:
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
    stream = stream_of(config, spool=spool)
    try:
        return _first_of(stream, config, data)
    finally:
        stream.close()


def _first_of(stream: Stream, config: JobConfig, data: DataSpec) -> tuple[Plan, Position]:
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
                return plan_of_sample(plan_arrived(path, data.features, (), {}), data), begins
            except DataError:
                if data.on_bad_file == "fail":
                    raise
        newest = None
        if not said:
            _log.warning("waiting for the first samples in %s", stream.folder)
            said = True
        time.sleep(_POLL_SECONDS)
