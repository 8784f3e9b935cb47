"""Clients of a Kafka broker: their settings, and what goes wrong with them in words."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime.storage import StorageError

if TYPE_CHECKING:
    from confluent_kafka import Consumer, KafkaError, Producer

# librdkafka says much, most of it twice; what matters comes as an error.
_log = logging.getLogger("librdkafka")
_log.addHandler(logging.NullHandler())
_log.propagate = False

ASK_SECONDS = 10.0
"""How long a broker is waited for that somebody waits for."""

_OURS = {
    "bootstrap.servers": "data.stream.brokers",
    "group.id": "data.stream.group",
    "enable.auto.commit": None,
    "enable.auto.offset.store": None,
    "auto.offset.reset": "data.stream.on_lost",
}


def require_kafka() -> None:
    """Raise ImportError, with what to install, where the client's package is missing."""
    try:
        import confluent_kafka  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "Kafka is read and written by the package confluent-kafka, which is not installed: pip"
            " install 'synchromesh[kafka]'"
        ) from error


def read_client_file(path: str | None) -> dict[str, str]:
    """Read settings of librdkafka, `name=value` a line, that are not to be in a job file.

    Raises:
        ValueError: a line is none, or sets what the job sets.
        OSError: it can't be read.
    """
    settings: dict[str, str] = {}
    lines = [] if path is None else Path(path).read_text().splitlines()
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        name, equals, value = (part.strip() for part in text.partition("="))
        if not equals or not name:
            raise ValueError(f"{path}, line {number}: must look like name=value")
        if name in _OURS:
            own = _OURS[name]
            remedy = f"write {own} instead" if own else "leave it out"
            raise ValueError(f"{path}, line {number}: {name} is set by the job; {remedy}")
        settings[name] = value
    return settings


def consumer_of(
    brokers: str,
    group: str,
    settings: dict[str, str],
    *,
    on_commit: Callable[[Any, Any], None] = lambda error, partitions: None,
) -> "Consumer":
    """Return a consumer that is told by `assign` what to read; raises ValueError.

    Args:
        on_commit: is told, within calls of the consumer, what came of a commit: an error or None.
    """
    return _client(
        "Consumer",
        brokers,
        {
            "group.id": group,
            "on_commit": on_commit,
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "auto.offset.reset": "error",
            "allow.auto.create.topics": False,
            "queued.max.messages.kbytes": 32768,
            "max.poll.interval.ms": 86_400_000,  # a job that waits asks for nothing
            **settings,
        },
    )


def producer_of(brokers: str, settings: dict[str, str]) -> "Producer":
    """Return a producer that writes each message once, as long as it lives; raises ValueError."""
    return _client("Producer", brokers, {"enable.idempotence": True, "linger.ms": 20, **settings})


def _client(kind: str, brokers: str, settings: dict[str, Any]) -> Any:
    require_kafka()
    import confluent_kafka

    try:
        return getattr(confluent_kafka, kind)(
            {"bootstrap.servers": brokers, **settings}, logger=_log
        )
    except confluent_kafka.KafkaException as error:
        raise ValueError(f"the client of Kafka refuses a setting: {_text(error)}") from error


def partitions_of(client: Any, topic: str, where: str, *, seconds: float | None = None) -> int:
    """Return how many partitions a topic has.

    Args:
        seconds: to wait for an answer; by default `ASK_SECONDS`.

    Raises:
        StorageError: no broker answers, or the topic is not there.
    """
    import confluent_kafka

    try:
        found = client.list_topics(topic, timeout=seconds or ASK_SECONDS).topics[topic]
    except confluent_kafka.KafkaException as error:
        raise out_of_reach(where, error) from error
    if found.error is not None or not found.partitions:
        raise topic_error(where, topic, found.error)
    return len(found.partitions)


def out_of_reach(where: str, error: Any) -> StorageError:
    """Return the error of brokers that can't be asked."""
    return StorageError(
        where,
        f"no broker answers as it should ({_text(error)})",
        "Start it, or correct data.stream.brokers and what data.stream.client_file says",
    )


def topic_error(where: str, topic: str, error: "KafkaError | None") -> StorageError:
    """Return the error of a topic that can't be read."""
    said = "it has no partitions" if error is None else _text(error)
    return StorageError(
        where, f"the topic {topic!r} can't be read ({said})", "Make it, or correct its name"
    )


def _text(error: Any) -> str:
    inner = error.args[0] if getattr(error, "args", None) else error
    return str(inner.str()) if hasattr(inner, "str") else str(inner)
