"""The endpoint as a deployment of Ray Serve: replicas that each follow the run by themselves.

    serve run serving.deployment:app source=runs/dlrm name=dlrm

A new version of the model is never deployed: Ray Serve replaces replicas for that, one that is
alone before its successor is up. Each replica looks for newer checkpoints and swaps them as
`synchromesh serve` does.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ray import serve
from starlette.requests import Request
from starlette.responses import Response

from serving.endpoint.answering import Endpoint, Limits
from serving.endpoint.heads import Head
from serving.endpoint.streamed import answer_streamed
from serving.interpreter import keep_pauses_short
from serving.model import KEPT_VERSIONS, MAX_ROWS, Model, Prediction
from serving.pool import Pool
from serving.rows.quantized import ROWS_AS, RowsAs
from serving.session import Session, SessionOptions

TOKEN_VARIABLE = "SYNCHROMESH_SERVE_TOKEN"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentArguments:
    """What a deployment serves; `args` of an application in a Serve config file.

    Args:
        source: run directory, which every replica must see, or checkpoint.
        name: of the model, in paths.
        forms: where serving forms are kept; None: folder `serving` of the run. Replicas of a node
            share them.
        rows: how vectors are kept: `float32`, `bf16` or `int8`; what that costs is not checked.
        memory_bytes: of vectors in memory, the others are read from the disk; None: all are mapped.
        follow_seconds: how often newer checkpoints are looked for.
        keep_versions: for rollbacks, which a single replica does.
        max_batch: samples from which on no further request is added to a batch.
        max_delay_ms: how long a request may wait for others.
        max_waiting: requests that may wait in a replica.
        timeout_seconds: until a request is answered or given up.
    """

    source: str
    name: str = "model"
    forms: str | None = None
    rows: RowsAs = "float32"
    memory_bytes: int | None = None
    follow_seconds: float = 1.0
    keep_versions: int = KEPT_VERSIONS
    max_batch: int = 1024
    max_delay_ms: float = 0.0
    max_waiting: int = 256
    timeout_seconds: float = 10.0

    def __post_init__(self) -> None:
        if self.rows not in ROWS_AS:
            raise ValueError(f"rows must be one of {', '.join(ROWS_AS)}, got {self.rows!r}")


class Predictions:
    """One replica: a model, a session, and the paths of `synchromesh serve` before them.

    Requests bear a token where the variable SYNCHROMESH_SERVE_TOKEN is set for the replica.

    Raises:
        ServingError, CheckpointError, ModelError: the source can't be served.
    """

    def __init__(self, arguments: DeploymentArguments) -> None:
        model = Model.open(
            arguments.source,
            forms=arguments.forms,
            keep_versions=arguments.keep_versions,
            max_rows=MAX_ROWS,
            rows=arguments.rows,
            memory_bytes=arguments.memory_bytes,
        )
        options = SessionOptions(
            name=arguments.name,
            max_batch=arguments.max_batch,
            max_delay=arguments.max_delay_ms / 1000,
            max_waiting=arguments.max_waiting,
        )
        self._model = model
        self._pool = Pool([Session(model.current, options)])
        model.when_swapped(self._pool.take)
        model.follow(arguments.follow_seconds)
        self._limits = Limits(
            request_seconds=arguments.timeout_seconds, outstanding=arguments.max_waiting
        )
        self._endpoint = Endpoint(
            model,
            arguments.name,
            self._pool,
            token=os.environ.get(TOKEN_VARIABLE) or None,
            limits=self._limits,
        )
        keep_pauses_short()

    async def __call__(self, request: Request) -> Response:
        """Answer over HTTP as `synchromesh serve` does."""
        path = request.scope["path"].removeprefix(request.scope.get("root_path", ""))
        client = "" if request.client is None else request.client.host
        headers = {name.lower(): value for name, value in request.headers.items()}
        head = Head(request.method, path, headers, client)
        answer = await answer_streamed(self._endpoint, head, request.stream(), self._limits)
        told = {"content-type": answer.content_type, **dict(answer.headers)}
        return Response(answer.body, answer.status, told)

    def predict(
        self,
        samples: Sequence[Mapping[str, Any]] | Mapping[str, Any],
        context: Mapping[str, Any] | None = None,
    ) -> Prediction:
        """As `Model.predict`; for other deployments, by handle."""
        return self._model.predict(samples, context=context)

    def check_health(self) -> None:
        """Raise where the replica is to be replaced."""
        if not self._pool.alive:
            raise RuntimeError("the session has ended")

    def __del__(self) -> None:
        """What a replica gets to know of its end; it runs in no main thread and has no signals."""
        if hasattr(self, "_pool"):
            self._pool.close()
            self._model.close()


def app(args: dict[str, Any]) -> serve.Application:
    """Return the application for `serve run` and for a Serve config file.

    Args:
        args: of `DeploymentArguments`; numbers may be text, as `serve run` gives them.

    Raises:
        ValueError: an argument is not known or not legal.
    """
    arguments = _typed(args)
    deployment = serve.deployment(
        Predictions,
        name="Predictions",
        # Requests are computed together within a replica; Serve's 5 would leave it waiting.
        max_ongoing_requests=arguments.max_waiting,
        graceful_shutdown_timeout_s=arguments.timeout_seconds + 5,
        # One alone is taken down for an update, or after a crash, before another is up.
        autoscaling_config={"min_replicas": 2, "max_replicas": 8, "target_ongoing_requests": 16},
    )
    return deployment.bind(arguments)


def _typed(args: Mapping[str, Any]) -> DeploymentArguments:
    kinds: dict[str, type] = {
        **dict.fromkeys(("source", "name", "forms", "rows"), str),
        **dict.fromkeys(("follow_seconds", "max_delay_ms", "timeout_seconds"), float),
        **dict.fromkeys(("keep_versions", "max_batch", "max_waiting"), int),
    }
    if unknown := sorted(args.keys() - kinds.keys()):
        raise ValueError(f"args has no {unknown[0]!r}; it has {', '.join(kinds)}")
    if "source" not in args:
        raise ValueError("args needs source, the run directory or checkpoint")
    values: dict[str, Any] = {}
    for name, value in args.items():
        try:
            values[name] = kinds[name](value)
        except (TypeError, ValueError) as error:
            kind = kinds[name].__name__
            raise ValueError(f"args.{name} must be {kind}, got {value!r}") from error
    return DeploymentArguments(**values)
