"""Trained models behind an endpoint: read-only rows, versions that follow a job, HTTP."""

from serving.client import Answered, Client
from serving.errors import DeadlineError, OverloadError, RequestError, ServingError
from serving.model import Model, Prediction
from serving.versions import UnknownVersionError, Version

__all__ = [
    "Answered",
    "Client",
    "DeadlineError",
    "Model",
    "OverloadError",
    "Prediction",
    "RequestError",
    "ServingError",
    "UnknownVersionError",
    "Version",
]
