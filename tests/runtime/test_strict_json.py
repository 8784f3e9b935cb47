import json
import math

from runtime.strict_json import json_text


def test_what_json_has_no_number_for_becomes_null_at_any_depth() -> None:
    value = {"a": [1.5, math.nan, {"b": (math.inf, -math.inf)}], "c": "NaN"}

    assert json.loads(json_text(value), parse_constant=lambda name: 1 / 0) == {
        "a": [1.5, None, {"b": [None, None]}],
        "c": "NaN",
    }
