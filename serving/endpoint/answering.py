"""Which request gets which answer: paths, token, limits. It knows no server and no socket."""

import asyncio
import contextlib
import hmac
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from serving.calls import Answer, Call, Form
from serving.computing import JSON_BYTES_HEADER, Done, failed
from serving.endpoint.access_log import AccessLog
from serving.endpoint.figures import CONTENT_TYPE, Figures
from serving.endpoint.heads import Asked, Head
from serving.errors import OverloadError, RequestError, cut
from serving.model import Model
from serving.rows.paging import RowCacheFigures
from serving.session import TOO_LATE
from serving.versions import UnknownVersionError
from serving.wire import inference
from serving.wire.json_text import parsed, text

MAX_TIMEOUT_SECONDS = 3600.0
_JSON_BYTES = JSON_BYTES_HEADER.lower()

_log = logging.getLogger(__name__)


class BodyTooLargeError(ValueError):
    """A body has more bytes than a request may have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a request may take.

    Args:
        body_bytes: most bytes of a body.
        body_seconds: until all of a body must have come.
        request_seconds: until the answer, where the request asks for no shorter time.
        outstanding: requests that may be under way.
    """

    body_bytes: int = 64 << 20
    body_seconds: float = 10.0
    request_seconds: float = 10.0
    outstanding: int = 1024


class Sessions(Protocol):
    """Those who compute."""

    def submit(self, call: Call, done: Done) -> None: ...


class Endpoint:
    """Answers requests for one model; for the thread of one event loop.

    Args:
        model: whose versions are told and changed.
        name: of the model, as paths have it.
        sessions: that compute predictions.
        token: that requests must bear; None: none is asked for.
        limits: what a request may take.
        log: that has a line for each request; None: there is none.
        row_cache: returns where vectors were; None: the model does.

    Attributes:
        outstanding: requests that were let in and are not answered.
        stopping: whether no more predictions are taken.
    """

    def __init__(
        self,
        model: Model,
        name: str,
        sessions: Sessions,
        *,
        token: str | None,
        limits: Limits,
        log: AccessLog | None = None,
        row_cache: Callable[[], RowCacheFigures | None] | None = None,
    ) -> None:
        self._model = model
        self._name = name
        self._sessions = sessions
        self._token = None if token is None else token.encode()
        self._limits = limits
        self._access = log
        self._forms: dict[str, Form] = {
            f"/v1/models/{name}:predict": "rows",
            f"/v2/models/{name}/infer": "infer",
        }
        self._changes: set[asyncio.Task[None]] = set()
        self.figures = Figures(
            lambda: model.version,
            lambda: len(model.refused),
            row_cache or (lambda: model.row_cache),
        )
        self.figures.outstanding.set_function(lambda: self.outstanding)
        self.outstanding = 0
        self.stopping = False

    def begin(self, head: Head) -> Answer | Asked:
        """Return the answer to a request whose body need not be read, else what reads it."""
        try:
            return self._begin(head)
        except Exception as error:
            return refusal(error)

    def note(self, head: Head, answer: Answer) -> None:
        """Count a request that is answered now, and write its line."""
        seconds = time.monotonic() - head.began
        self.figures.count(answer.status, seconds=seconds, rows=answer.rows)
        if self._access is not None:
            self._access.write(
                answer, client=head.client, method=head.method, path=head.path, began=head.began
            )

    def _begin(self, head: Head) -> Answer | Asked:
        method, path = head.method, head.path
        form = self._forms.get(path)
        if form is None and path == "/v2/health/live":
            return Answer(200, text({"live": True}))
        if form is None and path in ("/v2/health/ready", f"/v2/models/{self._name}/ready"):
            return Answer(503 if self.stopping else 200, text({"ready": not self.stopping}))
        if not self._may(head.headers.get("authorization", "")):
            refused = failed(401, "a token is needed: Authorization: Bearer TOKEN")
            refused.headers.append(("WWW-Authenticate", "Bearer"))
            return refused
        if form is not None or self._is_of_version(path):
            form = form or "infer"
            return self._let_in(head, form) if method == "POST" else not_allowed(path, "POST")
        model = f"/v1/models/{self._name}"
        if path in (f"{model}:rollback", f"{model}:release"):
            if method != "POST":
                return not_allowed(path, "POST")
            self._check_body(head)
            return _Change(self, path.rsplit(":", 1)[1])
        told = self._told(path)
        return told if method == "GET" or told.status == 404 else not_allowed(path, "GET")

    def _may(self, authorization: str) -> bool:
        if self._token is None:
            return True
        scheme, _, token = authorization.partition(" ")
        given = token.strip().encode()
        return scheme.lower() == "bearer" and hmac.compare_digest(given, self._token)

    def _is_of_version(self, path: str) -> bool:
        """Whether predictions of one version are asked for; raises where another one is served."""
        prefix, suffix = f"/v2/models/{self._name}/versions/", "/infer"
        if path.startswith(prefix) and path.endswith(suffix):
            wanted = path[len(prefix) : -len(suffix)]
            served = str(self._model.version.step)
            if wanted != served:
                raise UnknownVersionError(f"version {cut(wanted)} is not served, step {served} is")
            return True
        return False

    def _let_in(self, head: Head, form: Form) -> Answer | Asked:
        if self.stopping:
            return failed(503, "the server is stopping")
        if self.outstanding >= self._limits.outstanding:
            raise OverloadError(f"{self.outstanding} requests are under way, no more may")
        self._check_body(head)
        deadline = head.began + self._seconds(head)
        return _Prediction(self, form, self._json_bytes(head, form), deadline)

    def _seconds(self, head: Head) -> float:
        """Return how long a request may take, as it asks for itself or as all may."""
        wanted = head.headers.get("x-request-timeout-seconds")
        if wanted is None:
            return self._limits.request_seconds
        try:
            seconds = float(wanted)
        except ValueError:
            seconds = -1.0
        if not 0 < seconds <= MAX_TIMEOUT_SECONDS:
            raise RequestError(
                "X-Request-Timeout-Seconds must be a number > 0 and at most"
                f" {MAX_TIMEOUT_SECONDS}, got {wanted[:40]!r}"
            )
        return min(seconds, self._limits.request_seconds)

    def _json_bytes(self, head: Head, form: Form) -> int | None:
        found = head.headers.get(_JSON_BYTES)
        if form != "infer" or found is None:
            return None
        if not (found.isascii() and found.isdigit() and len(found) < 19):
            raise RequestError(f"{JSON_BYTES_HEADER} must be a number of bytes, got {found[:40]!r}")
        return int(found)

    def _check_body(self, head: Head) -> None:
        """Refuse what no body may be, before it has come."""
        limit, headers = self._limits.body_bytes, head.headers
        length = headers.get("content-length", "0")
        if length.isdigit() and int(length) > limit:
            raise BodyTooLargeError(f"the body has {length} bytes, a request {limit} at most")
        if headers.get("content-encoding", "identity") != "identity":
            raise RequestError("bodies must not be compressed")
        if "transfer-encoding" in headers:
            raise RequestError("a body must come with Content-Length, not in chunks")

    def compute(self, call: Call, done: Done) -> None:
        """Have a prediction computed; `done` is called by any thread."""
        self._sessions.submit(call, done)

    def change(self, what: str, body: bytes, done: Done) -> None:
        """Have another version served."""
        task = asyncio.get_running_loop().create_task(self._change(what, body, done))
        self._changes.add(task)
        task.add_done_callback(self._changes.discard)

    async def _change(self, what: str, body: bytes, done: Done) -> None:
        try:
            await self._changed(what, body)
            answer = self._status()
        except Exception as error:
            answer = refusal(error)
        done(answer)

    async def _changed(self, what: str, body: bytes) -> None:
        asked = parsed(body) if body else {}
        known = {"step"} if what == "rollback" else set()
        if not set(asked) <= known:
            raise RequestError(
                f"{what} takes {'step' if known else 'nothing'}, got"
                f" {', '.join(sorted(map(repr, set(asked) - known)))[:200]}"
            )
        if what == "release":
            await asyncio.to_thread(self._model.release)
            return
        step = asked.get("step")
        if step is not None and type(step) is not int:
            raise RequestError("step must be the step of a version that is kept")
        await asyncio.to_thread(self._model.rollback, step)

    def _told(self, path: str) -> Answer:
        if path == "/v2":
            about = {"name": "synchromesh", "version": "2", "extensions": ["binary_tensor_data"]}
            return Answer(200, text(about))
        if path == f"/v2/models/{self._name}":
            versions = [str(version.step) for version in self._model.versions]
            return Answer(200, text(inference.metadata(self._name, self._model.schema, versions)))
        if path == f"/v1/models/{self._name}":
            return self._status()
        if path == "/metrics":
            return Answer(200, self.figures.page(), CONTENT_TYPE)
        return failed(404, f"there is no {cut(path)}; the model is {self._name!r}")

    def _status(self) -> Answer:
        """Return the versions as users of TensorFlow Serving know it, and what else is known."""
        model = self._model
        served = model.version
        entries: list[dict[str, Any]] = [
            {
                "version": str(version.step),
                "state": "AVAILABLE" if version == served else "KEPT",
                "checkpoint": version.checkpoint,
                "age_seconds": round(version.age(time.time()), 3),
            }
            for version in reversed(model.versions)
        ]
        about = {
            "model_version_status": entries,
            "rolled_back": model.pinned,
            "refused": [{"checkpoint": n, "reason": why} for n, why in model.refused.items()],
        }
        return Answer(200, text(about))


def not_allowed(path: str, method: str) -> Answer:
    """Return the answer to another method than the one that a path takes."""
    answer = failed(405, f"{cut(path)} takes {method}")
    answer.headers.append(("Allow", method))
    return answer


def refusal(error: Exception) -> Answer:
    """Return the answer to a request that raised an error."""
    if isinstance(error, RequestError):
        return failed(400, str(error))
    if isinstance(error, UnknownVersionError):
        return failed(404, str(error))
    if isinstance(error, BodyTooLargeError):
        return failed(413, str(error))
    if isinstance(error, OverloadError):
        answer = failed(429, f"{error}; come again a little later")
        answer.headers.append(("Retry-After", "1"))
        return answer
    _log.error("a request could not be answered", exc_info=error)
    return failed(500, f"the request could not be answered: {error!r}")


class _Prediction:
    """A request for predictions that was let in."""

    __slots__ = ("_deadline", "_done", "_endpoint", "_form", "_json_bytes", "_late", "_thread")

    def __init__(
        self, endpoint: Endpoint, form: Form, json_bytes: int | None, deadline: float
    ) -> None:
        self._endpoint, self._form = endpoint, form
        self._json_bytes, self._deadline = json_bytes, deadline
        self._done: Done | None = None
        self._late: asyncio.TimerHandle | None = None
        self._thread = threading.get_ident()
        endpoint.outstanding += 1

    def abandon(self) -> None:
        self._endpoint.outstanding -= 1

    def complete(self, body: bytes, done: Callable[[Answer], None]) -> None:
        self._done = done
        loop = asyncio.get_running_loop()

        def answered(answer: Answer) -> None:
            if threading.get_ident() == self._thread:
                self._answer(answer)
            else:
                with contextlib.suppress(RuntimeError):  # the loop has ended: nobody waits
                    loop.call_soon_threadsafe(self._answer, answer)

        seconds = max(self._deadline - time.monotonic(), 0.0)
        self._late = loop.call_later(seconds, self._answer_late)
        try:
            call = Call(self._form, body, self._json_bytes, self._deadline)
            self._endpoint.compute(call, answered)
        except Exception as error:
            self._answer(refusal(error))

    def _answer_late(self) -> None:
        self._answer(failed(504, TOO_LATE))

    def _answer(self, answer: Answer) -> None:
        done, self._done = self._done, None
        if done is None:
            return
        if self._late is not None:
            self._late.cancel()
        self._endpoint.outstanding -= 1
        done(answer)


class _Change:
    """A request to serve another version that was let in."""

    def __init__(self, endpoint: Endpoint, what: str) -> None:
        self._endpoint, self._what = endpoint, what

    def abandon(self) -> None:
        """Nothing has begun."""

    def complete(self, body: bytes, done: Callable[[Answer], None]) -> None:
        self._endpoint.change(self._what, body, done)
