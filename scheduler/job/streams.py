"""The stream that a job file names, and the first of its samples."""

import logging
import time

from scheduler.job.config import JobConfig
from worker.data.directory_stream import DirectoryStream
from worker.data.plan import Plan
from worker.data.planning import plan_arrived, plan_of_sample
from worker.data.streams import Position
from worker.errors import DataError
from worker.spec import DataSpec

_log = logging.getLogger(__name__)

_POLL_SECONDS = 0.1


def stream_of(config: JobConfig) -> DirectoryStream:
    """Return the stream of a job; raises StorageError where it can't be opened."""
    settings = config.data.stream
    assert settings is not None, "the job is one of a stream"
    return DirectoryStream(
        settings.dir,
        late_seconds=settings.late_seconds,
        settle_seconds=settings.settle_seconds,
        after=settings.after,
    )


def begin_stream(config: JobConfig, data: DataSpec) -> tuple[Plan, Position]:
    """Wait for the first file of a stream.

    Returns:
        A plan of that file, which tells what the columns hold, and where the stream begins.

    Raises:
        StorageError: the folder is not there, or can't be listed.
        DataError: a file can't be used, with `on_bad_file: fail`.
    """
    stream = stream_of(config)
    assert config.data.stream is not None, "the job is one of a stream"
    newest = None
    if config.data.stream.start == "now":
        newest = stream.skip_what_is_there()
    begins = stream.position
    said = False
    while True:
        for path in [newest] if newest is not None else stream.poll(most=1, now=time.time()):
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
