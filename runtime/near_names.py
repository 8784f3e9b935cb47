"""Names that somebody may have meant."""

import difflib
from collections.abc import Iterable


def near_name(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that is nearest to a wrong one, None where none is near."""
    found = near_names(name, known, most=1)
    return found[0] if found else None


def near_names(name: str, known: Iterable[str], *, most: int) -> list[str]:
    """Return the known names that are near a wrong one, the nearest first.

    Near is what differs in a third of its letters, or in one; upper and lower case are alike.
    """
    folded = {other.casefold(): other for other in known}
    length = len(name)
    cutoff = (length - max(1, length // 3)) / length if length > 1 else 1.0
    found = difflib.get_close_matches(name.casefold(), list(folded), n=most, cutoff=cutoff)
    return [folded[each] for each in found]
