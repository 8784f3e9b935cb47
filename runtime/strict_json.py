"""JSON that every reader takes: NaN and infinities, which Python would write, are none of it."""

import json
import math
from typing import Any


def json_text(value: Any, *, indent: int | None = None, sort_keys: bool = False) -> str:
    """Return JSON text of values, null for NaN and the infinities.

    Raises:
        ValueError: they are nested too deeply; Python reads some such text that it can't write.
    """
    try:
        return json.dumps(_strict(value), indent=indent, sort_keys=sort_keys, allow_nan=False)
    except RecursionError as error:
        raise ValueError("its values are nested too deeply") from error


def _strict(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
