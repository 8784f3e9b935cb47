from collections.abc import Callable
from typing import Any

import pytest
from torch_models import DIMS, Tried, make_spec


@pytest.fixture
def tried(write_module: Callable[[str, str], None]) -> Callable[..., Tried]:
    """Return a function that makes a model of the source of a class `M`."""
    count = 0

    def make(
        source: str,
        /,
        *,
        n: int = 7,
        dims: dict[str, int] = DIMS,
        tasks: dict[str, float] | None = None,
        **options: Any,
    ) -> Tried:
        nonlocal count
        count += 1
        name = f"torch_module_{count}"
        write_module(name, "import torch\nfrom torch import nn\n\n" + source)
        return Tried(make_spec({"class": f"{name}:M", **options}, dims=dims, tasks=tasks), n)

    return make
