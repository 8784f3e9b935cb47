"""The data plane benchmark: what its transports deliver, and what it prints at small sizes."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bench_transport import PARTS, main
from command_here import run_here

from bench.exchanges import Exchange, array_bytes, produce
from bench.shared_memory import SharedMemoryChannel, create_region
from bench.transport_turns import TRANSPORTS
from bench.wire_encodings import from_bfloat16, to_bfloat16
from ps.messages.exchange import Message
from ps.messages.wire import WireError, array_names
from worker.datasets.synthetic import CriteoLike, write_criteo_like

ROOT = Path(__file__).parents[2]
CHANNEL_BYTES = 1 << 12


def exchange_of(keys: int, dense: int) -> Exchange:
    rng = np.random.default_rng(3)

    def floats(size: int) -> np.ndarray:
        return rng.normal(size=size).astype(np.float32)

    return Exchange(
        batch=10,
        table_sizes=(2, keys - 2),
        keys=rng.integers(-(2**63), 2**63, keys, np.int64),
        counts=rng.integers(1, 9, keys).astype(np.uint32),
        admitted=rng.integers(0, 2, keys).astype(np.uint8),
        values=floats(4 * keys),
        gradients=floats(4 * keys),
        dense=floats(dense),
        dense_gradients=floats(dense),
    )


def assert_same(found: Message, sent: Message) -> None:
    assert type(found) is type(sent)
    for name in array_names(type(sent)):
        np.testing.assert_array_equal(getattr(found, name), getattr(sent, name))


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "benchmarks/bench_transport.py", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    first, second = socket.socketpair()
    with first, second:
        yield first, second


@pytest.mark.parametrize("in_place", [False, True])
def test_shared_memory_delivers_the_same_bytes(
    ends: tuple[socket.socket, socket.socket], in_place: bool
) -> None:
    descriptor = create_region(CHANNEL_BYTES)
    socket.send_fds(ends[0], [b"m"], [descriptor])
    _, (received,), _, _ = socket.recv_fds(ends[1], 1, 1)
    worker = SharedMemoryChannel(ends[0], descriptor, first=True, in_place=in_place)
    shard = SharedMemoryChannel(ends[1], received, first=False, in_place=in_place)
    os.close(descriptor)
    os.close(received)
    exchange = exchange_of(5, 7)
    first, second = (worker.blank(exchange.pull()) for _ in range(2))
    assert np.shares_memory(first.keys, second.keys) == in_place

    for sender, receiver, source in (
        (worker, shard, exchange.pull()),
        (shard, worker, exchange.reply()),
        (worker, shard, exchange.contribution()),
    ):
        message = sender.blank(source)
        produce(source, message)
        sender.send(message)
        assert_same(receiver.receive(), source)


def test_shared_memory_tells_when_the_peer_is_gone(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    channel = SharedMemoryChannel(ends[0], create_region(1), first=True, in_place=False)

    ends[1].close()

    with pytest.raises(ConnectionError):
        channel.receive()


def test_a_message_over_the_shared_memory_is_refused_at_both_ends(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    small, large = create_region(1), create_region(1 << 16)
    worker = SharedMemoryChannel(ends[0], large, first=True, in_place=False)
    shard = SharedMemoryChannel(ends[1], small, first=False, in_place=False)
    message = exchange_of(500, 7).contribution()

    worker.send(message)

    with pytest.raises(WireError, match="room is for 4096"):
        shard.receive()
    with pytest.raises(ValueError, match="room is for 4096"):
        shard.send(message)


def test_shared_memory_that_a_peer_could_shrink_is_refused(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    descriptor = os.memfd_create("unsealed", os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, 8192)

    with pytest.raises(WireError, match="not sealed"):
        SharedMemoryChannel(ends[0], descriptor, first=True, in_place=False)


@pytest.mark.parametrize("name", sorted(set(TRANSPORTS) - {"no_transport", "ray_call"}))
def test_a_pull_brings_what_the_server_has(name: str) -> None:
    exchange = exchange_of(301, 77)

    with closing(TRANSPORTS[name](exchange)) as transport:
        for _ in range(2):
            assert_same(transport.pull(), exchange.reply())
            transport.push()
            transport.call()
        assert transport.server_cpu_seconds() > 0


def test_other_sizes_keep_the_width_of_a_row() -> None:
    exchange = exchange_of(5, 7).resized(keys=12, dense=3)

    assert exchange.keys.size == exchange.counts.size == exchange.admitted.size == 12
    assert exchange.values.size == exchange.gradients.size == 12 * 4
    assert exchange.dense.size == exchange.dense_gradients.size == 3
    assert exchange.bytes_of_messages[1] == array_bytes(exchange.reply()) == 12 * 4 * 4 + 12 + 12


def test_bfloat16_rounds_to_the_nearest_and_ties_to_even() -> None:
    step = 2.0**-7  # between 1 and 2
    values = np.array(
        [1, -3.5, 0, 1 + 0.49 * step, 1 + 0.51 * step, 1 + 0.5 * step, 1 + 1.5 * step], np.float32
    )
    wire, back = np.zeros(values.size, np.uint16), np.zeros_like(values)

    to_bfloat16(values, wire)
    from_bfloat16(wire, back)

    assert back.tolist() == [1, -3.5, 0, 1, 1 + step, 1, 1 + 2 * step]


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    out = tmp_path_factory.mktemp("data") / "criteo"
    write_criteo_like(out, CriteoLike(rows=4000, test_rows=100, files=1, row_group_rows=2000))
    done = bench("--quick", "--data", str(out))
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line, parse_constant=pytest.fail) for line in done.stdout.splitlines()]


@pytest.mark.ray
@pytest.mark.slow
def test_every_transport_has_positive_figures(lines: list[dict[str, Any]]) -> None:
    (exchange,) = (line for line in lines if line["name"] == "exchange")
    transports = [line for line in lines if line["name"] == "transport"]

    assert [line["transport"] for line in transports] == list(TRANSPORTS)
    for line in transports:
        for name in ("value", "client_cpu_ms", "server_cpu_ms", "empty_call_ms", "share_of_step"):
            nothing = (line["transport"], name) == ("no_transport", "server_cpu_ms")
            assert (line[name] > 0) != nothing, (line["transport"], name)
        assert line["p95"] >= line["value"]
        assert line["bytes"] == exchange["value"]
        # A batch of 512 where 2048 take 60 ms.
        assert line["share_of_step"] == pytest.approx(line["value"] / 15, rel=1e-2)


@pytest.mark.ray
@pytest.mark.slow
def test_encodings_say_at_which_bandwidth_they_pay(lines: list[dict[str, Any]]) -> None:
    found = [line for line in lines if line["name"] == "encoding"]

    assert [(line["encoding"], line["message"]) for line in found] == [
        ("zstd", "pull"),
        ("zstd", "pull_reply"),
        ("zstd", "push"),
        ("float16", "pull_reply"),
        ("bfloat16", "pull_reply"),
        ("float16", "push"),
        ("bfloat16", "push"),
    ]
    for line in found:
        saved = line["bytes"] - line["encoded_bytes"]
        assert line["ratio"] == pytest.approx(line["bytes"] / line["encoded_bytes"], rel=1e-2)
        expected = max(0.0, saved / line["value"] / 1e3)
        assert line["break_even_mb_per_second"] == pytest.approx(expected, rel=1e-2)
        assert line.get("relative_error", 0.0) < 0.01


@pytest.mark.ray
@pytest.mark.slow
def test_every_name_is_explained(lines: list[dict[str, Any]]) -> None:
    page = (ROOT / "docs/performance.md").read_text().partition("## The data plane")[2]

    names = {*PARTS, *(key for line in lines for key in line)} - {"name", "value", "unit"}
    names |= {line["name"] for line in lines}
    assert sorted(name for name in names if f"`{name}`" not in page) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "unix,pigeon"], "got 'pigeon'"),
        (["--batches", "100"], "got '100'"),
        (["--rounds", "0"], "--rounds must be >= 1, got 0"),
        (["--keys", "-5"], "--keys must be >= 1, got -5"),
        (["--step-ms", "nan"], "--step-ms must be > 0, got nan"),
    ],
)
def test_mistakes_exit_2(arguments: list[str], message: str) -> None:
    done = run_here(*arguments, main=main)

    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
