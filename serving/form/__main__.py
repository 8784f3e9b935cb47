"""Make a base of a checkpoint.

    python -m serving.form CHECKPOINT FORMS ROWS

Prints a line of JSON: the folder of the form, or what went wrong.
"""

import contextlib
import os
import sys
from pathlib import Path
from typing import get_args

from ps.checkpoint.errors import CheckpointError, CheckpointRemovedError
from ps.checkpoint.read import CheckpointReader
from runtime.places import place_of
from runtime.strict_json import json_text
from serving.errors import ServingError
from serving.form.making import make_base
from serving.rows.quantized import RowsAs

_NICE = 10


def main(checkpoint: str, folder: str, rows: str) -> None:
    """Make a base and print what became of it."""
    kind = next((each for each in get_args(RowsAs) if each == rows), None)
    assert kind is not None, f"unknown way of keeping rows {rows!r}"
    try:
        made = make_base(CheckpointReader(place_of(checkpoint)), Path(folder), kind)
    except CheckpointRemovedError as error:
        print(json_text({"kind": "removed", "error": str(error)}))
    except CheckpointError as error:
        print(json_text({"kind": "checkpoint", "error": str(error)}))
    except ServingError as error:
        print(json_text({"kind": "serving", "error": str(error)}))
    else:
        print(json_text({"made": str(made)}))


if __name__ == "__main__":
    with contextlib.suppress(OSError, AttributeError):
        os.nice(_NICE)
    main(*sys.argv[1:])
