"""Compositions: tables whose vectors are put together from rows of several physical tables.

A composition is a property of a table NAME; `compose` says which physical tables take its place,
which key each of them is asked for, and how the rows become one vector of the table's dim.
"""

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

from embedding.spec.admission import FrequencyAdmission
from embedding.spec.eviction import needs_usage
from embedding.spec.ranges import require
from embedding.spec.table import TableSpec, WarmStart

KeyMap = Literal["own", "quotient", "remainder", "static"]
Operation = Literal["add", "multiply", "concatenate", "select"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MultiHash:
    """Two rows for a key: of its quotient floor(key / modulus), and of its remainder.

    No two keys have both in common, negative ones included: key = quotient * modulus + remainder,
    0 <= remainder < modulus.

    Args:
        modulus: rows of the remainders' table at most.
        operation: `add` and `multiply` combine the two rows element by element, `concatenate`
            puts rows of half the dim side by side.

    Source: Shi et al. 2020, quotient-remainder trick; DeepRec's multi-hash variable divides by
    two different numbers and so lets keys collide.
    """

    type: Literal["multi_hash"] = "multi_hash"
    modulus: int
    operation: Literal["add", "multiply", "concatenate"] = "add"

    def __post_init__(self) -> None:
        require(2 <= self.modulus < 2**63, f"modulus must be in [2, 2^63), got {self.modulus}")
        require(
            self.operation in ("add", "multiply", "concatenate"),
            f"operation must be add, multiply or concatenate, got {self.operation!r}",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DynamicDimension:
    """Wider vectors for more frequent keys: blocks of columns that a key gets one after another.

    Args:
        min_counts: the frequency, this batch included, from which on a key has a row in each
            further block; strictly increasing. The first block is the table itself.

    Source: DeepRec's dynamic-dimension variable, which leaves the policy to its user.
    """

    type: Literal["dynamic_dimension"] = "dynamic_dimension"
    min_counts: tuple[int, ...]

    def __post_init__(self) -> None:
        counts = self.min_counts
        require(len(counts) > 0, "min_counts must have a number for each further block, got none")
        increasing = all(one < following for one, following in pairwise(counts))
        require(
            increasing and counts[0] >= 1 and counts[-1] < 2**31,
            f"min_counts must be strictly increasing, in [1, 2^31), got {list(counts)}",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Adaptive:
    """A row of its own for an admitted key, a shared static one for the others.

    An own row starts as a copy of the static row that its key shared.

    Args:
        static_rows: rows of the static table, a multiple of 4096: each bucket has its part.

    Source: DeepRec's adaptive embedding, where a mask of the caller takes the place of admission.
    """

    type: Literal["adaptive"] = "adaptive"
    static_rows: int

    def __post_init__(self) -> None:
        WarmStart(table="", static_rows=self.static_rows)  # refuses what is out of range


Composition = MultiHash | DynamicDimension | Adaptive


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One physical table of a composition.

    Args:
        table: its name.
        dim: width of its rows.
        keys: which of its rows a key has, see `key_maps`.
        divisor: the modulus, or static rows of a bucket.
    """

    table: str
    dim: int
    keys: KeyMap = "own"
    divisor: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Composed:
    """What takes the place of a table.

    Args:
        tables: the physical tables, in the order in which a store must list them.
        parts: one for each table, in the order of the columns.
        operation: how their rows become one vector; `select` takes the first part's row where the
            key is admitted there, else the second's.
    """

    tables: tuple[TableSpec, ...]
    parts: tuple[Part, ...]
    operation: Operation


def compose(table: TableSpec, composition: Composition) -> Composed:
    """Return the physical tables of a composition, which take the settings of `table`.

    Raises:
        ValueError: they don't fit each other; the text names the option.
    """
    match composition:
        case MultiHash():
            return _multi_hash(table, composition)
        case DynamicDimension():
            return _dynamic_dimension(table, composition)
        case Adaptive():
            return _adaptive(table, composition)


def _multi_hash(table: TableSpec, composition: MultiHash) -> Composed:
    dim = table.dim
    if composition.operation == "concatenate":
        require(dim % 2 == 0, f"operation concatenate needs an even dim, got {dim}")
        dim //= 2
    maps: tuple[KeyMap, ...] = ("quotient", "remainder")
    parts = tuple(
        Part(table=f"{table.name}_{keys}", dim=dim, keys=keys, divisor=composition.modulus)
        for keys in maps
    )
    return Composed(
        tables=tuple(replace(table, name=part.table, dim=dim) for part in parts),
        parts=parts,
        operation=composition.operation,
    )


def _dynamic_dimension(table: TableSpec, composition: DynamicDimension) -> Composed:
    num_blocks = 1 + len(composition.min_counts)
    require(
        table.dim % num_blocks == 0,
        f"dim must be a multiple of its {num_blocks} blocks, got {table.dim}",
    )
    first = replace(table, dim=table.dim // num_blocks, track_usage=True)
    further = (
        replace(
            first,
            name=f"{table.name}_block{number}",
            admission=FrequencyAdmission(table=table.name, min_count=min_count),
            default_value=0.0,
            track_usage=table.track_usage,
        )
        for number, min_count in enumerate(composition.min_counts, start=1)
    )
    tables = (first, *further)
    return Composed(
        tables=tables,
        parts=tuple(Part(table=part.name, dim=part.dim) for part in tables),
        operation="concatenate",
    )


def _adaptive(table: TableSpec, composition: Adaptive) -> Composed:
    require(
        table.admission is not None,
        "adaptive needs an admission rule on the table, which says when a key gets its own row",
    )
    warm_start = WarmStart(table=f"{table.name}_static", static_rows=composition.static_rows)
    static = replace(
        table,
        name=warm_start.table,
        admission=None,
        eviction=None,
        track_usage=table.track_usage and not needs_usage(table.eviction),
    )
    return Composed(
        # In this order, so that a step makes own rows before it changes static ones.
        tables=(replace(table, warm_start=warm_start), static),
        parts=(
            Part(table=table.name, dim=table.dim),
            Part(
                table=static.name, dim=table.dim, keys="static", divisor=warm_start.rows_per_bucket
            ),
        ),
        operation="select",
    )
