"""A session: one thread that computes requests, batch by batch, with buffers of its own."""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from serving.batching import Batcher, Close, Late, Take
from serving.calls import BINARY, Answer, Call
from serving.errors import OverloadError, RequestError
from serving.model import Loaded, predictor_of
from serving.requests import RequestSchema
from serving.wire import inference, rows
from serving.wire.json_text import text
from worker.data.batch import Batch
from worker.data.columns import concatenate
from worker.data.shared import SharedBatch, joined
from worker.inference import Predictor, probabilities

Done = Callable[[Answer], None]

JSON_BYTES_HEADER = "Inference-Header-Content-Length"
_MOST_SAID = 2000  # characters of an error


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionOptions:
    """How requests become batches.

    Args:
        name: of the model, in answers.
        max_rows: most samples of a request.
        max_batch: samples from which on no further request is added to a batch.
        max_delay: seconds that a request may wait for others.
        max_waiting: requests that may wait for a session.
    """

    name: str
    max_rows: int = 16384
    max_batch: int = 1024
    max_delay: float = 0.0
    max_waiting: int = 256


@dataclass(slots=True)
class _Decoded:
    batch: Batch | SharedBatch
    done: Done
    encode: Callable[[npt.NDArray[np.float32], dict[str, Any]], Answer]


class Session:
    """Computes requests in a thread of its own.

    Args:
        loaded: the version that it begins with.
        options: how batches are formed.
    """

    def __init__(self, loaded: Loaded, options: SessionOptions) -> None:
        self._newest = loaded
        self._options = options
        saved = loaded.form.model
        self._schema = RequestSchema(saved.features, saved.contract, max_rows=options.max_rows)
        self._batcher: Batcher[tuple[Call, Done]] = Batcher(
            max_batch=options.max_batch,
            max_delay=options.max_delay,
            max_waiting=options.max_waiting,
        )
        self._changed = threading.Condition()
        self._closed = False
        self._loaded: Loaded | None = None
        self._predictor: Predictor | None = None
        self._thread = threading.Thread(target=self._run, name="session", daemon=True)
        self._thread.start()

    def submit(self, call: Call, done: Done) -> None:
        """Have a request computed; `done` is called once with its answer, by any thread.

        Raises:
            OverloadError: as many wait as may, or the session is closed.
        """
        with self._changed:
            if self._closed:
                raise OverloadError("the server is stopping")
            self._batcher.offer((call, done), time.monotonic(), call.deadline)
            self._changed.notify()

    @property
    def alive(self) -> bool:
        """Whether its thread computes what is submitted."""
        return self._thread.is_alive()

    def take(self, loaded: Loaded) -> None:
        """Serve a version from the next batch on."""
        self._newest = loaded

    def close(self) -> None:
        """Compute what waits, then end."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while (decoded := self._next_batch()) is not None:
            if decoded:
                self._compute(decoded)

    def _next_batch(self) -> list[_Decoded] | None:
        """Form a batch; None: the session is closed and nothing waits."""
        decoded: list[_Decoded] = []
        samples = 0
        while True:
            with self._changed:
                step = self._batcher.next(time.monotonic(), samples)
                if not isinstance(step, Take | Late | Close):
                    if self._closed:
                        return decoded or None
                    self._changed.wait(step.seconds)
                    continue
            if isinstance(step, Close):
                return decoded
            call, done = step.item
            if isinstance(step, Late):
                done(failed(504, "the request's time was over before it was computed"))
                continue
            try:
                found = self._decoded(call, done)
            except RequestError as error:
                done(failed(400, str(error)))
                continue
            except Exception as error:
                done(failed(500, f"the request could not be read: {error!r}"))
                continue
            decoded.append(found)
            samples += found.batch.num_samples

    def _decoded(self, call: Call, done: Done) -> _Decoded:
        if call.form == "rows":
            batch, name = rows.decode(call.body, self._schema)
            return _Decoded(
                batch, done, lambda values, about: Answer(200, rows.encode(values, name, about))
            )
        batch, wanted = inference.decode(call.body, call.json_bytes, self._schema)
        model = self._options.name

        def encode(values: npt.NDArray[np.float32], about: dict[str, Any]) -> Answer:
            body, json_bytes = inference.encode(values, wanted, model, about)
            if json_bytes is None:
                return Answer(200, body)
            return Answer(200, body, BINARY, [(JSON_BYTES_HEADER, str(json_bytes))])

        return _Decoded(batch, done, encode)

    def _compute(self, decoded: Sequence[_Decoded]) -> None:
        try:
            predictor, loaded = self._predictor_now()
        except Exception as error:  # whatever a custom model raises
            _fail(decoded, error)
            return
        # Of a custom model bits may depend on what else is in a batch.
        together = _by_shape(decoded) if predictor.predicts_by_sample else [[e] for e in decoded]
        for alike in together:
            try:
                logits = predictor.logits(_joined([each.batch for each in alike]))
            except Exception as error:
                _fail(alike, error)
                continue
            start = 0
            for each in alike:
                end = start + each.batch.num_samples
                self._answer(each, logits[start:end], loaded)
                start = end

    def _predictor_now(self) -> tuple[Predictor, Loaded]:
        loaded = self._newest
        if self._predictor is None:
            self._predictor = predictor_of(loaded)
        elif loaded is not self._loaded:
            self._predictor.take(loaded.tables, loaded.form.dense, step=loaded.version.step)
        self._loaded = loaded
        return self._predictor, loaded

    def _answer(self, each: _Decoded, logits: npt.NDArray[np.float32], loaded: Loaded) -> None:
        if np.isnan(logits).any():
            row = int(np.argmax(np.isnan(logits)))
            each.done(failed(500, f"the model gives NaN for row {row}: its parameters diverged"))
            return
        version = loaded.version
        about = {
            "step": version.step,
            "checkpoint": version.checkpoint,
            "age_seconds": round(version.age(time.time()), 3),
        }
        answer = each.encode(probabilities(logits), about)
        answer.rows, answer.step = len(logits), version.step
        each.done(answer)


def _fail(decoded: Sequence[_Decoded], error: Exception) -> None:
    for each in decoded:
        each.done(failed(500, f"the model failed: {error!r}"))


def _by_shape(decoded: Sequence[_Decoded]) -> list[list[_Decoded]]:
    """Return the requests that share the same columns, together, in the order of their first."""
    found: dict[Any, list[_Decoded]] = {}
    for each in decoded:
        batch = each.batch
        shape = (batch.sparse, batch.dense) if isinstance(batch, SharedBatch) else None
        found.setdefault(shape, []).append(each)
    return list(found.values())


def _joined(batches: Sequence[Any]) -> Batch | SharedBatch:
    if isinstance(batches[0], SharedBatch):
        return joined(batches)
    return concatenate(batches)


def failed(status: int, message: str) -> Answer:
    """Return an answer that says what is wrong."""
    return Answer(status, text({"error": message[:_MOST_SAID]}))
