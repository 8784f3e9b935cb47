"""What a job that publishes its checkpoints has to be given."""

from pathlib import Path

import pytest

from scheduler import ConfigError
from scheduler.job.publishing import PublishConfig, publish_token


def test_the_token_comes_from_a_file_or_from_the_environment(tmp_path: Path) -> None:
    environment = {"SYNCHROMESH_PUBLISH_TOKEN": "sixteen or more characters"}
    assert publish_token(PublishConfig(port=1), environment) == b"sixteen or more characters"
    file = tmp_path / "token"
    file.write_text("another one of its kind\n")
    publish = PublishConfig(port=1, token_file=str(file))
    assert publish_token(publish, environment) == b"another one of its kind"


@pytest.mark.parametrize(
    ("token", "message"),
    [
        (None, r"checkpoint.publish needs a token .*SYNCHROMESH_PUBLISH_TOKEN"),
        ("short", r"in \$SYNCHROMESH_PUBLISH_TOKEN must have at least 16"),
        ("ä" * 20, "ASCII"),
    ],
)
def test_a_token_of_no_use_is_refused(token: str | None, message: str) -> None:
    environment = {} if token is None else {"SYNCHROMESH_PUBLISH_TOKEN": token}
    with pytest.raises(ConfigError, match=message):
        publish_token(PublishConfig(port=1), environment)


def test_a_token_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    publish = PublishConfig(port=1, token_file=str(tmp_path / "none"))
    with pytest.raises(ConfigError, match=r"checkpoint.publish.token_file: .*none can't be read"):
        publish_token(publish, {})
