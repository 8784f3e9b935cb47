"""The checkpoints of a job for followers that can't see its disk."""

from ps.following.publisher import Publisher
from scheduler.errors import StartError
from scheduler.job.config import JobConfig
from scheduler.run.directory import RunDirectory

# At the job's end, for those that follow to have its last checkpoint.
LAST_SECONDS = 30.0


class Publishing:
    """Publishes what is told to be readable, where the job file says so.

    Args:
        secret: what followers have to know; None: nothing is published.

    Raises:
        StartError: it can't listen there.
    """

    def __init__(self, config: JobConfig, run: RunDirectory, secret: bytes | None) -> None:
        self._publisher: Publisher | None = None
        publish = config.checkpoint.publish
        if publish is None or secret is None:
            return
        try:
            self._publisher = Publisher(
                run.checkpoints, secret=secret, host=publish.host, port=publish.port
            )
        except OSError as error:
            raise StartError(
                f"checkpoint.publish can't listen at {publish.host} port {publish.port}:"
                f" {error.strerror or error}"
            ) from error

    @property
    def address(self) -> str | None:
        """Where followers find it."""
        if self._publisher is None:
            return None
        host, port = self._publisher.address
        return f"tcp://{host}:{port}"

    def readable(self, name: str) -> None:
        """A checkpoint is there, and the newest."""
        if self._publisher is not None:
            self._publisher.readable(name)

    def close(self, *, ended: bool) -> None:
        """Publish nothing more.

        Args:
            ended: whether the job has come to its end, so that its last checkpoint is waited for.
        """
        if self._publisher is not None:
            self._publisher.close(patience=LAST_SECONDS if ended else 0.0)
