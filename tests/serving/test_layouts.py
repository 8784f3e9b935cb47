"""Binary requests that are laid out as one before."""

import json
from typing import Any

import numpy as np
import pytest

from serving.errors import RequestError
from serving.requests import RequestSchema
from serving.wire import inference
from serving.wire.layouts import Decoder, _copy
from worker.data.batch import SingleKeys
from worker.data.shared import SharedBatch
from worker.spec import FeatureSpec, SparseFeature

FEATURES = FeatureSpec(
    label="label",
    dense=("d1", "d2"),
    dense_transform="log1p",
    sparse=tuple(SparseFeature(name=name, column=name, table=name) for name in ("a", "b")),
)
TYPES = {"float32": "FP32", "float64": "FP64", "int64": "INT64", "int32": "INT32"}


@pytest.fixture
def schema() -> RequestSchema:
    return RequestSchema(FEATURES, None, max_rows=100)


def request_of(columns: dict[str, np.ndarray]) -> tuple[bytes, int]:
    inputs = [
        {
            "name": name,
            "datatype": TYPES[array.dtype.name],
            "shape": list(array.shape),
            "parameters": {"binary_data_size": array.nbytes},
        }
        for name, array in columns.items()
    ]
    head = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}}).encode()
    return head + b"".join(array.tobytes() for array in columns.values()), len(head)


def some_columns(seed: int, n: int = 7, **others: np.ndarray) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "b": rng.integers(-(2**62), 2**62, n),
        "d2": rng.exponential(size=n).astype(np.float32) - 0.2,
        "a": rng.integers(-5, 5, (n, 1)),
        "d1": rng.exponential(size=n).astype(np.float32),
        **others,
    }


def test_a_request_laid_out_as_one_before_gives_the_same_samples(schema: RequestSchema) -> None:
    decoder = Decoder(schema)
    decoder.decode(*request_of(some_columns(1)))
    asked = request_of(some_columns(2))

    for _ in range(2):  # the second time as the one before
        found, wanted = decoder.decode(*asked)

        expected, same = inference.decode(*asked, schema)
        assert isinstance(found, SingleKeys)
        assert wanted == same
        batch = found.batch()
        np.testing.assert_array_equal(batch.dense, expected.dense)
        for ours, theirs in zip(batch.sparse, expected.sparse, strict=True):
            np.testing.assert_array_equal(ours.keys, theirs.keys)


def test_the_request_before_is_not_taken_for_another_of_its_size(schema: RequestSchema) -> None:
    decoder = Decoder(schema)
    columns = some_columns(1, d1=np.ones(7, np.float32))
    body, size = request_of(columns)
    for _ in range(2):
        decoder.decode(body, size)

    found, _ = decoder.decode(body.replace(b'"d1"', b'"d0"').replace(b'"d2"', b'"d1"')
                              .replace(b'"d0"', b'"d2"'), size)  # fmt: skip

    assert found.dense[0, 1] == np.log1p(np.float32(1))


@pytest.mark.parametrize(
    "context", [("a",), ("d1", "b"), ("d1", "d2", "a")], ids=lambda names: "+".join(names)
)
def test_what_all_samples_share_is_known_again(
    schema: RequestSchema, context: tuple[str, ...]
) -> None:
    decoder = Decoder(schema)

    def asked(seed: int) -> tuple[bytes, int]:
        columns = some_columns(seed)
        return request_of({n: v[:1] if n in context else v for n, v in columns.items()})

    decoder.decode(*asked(1))
    assert decoder._layouts
    found, _ = decoder.decode(*asked(2))

    expected, _ = inference.decode(*asked(2), schema)
    assert isinstance(found, SharedBatch)
    assert isinstance(expected, SharedBatch)
    assert (found.sparse, found.dense) == (expected.sparse, expected.dense)
    np.testing.assert_array_equal(found.group, expected.group)
    np.testing.assert_array_equal(found.batch.dense, expected.batch.dense)
    for ours, theirs in zip(found.batch.sparse, expected.batch.sparse, strict=True):
        np.testing.assert_array_equal(ours.keys, theirs.keys)


def test_a_request_compiles_nothing(schema: RequestSchema) -> None:
    decoder = Decoder(schema)
    compiled = _copy.signatures
    for seed in (1, 2):
        decoder.decode(*request_of(some_columns(seed)))

    assert decoder._layouts
    assert _copy.signatures == compiled


def test_an_id_that_comes_first_may_differ(schema: RequestSchema) -> None:
    decoder = Decoder(schema)

    def asked(seed: int, ident: bytes) -> tuple[bytes, int]:
        body, size = request_of(some_columns(seed))
        return b'{"id":"' + ident + b'",' + body[1:], size + len(ident) + 8

    decoder.decode(*asked(1, b"a"))
    assert len(decoder._layouts) == 1
    found, wanted = decoder.decode(*asked(2, b"another, longer"))

    expected, same = inference.decode(*asked(2, b"another, longer"), schema)
    assert isinstance(found, SingleKeys)
    assert (wanted.id, wanted) == ("another, longer", same)
    np.testing.assert_array_equal(found.dense, expected.dense)
    assert decoder.decode(*request_of(some_columns(1)))[1].id is None
    assert decoder.decode(*asked(1, b"\\n"))[1].id == "\n"
    for wrong in (b"\n", b"\xff", b'x","id":"y'):
        with pytest.raises(RequestError):
            decoder.decode(*asked(1, wrong))


def test_values_that_a_rule_is_about_are_looked_at(schema: RequestSchema) -> None:
    decoder = Decoder(schema)
    for _ in range(2):
        decoder.decode(*request_of(some_columns(1)))
    columns = some_columns(2)
    columns["d1"][3] = np.nan

    found, _ = decoder.decode(*request_of(columns))

    assert found.dense[3, 0] == 0
    columns["d1"][3] = np.inf
    with pytest.raises(RequestError, match="infinite"):
        decoder.decode(*request_of(columns))


@pytest.mark.parametrize("outputs", [("prediction",), ("click", "convert")])
def test_an_answer_begun_as_one_before_is_the_same_bytes(outputs: tuple[str, ...]) -> None:
    encoder = inference.Encoder("m", outputs)
    shape = (3,) if len(outputs) == 1 else (3, len(outputs))
    values = np.linspace(0, 1, 3 * len(outputs), dtype=np.float32).reshape(shape)
    both = tuple((name, True) for name in outputs)
    for step in (1, 1, 2):
        about = {"step": step, "checkpoint": "c", "age_seconds": 0.5 * step}
        for ident in (None, 'a"b'):
            for named in (both, both[::-1][:1], ((outputs[0], False), *both[1:])):
                wanted = inference.Wanted(ident, named)
                expected = inference.encode(values, wanted, "m", about, outputs)

                assert encoder.encode(values, wanted, about) == expected


def test_bytes_that_are_missing_or_too_many_are_refused(schema: RequestSchema) -> None:
    decoder = Decoder(schema)
    body, size = request_of(some_columns(1))
    decoder.decode(body, size)

    with pytest.raises(RequestError, match="only 24 are left"):
        decoder.decode(body[:-4], size)
    with pytest.raises(RequestError, match="8 bytes follow"):
        decoder.decode(body + bytes(8), size)


@pytest.mark.parametrize(
    "others",
    [{"a": np.ones(7, np.int32)}, {"d1": np.ones(7)}],
    ids=["narrow keys", "wide numbers"],
)
def test_other_kinds_of_requests_are_read_each_time(schema: RequestSchema, others: Any) -> None:
    decoder = Decoder(schema)
    asked = request_of(some_columns(1, **others))

    decoder.decode(*asked)
    found, _ = decoder.decode(*asked)

    assert not isinstance(found, SingleKeys)
    assert not decoder._layouts


def test_columns_with_rules_of_their_own_are_read_each_time() -> None:
    padded = SparseFeature(name="a", column="a", table="a", pad=0)
    features = FeatureSpec(
        label=None, dense=("d1", "d2"), dense_transform="none", sparse=(padded, FEATURES.sparse[1])
    )
    decoder = Decoder(RequestSchema(features, None, max_rows=100))

    decoder.decode(*request_of(some_columns(1)))

    assert not decoder._layouts
