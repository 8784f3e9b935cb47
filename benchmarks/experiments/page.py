"""The page of results, written from the finished runs; sections of other experiments stay."""

import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from bench.runs import Experiment, Results, Row, Scale

WIDTH = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What the page says of how it came about.

    Args:
        options: of the command, without the names of experiments.
        machine: cores, processor, versions.
    """

    options: str
    machine: str

    def command(self, names: Sequence[str]) -> str:
        """Return the command that runs these experiments, or all."""
        return " ".join(["    python benchmarks/gba_experiments.py", *names, self.options])


def page(experiments: Sequence[Experiment], scale: Scale, results: Results, facts: Facts) -> str:
    """Return the page; runs that have not finished are named as missing."""
    lines = [*_HEAD, "", facts.command([]), "", *_folded(facts.machine), ""]
    for experiment in experiments:
        runs = experiment.plan(scale, results)
        rows = results.rows(runs)
        if not any(row["experiment"] == experiment.name for row in rows):
            continue
        lines += [f"## {experiment.name}: {experiment.title}", ""]
        lines += [facts.command([experiment.name]), ""]
        lines += [line for text in experiment.section(rows) for line in _folded(text)]
        lines += [*_folded(_cost(rows, planned=len(runs))), ""]
    return "\n".join(lines)


def renewed(old: str, new: str) -> str:
    """Return a page with the sections of a new one in place of its own; the others stay.

    They are in the order of their experiments. The head is that of the old page where it keeps a
    section, as it says what most of it was measured with.
    """
    (old_head, before), (new_head, after) = _parts(old), _parts(new)
    head = old_head if before.keys() - after.keys() else new_head
    sections = {**before, **after}
    return head + "".join(sections[name] for name in sorted(sections, key=_number))


def _parts(page: str) -> tuple[str, dict[str, str]]:
    """Return a page's head, and its sections by the names of their experiments."""
    head, *sections = re.split(r"^(?=## E\d+: )", page, flags=re.MULTILINE)
    return head, {text[3 : text.index(":")]: text.rstrip("\n") + "\n\n" for text in sections}


def _number(name: str) -> int:
    return int(name[1:])


def _cost(rows: list[Row], *, planned: int) -> str:
    seconds = sum(row["wall_seconds"] for row in rows)
    text = f"{len(rows)} runs"
    if seconds >= 30:
        text += f" took {seconds / 60:.0f} minutes in all, starts and evaluations included"
    text += "."
    others = [
        row["cores_used_by_others"] for row in rows if row.get("cores_used_by_others", 0) > 0.5
    ]
    if others:
        text += (
            f" During {len(others)} of them other processes of the machine used more than half a"
            " core, so take their samples/s with care."
        )
    if len(rows) < planned:
        text += f" {planned - len(rows)} more runs are planned and have not been done."
    return text


def _folded(text: str) -> list[str]:
    """Fold a paragraph; tables and empty lines stay as they are."""
    if text.startswith(("|", "#", "    ")) or not text:
        return [text]
    return textwrap.wrap(text, WIDTH, break_long_words=False, break_on_hyphens=False)


_HEAD = [
    "# Experiments on modes",
    "",
    "What the modes of [docs/modes.md](modes.md) do to speed and quality, measured. This page is",
    "written by the runner from the results of this command; each section names its own. `±` is",
    "the standard deviation over seeds, `paired` the mean of the differences to `sync` with the",
    "same seed.",
]
