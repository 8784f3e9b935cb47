"""Numbers that are legal in float64 but not in the float32 that rows are made of."""

import pytest

from embedding.spec.initial_values import Constant, Uniform
from embedding.spec.optimizers import Adagrad, Adam, AdamW, Ftrl, Sgd
from embedding.spec.table import TableSpec


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (Adagrad, {"initial_accumulator": 1e-50}),
        (Adam, {"epsilon": 1e-50}),
        (Sgd, {"learning_rate": 1e300}),
        (Ftrl, {"learning_rate": 1e-300}),
        (Sgd, {"l2_regularization": 1e300}),
        (AdamW, {"weight_decay": 1e39}),
        (Ftrl, {"learning_rate_power": -300}),
        (Uniform, {"scale": 1e39}),
        (Constant, {"value": -1e300}),
    ],
)
def test_what_float32_takes_for_zero_or_infinity_is_refused_by_name(kind, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        kind(**options)


def test_a_default_value_beyond_float32_is_refused():
    with pytest.raises(ValueError, match="default_value must be at most"):
        TableSpec(name="t", dim=1, default_value=1e39)
