import json
import math

import pytest

from runtime.strict_json import json_text


def test_what_json_has_no_number_for_becomes_null_at_any_depth() -> None:
    value = {"a": [1.5, math.nan, {"b": (math.inf, -math.inf)}], "c": "NaN"}

    assert json.loads(json_text(value), parse_constant=lambda name: 1 / 0) == {
        "a": [1.5, None, {"b": [None, None]}],
        "c": "NaN",
    }


def test_what_is_nested_too_deeply_is_refused() -> None:
    """Python reads as text what it can't write: its limits are of two kinds."""
    value = json.loads('{"a": ' * 900 + "1" + "}" * 900)

    with pytest.raises(ValueError, match="too deeply"):
        json_text(value)
