"""A topic of Kafka: its messages become files of a folder, from which they are trained.

What was received is on the disk before anyone knows of it, so a row can be read again until a
checkpoint has it, whatever the broker keeps. Partitions are read side by side; the order in which
their messages came is that of the files, and so is recorded. No consumer group is joined: the
places are told by `assign`, from the position that the job has kept. Offsets are committed for
people who watch the group's lag, and for jobs that begin there.
"""

import contextlib
import json
import re
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from runtime.durable import make_folder, new_file
from runtime.storage import StorageError
from runtime.strict_json import json_text
from worker.data.footers import open_source, read_footer
from worker.data.kafka_client import (
    ASK_SECONDS,
    consumer_of,
    out_of_reach,
    partitions_of,
    topic_error,
)
from worker.data.messages import MessageDecoder, Rows
from worker.data.quarantine import keep_table
from worker.data.streams import Arrival, Lag, Position
from worker.errors import DataError

if TYPE_CHECKING:
    from confluent_kafka import Message, TopicPartition

MOST_MESSAGES = 20_000
"""Of a file."""
_FEW_SECONDS = 1.0  # for what is asked while a job runs
_LOOK_SECONDS = 30.0  # between two looks at how many partitions there are
_CLOSE_SECONDS = 10.0
_BEGINS = b"synchromesh.begins"
_SUFFIX = ".parquet"
_BAD = "messages-"


@dataclass(frozen=True, slots=True, kw_only=True)
class KafkaTopic:
    """Which messages are read, and from where.

    Args:
        brokers: `HOST:PORT,HOST:PORT`.
        topic: its name.
        group: by whose name offsets are committed.
        start: of a stream that has no position yet.
        on_lost: `fail` where the broker has removed messages that were not read; `skip` goes on
            with the first that it has, and counts.
        settings: of librdkafka.
    """

    brokers: str
    topic: str
    group: str
    start: Literal["beginning", "now", "committed"] = "beginning"
    on_lost: Literal["fail", "skip"] = "fail"
    settings: dict[str, str] = field(default_factory=dict)

    @property
    def where(self) -> str:
        return f"kafka://{self.brokers}/{self.topic}"


class KafkaStream:
    """Takes the messages of a topic.

    Args:
        topic: what is read.
        decode: what reads messages.
        spool: folder for the files; what is in it is the stream's own.
        on_bad_record: `fail` raises at a message that can't be used; `skip` leaves it out and
            counts, `quarantine` keeps it in `aside`, too.
        aside: the folder for that.
        note: tells a person something.

    Raises:
        StorageError: no broker answers, or the topic is not there.
        ValueError: a setting is wrong.
        ImportError: a package is missing.
    """

    def __init__(
        self,
        topic: KafkaTopic,
        decode: MessageDecoder,
        *,
        spool: Path,
        on_bad_record: Literal["fail", "skip", "quarantine"] = "fail",
        aside: Path | None = None,
        note: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._topic = topic
        self._decode = decode
        self._spool = spool
        self._on_bad_record = on_bad_record
        self._aside = aside if on_bad_record == "quarantine" else None
        self._note = note
        self._offsets: dict[int, int] = {}  # of the next message of each partition
        self._ends: dict[int, int] = {}  # as last asked for
        self._next_file = 0
        self._refused = self._lost = 0
        self._is_assigned = False
        self._error: Exception | None = None
        self._look_again = 0.0
        self._committed: list[TopicPartition] = []
        self._said_uncommitted = False
        self._consumer = consumer_of(
            topic.brokers,
            topic.group,
            topic.settings,
            on_commit=lambda error, _: self._say_uncommitted(error) if error else None,
        )
        try:
            self._begin()
        except BaseException:
            self._consumer.close()
            raise

    # The protocol of streams ------------------------------------------------------------------

    @property
    def folder(self) -> str:
        """Where samples come from, for people."""
        return self._topic.where

    @property
    def position(self) -> Position:
        return {
            "topic": self._topic.topic,
            "offsets": {str(number): offset for number, offset in sorted(self._offsets.items())},
            "next_file": self._next_file,
            "refused": self._refused,
            "lost": self._lost,
        }

    def seek(self, position: Position) -> None:
        try:
            topic, offsets = position["topic"], position["offsets"]
            if topic != self._topic.topic:
                raise ValueError(f"it is in {topic!r}")
            self._offsets = {int(number): int(offset) for number, offset in offsets.items()}
            self._next_file = int(position["next_file"])
            self._refused, self._lost = int(position["refused"]), int(position["lost"])
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"this is no position in the topic {self._topic.topic!r}: {error}"
            ) from error
        self._is_assigned, self._error = False, None
        # What is made from here on takes their names, or nothing does.
        for folder, begins in ((self._spool, ""), (self._aside, _BAD)):
            for path in [] if folder is None else folder.glob(f"{begins}*{_SUFFIX}"):
                number = path.stem.removeprefix(begins).partition("-")[0]
                if number.isdecimal() and int(number) >= self._next_file:
                    path.unlink()

    def poll(self, *, most: int, now: float) -> list[Arrival]:
        if not self._is_assigned:
            self._assign()
        self._look_for_partitions()
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        messages = [each for each in self._consumed() if self._is_next(each)]
        if not messages:
            return []
        before = dict(self._offsets), self._next_file, self._refused
        try:
            return self._spooled(messages, now)
        except BaseException:
            # The client has gone on: it is told again where the stream is.
            self._offsets, self._next_file, self._refused = before
            self._is_assigned = False
            raise

    @property
    def took_all(self) -> bool:
        """Whether all was taken that the broker was last heard to have, of every partition."""
        return self._is_assigned and all(
            0 <= self._known_end(number) <= offset for number, offset in self._offsets.items()
        )

    def lag(self) -> Lag:
        ends = {number: self._known_end(number) for number in self._offsets}
        waiting = sum(max(0, ends[number] - offset) for number, offset in self._offsets.items())
        return Lag(messages=waiting, refused=self._refused, lost=self._lost)

    def is_in_cut(self, position: Position, oldest: str | None) -> None:
        offsets = position.get("offsets", {}) if oldest is None else _begins(oldest)
        self._committed = [
            self._partition(int(number), int(offset)) for number, offset in offsets.items()
        ]
        if not self._committed:
            return
        try:
            self._consumer.commit(offsets=self._committed, asynchronous=True)
        except Exception as error:  # nobody's training hangs on it
            self._say_uncommitted(error)

    def remove(self, path: str) -> None:
        Path(path).unlink(missing_ok=True)

    def close(self) -> None:
        """Say once more what is committed, as far as that can be done within some seconds."""

        def close() -> None:
            with contextlib.suppress(Exception):
                if self._committed:
                    self._consumer.commit(offsets=self._committed, asynchronous=False)
            self._consumer.close()

        thread = threading.Thread(target=close, name="kafka-close", daemon=True)
        thread.start()
        thread.join(_CLOSE_SECONDS)

    # Places -----------------------------------------------------------------------------------

    def _begin(self) -> None:
        """Find out where a stream begins that has no position."""
        count = partitions_of(self._consumer, self._topic.topic, self._topic.where)
        start = self._topic.start
        committed: dict[int, int] = {}
        if start == "committed":
            wanted = [self._partition(number) for number in range(count)]
            found = self._asked(lambda: self._consumer.committed(wanted, timeout=ASK_SECONDS))
            committed = {each.partition: each.offset for each in found if each.offset >= 0}
        for number in range(count):
            low, high = self._bounds(number, ASK_SECONDS)
            self._offsets[number] = committed.get(number, high if start == "now" else low)

    def _assign(self) -> None:
        """Tell the client where to read on; what the broker has removed meanwhile is lost."""
        for number, offset in self._offsets.items():
            low, high = self._bounds(number, ASK_SECONDS)
            if not low <= offset <= high:
                self._lose(number, low, high)
        self._consumer.assign([self._partition(n, offset) for n, offset in self._offsets.items()])
        self._is_assigned = True

    def _lose(self, number: int, low: int, high: int) -> None:
        """Messages that are to be read are gone: raise, or go on with what there is."""
        offset = self._offsets[number]
        if offset > high:
            gone = f"ends before message {high:,}, and {offset:,} is the next to be read"
            why = "the topic was made anew, or the broker has lost messages"
        else:
            gone = f"begins with message {low:,}, and {offset:,} is the next to be read"
            why = "the broker has removed what was not read for too long (retention)"
            self._lost += low - offset
        text = f"partition {number} of {self._topic.where} {gone}: {why}"
        if self._topic.on_lost == "fail":
            raise DataError(
                what="messages are lost that were not trained",
                got=text,
                remedy="data.stream.on_lost=skip goes on with the first message that is there; or"
                " train what is lost from elsewhere, and begin a new run",
            )
        self._note(f"messages are LOST: {text}. The first that is there comes next")
        self._offsets[number] = low

    def _look_for_partitions(self) -> None:
        """Begin to read partitions that the topic has got since."""
        if time.monotonic() < self._look_again:
            return
        self._look_again = time.monotonic() + _LOOK_SECONDS
        count = partitions_of(
            self._consumer, self._topic.topic, self._topic.where, seconds=_FEW_SECONDS
        )
        new = [number for number in range(count) if number not in self._offsets]
        for number in new:
            low, _ = self._bounds(number, _FEW_SECONDS)
            self._offsets[number] = low
        if new:
            self._note(f"{self._topic.where} has {count} partitions now: the new ones are read too")
            self._assign()

    def _bounds(self, number: int, seconds: float) -> tuple[int, int]:
        """Return the first message that a partition has, and the one after its last."""
        partition = self._partition(number)
        low, high = self._asked(
            lambda: self._consumer.get_watermark_offsets(partition, timeout=seconds)
        ) or (0, 0)
        self._ends[number] = int(high)
        return int(low), int(high)

    def _known_end(self, number: int) -> int:
        """Return the message after the last of a partition, as last heard; negative: never."""
        asked = self._ends.get(number, -1)
        try:
            partition = self._partition(number)
            # Until it has fetched something the client knows nothing of it.
            return max(asked, self._consumer.get_watermark_offsets(partition, cached=True)[1])
        except Exception:  # it says no more than that
            return asked

    def _asked(self, ask: Callable[[], Any]) -> Any:
        from confluent_kafka import KafkaException

        try:
            return ask()
        except KafkaException as error:
            raise out_of_reach(self._topic.where, error) from error

    def _partition(self, number: int, offset: int = 0) -> "TopicPartition":
        from confluent_kafka import TopicPartition

        return TopicPartition(self._topic.topic, number, offset)

    # Messages ---------------------------------------------------------------------------------

    def _consumed(self) -> list["Message"]:
        """Return what the client has; what goes wrong is raised with the next poll."""
        from confluent_kafka import KafkaError

        good: list[Message] = []
        for message in self._consumer.consume(MOST_MESSAGES, timeout=0.0):
            error = message.error()
            if error is None:
                good.append(message)
            elif error.code() in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE):
                self._is_assigned = False  # which says what is lost
            elif error.code() in (
                KafkaError.UNKNOWN_TOPIC_OR_PART,
                KafkaError.TOPIC_AUTHORIZATION_FAILED,
                KafkaError._UNKNOWN_TOPIC,
                KafkaError._UNKNOWN_PARTITION,
            ):
                self._error = topic_error(self._topic.where, self._topic.topic, error)
            elif error.code() != KafkaError._PARTITION_EOF:
                self._error = out_of_reach(self._topic.where, error)
        return good

    def _is_next(self, message: "Message") -> bool:
        """Whether a message was not taken before, which it may have been where a client retried."""
        return bool(message.offset() >= self._offsets.get(message.partition(), 2**63))

    def _spooled(self, messages: Sequence["Message"], now: float) -> list[Arrival]:
        """Write what messages hold into files, and have the stream after them."""
        decoded = self._decode([message.value() or b"" for message in messages])
        if decoded.refused:
            self._refuse(messages, decoded.refused)
        arrivals: list[Arrival] = []
        done = 0
        for part in decoded.parts:
            begins = dict(self._offsets)
            end = int(part.messages[-1]) + 1 if len(part.messages) else done
            self._pass(messages[done:end])
            if len(part.messages):
                path = self._write(part, messages, begins)
                arrivals.append(Arrival(str(path), _written(messages[end - 1], now)))
            done = end
        self._pass(messages[done:])
        return arrivals

    def _pass(self, messages: Sequence["Message"]) -> None:
        for message in messages:
            self._offsets[message.partition()] = message.offset() + 1

    def _write(self, part: Rows, messages: Sequence["Message"], begins: dict[int, int]) -> Path:
        """Put rows onto the disk, with where each came from, and where the stream was before."""
        table = part.table
        places = np.array([(m.partition(), m.offset()) for m in messages], np.int64)
        for at, (name, kind) in enumerate((("_partition", pa.int32()), ("_offset", pa.int64()))):
            if name not in table.column_names:
                values = pa.array(places[part.messages, at]).cast(kind)
                table = table.append_column(name, values)
        text = json_text({str(number): offset for number, offset in begins.items()})
        table = table.replace_schema_metadata({_BEGINS: text})
        make_folder(self._spool)
        path = self._spool / f"{self._next_file:012d}{_SUFFIX}"
        with new_file(path) as sink:
            pq.write_table(table, sink)
        self._next_file += 1
        return path

    def _refuse(self, messages: Sequence["Message"], refused: dict[int, str]) -> None:
        """Leave messages out that can't be used; raises DataError where that ends the job."""
        first = min(refused)
        where = f"message {messages[first].offset():,} of partition {messages[first].partition()}"
        if self._on_bad_record == "fail":
            raise DataError(
                what="a message can't be used",
                file=self._topic.where,
                got=f"{where}: {refused[first]}",
                remedy="Correct who writes it; data.on_bad_record=quarantine keeps such messages"
                " aside, and goes on",
            )
        kept = "" if self._aside is None else f", kept in {self._keep_aside(messages, refused)}"
        told, self._refused = self._refused, self._refused + len(refused)
        if not told or told // 1000 < self._refused // 1000:
            self._note(
                f"{len(refused):,} messages can't be used ({self._refused:,} so far){kept}:"
                f" {where}: {refused[first]}"
            )

    def _keep_aside(self, messages: Sequence["Message"], refused: dict[int, str]) -> Path:
        assert self._aside is not None, "they are kept"
        bad = [messages[number] for number in sorted(refused)]
        table = pa.table(
            {
                "_partition": pa.array([each.partition() for each in bad], pa.int32()),
                "_offset": pa.array([each.offset() for each in bad], pa.int64()),
                "_reason": [refused[number] for number in sorted(refused)],
                "key": pa.array([_bytes_of(each.key()) for each in bad], pa.binary()),
                "value": pa.array([_bytes_of(each.value()) for each in bad], pa.binary()),
            }
        )
        # By the file of those that came with them: made again it takes the place of this one.
        name = f"{_BAD}{self._next_file:012d}-{bad[0].offset()}{_SUFFIX}"
        return keep_table(self._aside, name, table)

    def _say_uncommitted(self, error: Any) -> None:
        if not self._said_uncommitted:
            self._said_uncommitted = True
            self._note(f"offsets can't be committed to {self._topic.where}: {error}")


def _bytes_of(value: Any) -> bytes | None:
    return value.encode() if isinstance(value, str) else value


def _written(message: "Message", now: float) -> float:
    """Return when a message was written, as the broker or its producer says."""
    kind, milliseconds = message.timestamp()
    return milliseconds / 1e3 if kind else now


_NUMBER = re.compile(r"\d{1,10}")


def _begins(path: str) -> dict[str, int]:
    """Return where the stream was before a file, nowhere where it can't be read."""
    try:
        with open_source(path) as source:
            metadata = read_footer(source, path).metadata.metadata or {}
        found = json.loads(metadata.get(_BEGINS, b"{}"))
        return {number: int(offset) for number, offset in found.items() if _NUMBER.match(number)}
    except (OSError, ValueError, AttributeError, StorageError):
        return {}
