"""How a job ends when it does not end well."""


class TrainingError(RuntimeError):
    """The job failed while it ran; the text says which process or file, and why."""


class StartError(TrainingError):
    """The cluster could not give the job what it asked for in time."""


class RunDirectoryError(ValueError):
    """The run directory can't be used."""


class ControlError(RuntimeError):
    """A running job can't be found, does not answer, or can't do what it is asked for."""


class NotRunningError(ControlError):
    """No job runs there, as far as can be seen from here."""
