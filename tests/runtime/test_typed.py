"""What annotations say of values that were received."""

from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pytest
from typing_extensions import TypeAliasType

from runtime.typed import array_dtype, decoder_of

Scalar = TypeVar("Scalar", bound=np.generic)


@pytest.mark.parametrize("numpy_since_2_5", [False, True])
def test_an_array_is_known_by_its_annotation_in_every_numpy(
    monkeypatch: pytest.MonkeyPatch, numpy_since_2_5: bool
) -> None:
    """NumPy 2.5 made NDArray an alias by PEP 695: its origin is itself, no longer np.ndarray."""
    if numpy_since_2_5:
        array = np.ndarray[Any, np.dtype[Scalar]]
        alias = TypeAliasType("NDArray", array, type_params=(Scalar,))
        monkeypatch.setattr(npt, "NDArray", alias)

    hint = npt.NDArray[np.int64]

    assert array_dtype(hint) == np.int64
    assert decoder_of(hint)(b"\x02" + 7 * b"\0").tolist() == [2]


@pytest.mark.parametrize("hint", [int, tuple[int, ...], dict[str, int], np.int64])
def test_what_is_no_array_has_no_dtype(hint: Any) -> None:
    assert array_dtype(hint) is None
