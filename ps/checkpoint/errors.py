"""What can be wrong with a checkpoint."""


class CheckpointError(ValueError):
    """A checkpoint that is not there, is damaged, or does not fit."""


class CheckpointRemovedError(CheckpointError):
    """A checkpoint that went while it was read: nothing of it was damaged."""


class UnfitCheckpointError(CheckpointError):
    """A checkpoint that is whole, but not one for what is asked of it."""
