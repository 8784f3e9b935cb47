"""A replica of Ray Serve answers as the server does, and follows its run; without a cluster."""

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import yaml
from served_jobs import SavedModel, some_samples

pytest.importorskip("starlette")
pytest.importorskip("ray.serve")

from starlette.requests import Request

from serving.deployment import DeploymentArguments, Predictions, app

ROWS = pa.table(some_samples(np.random.default_rng(5), 20)).to_pylist()


@pytest.fixture
def job(tmp_path: Path) -> SavedModel:
    job = SavedModel("plain", tmp_path / "run")
    job.train(3)
    job.cut()
    return job


def ask(replica: Predictions, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
    data = b"" if body is None else json.dumps(body).encode()
    sent = {"content-length": str(len(data)), **headers}
    scope = {
        "type": "http",
        "method": "GET" if body is None else "POST",
        "root_path": "/app",
        "path": f"/app{path}",
        "query_string": b"",
        "headers": [(name.encode(), value.encode()) for name, value in sent.items()],
        "client": ("127.0.0.1", 1),
    }

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": data, "more_body": False}

    answer = asyncio.run(replica(Request(scope, receive)))
    return answer.status_code, json.loads(answer.body)


def test_a_replica_answers_as_the_server_does_and_follows_its_run(job: SavedModel) -> None:
    replica = Predictions(DeploymentArguments(source=str(job.run), name="m", follow_seconds=0.02))

    status, found = ask(replica, "/v1/models/m:predict", {"instances": ROWS})

    assert (status, found["metadata"]["step"]) == (200, 3)
    expected = replica.predict(ROWS)
    np.testing.assert_array_equal(np.array(found["predictions"], np.float32), expected.values)
    job.train(1)
    job.cut()
    for _ in range(500):
        if replica.predict(ROWS).version.step == 4:
            break
        asyncio.run(asyncio.sleep(0.02))
    assert ask(replica, "/v1/models/m:predict", {"instances": ROWS})[1]["metadata"]["step"] == 4
    assert ask(replica, "/v1/models/other")[0] == 404
    replica.check_health()
    session = replica._pool._sessions[0]
    replica.__del__()
    assert not session.alive
    with pytest.raises(RuntimeError, match="the session has ended"):
        replica.check_health()


def test_a_token_is_asked_for_where_the_environment_has_one(
    job: SavedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SYNCHROMESH_SERVE_TOKEN", "a token of sixteen")
    replica = Predictions(DeploymentArguments(source=str(job.run), name="m"))

    assert ask(replica, "/v1/models/m")[0] == 401
    assert ask(replica, "/v1/models/m", authorization="Bearer a token of sixteen")[0] == 200


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({}, "args needs source"),
        ({"source": "x", "sorce": 1}, "args has no 'sorce'; it has source"),
        ({"source": "x", "max_batch": "many"}, "args.max_batch must be int, got 'many'"),
        ({"source": "x", "rows": "int4"}, "rows must be one of float32, bf16, int8"),
    ],
)
def test_wrong_arguments_are_refused_by_name(args: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        app(args)


def test_the_example_is_a_config_of_ray_serve_whose_application_can_be_made() -> None:
    from ray.serve.schema import ServeDeploySchema

    path = Path(__file__).resolve().parents[2] / "deploy" / "serve.yaml"
    config = ServeDeploySchema.model_validate(yaml.safe_load(path.read_text()))

    (application,) = config.applications
    assert application.import_path == f"{app.__module__}:{app.__name__}"
    made = app(application.args)
    assert {each.name for each in application.deployments} == {made._bound_deployment.name}
