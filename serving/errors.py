"""What can go wrong in serving, as callers tell it apart."""


class ServingError(ValueError):
    """A model can't be served, or a version of it can't be used."""


class RequestError(ValueError):
    """A request is not one that the model takes; the message says what was expected."""


class OverloadError(RuntimeError):
    """More requests wait than may; come again a little later."""


class DeadlineError(RuntimeError):
    """A request's time was over before it was computed."""
