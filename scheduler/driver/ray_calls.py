"""What may be expected of calls through Ray: how long they take, and what it says of deaths."""

CALL_TIMEOUT_SECONDS = 30.0
# Of a model that is written or read, whoever does it: disks and stores that work are faster.
MOVE_SECONDS = 300.0
LEAST_BYTES_PER_SECOND = 10 << 20

WHERE_BUSY = (
    ". Ray gives a job's processes nice 15: where other work fills the cores of a node they hardly"
    " run, unless Ray is started there with RAY_worker_niceness=0"
)
"""What else may be the cause where processes don't come up."""


def seconds_to_move(num_bytes: int) -> float:
    """Return how long a model of so many bytes may take to be written or read."""
    return MOVE_SECONDS + num_bytes / LEAST_BYTES_PER_SECOND


def first_line(error: BaseException) -> str:
    """Return the first line of what Ray says, without its traceback.

    Of an exception that a process raised that is the exception's own first line, with its type:
    Ray's words begin with the process, in colours.
    """
    cause = getattr(error, "cause", None)  # of a RayTaskError
    if isinstance(cause, BaseException):
        return f"{type(cause).__name__}: {first_line(cause)}"
    text = str(error).strip() or type(error).__name__
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0].rstrip(".")
