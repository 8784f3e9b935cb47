import pytest

from runtime.process_figures import NOT_MEASURED, ProcessFigures
from worker.protocol import Grant, Report
from worker.relay.gathering import Gathering


def gathering(**more: int) -> Gathering:
    return Gathering(seconds=0.002, **more)


def test_the_first_report_waits_for_others_and_no_longer() -> None:
    relay = gathering()
    assert relay.due_in(0.0) is None

    relay.reported(1, Report(1, 0, 1), 100, 0.0)
    relay.reported(2, Report(2, 0, 1), 100, 0.001)

    assert relay.due_in(0.001) == pytest.approx(0.001)
    assert relay.due_in(0.003) == 0.0
    assert [report.worker for report in relay.take()] == [1, 2]


def test_a_full_bundle_waits_for_nobody() -> None:
    relay = gathering(most_reports=2)
    for peer in range(3):
        relay.reported(peer, Report(peer, 0, 1), 100, 0.0)

    assert relay.due_in(0.0) == 0.0
    assert [report.worker for report in relay.take()] == [0, 1]


def test_a_bundle_is_bounded_in_bytes_but_a_large_report_goes_alone() -> None:
    relay = gathering(most_bytes=250)
    for peer, nbytes in enumerate([100, 100, 1000, 100]):
        relay.reported(peer, Report(peer, 0, 1), nbytes, 0.0)
    taken = []

    for _ in range(3):
        assert relay.due_in(0.002) == 0.0
        taken.append([report.worker for report in relay.take()])
        relay.answered([Grant(1)] * len(taken[-1]))

    assert taken == [[0, 1], [2], [3]]
    assert relay.due_in(1.0) is None


def test_one_bundle_is_under_way_at_a_time_and_each_peer_has_its_answer() -> None:
    relay = gathering()
    relay.reported(7, Report(1, 0, 5), 100, 0.0)
    relay.reported(8, Report(2, 0, 6), 100, 0.0)
    relay.take()
    relay.reported(9, Report(3, 0, 1), 100, 0.0)
    assert relay.due_in(1.0) is None

    assert relay.answered([Grant(5), Grant(6)]) == [(7, Grant(5)), (8, Grant(6))]
    assert relay.due_in(1.0) == 0.0


def test_who_has_gone_gets_no_answer_and_what_it_had_not_passed_on_is_forgotten() -> None:
    relay = gathering()
    relay.reported(1, Report(1, 0, 1), 100, 0.0)
    relay.reported(2, Report(2, 0, 1), 100, 0.0)
    relay.take()
    relay.reported(3, Report(3, 0, 1), 100, 0.0)

    relay.gone(1)
    relay.gone(3)

    assert relay.answered([Grant(1), Grant(2)]) == [(2, Grant(2))]
    assert relay.due_in(1.0) is None


def test_a_worker_that_comes_back_on_another_connection_is_passed_on_again() -> None:
    relay = gathering()
    relay.reported(1, Report(1, 0, 1), 100, 0.0)
    relay.take()
    relay.gone(1)

    relay.reported(4, Report(1, 0, 1), 100, 0.0)
    assert relay.answered([Grant(1)]) == []

    assert [report.worker for report in relay.take()] == [1]
    assert relay.answered([Grant(1)]) == [(4, Grant(1))]


def test_whom_the_coordinator_leaves_unanswered_is_told_and_nothing_is_kept() -> None:
    relay = gathering()
    relay.reported(1, Report(1, 0, 1), 100, 0.0)
    relay.take()
    relay.reported(2, Report(2, 0, 1), 100, 0.0)

    assert relay.cut_off() == [1, 2]

    assert relay.due_in(1.0) is None
    relay.reported(1, Report(1, 0, 1), 100, 0.0)
    assert [report.worker for report in relay.take()] == [1]


def test_a_second_report_before_the_answer_is_refused() -> None:
    relay = gathering()
    relay.reported(1, Report(1, 0, 1), 100, 0.0)
    with pytest.raises(ValueError, match="worker 1 reports again"):
        relay.reported(1, Report(1, 0, 2), 100, 0.0)
    relay.take()
    with pytest.raises(ValueError, match="worker 1 reports again"):
        relay.reported(1, Report(1, 0, 2), 100, 0.0)


def test_answers_that_are_too_few_or_to_nothing_are_refused() -> None:
    relay = gathering()
    with pytest.raises(ValueError, match="1 answers came to 0 reports"):
        relay.answered([Grant(1)])
    relay.reported(1, Report(1, 0, 1), 100, 0.0)
    relay.take()
    with pytest.raises(ValueError, match="0 answers came to 1 reports"):
        relay.answered([])


def test_figures_of_a_worker_are_passed_on_once_a_second() -> None:
    relay = gathering()
    figures = ProcessFigures(cpu_seconds=1.0)
    passed = []
    for sequence, now in enumerate([0.0, 0.5, 1.0, 1.2, 2.1]):
        relay.reported(1, Report(1, 0, sequence, process=figures), 100, now)
        (report,) = relay.take()
        passed.append(report.process is not NOT_MEASURED)
        relay.answered([Grant(sequence)])

    assert passed == [True, False, True, False, True]
