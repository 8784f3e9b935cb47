"""Models of several tasks: an output of each by its name, in every form of request."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from served_jobs import JOBS, SavedModel, some_samples

from serving import Client
from serving.bulk_client import BulkClient
from worker.inference import Predictor, probabilities

torch = pytest.importorskip("torch")

TOKEN = "a token of sixteen"
SAMPLES = some_samples(np.random.default_rng(9), 20)
COLUMNS = {name: array.to_pylist() for name, array in SAMPLES.items()}
PREDICT, INFER = "/v1/models/clicks:predict", "/v2/models/clicks/infer"


@pytest.fixture(scope="module")
def two(started: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    data = {**JOBS["plain"]["data"], "labels": {"click": "label", "buy": "label"}}
    model = {"type": "torch", "class": "worker.models.torch.mmoe:Mmoe", "experts": 2}
    job = SavedModel("plain", tmp_path_factory.mktemp("two") / "run", data=data, model=model)
    job.train(3)
    job.cut()
    served = started(job, follow_seconds=3600.0, flight_port=0)
    yield served
    served.stop()


@pytest.fixture(scope="module")
def expected(two: Any) -> np.ndarray:
    """Probabilities, [n, tasks], as `synchromesh predict` computes them."""
    model = two.serving.model
    predictor = Predictor.from_checkpoint(model._source.path / model.version.checkpoint)
    logits = predictor.logits(model.schema.batch_of_columns(SAMPLES))
    assert logits.shape == (20, 2)
    return probabilities(logits)


def test_rows_are_answered_by_objects_and_columns_by_columns(
    two: Any, expected: np.ndarray
) -> None:
    _, _, found = two.ask("POST", PREDICT, {"instances": pa.table(SAMPLES).to_pylist()})
    assert all(list(row) == ["click", "buy"] for row in found["predictions"])
    got = [[row["click"], row["buy"]] for row in found["predictions"]]
    np.testing.assert_array_equal(np.array(got, np.float32), expected)

    _, _, found = two.ask("POST", PREDICT, {"inputs": COLUMNS})
    got = np.array([found["outputs"][name] for name in ("click", "buy")], np.float32).T
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("rows", [True, False])
def test_the_client_has_a_column_of_each_output(two: Any, expected: np.ndarray, rows: bool) -> None:
    client = Client(address=two.serving.address, model="clicks", token=TOKEN)

    answer = client.predict(pa.table(SAMPLES).to_pylist() if rows else COLUMNS)

    assert answer.outputs == ("click", "buy")
    np.testing.assert_array_equal(answer.values, expected)


def inputs() -> list[dict[str, Any]]:
    """Tensors: of dense columns a number each, of the others as many keys as a sample has."""
    found = []
    for name, values in COLUMNS.items():
        if name.startswith("d"):
            data = [0.0 if value is None else value for value in values]
            found.append({"name": name, "datatype": "FP32", "shape": [len(data)], "data": data})
            continue
        lists = [each if isinstance(each, list) else [each] for each in values]
        lists = [[] if each == [None] else each for each in lists]
        flat, lengths = [key for each in lists for key in each], [len(each) for each in lists]
        for suffix, data in (("", flat), (":lengths", lengths)):
            tensor = {"name": name + suffix, "datatype": "INT64", "shape": [len(data)]}
            found.append({**tensor, "data": data})
    return found


@pytest.mark.parametrize(
    ("wanted", "names"),
    [
        (None, ["click", "buy"]),
        ([{"name": "buy"}], ["buy"]),
        ([{"name": "buy"}, {"name": "click", "parameters": {"binary_data": True}}], None),
    ],
    ids=["all", "one", "one of them binary"],
)
def test_the_open_inference_protocol_has_a_tensor_of_each_that_is_wanted(
    two: Any, expected: np.ndarray, wanted: Any, names: list[str] | None
) -> None:
    body = {"inputs": inputs(), **({} if wanted is None else {"outputs": wanted})}
    status, headers, found = two.ask("POST", INFER, body)
    assert status == 200, found

    if names is None:
        size = int(headers["inference-header-content-length"])
        told, rest = json.loads(found[:size])["outputs"], found[size:]
        assert [each["name"] for each in told] == ["buy", "click"]
        np.testing.assert_array_equal(np.float32(told[0]["data"]), expected[:, 1])
        np.testing.assert_array_equal(np.frombuffer(rest, "<f4"), expected[:, 0])
        return
    assert [each["name"] for each in found["outputs"]] == names
    for each in found["outputs"]:
        column = ["click", "buy"].index(each["name"])
        np.testing.assert_array_equal(np.float32(each["data"]), expected[:, column])


def test_an_output_that_is_not_there_is_refused_by_name_and_all_are_told(two: Any) -> None:
    status, _, found = two.ask("POST", INFER, {"inputs": inputs(), "outputs": [{"name": "x"}]})
    assert status == 400
    assert 'the model has no output "x"; it has click, buy' in found["error"]

    _, _, about = two.ask("GET", "/v2/models/clicks")
    assert [each["name"] for each in about["outputs"]] == ["click", "buy"]


def test_flight_answers_by_a_column_of_each(two: Any, expected: np.ndarray) -> None:
    client = BulkClient(address=two.serving.bulk.address, model="clicks", token=TOKEN)

    (answer,) = client.predict(pa.table(SAMPLES))

    assert answer.outputs == ("click", "buy")
    np.testing.assert_array_equal(answer.values, expected)


def test_labels_are_refused_in_requests(two: Any) -> None:
    status, _, found = two.ask("POST", PREDICT, {"inputs": {**COLUMNS, "label": [0] * 20}})

    assert status == 400
    assert "column 'label' is the label" in found["error"]
