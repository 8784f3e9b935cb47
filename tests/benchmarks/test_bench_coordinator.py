"""The coordinator's benchmark over sockets, all of it in this process."""

import secrets
from collections.abc import Iterator
from contextlib import closing

import bench_coordinator
import pytest

import bench.coordinator_load as coordinator_load
from bench.coordinator_load import BundledLoad, Load, start_coordinator, start_relay, start_shards
from scheduler.coordinator.server import CoordinatorServer


@pytest.fixture
def kept() -> Iterator[None]:
    yield
    while coordinator_load._kept:
        coordinator_load._kept.pop().close()


@pytest.mark.parametrize(("mode", "relays"), [("gba", 0), ("async", 2), ("sync", 1)])
def test_workers_report_and_what_they_end_is_counted(kept: None, mode: str, relays: int) -> None:
    secret = secrets.token_bytes(32)
    shards = start_shards(2, secret)
    coordinator = start_coordinator(mode, 6, shards, secret)  # type: ignore[arg-type]
    addresses = [start_relay(number, coordinator, secret) for number in range(relays)]
    with closing(Load(addresses or [coordinator], 6, secret)) as load:
        load.run(1.0)
        servers = [k for k in coordinator_load._kept if isinstance(k, CoordinatorServer)]
        counted = servers[0].status().batches.done

    assert load.batches > 20
    assert 0 <= load.batches - counted <= 6  # a report each is under way


def test_relays_can_be_played(kept: None) -> None:
    secret = secrets.token_bytes(32)
    coordinator = start_coordinator("gba", 12, start_shards(2, secret), secret)
    with closing(BundledLoad(coordinator, 12, secret, relays=2, bundle=3)) as load:
        load.run(1.0)
        servers = [k for k in coordinator_load._kept if isinstance(k, CoordinatorServer)]
        counted = servers[0].status().batches.done

    assert load.batches > 20
    assert 0 <= load.batches - counted <= 6


def test_numbers_that_make_no_sense_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    several = ["--sockets", "--markdown"]
    for wrong in (["--relays", "-1"], ["--seconds", "0"], several, ["--bundle", "3"]):
        with pytest.raises(SystemExit, match="2"):
            bench_coordinator.parse(wrong)
