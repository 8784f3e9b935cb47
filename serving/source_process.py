"""The process of a `SourceApart`: a source that is asked by lines of JSON.

python -m serving.source_process
"""

import contextlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from ps.checkpoint.errors import CheckpointError, CheckpointRemovedError
from runtime.places import place_of
from runtime.strict_json import json_text
from runtime.turns import ask_for_turns
from serving.source import Source

_NICE = 10


def main() -> None:
    """Do what lines of the standard input ask for, until it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the server ends it itself
    with contextlib.suppress(OSError, AttributeError):
        os.nice(_NICE)
    ask_for_turns(0.0)  # not those of the server, which started it
    answers, sys.stdout = sys.stdout, sys.stderr
    source: Source | None = None
    for line in sys.stdin:
        request = json.loads(line)
        answer: dict[str, Any] = {}
        try:
            if request["do"] == "begin":
                source = Source(
                    place_of(request["path"]),
                    Path(request["forms"]),
                    request["follows"],
                    request["rows"],
                )
                for checkpoint, reason in request["skipped"].items():
                    source.skip(checkpoint, reason)
            else:
                assert source is not None, "begun"
                answer = _done(source, request)
        except CheckpointRemovedError as error:
            answer = {"kind": "removed", "error": str(error)}
        except CheckpointError as error:
            answer = {"kind": "checkpoint", "error": str(error)}
        except OSError as error:
            answer = {"kind": "store", "error": str(error)}
        except Exception as error:
            answer = {"kind": "serving", "error": str(error) or repr(error)}
        answers.write(json_text(answer) + "\n")
        answers.flush()


def _done(source: Source, request: dict[str, Any]) -> dict[str, Any]:
    what = request["do"]
    if what == "find":
        after = request["after"]
        found = source.find(None if after is None else (after[0], after[1]))
        form = None if found.form is None else str(found.form)
        refused = [list(each) for each in found.refused]
        return {"form": form, "checkpoint": found.checkpoint, "refused": refused}
    if what == "skip":
        source.skip(request["checkpoint"], request["reason"])
        return {}
    if what == "remove_forms":
        source.remove_forms(request["keep"])
        return {}
    assert what == "base_of", what
    return {"form": str(source.base_of(request["checkpoint"]))}


if __name__ == "__main__":
    main()
