"""A client of the row form and of the status, with retries and time limits."""

import json
import random
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from serving.calls import OUTPUT
from serving.errors import DeadlineError, OverloadError, RequestError, ServingError

_MAX_ANSWER_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class Answered:
    """What a request got.

    Args:
        values: float32[n], the probability of label 1 of each sample; of a model of several tasks
            float32[n, tasks].
        step: the global step that all of it was computed with.
        checkpoint: the name of that version's checkpoint.
        age_seconds: since the job was at that step.
        outputs: names of the tasks, in the order of the values' columns; or `prediction`.
    """

    values: npt.NDArray[np.float32]
    step: int
    checkpoint: str
    age_seconds: float
    outputs: tuple[str, ...] = (OUTPUT,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """Asks a server for predictions.

    A request that may be repeated, as all of these only read, is repeated where the server is
    overloaded, restarts or can't be reached, after growing pauses, as long as its time lasts.

    Args:
        address: as `http://127.0.0.1:8500`.
        model: its name.
        token: that the server asks for.
        timeout_seconds: for a request with all its repetitions.
        retries: repetitions at most.
    """

    address: str
    model: str
    token: str | None = None
    timeout_seconds: float = 10.0
    retries: int = 3
    _sleep: Callable[[float], None] = field(default=time.sleep, repr=False)

    def predict(
        self,
        samples: Sequence[Mapping[str, Any]] | Mapping[str, Sequence[Any]],
        *,
        context: Mapping[str, Any] | None = None,
    ) -> Answered:
        """Return the predictions of rows, each {column: value}, or of columns.

        Args:
            samples: without the columns of the context.
            context: {column: value}, what all samples have in common: sent and computed once.

        Raises:
            RequestError: the server refuses the request for what it is.
            OverloadError: it was overloaded at every try.
            DeadlineError: the time is over.
            ServingError: the server can't be reached, or failed.
        """
        columns = isinstance(samples, Mapping)
        request: dict[str, Any] = {"inputs" if columns else "instances": samples}
        if context:
            request["context"] = context
        found = self._ask(f"/v1/models/{self.model}:predict", request)
        about = found["metadata"]
        values, outputs = _by_output(found["outputs" if columns else "predictions"])
        return Answered(values, about["step"], about["checkpoint"], about["age_seconds"], outputs)

    def status(self) -> dict[str, Any]:
        """Return the versions that are kept, and which checkpoints could not be used."""
        return self._ask(f"/v1/models/{self.model}", None)

    def rollback(self, step: int | None = None) -> dict[str, Any]:
        """Have a kept version served; None: the one before. It stays until `release`."""
        request = {} if step is None else {"step": step}
        return self._ask(f"/v1/models/{self.model}:rollback", request)

    def release(self) -> dict[str, Any]:
        """Have the newest version served again, and newer ones from then on."""
        return self._ask(f"/v1/models/{self.model}:release", {})

    def _ask(self, path: str, body: Any) -> dict[str, Any]:
        data = None if body is None else json.dumps(body, allow_nan=False).encode()
        end = time.monotonic() + self.timeout_seconds
        for number in range(self.retries + 1):
            left = end - time.monotonic()
            if left <= 0:
                raise DeadlineError(f"no answer within {self.timeout_seconds:g} seconds")
            try:
                return self._once(path, data, left)
            except (OverloadError, ServingError):
                pause = 0.05 * 2**number * (1 + random.random())
                if number == self.retries or time.monotonic() + pause >= end:
                    raise
                self._sleep(pause)
        raise AssertionError("the last try returns or raises")

    def _once(self, path: str, data: bytes | None, seconds: float) -> dict[str, Any]:
        headers = {
            "Content-Type": "application/json",
            "X-Request-Timeout-Seconds": f"{seconds:.3f}",
        }
        if self.token is not None:
            headers["Authorization"] = f"Bearer {self.token}"
        request = urllib.request.Request(self.address.rstrip("/") + path, data, headers)
        try:
            with urllib.request.urlopen(request, timeout=seconds) as answer:
                found: dict[str, Any] = json.loads(answer.read(_MAX_ANSWER_BYTES))
                return found
        except urllib.error.HTTPError as error:
            raise self._refused(error) from error
        except TimeoutError as error:
            raise DeadlineError(f"no answer within {self.timeout_seconds:g} seconds") from error
        except (urllib.error.URLError, OSError) as error:
            if isinstance(getattr(error, "reason", None), TimeoutError):
                raise DeadlineError(f"no answer within {self.timeout_seconds:g} seconds") from error
            raise ServingError(f"{self.address} can't be reached: {error}") from error

    def _refused(self, error: urllib.error.HTTPError) -> Exception:
        try:
            text = str(json.loads(error.read(1 << 16))["error"])
        except (ValueError, KeyError, TypeError, OSError):
            text = str(error)
        if error.code == 429:
            return OverloadError(text)
        if error.code == 504:
            return DeadlineError(text)
        return ServingError(text) if error.code >= 500 else RequestError(text)


def _by_output(
    predicted: list[float] | list[dict[str, float]] | dict[str, list[float]],
) -> tuple[npt.NDArray[np.float32], tuple[str, ...]]:
    """Return probabilities as an array, and what its columns are called."""
    if isinstance(predicted, dict):
        return np.array(list(predicted.values()), np.float32).T, tuple(predicted)
    if predicted and isinstance(predicted[0], dict):
        outputs = tuple(predicted[0])
        rows: Any = predicted
        return np.array([[row[name] for name in outputs] for row in rows], np.float32), outputs
    return np.array(predicted, np.float32), (OUTPUT,)
