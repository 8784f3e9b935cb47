"""Our models of several tasks: the published formulas, in float64, and their gradients."""

from typing import Any

import numpy as np
import pytest
from torch_models import Tried, make_spec

from worker.models import parameter_views

torch = pytest.importorskip("torch")

TASKS = {"click": 1.0, "buy": 0.5}
ESMM = "worker.models.torch.esmm:Esmm"
MMOE = "worker.models.torch.mmoe:Mmoe"
PLE = "worker.models.torch.ple:Ple"
_PLE = {"class": PLE, "shared_experts": 2, "task_experts": 1, "expert_mlp": [5], "tower_mlp": [3]}
CASES: dict[str, dict[str, Any]] = {
    "mmoe": {"class": MMOE, "experts": 3, "expert_mlp": [6, 5], "tower_mlp": [4]},
    "mmoe without towers": {"class": MMOE, "experts": 2, "expert_mlp": [4], "tower_mlp": []},
    "ple of one network": {**_PLE, "extractions": 1, "task_experts": 2},
    "ple of three networks": {**_PLE, "extractions": 3},
    "esmm": {"class": ESMM, "mlp": [5, 4]},
}


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def log_losses(p: np.ndarray, y: np.ndarray) -> np.ndarray:
    return -(y * np.log(p) + (1 - y) * np.log(1 - p))


class Formula:
    """Logits by task and the loss, from the definitions and the parameters by name."""

    def __init__(self, tried: Tried) -> None:
        self.tried = tried
        self.options = tried.spec.options
        self.tasks = tried.spec.tasks

    def logits(self, params: np.ndarray, pooled: np.ndarray) -> list[np.ndarray]:
        views = parameter_views(params, self.tried.model.parameters)
        names = [parameter.name for parameter in self.tried.model.parameters]
        self.of = dict(zip(names, views, strict=True))
        x = np.concatenate([self.tried.dense.astype(np.float64), pooled], axis=1)
        return {MMOE: self.mmoe, PLE: self.ple, ESMM: self.esmm}[self.options["class"]](x)

    def layers(self, prefix: str, x: np.ndarray, *, relu_last: bool) -> np.ndarray:
        count = sum(name.startswith(f"{prefix}.") and ".weight" in name for name in self.of)
        for at in range(count):
            x = x @ self.of[f"{prefix}.{at}.weight"].T + self.of[f"{prefix}.{at}.bias"]
            if relu_last or at < count - 1:
                x = np.maximum(x, 0)
        return x

    def experts(self, prefix: str, count: int, x: np.ndarray) -> list[np.ndarray]:
        return [self.layers(f"{prefix}.experts.{i}", x, relu_last=True) for i in range(count)]

    def gated(self, prefix: str, x: np.ndarray, made: list[np.ndarray]) -> np.ndarray:
        shares = softmax(x @ self.of[f"{prefix}.linear.weight"].T)
        assert shares.shape[1] == len(made)
        return sum(shares[:, [i]] * each for i, each in enumerate(made))

    def towers(self, inputs: list[np.ndarray]) -> list[np.ndarray]:
        return [
            self.layers(f"towers.towers.{k}", x, relu_last=False)[:, 0]
            for k, x in enumerate(inputs)
        ]

    def mmoe(self, x: np.ndarray) -> list[np.ndarray]:
        made = self.experts("experts", self.options["experts"], x)
        return self.towers([self.gated(f"gates.{k}", x, made) for k in range(len(self.tasks))])

    def ple(self, x: np.ndarray) -> list[np.ndarray]:
        own, shared = [x] * len(self.tasks), x
        for j in range(self.options["extractions"]):
            at = f"extractions.{j}"
            of_all = self.experts(f"{at}.shared", self.options["shared_experts"], shared)
            of_tasks = [
                self.experts(f"{at}.own.{k}", self.options["task_experts"], each)
                for k, each in enumerate(own)
            ]
            last = j == self.options["extractions"] - 1
            assert last == (f"{at}.shared_gate.linear.weight" not in self.of)
            before = shared
            if not last:
                every = [made for of_task in of_tasks for made in of_task] + of_all
                shared = self.gated(f"{at}.shared_gate", before, every)
            own = [
                self.gated(f"{at}.gates.{k}", own[k], of_tasks[k] + of_all) for k in range(len(own))
            ]
        return self.towers(own)

    def esmm(self, x: np.ndarray) -> list[np.ndarray]:
        return [self.layers(name, x, relu_last=False)[:, 0] for name in ("click", "convert")]

    def loss(self, params: np.ndarray, pooled: np.ndarray) -> float:
        logits, labels = self.logits(params, pooled), self.tried.labels.T.astype(np.float64)
        if self.options["class"] == ESMM:
            return self.esmm_loss(*(sigmoid(z) for z in logits), *labels)
        each = zip(logits, labels, TASKS.values(), strict=True)
        return sum(w * np.nansum(log_losses(sigmoid(z), y)) for z, y, w in each)

    @staticmethod
    def esmm_loss(pctr: np.ndarray, pcvr: np.ndarray, y: np.ndarray, z: np.ndarray) -> float:
        total = 0.0
        for i in range(len(y)):
            if np.isnan(y[i]):
                continue
            total += log_losses(pctr[i], y[i])
            if y[i] == 0 or not np.isnan(z[i]):
                total += log_losses(pctr[i] * pcvr[i], y[i] and z[i])
        return total


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Tried:
    options = CASES[request.param]
    tasks = dict.fromkeys(TASKS, 1.0) if options["class"] == ESMM else TASKS
    tried = Tried(make_spec(options, tasks=tasks), n=30)
    # Away from 0, where biases begin and a unit of ReLU may have no slope.
    tried.params += np.random.default_rng(2).normal(0, 0.1, tried.params.size).astype(np.float32)
    return tried


def test_logits_loss_and_gradients_are_those_of_the_formula(case: Tried) -> None:
    formula = Formula(case)
    params, pooled = case.params.astype(np.float64), case.pooled.astype(np.float64)

    loss, grad_params, grad_pooled = case.train()

    expected = np.stack(formula.logits(params, pooled), axis=1)
    np.testing.assert_allclose(case.predict(), expected, rtol=1e-4, atol=1e-5)
    assert loss == pytest.approx(formula.loss(params, pooled), rel=1e-5)
    draw, step = np.random.default_rng(6), 1e-6
    for values, gradient in ((params, grad_params), (pooled, grad_pooled)):
        for at in draw.choice(values.size, min(values.size, 40), replace=False):
            kept = values.flat[at]
            sides = []
            for value in (kept + step, kept - step):
                values.flat[at] = value
                sides.append(formula.loss(params, pooled))
            values.flat[at] = kept
            slope = (sides[0] - sides[1]) / (2 * step)
            assert gradient.flat[at] == pytest.approx(slope, rel=2e-3, abs=2e-4)


@pytest.mark.parametrize("name", CASES)
def test_models_pass_the_examination_of_a_job(name: str) -> None:
    tasks = dict.fromkeys(("click", "buy", "both") if name == "esmm" else TASKS, 1.0)

    Tried(make_spec(CASES[name], tasks=tasks)).model.examine()  # type: ignore[attr-defined]


def test_esmm_predicts_the_product_for_a_third_task_however_sure_it_is() -> None:
    from worker.models.torch.esmm import of_product

    tasks = dict.fromkeys(("click", "buy", "both"), 1.0)
    tried = Tried(make_spec(CASES["esmm"], tasks=tasks), n=30)
    click, buy, both = tried.predict().astype(np.float64).T
    np.testing.assert_allclose(sigmoid(both), sigmoid(click) * sigmoid(buy), rtol=1e-5)

    sure = torch.tensor([[40.0, 40.0], [-60.0, 50.0], [-90.0, -90.0]], requires_grad=True)
    logits = of_product(*sure.unbind(1))
    logits.sum().backward()
    np.testing.assert_allclose(logits.detach(), [40 - np.log(2), -60, -180], rtol=1e-6)
    assert torch.isfinite(sure.grad).all()


@pytest.mark.parametrize(
    ("options", "tasks", "said"),
    [
        ({"class": MMOE}, (), "mmoe is a model of several tasks, .* data.labels names none"),
        ({"class": MMOE, "experts": 0}, "ab", "model.experts must be a whole number from 1"),
        ({"class": MMOE, "expert_mlp": []}, "ab", "model.expert_mlp must have at least one width"),
        ({"class": PLE, "extractions": 1.5}, "ab", "model.extractions must be a whole number"),
        ({"class": PLE, "tower_mlp": [0]}, "ab", r"model.tower_mlp\[0\] must be"),
        ({"class": ESMM}, "a", "esmm is a model of several tasks, at least 2; .* names a"),
        ({"class": ESMM}, "abcd", "perhaps a third, .* names a, b, c, d"),
    ],
)
def test_options_and_tasks_that_do_not_fit_are_refused_by_name(
    options: dict[str, Any], tasks: str, said: str
) -> None:
    spec = make_spec(options, tasks=dict.fromkeys(tasks, 1.0))

    with pytest.raises(ValueError, match=said):
        Tried(spec)
