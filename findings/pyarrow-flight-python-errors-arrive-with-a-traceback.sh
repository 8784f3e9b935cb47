#!/usr/bin/env bash
# pyarrow 26.0.1: what a Flight handler in Python raises reaches the client with the handler's whole traceback, paths
# of the server's files included, behind "Detail: Python exception:". So does a built-in error (ValueError, KeyError,
# NotImplementedError) and one of Arrow's (ArrowInvalid). Only Flight's own errors (FlightServerError and its like)
# bear the text alone. Types change as well: ValueError arrives as ArrowInvalid, FileNotFoundError as FlightServerError.
# What to do: catch everything in a handler and raise a Flight error with the text that the client is to have.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check pyarrow==26.0.1
cd "$folder"
cat > handler_of_the_server.py <<'PYTHON'
import pyarrow as pa
import pyarrow.flight as flight

ERRORS = {
    "ValueError": ValueError("no such batch"),
    "KeyError": KeyError("no such batch"),
    "FileNotFoundError": FileNotFoundError("no such batch"),
    "NotImplementedError": NotImplementedError("no such batch"),
    "ArrowInvalid": pa.ArrowInvalid("no such batch"),
    "FlightServerError": flight.FlightServerError("no such batch"),
    "FlightUnavailableError": flight.FlightUnavailableError("no such batch"),
}
SEEN = {
    "ValueError": ("ArrowInvalid", True),
    "KeyError": ("ArrowKeyError", True),
    "FileNotFoundError": ("FlightServerError", True),
    "NotImplementedError": ("ArrowNotImplementedError", True),
    "ArrowInvalid": ("ArrowInvalid", True),
    "FlightServerError": ("FlightServerError", False),
    "FlightUnavailableError": ("FlightUnavailableError", False),
}


class Server(flight.FlightServerBase):
    def do_action(self, context, action):
        raise ERRORS[action.type]


with Server("grpc://127.0.0.1:0") as server:
    client = flight.connect(f"grpc://127.0.0.1:{server.port}")
    for raised in ERRORS:
        try:
            list(client.do_action(flight.Action(raised, b"")))
            raise SystemExit(f"{raised} did not arrive")
        except pa.ArrowException as error:
            arrived = error
        text = str(arrived)
        has_traceback = "Traceback" in text and "handler_of_the_server.py" in text
        print(f"{raised}: arrives as {type(arrived).__name__}, {len(text)} characters, traceback: {has_traceback}")
        assert (type(arrived).__name__, has_traceback) == SEEN[raised]
    client.close()
PYTHON
venv/bin/python handler_of_the_server.py
