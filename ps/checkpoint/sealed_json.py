"""A JSON mapping that says its own checksum: a changed digit is still JSON, and another number."""

import hashlib
import json
from typing import Any

from runtime.strict_json import json_text

SEAL = "sha256_of_the_rest"


def sealed_text(data: dict[str, Any]) -> tuple[str, str]:
    """Return the JSON text of a mapping, with its checksum as the last entry, and the checksum."""
    plain = json.loads(json_text(data))
    seal = seal_of(plain)
    return json_text({**plain, SEAL: seal}, indent=1), seal


def unsealed(data: dict[str, Any]) -> dict[str, Any]:
    """Return a mapping that was read, without its checksum; those of earlier versions have none.

    Raises:
        ValueError: the mapping is not what the checksum was made of.
    """
    rest = {name: value for name, value in data.items() if name != SEAL}
    if SEAL in data and data[SEAL] != seal_of(rest):
        raise ValueError("its contents don't have the checksum that it says")
    return rest


def seal_of(data: dict[str, Any]) -> str:
    """Return the checksum of a mapping of plain JSON that has none in it."""
    return hashlib.sha256(json_text(data, sort_keys=True).encode()).hexdigest()
