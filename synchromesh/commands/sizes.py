"""Amounts of memory on the command line."""

import re
from typing import Any

import click

_UNITS = {"": 1} | {
    f"{prefix}{kind}".lower(): base**power
    for kind, base in (("B", 1000), ("iB", 1024))
    for power, prefix in enumerate(["", "k", "M", "G", "T"])
    if power or kind == "B"
}
_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([a-z]*)", re.IGNORECASE)


class Bytes(click.ParamType):
    """A number of bytes with a unit: 2GB, 500MB, 1.5GiB; without one it is bytes."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        found = _SIZE.fullmatch(str(value).strip())
        unit = None if found is None else _UNITS.get(found[2].lower())
        if found is None or unit is None:
            self.fail(f"{value!r} is no amount of memory: write 2GB, 500MB or 1.5GiB", param, ctx)
        return int(float(found[1]) * unit)
