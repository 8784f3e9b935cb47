"""Which request gets which answer: paths, token, limits. It knows no server and no socket."""

import asyncio
import hmac
import threading
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from serving.calls import Answer, Call, Form
from serving.computing import JSON_BYTES_HEADER, Done, failed
from serving.endpoint.figures import CONTENT_TYPE, Figures
from serving.errors import OverloadError, RequestError, cut
from serving.model import Model
from serving.session import TOO_LATE
from serving.versions import UnknownVersionError
from serving.wire import inference
from serving.wire.json_text import parsed, text

MAX_TIMEOUT_SECONDS = 3600.0


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


@dataclass(slots=True)
class HttpRequest:
    """A request as the server has it; names of headers are in lower case."""

    method: str
    path: str
    headers: Mapping[str, str]
    chunks: AsyncIterator[bytes]
    client: str = ""
    began: float = field(default_factory=time.monotonic)


class Sessions(Protocol):
    """Those who compute."""

    def submit(self, call: Call, done: Done) -> None: ...


class Endpoint:
    """Answers requests for one model.

    Args:
        model: whose versions are told and changed.
        name: of the model, as paths have it.
        sessions: that compute predictions.
        token: that requests must bear; None: none is asked for.
        limits: what a request may take.
    """

    def __init__(
        self,
        model: Model,
        name: str,
        sessions: Sessions,
        *,
        token: str | None,
        limits: Limits,
    ) -> None:
        self._model = model
        self._name = name
        self._sessions = sessions
        self._token = None if token is None else token.encode()
        self._limits = limits
        self.figures = Figures(lambda: model.version, lambda: len(model.refused))
        self.outstanding = 0
        self.stopping = False

    async def answer(self, request: HttpRequest) -> Answer:
        """Return the answer to a request; it raises nothing."""
        try:
            answer = await self._answer(request)
        except RequestError as error:
            answer = failed(400, str(error))
        except UnknownVersionError as error:
            answer = failed(404, str(error))
        except BodyTooLargeError as error:
            answer = failed(413, str(error))
        except OverloadError as error:
            answer = failed(429, f"{error}; come again a little later")
            answer.headers.append(("Retry-After", "1"))
        except TimeoutError:
            seconds = self._limits.body_seconds
            answer = failed(408, f"the body did not come within {seconds:g} seconds")
        seconds = time.monotonic() - request.began
        self.figures.count(answer.status, seconds=seconds, rows=answer.rows)
        return answer

    async def _answer(self, request: HttpRequest) -> Answer:
        method, path = request.method, request.path
        if path == "/v2/health/live":
            return Answer(200, text({"live": True}))
        if path in ("/v2/health/ready", f"/v2/models/{self._name}/ready"):
            return Answer(503 if self.stopping else 200, text({"ready": not self.stopping}))
        if not self._may(request.headers.get("authorization", "")):
            refused = failed(401, "a token is needed: Authorization: Bearer TOKEN")
            refused.headers.append(("WWW-Authenticate", "Bearer"))
            return refused
        form = self._form(path)
        if form is not None:
            if method != "POST":
                return not_allowed(path, "POST")
            return await self._predict(request, form)
        model = f"/v1/models/{self._name}"
        if path in (f"{model}:rollback", f"{model}:release"):
            if method != "POST":
                return not_allowed(path, "POST")
            return await self._change(request, path.rsplit(":", 1)[1])
        told = self._told(path)
        return told if method == "GET" or told.status == 404 else not_allowed(path, "GET")

    def _may(self, authorization: str) -> bool:
        if self._token is None:
            return True
        scheme, _, token = authorization.partition(" ")
        given = token.strip().encode()
        return scheme.lower() == "bearer" and hmac.compare_digest(given, self._token)

    def _form(self, path: str) -> Form | None:
        if path == f"/v1/models/{self._name}:predict":
            return "rows"
        if path == f"/v2/models/{self._name}/infer":
            return "infer"
        prefix, suffix = f"/v2/models/{self._name}/versions/", "/infer"
        if path.startswith(prefix) and path.endswith(suffix):
            wanted = path[len(prefix) : -len(suffix)]
            served = str(self._model.version.step)
            if wanted != served:
                raise UnknownVersionError(f"version {cut(wanted)} is not served, step {served} is")
            return "infer"
        return None

    async def _predict(self, request: HttpRequest, form: Form) -> Answer:
        if self.stopping:
            return failed(503, "the server is stopping")
        if self.outstanding >= self._limits.outstanding:
            raise OverloadError(f"{self.outstanding} requests are under way, no more may")
        self.outstanding += 1
        self.figures.outstanding.set(self.outstanding)
        try:
            body = await self._body(request)
            deadline = request.began + self._seconds(request)
            call = Call(form, body, self._json_bytes(request, form), deadline)
            return await self._computed(call)
        finally:
            self.outstanding -= 1
            self.figures.outstanding.set(self.outstanding)

    async def _computed(self, call: Call) -> Answer:
        loop, thread = asyncio.get_running_loop(), threading.get_ident()
        future: asyncio.Future[Answer] = loop.create_future()

        def set_answer(answer: Answer) -> None:
            if not future.done():
                future.set_result(answer)

        def done(answer: Answer) -> None:
            if threading.get_ident() == thread:
                set_answer(answer)
            else:
                loop.call_soon_threadsafe(set_answer, answer)

        self._sessions.submit(call, done)
        seconds = max(call.deadline - time.monotonic(), 0.0)
        late = loop.call_later(seconds, lambda: set_answer(failed(504, TOO_LATE)))
        try:
            return await future
        finally:
            late.cancel()

    def _seconds(self, request: HttpRequest) -> float:
        """Return how long a request may take, as it asks for itself or as all may."""
        wanted = request.headers.get("x-request-timeout-seconds")
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

    def _json_bytes(self, request: HttpRequest, form: Form) -> int | None:
        found = request.headers.get(JSON_BYTES_HEADER.lower())
        if form != "infer" or found is None:
            return None
        if not (found.isascii() and found.isdigit() and len(found) < 19):
            raise RequestError(f"{JSON_BYTES_HEADER} must be a number of bytes, got {found[:40]!r}")
        return int(found)

    async def _body(self, request: HttpRequest) -> bytes:
        limit = self._limits.body_bytes
        length = request.headers.get("content-length", "0")
        if length.isdigit() and int(length) > limit:
            raise BodyTooLargeError(f"the body has {length} bytes, a request {limit} at most")
        if request.headers.get("content-encoding", "identity") != "identity":
            raise RequestError("bodies must not be compressed")
        # The server library ends a chunked body that breaks off as one that is whole.
        if "transfer-encoding" in request.headers:
            raise RequestError("a body must come with Content-Length, not in chunks")
        parts, size = [], 0
        async with asyncio.timeout(self._limits.body_seconds):
            async for chunk in request.chunks:
                parts.append(chunk)
                size += len(chunk)
                if size > limit:
                    raise BodyTooLargeError(f"the body has more than {limit} bytes")
        if str(size) != (length.lstrip("0") or "0"):
            raise RequestError(f"the body ended after {size} of {length[:20]} bytes")
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def _change(self, request: HttpRequest, what: str) -> Answer:
        body = await self._body(request)
        asked = parsed(body) if body else {}
        known = {"step"} if what == "rollback" else set()
        if not set(asked) <= known:
            raise RequestError(
                f"{what} takes {'step' if known else 'nothing'}, got"
                f" {', '.join(sorted(map(repr, set(asked) - known)))[:200]}"
            )
        if what == "release":
            await asyncio.to_thread(self._model.release)
        else:
            step = asked.get("step")
            if step is not None and type(step) is not int:
                raise RequestError("step must be the step of a version that is kept")
            await asyncio.to_thread(self._model.rollback, step)
        return self._status()

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
