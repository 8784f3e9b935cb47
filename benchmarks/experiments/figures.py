"""Means, spreads and tables, and the words that follow from them."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

from bench.runs import Row

Case = tuple[dict[str, Any], list[Row]]


@dataclass(frozen=True, slots=True)
class Spread:
    """A figure over seeds.

    Args:
        values: one for each seed that was run.
    """

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return mean(self.values)

    @property
    def deviation(self) -> float | None:
        """Standard deviation over seeds (n - 1), None for a single one."""
        return stdev(self.values) if len(self.values) > 1 else None

    def text(self, digits: int) -> str:
        """Return mean ± deviation, or the mean alone where there is one value."""
        if not self.values:
            return ""
        shown = f"{self.mean:,.{digits}f}"
        return shown if self.deviation is None else f"{shown} ± {self.deviation:,.{digits}f}"

    def signed_text(self, digits: int) -> str:
        """Return the same with the sign of the mean, for differences."""
        if not self.values:
            return ""
        shown = signed(self.mean, digits)
        return shown if self.deviation is None else f"{shown} ± {self.deviation:.{digits}f}"


def cases(rows: Iterable[Row]) -> list[Case]:
    """Gather the rows of one case each, in the order in which cases first appear."""
    found: dict[str, Case] = {}
    for row in rows:
        found.setdefault(repr(row["case"]), (row["case"], []))[1].append(row)
    return list(found.values())


def over(rows: Sequence[Row], value: Callable[[Row], float | None]) -> Spread:
    """Return a figure of some rows, leaving out those that don't have it."""
    return Spread(tuple(v for row in rows if (v := value(row)) is not None))


def paired(rows: Sequence[Row], base: Sequence[Row], value: Callable[[Row], float]) -> Spread:
    """Return the differences to the row of `base` with the same seed."""
    of_seed = {row["seed"]: value(row) for row in base}
    return Spread(
        tuple(value(row) - of_seed[row["seed"]] for row in rows if row["seed"] in of_seed)
    )


def auc(row: Row) -> float:
    return float(row["auc"])


def rate(row: Row) -> float:
    return float(row["samples_per_second"])


def dropped_percent(row: Row) -> float:
    """Samples that were dropped, of those that were given out."""
    return 100.0 * row["samples_dropped"] / row["samples"]


def staleness(kind: str, statistic: str) -> Callable[[Row], float]:
    """Return what reads a statistic of data or parameter staleness from a row."""
    return lambda row: float(row["staleness"][kind][statistic])


def table(head: Sequence[str], body: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table."""
    return [_line(head), _line(["---"] * len(head)), *(_line(cells) for cells in body)]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def signed(value: float, digits: int = 4) -> str:
    """Return a number with its sign; what rounds to 0 has a plus."""
    return f"{round(value, digits) + 0.0:+.{digits}f}".replace("-", "−")


def against(name: str, differences: Spread, spread: float) -> str:
    """Say how a mode's AUC lies to that of sync, by sync's own spread over seeds."""
    shown = ", ".join(signed(value) for value in differences.values)
    where = "within" if abs(differences.mean) <= spread else "outside"
    word = "above" if differences.mean > 0 else "below"
    same = len({value > 0 for value in differences.values}) == 1
    each = f"{word} on every seed" if same else "above on some seeds and below on others"
    return (
        f"{name} is {abs(differences.mean):.4f} {word} sync on average ({shown}: {each}),"
        f" {where} sync's spread over seeds of {spread:.4f}"
    )


# 95 % of Student's t, by degrees of freedom: two-sided.
_T95 = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.20, 2.18, 2.16, 2.14)


def interval(differences: Spread) -> str:
    """Return the mean of differences and half of its 95 % interval, of 2 to 15 seeds."""
    n, deviation = len(differences.values), differences.deviation
    if deviation is None or n > len(_T95) + 1:
        return signed(differences.mean) if n else ""
    return f"{signed(differences.mean)} ± {_T95[n - 2] * deviation / n**0.5:.4f}"
