"""The file with Ray's token: made for its user alone; what the user has or says stays."""

import logging
import os
import stat
from pathlib import Path
from typing import ClassVar

import pytest
import ray._raylet
from ray.exceptions import AuthenticationError

from scheduler.driver.ray_token import check_token, protect_token
from scheduler.errors import StartError


@pytest.fixture
def token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the token of a user is who has none yet."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / ".ray" / "auth_token"


def put(path: Path, mode: int) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("a token")
    path.chmod(mode)


@pytest.mark.parametrize("mask", [0o022, 0o000, 0o077])
def test_a_token_is_made_for_its_user_alone(token: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        protect_token(starts_cluster=True)
    finally:
        os.umask(before)

    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert len(bytes.fromhex(token.read_text())) == 32
    assert os.listdir(token.parent) == ["auth_token"]


def test_a_token_that_is_there_stays(token: Path, caplog: pytest.LogCaptureFixture) -> None:
    put(token, 0o600)

    protect_token(starts_cluster=True)

    assert token.read_text() == "a token"
    assert not caplog.records


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("mode", [0o644, 0o640])
def test_one_that_others_can_read_is_said_and_left(
    token: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    named: bool,
    mode: int,
) -> None:
    path = token.parent / "mine" if named else token
    put(path, mode)
    if named:
        monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(path))

    with caplog.at_level(logging.WARNING):
        protect_token(starts_cluster=named)

    assert f"chmod 600 {path}" in caplog.text
    assert stat.S_IMODE(path.stat().st_mode) == mode


@pytest.mark.parametrize(
    ("name", "value", "starts_cluster"),
    [
        ("RAY_AUTH_MODE", "disabled", True),
        ("RAY_AUTH_TOKEN", "another", True),
        ("RAY_AUTH_TOKEN_PATH", "/nowhere/token", True),
        ("OTHER", "", False),
    ],
)
def test_nothing_is_made_where_ray_would_make_nothing(
    token: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str, starts_cluster: bool
) -> None:
    monkeypatch.setenv(name, value)

    protect_token(starts_cluster=starts_cluster)

    assert not token.exists()


def test_a_home_that_can_t_be_written_is_left_to_ray(token: Path) -> None:
    token.parent.write_text("a file")

    protect_token(starts_cluster=True)

    assert token.parent.read_text() == "a file"


class Gcs:
    """Ray's client of a head that asks for a token."""

    asked: ClassVar[list[str]] = []

    def __init__(self, address: str) -> None:
        self.asked.append(address)
        if os.environ.get("RAY_AUTH_TOKEN") != "right":
            raise AuthenticationError("InvalidAuthToken")


@pytest.mark.parametrize(
    ("environment", "text"),
    [
        ({}, "asks for a token, and none was given: `ray get-auth-token`"),
        ({"RAY_AUTH_MODE": "token"}, "RAY_AUTH_MODE is token, but there is no token"),
        (
            {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "wrong"},
            "asks for a token, and the one that it was given is not its own",
        ),
    ],
)
def test_who_joins_a_protected_cluster_is_told_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, environment: dict[str, str], text: str
) -> None:
    monkeypatch.setattr(ray._raylet, "GcsClient", Gcs)
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HOME": str(tmp_path), **environment}.items():
        monkeypatch.setenv(name, value)

    with pytest.raises(StartError, match=text):
        check_token("head:6379")


def test_whoever_has_the_token_may_join_and_other_failures_are_left_to_ray(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ray._raylet, "GcsClient", Gcs)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "right")
    Gcs.asked.clear()
    check_token("head:6379")
    check_token("auto")
    assert Gcs.asked == ["head:6379"]

    monkeypatch.setattr(ray._raylet, "GcsClient", lambda address: 1 / 0)

    check_token("head:6379")
