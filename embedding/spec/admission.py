"""When a key gets a row: by its count, by chance, or as another table has it."""

from dataclasses import dataclass
from typing import Literal

from embedding.spec.ranges import require


@dataclass(frozen=True, slots=True, kw_only=True)
class CounterAdmission:
    """A key gets a row once its frequency, this batch included, reaches `min_count`."""

    type: Literal["counter"] = "counter"
    min_count: int = 1

    def __post_init__(self) -> None:
        require(
            1 <= self.min_count < 2**31, f"min_count must be in [1, 2^31), got {self.min_count}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class BloomAdmission:
    """A key gets a row once its count in a counting Bloom filter, this batch included, suffices.

    The rule of `CounterAdmission` in fixed memory; counts may be too high, never too low.

    Args:
        min_count: as of the counter.
        max_elements: distinct keys that the filter is made for, over the whole table.
        false_positive_probability: of a key that was never seen, once it holds so many.
        counter_bits: width of a counter, which saturates.

    Source: DeepRec's CBFFilter.
    """

    type: Literal["bloom"] = "bloom"
    min_count: int
    max_elements: int
    false_positive_probability: float = 0.01
    counter_bits: Literal[8, 16, 32, 64] = 8

    def __post_init__(self) -> None:
        bits, p = self.counter_bits, self.false_positive_probability
        require(bits in (8, 16, 32, 64), f"counter_bits must be 8, 16, 32 or 64, got {bits}")
        most = min(2**bits - 1, 2**31 - 1)
        require(
            1 <= self.min_count <= most,
            f"min_count must be in [1, {most}] with counter_bits {bits}, got {self.min_count}",
        )
        require(
            1 <= self.max_elements <= 2**40,
            f"max_elements must be in [1, 2^40], got {self.max_elements}",
        )
        require(1e-9 <= p < 1, f"false_positive_probability must be in [1e-9, 1), got {p}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbabilisticAdmission:
    """Every occurrence of a key without a row admits it with a probability; nothing is counted.

    Source: Monolith's probabilistic filter.
    """

    type: Literal["probabilistic"] = "probabilistic"
    probability: float

    def __post_init__(self) -> None:
        require(0 < self.probability <= 1, f"probability must be in (0, 1], got {self.probability}")


@dataclass(frozen=True, slots=True, kw_only=True)
class FrequencyAdmission:
    """A key gets a row once its frequency in another table, this batch included, suffices.

    Nothing is counted here. A key has the same bucket in every table, so both are on one shard.

    Args:
        table: the table that is asked.
        min_count: the frequency there that admits a key.
    """

    type: Literal["frequency_of"] = "frequency_of"
    table: str
    min_count: int

    def __post_init__(self) -> None:
        require(
            1 <= self.min_count < 2**31, f"min_count must be in [1, 2^31), got {self.min_count}"
        )


Admission = CounterAdmission | BloomAdmission | ProbabilisticAdmission | FrequencyAdmission
