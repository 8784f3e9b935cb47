"""The example of docs/torch.md, as it stands there."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from torch_models import Tried, make_spec

torch = pytest.importorskip("torch")

ROOT = Path(__file__).parents[4]
PAGE = (ROOT / "docs" / "torch.md").read_text()
DIMS = {f"C{number}": 16 for number in range(1, 27)}


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Tried:
    monkeypatch.syspath_prepend(str(ROOT))
    options = {"class": "jobs.torch_layers:Layers", "widths": [256, 128]}
    return Tried(make_spec(options, num_dense=13, dims=DIMS), n=50)


def test_the_page_shows_the_files() -> None:
    module, *_ = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    section, *_ = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)

    assert module == (ROOT / "jobs" / "torch_layers.py").read_text()
    assert section in (ROOT / "jobs" / "torch.yaml").read_text()


def test_it_learns(example: Tried) -> None:
    example.model.examine()
    losses = []

    for _ in range(40):
        loss, gradient, _ = example.train()
        losses.append(loss)
        example.params -= 0.01 * gradient

    assert losses[-1] < 0.5 * losses[0]


def test_what_is_exported_is_loaded_as_the_page_does(
    example: Tried, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "runs" / "torch-export").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    lookups = [
        {"feature": name, "dim": dim, "combiner": "sum", "max_length": None}
        for name, dim in DIMS.items()
    ]
    dense = [f"I{number}" for number in range(1, 14)]
    model = {"type": "torch", "tasks": [], "dense": dense, "lookups": lookups}
    Path("runs/torch-export/export.json").write_text(json.dumps({"model": model}))
    save_file(
        {name: np.ascontiguousarray(a) for name, a in example.model.state(example.params).items()},
        "runs/torch-export/dense.safetensors",
    )
    _, loading, to_onnx, *_ = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    names: dict[str, object] = {}

    exec(compile(loading, "example", "exec"), names)

    module = names["module"].double()
    pooled = torch.tensor(example.pooled).double().split(16, dim=1)
    logits = module(torch.tensor(example.dense).double(), dict(zip(DIMS, pooled, strict=True)))
    np.testing.assert_allclose(logits.detach(), example.predict(), rtol=1e-4, atol=1e-5)

    pytest.importorskip("onnxscript")
    exec(compile(to_onnx.replace("module.eval()", "module.float().eval()"), "onnx", "exec"), names)
    session = pytest.importorskip("onnxruntime").InferenceSession("runs/torch-export/model.onnx")
    given = [example.dense, *np.split(example.pooled, 26, axis=1)]
    feed = dict(zip([each.name for each in session.get_inputs()], given, strict=True))
    np.testing.assert_allclose(session.run(None, feed)[0], example.predict(), rtol=1e-4, atol=1e-5)


def test_the_class_of_several_tasks_is_one_that_can_be_trained(tried: Callable[..., Tried]) -> None:
    sources = re.findall(r"```python\n(class .*?)```", PAGE, re.DOTALL)
    (several,) = [source for source in sources if "inputs.tasks" in source]

    model = tried(several.replace("class Clicks", "class M"), tasks={"click": 1.0, "buy": 2.0})

    model.model.examine()  # type: ignore[attr-defined]
