"""Whether the processes of a job compute equal bits: each with the others of its role."""

from collections.abc import Callable, Mapping
from typing import Any

from scheduler.errors import TrainingError


class UnlikeProcessError(TrainingError):
    """A process would compute other bits than the first one of its role; elsewhere it may not."""


class LikeProcesses:
    """Knows the numeric fingerprint of the first process of each role.

    Workers compute gradients and servers apply them, so the machines of one may differ from those
    of the other. No process, be it the only one of its role, may start in an unusual float mode.

    Args:
        mixed: whether all may differ.
        before: fingerprints by role that the run had before it was lost. Whoever is alone may be
            others now, as the job goes on without a person: that is said and not refused.
        note: tells a person something.
    """

    def __init__(
        self,
        *,
        mixed: bool,
        before: Mapping[str, Any] | None = None,
        note: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._mixed = mixed
        self._before = before or {}
        self._note = note
        self._first: dict[str, tuple[int, dict[str, Any]]] = {}

    @property
    def fingerprints(self) -> dict[str, dict[str, Any]]:
        """Of each role that has come up."""
        return {role: fingerprint for role, (_, fingerprint) in self._first.items()}

    def check(self, role: str, index: int, fingerprint: dict[str, Any]) -> None:
        """Take a process's fingerprint.

        Raises:
            UnlikeProcessError: it would compute other bits.
            TrainingError: its float mode is none to compute in.
        """
        is_first = role not in self._first
        first, expected = self._first.setdefault(role, (index, fingerprint))
        if self._mixed:
            return
        if is_first:
            self._compare_with_before(role, fingerprint)
        allow = "or allow it with training.mixed_cpus=true"
        if fingerprint["float_mode"] != "usual":
            raise TrainingError(
                f"{role} {index} starts in an unusual float mode: {fingerprint['float_mode']}. A"
                " library that is loaded there sets it (built with -ffast-math, say). Leave that"
                f" library out, {allow}"
            )
        if fingerprint["digest"] == expected["digest"]:
            return
        raise UnlikeProcessError(
            f"{role} {index} would compute other bits than {role} {first}:"
            f" {_differing(fingerprint, expected)}. Use like machines and the same libraries,"
            f" {allow}"
        )

    def _compare_with_before(self, role: str, fingerprint: dict[str, Any]) -> None:
        before = self._before.get(role)
        if isinstance(before, dict) and before.get("digest") != fingerprint["digest"]:
            self._note(
                f"{role}s compute other bits than before the run was lost:"
                f" {_differing(fingerprint, before)}. The model may differ in its last bits from"
                " that of a run that was not"
            )


def _differing(fingerprint: dict[str, Any], expected: dict[str, Any]) -> str:
    names = [name for name in {**expected, **fingerprint} if name != "digest"]
    return "; ".join(
        f"{name} is {fingerprint.get(name)!r} and {expected.get(name)!r}"
        for name in names
        if fingerprint.get(name) != expected.get(name)
    )
