"""From requests to answers: what a thread that computes does, whatever it is woken by."""

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from serving.calls import ARROW, BINARY, Answer, Call
from serving.errors import RequestError
from serving.loading import Loaded, predictor_of
from serving.model import first_row
from serving.requests import RequestSchema, Samples
from serving.wire import arrow, rows
from serving.wire.inference import Encoder, Wanted
from serving.wire.json_text import text
from serving.wire.layouts import Decoder
from worker.data.batch import SingleKeys, joined_single_keys
from worker.data.columns import concatenate
from worker.data.shared import SharedBatch, joined
from worker.errors import DataError
from worker.inference import Predictor, any_undefined, probabilities

Done = Callable[[Answer], None]

JSON_BYTES_HEADER = "Inference-Header-Content-Length"
_MOST_SAID = 2000  # characters of an error


@dataclass(slots=True)
class Decoded:
    """A request that can be computed.

    Args:
        batch: its samples.
        done: called with its answer.
        encode: makes the answer of probabilities and what is said of their version.
    """

    batch: Samples
    done: Done
    encode: Callable[[npt.NDArray[np.float32], dict[str, Any]], Answer]


class Computing:
    """Reads and computes requests; for one thread, but for `newest`.

    Args:
        loaded: the version that it begins with.
        name: of the model, in answers.
        max_rows: most samples of a request.

    Attributes:
        newest: the version that is served from the next batch on.
    """

    def __init__(self, loaded: Loaded, *, name: str, max_rows: int) -> None:
        self.newest = loaded
        saved = loaded.form.model
        self._schema = RequestSchema(saved.features, saved.contract, max_rows=max_rows)
        self._decoder = Decoder(self._schema)
        self._encoder = Encoder(name, self._schema.outputs)
        self._loaded: Loaded | None = None
        self._predictor: Predictor | None = None

    def read(self, call: Call, done: Done) -> Decoded | None:
        """Return what a request asks for; None: it could not be read and is answered."""
        try:
            return self._decoded(call, done)
        except RequestError as error:
            done(failed(400, str(error)))
        except Exception as error:
            done(failed(500, f"the request could not be read: {error!r}"))
        return None

    def _decoded(self, call: Call, done: Done) -> Decoded:
        outputs = self._schema.outputs
        if call.form == "rows":
            batch, name = rows.decode(call.body, self._schema)
            return Decoded(
                batch,
                done,
                lambda values, about: Answer(200, rows.encode(values, name, about, outputs)),
            )
        if call.form == "arrow":
            return Decoded(
                arrow.decode(call.body, self._schema),
                done,
                lambda values, about: Answer(200, arrow.encode(values, about, outputs), ARROW),
            )
        tensors, wanted = self._decoder.decode(call.body, call.json_bytes)
        return Decoded(tensors, done, partial(self._tensors, wanted))

    def _tensors(
        self, wanted: Wanted, values: npt.NDArray[np.float32], about: dict[str, Any]
    ) -> Answer:
        body, json_bytes = self._encoder.encode(values, wanted, about)
        if json_bytes is None:
            return Answer(200, body)
        return Answer(200, body, BINARY, [(JSON_BYTES_HEADER, str(json_bytes))])

    def compute(self, decoded: Sequence[Decoded]) -> None:
        """Answer requests that are computed together as far as that changes no bit."""
        try:
            predictor, loaded = self._predictor_now()
        except Exception as error:  # whatever a custom model raises
            _fail(decoded, error)
            return
        # Of a custom model bits may depend on what else is in a batch.
        together = _by_shape(decoded) if predictor.predicts_by_sample else [[e] for e in decoded]
        about = loaded.version.about(time.time())
        for alike in together:
            try:
                logits = predictor.logits(_joined([each.batch for each in alike]))
                values = probabilities(logits)
            except DataError as error:
                for each in alike:
                    each.done(failed(400, str(error)))
                continue
            except Exception as error:
                _fail(alike, error)
                continue
            defined = not any_undefined(values)
            start = 0
            for each in alike:
                end = start + each.batch.num_samples
                _answer(each, values[start:end], about, defined)
                start = end

    def go_over(self) -> None:
        """Leave what is not the newest version, though nothing is to be computed.

        Else a thread that waits for long would keep the files of a version that is gone.
        """
        if self._predictor is not None and self.newest is not self._loaded:
            with contextlib.suppress(ValueError):  # who computes next is told
                self._predictor_now()

    def _predictor_now(self) -> tuple[Predictor, Loaded]:
        loaded = self.newest
        if self._predictor is None:
            self._predictor = predictor_of(loaded)
        elif loaded is not self._loaded:
            self._predictor.take(loaded.tables, loaded.dense, step=loaded.version.step)
        self._loaded = loaded
        return self._predictor, loaded


def _answer(
    each: Decoded, values: npt.NDArray[np.float32], about: dict[str, Any], defined: bool
) -> None:
    if not defined and np.isnan(values).any():
        row = first_row(np.isnan(values))
        each.done(failed(500, f"the model gives NaN for row {row}: its parameters diverged"))
        return
    answer = each.encode(values, about)
    answer.rows, answer.step = len(values), about["step"]
    each.done(answer)


def _fail(decoded: Sequence[Decoded], error: Exception) -> None:
    for each in decoded:
        each.done(failed(500, f"the model failed: {error!r}"))


def _by_shape(decoded: Sequence[Decoded]) -> list[list[Decoded]]:
    """Return the requests that share the same columns, together, in the order of their first."""
    if len(decoded) == 1:
        return [list(decoded)]
    found: dict[Any, list[Decoded]] = {}
    for each in decoded:
        batch = each.batch
        shape = (batch.sparse, batch.dense) if isinstance(batch, SharedBatch) else None
        found.setdefault(shape, []).append(each)
    return list(found.values())


def _joined(batches: Sequence[Any]) -> Samples:
    if isinstance(batches[0], SharedBatch):
        return joined(batches)
    if all(isinstance(each, SingleKeys) for each in batches):
        return joined_single_keys(batches)
    return concatenate([each.batch() if isinstance(each, SingleKeys) else each for each in batches])


def failed(status: int, message: str) -> Answer:
    """Return an answer that says what is wrong."""
    return Answer(status, text({"error": message[:_MOST_SAID]}))
