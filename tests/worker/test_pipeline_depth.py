import pytest

from worker.pipeline_depth import WINDOW, PipelineDepth


def compute(depth: PipelineDepth, *, preparing: float, waited: float, windows: int = 1) -> int:
    """Batches of one second."""
    for _ in range(windows * WINDOW):
        depth.prepared(preparing)
        depth.computed(1.0, waited)
    return depth.depth


def test_it_begins_with_the_most() -> None:
    assert PipelineDepth(3).depth == 3


def test_it_gets_by_with_one_where_batches_are_prepared_quickly() -> None:
    depth = PipelineDepth(4)

    assert compute(depth, preparing=0.1, waited=0.0) == 3
    assert compute(depth, preparing=0.1, waited=0.0, windows=9) == 1


@pytest.mark.parametrize("slowest", [0.6, 5.0])
def test_one_batch_that_takes_long_keeps_it_as_deep_as_it_is(slowest: float) -> None:
    depth = PipelineDepth(3)
    for _ in range(5):
        depth.prepared(slowest)
        compute(depth, preparing=0.1, waited=0.0)

    assert depth.depth == 3


def test_waiting_makes_it_deeper_again_and_that_depth_is_the_least_from_then_on() -> None:
    depth = PipelineDepth(3)
    compute(depth, preparing=0.1, waited=0.0, windows=5)

    assert compute(depth, preparing=0.1, waited=0.02) == 2
    assert compute(depth, preparing=0.1, waited=0.0, windows=9) == 2
    assert compute(depth, preparing=0.1, waited=0.5, windows=9) == 3


def test_it_never_leaves_its_bounds() -> None:
    for most in (1, 2):
        depth = PipelineDepth(most)
        assert compute(depth, preparing=3.0, waited=2.0, windows=3) == most
    assert compute(PipelineDepth(1), preparing=0.0, waited=0.0, windows=3) == 1


def test_nothing_is_decided_within_a_window() -> None:
    depth = PipelineDepth(2)
    for _ in range(WINDOW - 1):
        depth.prepared(0.0)
        assert depth.computed(1.0, 0.0) == 2

    assert depth.computed(1.0, 0.0) == 1
