import select

from ps.net.wake import Wake


def is_set(wake: Wake) -> bool:
    return bool(select.select([wake.sock], [], [], 0)[0])


def test_a_wake_up_lasts_until_it_is_cleared() -> None:
    wake = Wake()
    assert not is_set(wake)

    wake.set()
    wake.set()
    assert is_set(wake)
    wake.clear()

    assert not is_set(wake)
    wake.clear()
    wake.close()


def test_any_number_of_wake_ups_blocks_nobody() -> None:
    wake = Wake()
    for _ in range(100_000):
        wake.set()

    wake.clear()

    assert not is_set(wake)
    wake.close()


def test_a_closed_one_can_still_be_set() -> None:
    wake = Wake()
    wake.close()

    wake.set()
    wake.close()
