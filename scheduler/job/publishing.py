"""Where a job publishes its checkpoints for those who can't see its disk, and who may have them."""

from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, StrictStr

from scheduler.job.errors import ConfigError
from scheduler.job.quantities import PathText

TOKEN_VARIABLE = "SYNCHROMESH_PUBLISH_TOKEN"
LEAST_TOKEN = 16


class PublishConfig(BaseModel):
    """Where followers find it, and the file that holds what they have to know."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    port: int = Field(ge=0, le=65535)
    host: StrictStr = Field("127.0.0.1", min_length=1)
    token_file: PathText | None = None


def publish_token(publish: PublishConfig, environment: Mapping[str, str]) -> bytes:
    """Return what followers have to know; raises ConfigError where there is nothing of use."""
    token, where = environment.get(TOKEN_VARIABLE, ""), f"${TOKEN_VARIABLE}"
    if publish.token_file is not None:
        where = publish.token_file
        try:
            token = Path(where).read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"checkpoint.publish.token_file: {where} can't be read: {error}"
            ) from error
    if not token:
        raise ConfigError(
            f"checkpoint.publish needs a token that followers know, too: name a file in"
            f" checkpoint.publish.token_file, or set {TOKEN_VARIABLE}"
        )
    if len(token) < LEAST_TOKEN or not token.isascii():
        raise ConfigError(
            f"checkpoint.publish: the token in {where} must have at least {LEAST_TOKEN} ASCII"
            " characters"
        )
    return token.encode()
