"""Both forms of requests, over HTTP: the same bits as the model, and what is wrong by name."""

import json
import re
import time
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from served_jobs import some_samples

from serving import Client
from serving.calls import Call
from serving.errors import RequestError
from serving.requests import RequestSchema
from worker.data.columns import columns_from_table
from worker.spec import FeatureSpec, SparseFeature

SAMPLES = some_samples(np.random.default_rng(5), 20)
PREDICT, INFER = "/v1/models/clicks:predict", "/v2/models/clicks/infer"


def rows() -> list[dict[str, Any]]:
    return pa.table(SAMPLES).to_pylist()


@pytest.fixture
def expected(served: Any) -> np.ndarray:
    return np.asarray(served.serving.model.predict(SAMPLES).values)


def test_rows_and_columns_of_json_give_the_models_bits(served: Any, expected: np.ndarray) -> None:
    status, _, found = served.ask("POST", PREDICT, {"instances": rows()})
    assert status == 200
    np.testing.assert_array_equal(np.array(found["predictions"], np.float32), expected)
    assert found["metadata"]["step"] == 3
    assert found["metadata"]["checkpoint"] == "full-000000000003"
    assert found["metadata"]["age_seconds"] >= 0

    columns = {name: array.to_pylist() for name, array in SAMPLES.items()}
    _, _, found = served.ask("POST", PREDICT, {"inputs": columns})
    np.testing.assert_array_equal(np.array(found["outputs"], np.float32), expected)


def test_the_public_client_of_triton_works_unchanged(served: Any) -> None:
    client = pytest.importorskip("tritonclient.http")
    headers = {"Authorization": "Bearer a token of sixteen"}  # `infer` adds to what it is given
    samples = {"d1": [0.5, 2.0], "d2": [1.0, 0.0], "a": [3, -1], "b": [17, 4000]}
    tags = [[1, 2, 3], [9, 9, 4]]
    columns = {**samples, "tags": tags}
    expected = served.serving.model.predict(columns).values
    with client.InferenceServerClient(f"127.0.0.1:{served.port}") as asked:
        assert asked.is_server_live()
        assert asked.is_server_ready()
        assert asked.is_model_ready("clicks")
        about = asked.get_model_metadata("clicks", headers=headers)
        assert [each["name"] for each in about["inputs"]] == ["d1", "d2", "a", "b", "tags"]
        assert about["versions"] == ["3"]
        for binary in (True, False):
            inputs = []
            for name, values in columns.items():
                array = np.array(values, np.float32 if name in ("d1", "d2") else np.int64)
                kind = "FP32" if array.dtype == np.float32 else "INT64"
                inputs.append(client.InferInput(name, array.shape, kind))
                inputs[-1].set_data_from_numpy(array, binary_data=binary)
            output = client.InferRequestedOutput("prediction", binary_data=binary)
            result = asked.infer("clicks", inputs, outputs=[output], headers=dict(headers))
            np.testing.assert_array_equal(result.as_numpy("prediction"), expected)
            assert result.get_response()["parameters"]["step"] == 3
        with pytest.raises(Exception, match="column 'd1' is missing"):
            asked.infer("clicks", inputs[1:], headers=dict(headers))


def tensors(**changes: Any) -> list[dict[str, Any]]:
    found = {
        "d1": ("FP32", [2], [0.5, 2]),
        "d2": ("FP64", [2, 1], [1, 0]),
        "a": ("INT32", [2], [3, -1]),
        "b": ("INT64", [2], [17, 4000]),
        "tags": ("INT64", [3], [1, 2, 9]),
        "tags:lengths": ("INT32", [2], [2, 1]),
        **changes,
    }
    return [
        {"name": name, "datatype": each[0], "shape": each[1], "data": each[2]}
        for name, each in found.items()
        if each is not None
    ]


def test_lists_of_any_lengths_come_as_values_and_lengths(served: Any) -> None:
    columns = {"d1": [0.5, 2], "d2": [1, 0], "a": [3, -1], "b": [17, 4000], "tags": [[1, 2], [9]]}
    expected = served.serving.model.predict(columns).values

    status, _, found = served.ask("POST", INFER, {"id": "x", "inputs": tensors()})

    assert status == 200, found
    assert found["id"] == "x"
    assert found["model_version"] == "3"
    got = np.array(found["outputs"][0]["data"], np.float32)
    np.testing.assert_array_equal(got, expected)


def test_a_value_that_is_missing_is_one_of_length_0(served: Any) -> None:
    columns = {
        "d1": [0.5, 2],
        "d2": [1, 0],
        "a": [None, -1],
        "b": [17, None],
        "tags": [[1, 2], [9]],
    }
    expected = served.serving.model.predict(columns).values
    without = {
        "a": ("INT32", [1], [-1]),
        "a:lengths": ("INT32", [2], [0, 1]),
        "b": ("INT64", [1], [17]),
        "b:lengths": ("INT32", [2], [1, 0]),
    }

    status, _, found = served.ask("POST", INFER, {"inputs": tensors(**without)})

    assert status == 200, found
    got = np.array(found["outputs"][0]["data"], np.float32)
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"a": None}, "column 'a' is missing"),
        ({"c": ("INT64", [2], [1, 2])}, "the model reads no column 'c'"),
        ({"label": ("INT64", [2], [1, 2])}, "column 'label' is the label"),
        ({"a": ("INT64", [3], [1, 2, 3])}, "column 'a' has 3 values, column 'd1' 2"),
        ({"a": ("INT64", [2], [1])}, r"'a' of shape \[2\] has 1 values, expected 2"),
        ({"a": ("INT64", [1, 1, 2], [1, 2])}, "'a' must have a shape of one or two axes"),
        ({"a": ("INT65", [2], [1, 2])}, "'a' must have a datatype of BOOL"),
        ({"a": ("BYTES", [2], ["x", "y"])}, "'a' has keys of type string, .* with integer"),
        ({"a": ("FP64", [2], [1.5, 2])}, "a key is not an exact whole number"),
        ({"d1": ("BYTES", [2], ["x", "y"])}, "a dense column has an unusable type"),
        ({"tags:lengths": ("INT64", [2], [2, 2])}, "must be numbers >= 0 that sum to the 3 values"),
        ({"tags": None}, "'tags:lengths' is there without 'tags'"),
        ({"a": ("INT64", [2], [[1], "x"])}, "data must be flat, or a list of lists"),
    ],
)
def test_wrong_tensors_are_refused_by_name(
    served: Any, changes: dict[str, Any], message: str
) -> None:
    status, _, found = served.ask("POST", INFER, {"inputs": tensors(**changes)})

    assert status == 400
    assert re.search(message, found["error"]), found


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"{", "not valid JSON"),
        (b'{"instances": [{"d1": NaN}]}', "NaN is no JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b"[]", "must be a JSON object"),
        ({"rows": []}, "has no 'rows'"),
        ({}, "either instances, a list of rows, or inputs"),
        ({"instances": []}, "1 to 16384 samples, got 0"),
        ({"instances": [3]}, "row 0 must be an object"),
        ({"instances": [{}]}, "row 0: column 'd1' is missing"),
        ({"inputs": {"d1": 3}}, "column 'd2' is missing"),
    ],
)
def test_wrong_json_is_refused(served: Any, body: Any, message: str) -> None:
    status, _, found = served.ask("POST", PREDICT, body)

    assert status == 400
    assert message in found["error"]


def test_values_that_are_no_keys_are_refused_by_name_and_place(served: Any) -> None:
    beyond = r"row 1: 9223372036854775808 is beyond the integers from -2\^63 to 2\^63 - 1"
    for column, values, message in (
        ("a", [3, True], "column 'a', row 1: true is no key; write 0 or 1"),
        ("a", [True, False], "column 'a', row 0: true is no key"),
        ("a", [1.0, True], "column 'a', row 1: true is no key"),
        ("tags", [[1], [2, False]], "column 'tags', row 1: false is no key"),
        ("a", [3, 1 << 63], f"column 'a', {beyond}"),
        ("a", [None, 1 << 63], f"column 'a', {beyond}"),
        ("tags", [[1], [1 << 63]], f"column 'tags', {beyond}"),
        ("a", [-(1 << 63) - 1, 0], "column 'a', row 0: -9223372036854775809 is beyond"),
        ("a", [3, "x"], "column 'a', row 1: \"x\" is of type string, the column has type integer"),
        ("a", [{"x": 1}, 3], "column 'a', row 1: 3 is of type integer, .* type object from row 0"),
        ("tags", [[1], 2], "column 'tags' has lists and single values"),
        ("a", ["\ud800", "x"], "column 'a', row 0: a text has half a character"),
        ("d1", [0.5, "x"], "column 'd1', row 1: \"x\" is of type string"),
    ):
        columns = {"d1": [0.5, 2], "d2": [1, 0], "a": [3, -1], "b": [1, 2], "tags": [[], [1]]}
        columns[column] = values
        instances = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values())]  # noqa: B905
        for asked in ({"inputs": columns}, {"instances": instances}):
            status, _, found = served.ask("POST", PREDICT, asked)
            assert status == 400
            assert re.match(message, found["error"]), found


def test_tensors_in_json_with_a_value_of_another_type_name_it(served: Any) -> None:
    for name, kind, data, message in (
        ("a", "INT64", [3, True], "input 'a': value 1, true, is not of datatype INT64"),
        ("a", "INT64", [3, 1 << 63], "input 'a': value 1, 9223372036854775808, is not of"),
        ("a", "INT8", [3, 300], "input 'a': value 1, 300, is not of datatype INT8"),
        ("d1", "FP32", [True, 1.5], "input 'd1': value 0, true, is not of datatype FP32"),
        ("a", "BYTES", ["\ud800", "x"], "input 'a' has a string with half a character"),
    ):
        inputs = tensors(**{name: (kind, [2], data)})
        status, _, found = served.ask("POST", INFER, {"inputs": inputs})
        assert (status, found["error"][: len(message)]) == (400, message)


def test_what_is_wrong_with_json_is_said_in_the_servers_words(served: Any) -> None:
    for body, message in (
        (b"", "it is empty"),
        (b'{"instances": [', "it ends too early"),
        (b'{"instances": [}', "it breaks at line 1, column 16"),
        (b'{"instances": "\xff"}', "byte 15 is no UTF-8"),
        (b'{"instances": [' + b"9" * 5000 + b"]}", "an integer has too many digits"),
        (b"[" * 100_000, "it is nested too deeply"),
    ):
        status, _, found = served.ask("POST", PREDICT, body)
        assert (status, found["error"]) == (400, f"the body is not valid JSON: {message}")


def test_a_name_that_stands_twice_in_an_object_is_refused(served: Any) -> None:
    row = json.dumps(rows()[0])
    for path, body, name in (
        (PREDICT, f'{{"instances": [{row[:-1]}, "a": 3}}]}}', "a"),
        (PREDICT, f'{{"instances": [{row}], "instances": []}}', "instances"),
        (PREDICT, f'{{"context": {{"a": 1, "a": 2}}, "instances": [{row}]}}', "a"),
        (INFER, '{"inputs": [{"name": "a", "shape": [1], "shape": [2]}]}', "shape"),
    ):
        status, _, found = served.ask("POST", path, body.encode())
        assert (status, found["error"]) == (400, f"{name!r} is there twice in one object")


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        (
            "d1",
            1e39,
            "a dense value is infinite or too large for 32-bit floats: got 1e+39",
        ),
        (
            "d1",
            10**40,
            f"{10**40} is an integer of more than 64 bits; write it as a",
        ),
        ("a", 1.5, "a key is not an exact whole number: got 1.5, expected"),
        ("a", 1 << 63, f"{1 << 63} is beyond the integers from -2^63 to 2^63 - 1"),
    ],
)
def test_what_is_wrong_with_a_value_says_its_column_and_row_and_speaks_of_no_file(
    served: Any, column: str, value: Any, message: str
) -> None:
    wrong = rows()
    wrong[2][column] = value

    status, _, found = served.ask("POST", PREDICT, {"instances": wrong})

    assert status == 400
    assert found["error"].startswith(f"column {column!r}, row 2: {message}")
    assert "file" not in found["error"]


def test_errors_show_the_beginning_of_what_is_too_long_for_them(served: Any) -> None:
    long = "x" * 100_000
    for path, body in (
        (PREDICT, {"inputs": {long: [1]}}),
        (PREDICT, {"instances": [{long: 1}]}),
        (PREDICT, {long: 1}),
        (PREDICT, {"inputs": {"d1": [0], "d2": [1], "a": [long], "b": [1], "tags": [[]]}}),
        (PREDICT, {"inputs": {"d1": [0], "d2": [1], "a": [{long: 1}], "b": [1], "tags": [[]]}}),
        (INFER, {"inputs": [{"name": long, "datatype": "INT64", "shape": [1], "data": [1]}]}),
        (INFER, {"inputs": [{"name": "a", "datatype": long, "shape": [1], "data": [1]}]}),
        (INFER, {"inputs": [{"name": "a", "datatype": "INT64", "shape": long, "data": [1]}]}),
    ):
        status, _, found = served.ask("POST", path, body)
        assert status == 400
        assert len(found["error"]) < 2001
    _, _, found = served.ask("GET", "/" + "x" * 10_000)
    assert len(found["error"]) < 300


def test_a_row_that_differs_is_named_with_the_nearest_column(served: Any) -> None:
    wrong = rows()[:2]
    wrong[1]["tagz"] = wrong[1].pop("tags")

    _, _, found = served.ask("POST", PREDICT, {"instances": wrong})

    assert found["error"] == "row 1: the model reads no column 'tagz'; did you mean 'tags'?"


def binary(inputs: list[dict[str, Any]], data: bytes) -> tuple[bytes, dict[str, str]]:
    head = json.dumps({"inputs": inputs}).encode()
    return head + data, {"Inference_Header_Content_Length": str(len(head))}


@pytest.mark.parametrize(
    ("size", "sent", "message"),
    [
        (8, 4, "'d1' has 8 bytes, only 4 are left"),
        (4, 4, "of shape [2] and datatype FP32 has 4 bytes, expected 8"),
        (8, 9, "1 bytes follow the last binary input"),
        (-1, 8, "binary_data_size must be a number of bytes"),
    ],
)
def test_binary_tensors_of_another_size_are_refused(
    served: Any, size: int, sent: int, message: str
) -> None:
    entry = {"name": "d1", "datatype": "FP32", "shape": [2]}
    inputs = [{**entry, "parameters": {"binary_data_size": size}}]
    body, headers = binary(inputs, bytes(sent))

    status, _, found = served.ask("POST", INFER, body, **headers)

    assert status == 400
    assert message in found["error"]


def test_a_length_of_json_beyond_the_body_is_refused(served: Any) -> None:
    for length, message in (("99", "the body has 2 bytes"), ("-1", "must be a number of bytes")):
        headers = {"Inference_Header_Content_Length": length}
        status, _, found = served.ask("POST", INFER, b"{}", **headers)
        assert status == 400
        assert message in found["error"]


def test_the_weight_of_samples_is_not_asked_for() -> None:
    features = FeatureSpec(
        label="label",
        dense=("d",),
        dense_transform="none",
        sparse=(SparseFeature(name="a", column="a", table="a"),),
        weight="w",
    )
    schema = RequestSchema(features, None, max_rows=100)

    assert schema.batch_of_columns({"d": [1.0], "a": [2]}).num_samples == 1
    with pytest.raises(RequestError, match="column 'w' is the weight; leave it out of requests"):
        schema.batch_of_columns({"d": [1.0], "a": [2], "w": [1.0]})


@pytest.mark.parametrize("transform", ["none", "log1p"])
def test_usual_columns_become_what_the_rules_of_training_make_of_them(transform: Any) -> None:
    features = FeatureSpec(
        label=None,
        dense=("d1", "d2", "d3"),
        dense_transform=transform,
        sparse=(SparseFeature(name="a", column="a", table="a"),),
    )
    schema = RequestSchema(features, None, max_rows=100)
    rng = np.random.default_rng(1)
    for n in (1, 7, 64):
        columns = {
            "d1": pa.array(rng.normal(0, 9, n).astype(np.float32)),
            "d2": pa.array(rng.normal(0, 9, n)),
            "d3": pa.array(rng.integers(-5, 1 << 40, n)),
            "a": pa.array(rng.integers(-(1 << 63), (1 << 63) - 1, n)),
        }
        found = schema.batch_of_columns(columns)

        expected = columns_from_table(pa.table(columns), features, where=("none", None))
        np.testing.assert_array_equal(found.dense, expected.dense)
        np.testing.assert_array_equal(found.sparse[0].keys, expected.sparse[0].keys)
        assert found.sparse[0].offsets is None
        assert found.dense.flags.c_contiguous
    for wrong, message in (([1.0, np.inf], "infinite"), ([1.0, 1e39], "too large for 32-bit")):
        columns = {"d1": wrong, "d2": [1.0, 2.0], "d3": [1.0, 2.0], "a": [1, 2]}
        with pytest.raises(RequestError, match=message):
            schema.batch_of_columns(columns)
    found = schema.batch_of_columns({"d1": [np.nan], "d2": [-3.0], "d3": [0.0], "a": [1]})
    assert found.dense[0].tolist() == [0.0, 0.0 if transform == "log1p" else -3.0, 0.0]


def test_nan_and_null_of_a_dense_column_are_zero_as_in_training(served: Any) -> None:
    columns = {"d2": [0.0], "a": [1], "b": [2], "tags": [[]]}
    expected = served.serving.model.predict({**columns, "d1": [0.0]}).values
    inputs = tensors(
        d1=("FP32", [1], [0]), d2=("FP32", [1], [0]), a=("INT64", [1], [1]), b=("INT64", [1], [2]),
        tags=("INT64", [0], []),
    )  # fmt: skip
    inputs = [each for each in inputs if each["name"] != "tags:lengths"]
    inputs.append({"name": "tags:lengths", "datatype": "INT32", "shape": [1], "data": [0]})
    entry = next(each for each in inputs if each["name"] == "d1")
    del entry["data"]
    entry["parameters"] = {"binary_data_size": 4}
    body, headers = binary(inputs, np.array([np.nan], np.float32).tobytes())

    status, _, found = served.ask("POST", INFER, body, **headers)
    assert status == 200, found
    assert np.float32(found["outputs"][0]["data"][0]) == expected[0]

    null = {name: values[0] for name, values in columns.items()} | {"d1": None}
    _, _, found = served.ask("POST", PREDICT, {"instances": [null]})
    assert np.float32(found["predictions"][0]) == expected[0]


def test_keys_that_were_never_seen_get_what_training_gives_them(served: Any) -> None:
    """Table a has no admission: the initial value; table b has: its default value."""
    unseen = [{"d1": 0, "d2": 0, "a": 10**15 + i, "b": -(10**15) - i, "tags": []} for i in range(2)]

    _, _, found = served.ask("POST", PREDICT, {"instances": unseen})
    one, other = found["predictions"]
    assert one != other, "initial values differ by key"
    unseen[1]["a"] = unseen[0]["a"]
    _, _, found = served.ask("POST", PREDICT, {"instances": unseen})
    assert found["predictions"] == [one, one], "the default value does not"


def without(row: dict[str, Any], column: str) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != column}


# What all samples of a request share --------------------------------------------------------------


def user_and_items() -> tuple[dict[str, Any], list[dict[str, Any]], list[dict[str, Any]]]:
    """One user's columns, items of 20 samples, and the samples with all their columns."""
    user = {"d1": 0.75, "a": 3, "tags": [4, 4, 9]}
    items = [{name: row[name] for name in ("d2", "b")} for row in rows()]
    return user, items, [user | item for item in items]


def test_what_samples_share_stands_once_in_a_request_of_rows_and_changes_no_bit(
    served: Any,
) -> None:
    user, items, whole = user_and_items()
    expected = served.serving.model.predict(whole).values

    _, _, found = served.ask("POST", PREDICT, {"context": user, "instances": items})
    np.testing.assert_array_equal(np.array(found["predictions"], np.float32), expected)
    columns = {name: [item[name] for item in items] for name in items[0]}
    _, _, found = served.ask("POST", PREDICT, {"context": user, "inputs": columns})
    np.testing.assert_array_equal(np.array(found["outputs"], np.float32), expected)
    np.testing.assert_array_equal(
        served.serving.model.predict(columns, context=user).values, expected
    )
    client = Client(address=served.serving.address, model="clicks", token="a token of sixteen")
    np.testing.assert_array_equal(client.predict(items, context=user).values, expected)


def test_a_tensor_of_one_value_is_what_all_samples_share(served: Any) -> None:
    whole = [
        {"d1": 0.5, "d2": d2, "a": 3, "b": b, "tags": [1, 2, 9]}
        for d2, b in ((1, 17), (0, 4000), (3, 5), (2, 6), (1, 1))
    ]
    expected = served.serving.model.predict(whole).values
    for tags in (
        {"tags": ("INT64", [3], [1, 2, 9]), "tags:lengths": ("INT32", [1], [3])},
        {"tags": ("INT64", [1, 3], [1, 2, 9]), "tags:lengths": None},
    ):
        inputs = tensors(
            d1=("FP32", [1], [0.5]),
            d2=("FP64", [5, 1], [1, 0, 3, 2, 1]),
            a=("INT32", [1, 1], [3]),
            b=("INT64", [5], [17, 4000, 5, 6, 1]),
            **tags,
        )
        status, _, found = served.ask("POST", INFER, {"inputs": inputs})
        assert status == 200, found
        got = np.array(found["outputs"][0]["data"], np.float32)
        np.testing.assert_array_equal(got, expected)


def test_requests_with_and_without_a_context_are_computed_together(served: Any) -> None:
    user, items, whole = user_and_items()
    asked = [
        {"context": user, "instances": items},
        {"instances": rows()},
        {"context": {**user, "a": 7}, "instances": items[:9]},
        {"context": {"b": 9}, "instances": [without(row, "b") for row in rows()]},
    ]
    answers: list[Any] = []
    calls = [Call("rows", json.dumps(body).encode(), None, time.monotonic() + 60) for body in asked]
    computing = served.serving._pool._sessions[0]._computing
    decoded = [computing.read(call, answers.append) for call in calls]

    computing.compute(decoded)

    model = served.serving.model
    found = [json.loads(answer.body)["predictions"] for answer in answers]
    expected = [
        model.predict(samples).values
        for samples in (
            whole,
            [{**row, "a": 7} for row in whole[:9]],
            rows(),
            [{**row, "b": 9} for row in rows()],
        )
    ]
    by_bits = sorted(np.array(each, np.float32).tobytes() for each in found)
    assert by_bits == sorted(each.tobytes() for each in expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"context": [1]}, "context must be an object"),
        ({"context": {"x": 1}}, "the model reads no column 'x'"),
        ({"context": {"d2": 1}}, "row 0: column 'd2' is in the context, and again beside it"),
        ({"context": {"d1": 1}}, "row 0: column 'a' is missing"),
        ({"context": {"d1": 1, "a": True, "tags": []}}, "column 'a', row 0: true is no key"),
        ({"context": {"d1": 1, "a": [3, 4, "x"], "tags": []}}, "is of type string"),
        ({"instances": [{}]}, "row 0: column 'd2' is missing"),
        ({"instances": []}, "1 to 16384 samples, got 0"),
    ],
)
def test_a_wrong_context_is_refused(served: Any, changes: Any, message: str) -> None:
    user, items, _ = user_and_items()

    asked = {"context": user, "instances": items, **changes}
    status, _, found = served.ask("POST", PREDICT, asked)

    assert status == 400
    assert message in found["error"]
