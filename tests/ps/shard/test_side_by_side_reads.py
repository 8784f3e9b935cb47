"""Pulls that many threads make at once, against the same pulls made by one thread."""

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from embedding.spec.admission import BloomAdmission, CounterAdmission, ProbabilisticAdmission
from embedding.spec.initial_values import Normal
from embedding.spec.optimizers import Adagrad
from embedding.spec.table import TableSpec, WarmStart
from ps.messages.pull_push import ANY_STEP, PullReply
from ps.messages.records import Apply, Record
from ps.net.sockets import receive, send

Serve = Callable[..., Any]

THREADS, ROUNDS, STEPS = 8, 12, 6

# Every way in which a pull reads: rows, counters, filter, chance, frequencies of another table,
# static rows, and vectors of 16 bits.
TABLES = (
    TableSpec(name="plain", dim=4, initializer=Normal(stddev=0.1)),
    TableSpec(name="narrow", dim=8, value_dtype="bfloat16", optimizer=Adagrad()),
    TableSpec(name="counted", dim=3, admission=CounterAdmission(min_count=3)),
    TableSpec(
        name="bloom",
        dim=3,
        admission=BloomAdmission(min_count=2, max_elements=10_000),
    ),
    TableSpec(name="chance", dim=2, admission=ProbabilisticAdmission(probability=0.5)),
    TableSpec(name="warm", dim=5, warm_start=WarmStart(table="static", static_rows=4096)),
    TableSpec(name="static", dim=5),
)


def keys_of(number: int) -> list[list[int]]:
    rng = np.random.default_rng(number)
    return [np.unique(rng.zipf(1.2, 4000) % 50_000).tolist() for _ in TABLES]


def trained(small_job: Any, steps: int) -> Any:
    job = small_job(TABLES, dense_size=5000)
    for step in range(steps):
        job.train(step, *keys_of(step))
    return job


def content(reply: Any) -> tuple[int, bytes, bytes, bytes]:
    assert isinstance(reply, PullReply)
    return reply.step, reply.values.tobytes(), reply.dense.tobytes(), reply.admitted.tobytes()


def run_all(work: Callable[[int], None], threads: int = THREADS) -> None:
    failures: list[BaseException] = []

    def guarded(number: int) -> None:
        try:
            work(number)
        except BaseException as error:
            failures.append(error)

    running = [threading.Thread(target=guarded, args=(n,)) for n in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join(120)
    assert not any(thread.is_alive() for thread in running)
    if failures:
        raise failures[0]


def test_answers_made_by_many_threads_are_those_of_one_bit_for_bit(small_job: Any) -> None:
    job = trained(small_job, 4)
    shard = job.shards[0]
    before = job.digest
    pulls = [
        job.pull(0, job.unique(*keys_of(number)), counts=number % 2 == 0, at_step=at_step)
        for number, at_step in enumerate([ANY_STEP, 4, ANY_STEP, 4])
    ]
    expected = [content(shard.answer(pull)) for pull in pulls]

    def read(number: int) -> None:
        for turn in range(ROUNDS):
            which = (number + turn) % len(pulls)
            assert content(shard.answer(pulls[which])) == expected[which]

    run_all(read)
    assert job.digest == before


@pytest.mark.parametrize("max_reply_bytes", [1 << 28, 1])
def test_pulls_beside_pushes_and_records_read_one_step_bit_for_bit(
    small_job: Any, serve: Serve, max_reply_bytes: int
) -> None:
    """Through sockets: workers pull and push what is their own, the coordinator applies."""
    alone = small_job(TABLES, dense_size=5000)
    uniques = [alone.unique(*keys_of(number)) for number in range(STEPS)]
    expected, contributions, records = [], [], []
    for step in range(STEPS + 1):
        expected.append([content(alone.send(0, alone.pull(0, unique))) for unique in uniques])
        if step == STEPS:
            break
        admitted = alone.admitted(uniques[step])
        contributions.append(alone.contribution(0, uniques[step], admitted=admitted, batch_id=step))
        alone.send(0, contributions[-1])
        records.append(alone.record(step, step))
        alone.apply(0, records[-1])
    job = small_job(TABLES, dense_size=5000)
    served = serve(job, max_reply_bytes=max_reply_bytes)
    pushed = threading.Barrier(THREADS)

    def work(number: int) -> None:
        with served.connect(0) as sock:
            sock.settimeout(60)
            for step in range(STEPS):
                which = (number + step) % STEPS
                send(sock, job.pull(0, uniques[which], at_step=step + 1, request_id=1))
                send(sock, job.pull(0, uniques[which], request_id=2))
                if number == step % THREADS:
                    send(sock, contributions[step])
                    send_record(records[step], sock)
                replies = {}
                for _ in range(4 if number == step % THREADS else 2):
                    reply = receive(sock)[0]
                    replies[reply.request_id, type(reply)] = reply
                now, any_step = replies[1, PullReply], replies[2, PullReply]
                assert now.step == step + 1
                assert content(now) == expected[step + 1][which]
                assert content(any_step) == expected[any_step.step][which]
                pushed.wait(60)

    def send_record(record: Record, sock: Any) -> None:
        send(sock, Apply(9, job.epoch, (record,)))

    run_all(work)
    assert job.digest == alone.digest
    assert not served.errors
