"""Whether the processes of a job compute equal bits: each with the others of its role."""

from typing import Any

from scheduler.errors import TrainingError


class LikeProcesses:
    """Knows the numeric fingerprint of the first process of each role.

    Workers compute gradients and servers apply them, so the machines of one may differ from those
    of the other. No process, be it the only one of its role, may start in an unusual float mode.

    Args:
        mixed: whether all may differ.
    """

    def __init__(self, *, mixed: bool) -> None:
        self._mixed = mixed
        self._first: dict[str, tuple[int, dict[str, Any]]] = {}

    def check(self, role: str, index: int, fingerprint: dict[str, Any]) -> None:
        """Take a process's fingerprint; raises TrainingError where it would compute other bits."""
        first, expected = self._first.setdefault(role, (index, fingerprint))
        if self._mixed:
            return
        allow = "or allow it with training.mixed_cpus=true"
        if fingerprint["float_mode"] != "usual":
            raise TrainingError(
                f"{role} {index} starts in an unusual float mode: {fingerprint['float_mode']}. A"
                " library that is loaded there sets it (built with -ffast-math, say). Leave that"
                f" library out, {allow}"
            )
        if fingerprint["digest"] == expected["digest"]:
            return
        differing = [
            f"{name} is {fingerprint.get(name)!r} and {value!r}"
            for name, value in expected.items()
            if name != "digest" and fingerprint.get(name) != value
        ]
        raise TrainingError(
            f"{role} {index} would compute other bits than {role} {first}: {'; '.join(differing)}."
            f" Use like machines and the same libraries, {allow}"
        )
