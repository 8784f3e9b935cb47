"""How long the driver waits for an answer: a call takes a moment, moving a model takes its time."""

CALL_TIMEOUT_SECONDS = 30.0
# Of a model that is written or read, whoever does it: disks and stores that work are faster.
MOVE_SECONDS = 300.0
LEAST_BYTES_PER_SECOND = 10 << 20


def seconds_to_move(num_bytes: int) -> float:
    """Return how long a model of so many bytes may take to be written or read."""
    return MOVE_SECONDS + num_bytes / LEAST_BYTES_PER_SECOND
