"""`control.py` where the job was killed: it says what is known, and does not wait for Ray."""

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import ray
from command_here import run_here

from scheduler.errors import NotRunningError
from scheduler.run.control_file import find_job
from scheduler.run.directory import CONTROL_FILE, JOB_FILE, METRICS_FILE

# Ray itself tries for ever; a busy machine is given some of that.
LIMIT_SECONDS = 60.0
SETTINGS_FRAME = bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])


def left_behind(run: Path, address: str) -> None:
    """Make a run directory as a driver that was killed leaves it."""
    run.mkdir()
    (run / JOB_FILE).write_text("{}")
    line = {"time": time.time() - 7000, "mode": "sync", "global_step": 1234, "samples": 56789}
    (run / METRICS_FILE).write_text(json.dumps(line) + '\n{"time": 3')
    facts = {
        "ray_address": address,
        "namespace": "synchromesh-run-1",
        "auth_mode": "disabled",
        "coordinator": "coordinator-run-0",
        "recovery_epoch": 0,
    }
    (run / CONTROL_FILE).write_text(json.dumps(facts))


@contextmanager
def listening(greet: Callable[[socket.socket], None]) -> Iterator[str]:
    """Something listens at an address that is no Ray cluster."""
    peers: list[socket.socket] = []

    def accept() -> None:
        while True:
            try:
                peer, _ = listener.accept()
            except OSError:
                return
            peers.append(peer)
            greet(peer)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
        for peer in peers:
            peer.close()


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process has not joined a cluster, whatever other tests have done."""
    monkeypatch.setattr(ray, "is_initialized", lambda: False)


def refused(run: Path, *command: str, outside: bool = False) -> str:
    arguments = ["control", str(run), *command]
    if outside:
        program = [sys.executable, "-m", "synchromesh", *arguments]
        done = subprocess.run(
            program, capture_output=True, text=True, check=False, timeout=LIMIT_SECONDS
        )
    else:
        done = run_here(*arguments)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    return done.stderr


def free_address() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("command", [["status"], ["mode", "gba"], ["checkpoint"], ["stop"]])
def test_where_nobody_listens_any_more_it_says_what_the_run_directory_tells(
    tmp_path: Path, command: list[str]
) -> None:
    address = free_address()
    left_behind(tmp_path / "run", address)

    said = refused(tmp_path / "run", *command)

    assert f"at {address} can't be reached: [Errno 111] Connection refused" in said
    assert "perhaps killed" in said
    assert "mode sync, step 1,234, 56,789 samples" in said
    assert "It has written no checkpoint" in said


@pytest.mark.usefixtures("alone")
def test_the_newest_checkpoint_of_a_killed_job_is_named(tmp_path: Path) -> None:
    left_behind(tmp_path / "run", free_address())
    checkpoint = tmp_path / "run" / "checkpoints" / "full-000000001200"
    checkpoint.mkdir(parents=True)
    (checkpoint / "manifest.json").write_text("{}")

    assert f"Newest checkpoint: {checkpoint}" in refused(tmp_path / "run", "status")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not valid JSON"),
        ("\udcff", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("null", "no text for auth_mode, coordinator, namespace, ray_address"),
        ("[]", "no text for auth_mode"),
        (None, "no text for namespace"),
    ],
)
def test_a_damaged_control_file_is_named(tmp_path: Path, text: str | None, said: str) -> None:
    left_behind(tmp_path / "run", "127.0.0.1:1")
    path = tmp_path / "run" / CONTROL_FILE
    if text is None:
        text = json.dumps({**json.loads(path.read_text()), "namespace": 5})
    path.write_bytes(text.encode(errors="surrogateescape"))

    with pytest.raises(NotRunningError, match=f"{CONTROL_FILE} is damaged: .*{said}"):
        find_job(tmp_path / "run")


@pytest.mark.usefixtures("alone")
def test_what_took_the_address_and_says_nothing_is_not_waited_for(tmp_path: Path) -> None:
    with listening(lambda peer: None) as address:
        left_behind(tmp_path / "run", address)

        assert "can't be reached: timed out" in refused(tmp_path / "run", "status")


@pytest.mark.usefixtures("alone")
def test_what_took_the_address_and_is_no_ray_cluster_is_told_from_one(tmp_path: Path) -> None:
    with listening(lambda peer: peer.sendall(b"220 mail.example ESMTP ready\r\n")) as address:
        left_behind(tmp_path / "run", address)

        assert "something else listens there" in refused(tmp_path / "run", "status")


def test_a_head_that_lets_nobody_in_is_not_waited_for(tmp_path: Path) -> None:
    with listening(lambda peer: peer.sendall(SETTINGS_FRAME)) as address:
        left_behind(tmp_path / "run", address)

        assert "it lets nobody in within 3 s" in refused(tmp_path / "run", "status", outside=True)


@pytest.mark.ray
def test_another_cluster_at_the_address_does_not_know_the_job(
    tmp_path: Path, ray_cluster: None
) -> None:
    left_behind(tmp_path / "run", ray.get_runtime_context().gcs_address)

    said = refused(tmp_path / "run", "status", outside=True)

    assert "has ended: its coordinator is gone. It last wrote metrics" in said
