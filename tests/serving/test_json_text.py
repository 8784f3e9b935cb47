"""JSON is read as strictly by the fast reader as by Python's; numbers are written as they are."""

import json

import numpy as np
import pytest

from serving.errors import RequestError
from serving.wire.json_text import _parsed_fast, _parsed_strictly, parsed, text_of_finite
from serving.wire.rows import encode


@pytest.mark.parametrize(
    ("body", "fast"),
    [
        (b'{"instances":[{"a":1,"b":"x"},{"a":2.5,"b":null}],"context":{"c":[1,2]}}', True),
        (b'{"inputs" : {"a": [18446744073709551615, -9300000000000000000, 1e3, true]}}', True),
        (b'{"inputs":[{"name":"a","parameters":{"s":1}},{"name":"b"}],"parameters":{}}', True),
        (b'{"a":[1111111111111111111111111111111111111111]}', True),
        (b'{"a":"12:30"}', False),
        (b'{"a":{"b":{"c":1}}}', False),
        (b'{"a":"\\ud800"}', False),
    ],
)
def test_both_readers_give_the_same(body: bytes, fast: bool) -> None:
    assert parsed(body) == _parsed_strictly(body)
    assert (_parsed_fast(body) is not None) == fast


@pytest.mark.parametrize(
    "body",
    [
        b'{"a":1,"a":2}',
        b'{"instances":[{"a":1,"b":2},{"a":1,"a":2}]}',
        b'{"inputs":[{"parameters":{"s":1,"s":1}}]}',
        b'{"a":[{"b":1},[{"c":1,"c":2}]]}',
        b'{"a":NaN}',
        b"[1]",
        b'{"a":1',
        b'{"a":"\xff"}',
    ],
)
def test_what_is_wrong_is_refused(body: bytes) -> None:
    with pytest.raises(RequestError):
        parsed(body)


def test_numbers_are_the_shortest_that_are_these_and_never_integers() -> None:
    values = np.array([0, 1, 1e-8, 0.1, 0.30000001, 1e-45, 0.99999994], np.float32)
    found = json.loads(encode(values, "predictions", {"step": 3}))

    assert found["metadata"] == {"step": 3}
    assert all(type(each) is float for each in found["predictions"])
    np.testing.assert_array_equal(np.array(found["predictions"], np.float32), values)
    assert b"0.1," in encode(values, "predictions", {})


def test_half_a_character_is_escaped() -> None:
    assert json.loads(text_of_finite({"id": "\ud800"})) == {"id": "\ud800"}
