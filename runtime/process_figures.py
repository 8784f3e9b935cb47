"""What a process measures of itself."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class ProcessFigures:
    """Figures of a worker or a server; sums run from when it was ready for work.

    Args:
        peak_rss_bytes: the most memory that it had resident.
        bytes_sent, bytes_received: on the data plane.
        cpu_seconds: user and system time.
        stage_seconds: time by stage, as `runtime.stage_times` has it.
    """

    # No slots: a status has one of every worker, and pickling those with slots takes twice as long.
    peak_rss_bytes: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    cpu_seconds: float = 0.0
    stage_seconds: dict[str, float] = field(default_factory=dict)


NOT_MEASURED = ProcessFigures()
