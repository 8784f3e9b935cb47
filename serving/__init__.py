"""Trained models behind an endpoint: read-only rows, versions that follow a job, HTTP."""

from serving.errors import DeadlineError, OverloadError, RequestError, ServingError
from serving.model import Model, Prediction
from serving.versions import UnknownVersionError, Version

__all__ = [
    "DeadlineError",
    "Model",
    "OverloadError",
    "Prediction",
    "RequestError",
    "ServingError",
    "UnknownVersionError",
    "Version",
]
