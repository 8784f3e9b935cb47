"""How the tables of a process share its address space."""

from collections.abc import Sequence
from dataclasses import replace

from embedding.spec.admission import BloomAdmission, CounterAdmission
from embedding.spec.table import TableSpec
from embedding.table.bloom import reserved_bytes
from embedding.table.machine_limits import address_limit
from embedding.table.precision import stored_width
from embedding.table.reservation import Budget
from embedding.table.rows import room_in

_LEAST_ROWS = 4096  # that a table must have room for, or it is not made
# A table that is made alone takes this part of the address space that is left then.
_ALONE = 64


def budget_of(specs: Sequence[TableSpec]) -> Budget:
    """Return what each of the tables of a process may reserve.

    The address space that can be had now, less that of Bloom filters, is divided equally: nobody
    knows which tables will be the large ones, and a share is more than most tables can fill.

    Raises:
        MemoryError: a table would have no room worth beginning with.
    """
    rules = [spec.admission for spec in specs]
    filters = sum(reserved_bytes(rule) for rule in rules if isinstance(rule, BloomAdmission))
    counting = sum(isinstance(rule, CounterAdmission) for rule in rules)
    address = address_limit()
    if filters:
        left = address.num_bytes - filters
        if left <= 0:
            raise MemoryError(
                f"Bloom filters need {filters:,} bytes of address space, more than {address}. Lower"
                " max_elements or counter_bits"
            )
        address = replace(
            address, num_bytes=left, cause=f"what Bloom filters leave of {address.cause}"
        )
    budget = Budget(address=address, shares=max(len(specs) + counting, 1))
    for spec in specs:
        _check_room(spec, budget, f"one of {len(specs)} of this process")
    return budget


def budget_alone(spec: TableSpec) -> Budget:
    """Return what a table may reserve that is made alone, as others may be made after it.

    Raises:
        MemoryError: it would have no room worth beginning with.
    """
    address = address_limit()
    remedy = f"Make tables together (make_variables). {address.remedy}"
    budget = Budget(address=replace(address, remedy=remedy), shares=_ALONE)
    _check_room(spec, budget, "made alone")
    return budget


def _check_room(spec: TableSpec, budget: Budget, made: str) -> None:
    room = room_in(budget, stored_width(spec))
    if room.rows < _LEAST_ROWS:
        raise MemoryError(
            f"table {spec.name}, {made}, would have room for {room.rows:,} rows and needs room for"
            f" {_LEAST_ROWS:,} at least. What limits it is {room.cause}. {room.remedy}"
        )
