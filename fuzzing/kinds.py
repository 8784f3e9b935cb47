"""The kinds of inputs by name, and which part of all inputs each gets: by what one takes."""

from pathlib import Path

from fuzzing.checkpoints import CheckpointTree, write_small_checkpoints
from fuzzing.frames import ControlFrames, DataFrames, Handshakes
from fuzzing.job_files import JobFiles
from fuzzing.job_states import JobStates
from fuzzing.run import Target
from fuzzing.stores import StoredCheckpoints

SHARES = {
    "data-frames": 400,
    "control-frames": 235,
    "handshakes": 240,
    "checkpoint-damage": 25,
    "checkpoint-manifests": 50,
    "checkpoint-forgeries": 15,
    "checkpoint-stores": 5,
    "job-files": 15,
    "job-states": 15,
}
"""Of a thousand inputs."""


def checkpoint_kinds() -> list[str]:
    return [kind for kind in SHARES if kind.startswith("checkpoint-")]


def target_of(kind: str, work: Path, checkpoint: Path | None = None) -> Target:
    """Make what reads a kind of inputs.

    Args:
        work: an empty folder.
        checkpoint: that copies of are damaged; None: a small one.
    """
    match kind:
        case "data-frames":
            return DataFrames().target()
        case "control-frames":
            return ControlFrames().target()
        case "handshakes":
            return Handshakes().target()
        case "job-states":
            return JobStates().target()
        case "job-files":
            return JobFiles(work).target()
    source = checkpoint or write_small_checkpoints(work / "written")
    if kind == "checkpoint-stores":
        return StoredCheckpoints(source).target()
    return CheckpointTree(source, work / "damaged").targets()[kind]
