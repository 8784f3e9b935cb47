"""Custom models, among them the example of docs/models.md as it stands there."""

import re
from pathlib import Path

import numpy as np
import pytest

from embedding.spec.optimizers import Sgd
from worker.models import build_model, initial_parameters, needed_lookups
from worker.spec import ModelSpec, SparseFeature

PAGE = Path(__file__).parents[3] / "docs" / "models.md"
SPARSE = [SparseFeature(name=name, column=name, table=name) for name in ("a", "b")]


def make_spec(options):
    lookups = needed_lookups("custom", options, SPARSE, {"a": 4, "b": 2})
    return ModelSpec(
        type="custom", options=options, optimizer=Sgd(), num_dense=3, lookups=lookups, seed=0
    )


@pytest.fixture
def example(write_module):
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) == 1
    write_module("logistic_regression", blocks[0])
    return {"class": "logistic_regression:LogisticRegression"}


def test_the_example_of_the_page_has_the_gradients_of_its_loss(example):
    model = build_model(make_spec(example))
    params = initial_parameters(model, 1)
    generator = np.random.default_rng(0)
    dense = generator.normal(size=(5, 3)).astype(np.float32)
    pooled = generator.normal(size=(5, 6)).astype(np.float32)
    labels = np.array([0, 1, 1, 0, 1], np.float32)
    inputs = np.hstack([pooled, dense, np.ones((5, 1))])

    grad_params, grad_pooled = np.full_like(params, np.nan), np.full_like(pooled, np.nan)
    loss = model.train(params, dense, pooled, labels, grad_params, grad_pooled)

    logits = inputs @ params
    grad_logits = 1 / (1 + np.exp(-logits)) - labels
    np.testing.assert_allclose(model.predict(params, dense, pooled), logits, rtol=1e-5, atol=1e-6)
    assert loss == pytest.approx(np.sum(np.logaddexp(0, logits) - labels * logits), rel=1e-5)
    np.testing.assert_allclose(grad_params, inputs.T @ grad_logits, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(grad_pooled, np.outer(grad_logits, params[:6]), rtol=1e-4)


def test_the_example_of_the_page_learns(example):
    model = build_model(make_spec(example))
    params = initial_parameters(model, 1)
    generator = np.random.default_rng(0)
    dense = generator.normal(size=(200, 3)).astype(np.float32)
    pooled = generator.normal(size=(200, 6)).astype(np.float32)
    labels = (dense[:, 0] + pooled[:, 5] > 0).astype(np.float32)
    grad_params, grad_pooled = np.empty_like(params), np.empty_like(pooled)
    losses = []

    for _ in range(50):
        losses.append(model.train(params, dense, pooled, labels, grad_params, grad_pooled))
        params -= 0.01 * grad_params

    assert losses[-1] < 0.3 * losses[0]


def test_options_reach_the_class(example):
    narrow = initial_parameters(build_model(make_spec({**example, "scale": 1e-3})), 1)
    wide = initial_parameters(build_model(make_spec({**example, "scale": 1.0})), 1)

    assert 0 < np.abs(narrow).max() <= 1e-3 < 0.1 < np.abs(wide).max()


@pytest.mark.parametrize(
    "path",
    [None, "", 7, "module", ":Class", "module:", "a:b:c", "../x:y", ".x:y"],
    ids=lambda path: repr(path),
)
def test_a_class_that_is_not_module_and_name_is_refused(path):
    with pytest.raises(ValueError, match=r"model\.class .* must be 'module:Class', got"):
        needed_lookups("custom", {"class": path}, SPARSE, {"a": 4, "b": 2})


def test_a_module_that_is_not_there_is_named():
    with pytest.raises(ValueError, match="importing 'no_such_module' failed"):
        needed_lookups("custom", {"class": "no_such_module:Model"}, SPARSE, {"a": 4, "b": 2})


@pytest.mark.parametrize(
    ("source", "line", "said"),
    [
        ("number = 1\nnumber.x\n", 2, "AttributeError: 'int'"),
        ("a = 1\n\nb = (\n", 3, "SyntaxError"),
    ],
)
def test_a_module_that_fails_is_told_by_its_line(write_module, tmp_path, source, line, said):
    write_module("fails_when_imported", source)

    with pytest.raises(ValueError, match="importing 'fails_when_imported' failed") as caught:
        make_spec({"class": "fails_when_imported:Model"})

    assert f"at {tmp_path / 'fails_when_imported.py'}, line {line}" in str(caught.value)
    assert said in str(caught.value)


def test_a_class_that_is_not_in_the_module_is_named(write_module):
    write_module("two_names", "number = 3\n")

    with pytest.raises(ValueError, match="looked for a class 'Model', no such name"):
        make_spec({"class": "two_names:Model"})
    with pytest.raises(ValueError, match="looked for a class 'number', it is 3"):
        make_spec({"class": "two_names:number"})


def test_a_function_is_refused_before_it_is_called():
    with pytest.raises(ValueError, match=r"'os:system': .* which is no class"):
        make_spec({"class": "os:system"})


def test_a_class_that_cant_be_made_is_named():
    with pytest.raises(ValueError, match=r"model\.class 'json:JSONDecoder' can't be made"):
        build_model(make_spec({"class": "json:JSONDecoder"}))


def test_an_object_that_is_not_a_model_is_refused_with_all_that_it_lacks(write_module):
    write_module(
        "half_a_model",
        "class Half:\n    def __init__(self, spec): pass\n    def train(self, *arguments): pass\n",
    )

    with pytest.raises(ValueError, match="no method 'predict', no attribute 'parameters'"):
        build_model(make_spec({"class": "half_a_model:Half"}))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ("[('w', (3,))]", r"must hold worker\.models\.Parameter, got \('w'"),
        ("[Parameter('w', (3,)), Parameter('w', (2,))]", "two parameters 'w'"),
        ("[Parameter('w', 3)]", "parameter 'w': shape must be a tuple"),
        ("[Parameter('w', (-1,))]", "parameter 'w': shape must be a tuple"),
        ("[Parameter('w', (3,), 'glorot')]", "parameter 'w': initial must be one of"),
    ],
)
def test_parameters_that_are_not_legal_are_named(write_module, parameters, message):
    write_module(
        "bad_parameters",
        "from worker.models import Parameter\n"
        "class Model:\n"
        f"    def __init__(self, spec): self.parameters = {parameters}\n"
        "    def train(self, *arguments): pass\n"
        "    def predict(self, *arguments): pass\n",
    )

    with pytest.raises(ValueError, match=message):
        build_model(make_spec({"class": "bad_parameters:Model"}))
