"""Numbers and paths in a job file, with bounds beyond which something else would break later."""

from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BeforeValidator, Field

Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
CountOrNone = Annotated[int, Field(ge=0, le=2**31 - 1)]
# Each is connected to every server and to the coordinator, which take a few more peers than that.
MAX_WORKERS = 8000

MAX_RELAYS = 256
# From so many workers on a job has relays, where nobody says how many: below it saves the
# coordinator little (docs/performance.md). A relay takes some 20 batches/s of each of its workers.
RELAYS_FROM, WORKERS_OF_A_RELAY = 256, 512


def _number_of_relays(value: Any) -> Any:
    is_number = isinstance(value, int) and not isinstance(value, bool)
    if value != "auto" and not (is_number and 0 <= value <= MAX_RELAYS):
        raise ValueError(f"must be auto or a whole number from 0 to {MAX_RELAYS}, got {value!r}")
    return value


Relays = Annotated[int | Literal["auto"], BeforeValidator(_number_of_relays)]
# Bytes and samples.
Amount = Annotated[int, Field(ge=1, le=2**62)]
# What operating systems and locks take as a time limit; 31 years.
Seconds = Annotated[float, Field(gt=0, le=1e9)]
# Ray counts in units of 0.0001.
Cpus = Annotated[float, Field(ge=0.0001, le=1e6)]
PositiveFloat32 = Annotated[float, Field(gt=0, le=float(np.finfo(np.float32).max))]


def _named_path(value: Any) -> Any:
    if isinstance(value, str) and (not value.strip() or "\0" in value):
        raise ValueError(f"must be a path, got {value!r}; '.' is the folder that you are in")
    return value


PathText = Annotated[str, BeforeValidator(_named_path)]
