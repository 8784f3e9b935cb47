"""Errors of a user's own class, told by his file and line and not by a traceback of ours."""

import sys
import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Whose frames are of no use to who wrote the class: they call it, or are called by torch.
_HERE = Path(__file__).parent
_CALLERS = {
    _HERE / "protocol.py",
    Path(__file__),
    *(
        _HERE / "torch" / name
        for name in (
            "module_model.py",
            "device_model.py",
            "making.py",
            "examining.py",
            "products.py",
            "kernels.py",
        )
    ),
}
_STANDARD_LIBRARY = Path(sysconfig.get_path("stdlib"))


class UserCodeError(ValueError):
    """A class of the user's failed, or did what a model may not do."""


@contextmanager
def user_code(path: str, doing: str) -> Iterator[None]:
    """Let code of the user's run; what it raises becomes a UserCodeError with its place.

    Args:
        path: `model.class`.
        doing: what runs, such as `forward`.
    """
    try:
        yield
    except (UserCodeError, MemoryError):
        raise  # too little memory is the place's, and another worker may have more
    except (Exception, SystemExit) as error:
        raise UserCodeError(f"model.class {path!r}: {doing} failed{told(error)}") from error


def told(error: Exception | SystemExit) -> str:
    """Return where an exception came from, as far as that is the user's, and what it says."""
    said = str(error).strip() or "no message"
    return f"{_place(error)}: {type(error).__name__}: {said}"


def _place(error: Exception | SystemExit) -> str:
    if isinstance(error, SyntaxError) and error.filename:
        return f" at {error.filename}, line {error.lineno}"
    frames = [f for f in traceback.extract_tb(error.__traceback__) if _is_users(f.filename)]
    if not frames:
        return ""
    return f" at {frames[-1].filename}, line {frames[-1].lineno}, in {frames[-1].name}"


def _is_users(filename: str) -> bool:
    if filename.startswith("<"):
        return False
    path, torch = Path(filename), sys.modules.get("torch")
    libraries = [] if torch is None else [Path(str(torch.__file__)).parent]
    if path in _CALLERS or any(library in path.parents for library in libraries):
        return False
    return _STANDARD_LIBRARY not in path.parents or "site-packages" in path.parts
