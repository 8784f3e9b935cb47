"""Who may ask, what paths there are, and what is no request."""

import contextlib
import json
import socket
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from served_jobs import some_samples

ROWS = pa.table(some_samples(np.random.default_rng(5), 20)).to_pylist()
PREDICT, INFER = "/v1/models/clicks:predict", "/v2/models/clicks/infer"


@pytest.mark.parametrize("token", [None, "another token, as long", "ü" * 16])
def test_without_the_token_nothing_but_health_is_told(served: Any, token: str | None) -> None:
    given = None if token is None else token.encode().decode("latin-1")
    for method, path in (
        ("POST", PREDICT),
        ("POST", INFER),
        ("GET", "/metrics"),
        ("GET", "/v1/models/clicks"),
        ("POST", "/v1/models/clicks:rollback"),
    ):
        status, headers, _ = served.ask(method, path, {}, token=given)
        assert (status, headers["www-authenticate"]) == (401, "Bearer")
    assert served.ask("GET", "/v2/health/ready", token=None)[0] == 200


def test_paths_that_are_not_there_are_told(served: Any) -> None:
    for method, path, status in (
        ("GET", "/v2/models/other", 404),
        ("POST", "/nowhere", 404),
        ("GET", PREDICT, 405),
        ("POST", "/v2/models/clicks/versions/99/infer", 404),
        ("POST", "/v2/models/clicks/versions/3/infer", 400),
    ):
        assert served.ask(method, path, {} if method == "POST" else None)[0] == status


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("POST", "/metrics", "GET"),
        ("DELETE", "/v1/models/clicks", "GET"),
        ("PUT", "/v2/models/clicks", "GET"),
        ("POST", "/v2", "GET"),
        ("DELETE", PREDICT, "POST"),
        ("GET", "/v1/models/clicks:release", "POST"),
    ],
)
def test_another_method_is_told_which_one_a_path_takes(
    served: Any, method: str, path: str, allowed: str
) -> None:
    status, headers, _ = served.ask(method, path, {} if method == "POST" else None)

    assert (status, headers["allow"]) == (405, allowed)


def raw(served: Any, data: bytes, *, ends: bool = True) -> bytes:
    """Send bytes, and say that no more come; return all until the server ends the connection."""
    found = b""
    with (
        socket.create_connection(("127.0.0.1", served.port), timeout=30) as connection,
        contextlib.suppress(OSError),  # it need not be read to its end
    ):
        connection.sendall(data)
        if ends:
            connection.shutdown(socket.SHUT_WR)
        while part := connection.recv(65536):
            found += part
    return found


def test_a_huge_header_half_a_request_and_no_http_leave_the_server_as_it_was(served: Any) -> None:
    head = b"POST /v1/models/clicks:predict HTTP/1.1\r\nHost: a\r\n"
    token = b"Authorization: Bearer a token of sixteen\r\n"

    assert b"200 OK" not in raw(served, head + b"X: " + b"a" * (1 << 20) + b"\r\n\r\n")
    assert b"200 OK" not in raw(served, head + token + b"Content-Length: 100\r\n\r\n{")
    assert b"200 OK" not in raw(served, head[:20])
    assert b"200 OK" not in raw(served, b"\x16\x03\x01" + bytes(300))
    assert b"413" in raw(served, head + token + b"Content-Length: 99999999999\r\n\r\n")

    assert served.ask("POST", PREDICT, {"instances": ROWS})[0] == 200
    assert served.serving.endpoint.outstanding == 0


def test_a_body_that_breaks_off_is_no_request(served: Any) -> None:
    head = b"POST /v1/models/clicks:predict HTTP/1.1\r\nHost: a\r\n"
    head += b"Connection: close\r\nAuthorization: Bearer a token of sixteen\r\n"
    body = json.dumps({"instances": ROWS}).encode()
    size, hexadecimal = str(len(body)).encode(), f"{len(body):x}".encode()
    more = str(len(body) + 500).encode()
    chunk = hexadecimal + b"\r\n" + body + b"\r\n"

    whole = raw(served, head + b"Content-Length: " + size + b"\r\n\r\n" + body, ends=False)
    assert b"200 OK" in whole
    short = raw(served, head + b"Content-Length: " + more + b"\r\n\r\n" + body)
    assert b"200 OK" not in short
    for length in (b"", b"Content-Length: 3\r\n"):
        for end in (b"0\r\n\r\n", b"zz\r\n", b""):
            chunked = head + length + b"Transfer-Encoding: chunked\r\n\r\n" + chunk + end
            assert b" 400 " in raw(served, chunked, ends=False)


def test_what_a_rollback_does_not_know_changes_nothing(served: Any) -> None:
    for path, asked in (("rollback", {"stp": 3}), ("release", {"step": 3})):
        status, _, answer = served.ask("POST", f"/v1/models/clicks:{path}", asked)
        assert (status, "stp" in str(answer) or "step" in str(answer)) == (400, True)
    assert not served.ask("GET", "/v1/models/clicks")[2]["rolled_back"]


def test_figures_and_versions_are_told(served: Any) -> None:
    served.ask("POST", PREDICT, {"instances": ROWS})

    page = served.ask("GET", "/metrics")[2].decode()
    assert "synchromesh_serving_step 3.0" in page
    assert 'synchromesh_serving_requests_total{status="200"}' in page
    samples = dict(line.rsplit(" ", 1) for line in page.splitlines() if line[0] != "#")
    name = "synchromesh_serving_request_samples"
    counts = [float(v) for key, v in samples.items() if key.startswith(f"{name}_bucket")]
    assert counts == sorted(counts)
    assert counts[-1] == float(samples[f"{name}_count"]) >= 1
    assert float(samples[f"{name}_sum"]) >= len(ROWS)
    assert "synchromesh_serving_age_seconds" in page
    (entry,) = served.ask("GET", "/v1/models/clicks")[2]["model_version_status"]
    assert (entry["version"], entry["state"]) == ("3", "AVAILABLE")
