"""A module on a device, which the CPU is here: its bits, batches side by side, what is recorded."""

import logging
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from torch_models import Tried
from torch_sequences import Sequenced, sequence_spec

from worker.models.loss import loss_and_gradient as loss_on_the_cpu
from worker.models.protocol import custom_class
from worker.models.torch import ModuleInputs
from worker.models.user_code import UserCodeError

torch = pytest.importorskip("torch")

from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: E402

from worker.models.torch.device_loss import loss_and_gradient  # noqa: E402
from worker.models.torch.device_model import DeviceModel  # noqa: E402
from worker.models.torch.graphs import Computed, Graphs  # noqa: E402
from worker.models.torch.layout import Layout  # noqa: E402
from worker.models.torch.task_outputs import own_loss  # noqa: E402

LAYERS = """
class M(nn.Module):
    def __init__(self, inputs, width=8, dropout=0.0):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(inputs.width, width), nn.Tanh(), nn.Dropout(dropout), nn.Linear(width, 1)
        )

    def forward(self, dense, embeddings):
        return self.layers(torch.cat([dense, *embeddings.values()], dim=1)).squeeze(1)
"""
OWN_LOSS = (
    LAYERS
    + """
    def loss(self, logits, labels):
        return (logits - labels) ** 2
"""
)
BATCH_LOSS = (
    LAYERS
    + """
    def batch_loss(self, dense, embeddings, labels, weights):
        logits = self(dense, embeddings)
        return logits, (logits - (labels * weights).mean()) ** 2
"""
)
TASKS = """
class M(nn.Module):
    def __init__(self, inputs):
        super().__init__()
        self.layer = nn.Linear(inputs.width, len(inputs.tasks))
        self.tasks = inputs.tasks

    def forward(self, dense, embeddings):
        logits = self.layer(torch.cat([dense, *embeddings.values()], dim=1))
        return dict(zip(self.tasks, logits.unbind(1)))
"""
LOSS_BY_TASK = (
    TASKS
    + """
    def loss(self, logits, labels, known):
        return {name: (logits[name] - labels[name]) ** 2 for name in logits}
"""
)
UNUSED = """
class M(nn.Module):
    def __init__(self, inputs):
        super().__init__()
        self.other, self.layer = nn.Linear(3, 1), nn.Linear(4, 1)

    def forward(self, dense, embeddings):
        return self.layer(embeddings["a"]).squeeze(1)
"""


def on_device(tried: Tried, **options: Any) -> Tried:
    """The same, with the model on the device that the CPU is."""
    return with_model(tried, DeviceModel(tried.spec, "cpu", **options))


def with_model(tried: Tried, model: Any) -> Tried:
    other = tried.rows(slice(None))
    other.model = model
    return other


def assert_same(one: tuple[float, Any, Any], other: tuple[float, Any, Any]) -> None:
    """Hold gradients against one another bit by bit, and losses up to the order of their sum."""
    assert one[0] == pytest.approx(other[0], rel=1e-12)
    for mine, its in zip(one[1:], other[1:], strict=True):
        np.testing.assert_array_equal(mine, its)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    ("source", "tasks"),
    [
        (OWN_LOSS, None),
        (BATCH_LOSS, None),
        (LAYERS, None),
        (TASKS, {"click": 1.0, "buy": 0.5}),
        (LOSS_BY_TASK, {"click": 1.0, "buy": 0.5}),
        (UNUSED, None),
    ],
    ids=["its loss", "of the batch", "log loss", "tasks", "loss by task", "no gradient"],
)
def test_what_is_staged_gives_the_bits_of_what_is_not(
    tried: Callable[..., Tried], source: str, tasks: dict[str, float] | None, weighted: bool
) -> None:
    this = tried(source, tasks=tasks)
    weights = [this.weights] if weighted else []
    staged = on_device(this)

    expected, found = this.train(*weights), staged.train(*weights)

    if "loss(" in source:
        assert_same(found, expected)
    else:  # the loss is computed in torch there
        assert found[0] == pytest.approx(expected[0], rel=1e-12)
        for mine, its in zip(found[1:], expected[1:], strict=True):
            np.testing.assert_allclose(mine, its, rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(staged.predict(), this.predict())
    np.testing.assert_array_equal(staged.model.logits, this.model.logits)  # type: ignore[attr-defined]
    assert staged.model.without_gradient == this.model.without_gradient  # type: ignore[attr-defined]


def test_batches_draw_by_their_number_there_too(tried: Callable[..., Tried]) -> None:
    this = tried(OWN_LOSS, dropout=0.5)
    staged = on_device(this)

    assert_same(staged.train(batch_id=3), this.train(batch_id=3))
    assert staged.train(batch_id=3)[0] != staged.train(batch_id=4)[0]


def test_sequences_are_staged_with_their_lengths() -> None:
    options = {"class": "worker.models.torch.din:Din", "history": "seen", "target": "item"}
    spec = sequence_spec(options, {"item": 4, "seen": 4, "b": 2}, {"seen": None})
    case, staged = Sequenced(spec), Sequenced(spec)
    staged.model = DeviceModel(spec, "cpu")

    expected, found = case.train(case.weights), staged.train(case.weights)

    assert found[0] == pytest.approx(expected[0], rel=1e-12)
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-5, atol=1e-7)
    (mine,), (its,) = found[2].sequences, expected[2].sequences
    np.testing.assert_allclose(mine.vectors, its.vectors, rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(staged.predict(), case.predict())


def test_a_batch_may_be_begun_before_the_one_before_has_ended(tried: Callable[..., Tried]) -> None:
    this = tried(OWN_LOSS, n=9)
    parts = [this.rows(slice(0, 4)), this.rows(slice(4, 9))]
    expected = [part.train() for part in parts]
    model: Any = DeviceModel(this.spec, "cpu")

    begun = [model.begin(this.params, each.dense, each.pooled, each.labels) for each in parts]
    logits = model.predict(this.params, this.dense, this.pooled)  # an evaluation in between

    np.testing.assert_array_equal(logits, this.predict())
    for each, part, (loss, of_params, of_pooled) in zip(begun, parts, expected, strict=True):
        grads = np.empty_like(of_params), np.empty_like(of_pooled)
        assert model.has_ended(each)
        assert_same((model.end(each, *grads), *grads), (loss, of_params, of_pooled))
        np.testing.assert_array_equal(model.logits, part.model.logits)  # type: ignore[attr-defined]


def test_buffers_are_used_again_whether_a_batch_fails_or_not(tried: Callable[..., Tried]) -> None:
    this = tried(OWN_LOSS.replace("return (logits", "assert len(labels) > 1; return (logits"), n=5)
    staged = on_device(this)
    staged.train()
    room = staged.model._staging.take()  # type: ignore[attr-defined]
    staged.model._staging.give(room)  # type: ignore[attr-defined]
    address = room.host(1).data_ptr()

    alone = with_model(this.rows(slice(0, 1)), staged.model)
    with pytest.raises(UserCodeError, match="loss failed at"):
        alone.train()
    for n in (5, 2, 4):
        part = this.rows(slice(0, n))
        assert_same(with_model(part, staged.model).train(), part.train())

    assert staged.model._staging._free == [room]  # type: ignore[attr-defined]
    assert room.host(1).data_ptr() == address


@pytest.mark.parametrize("name", ["log_loss", "fake_negative_weighting"])
def test_the_loss_on_a_device_is_that_of_the_cpu(name: Any) -> None:
    draw = np.random.default_rng(2)
    logits = np.r_[draw.normal(0, 4, 500), [-300.0, 300.0, 0.0, -0.0, 88.0, -88.0]]
    logits = logits.astype(np.float32)
    labels = (draw.random(logits.size) < 0.3).astype(np.float32)
    weights = draw.integers(0, 3, logits.size).astype(np.float32)
    expected = np.empty_like(logits)

    loss, gradient = loss_and_gradient(name, *map(torch.tensor, (logits, labels, weights)))

    assert float(loss) == pytest.approx(
        loss_on_the_cpu(name, logits, labels, weights, expected), rel=1e-12
    )
    np.testing.assert_allclose(gradient.numpy(), expected, rtol=1e-6, atol=1e-30)


class Recording:
    """Graphs that are made of plain calls; `wrong` has them give other numbers."""

    def __init__(self, *, wrong: bool = False) -> None:
        self.made = self.replays = 0
        self.wrong = wrong
        self.refused: list[bool] = []
        self.graphs = Graphs(
            record=self.record,
            draws=lambda: (torch.get_rng_state().numpy().tobytes(),),
            refuse_waiting=self.refused.append,
        )

    def record(self, work: Callable[[], Computed]) -> tuple[Any, Computed]:
        self.made += 1
        computed = work()
        recording = self

        class Again:
            def replay(self) -> None:
                recording.replays += 1
                computed.flat.copy_(work().flat + recording.wrong)

        return Again(), computed


def test_batches_of_the_usual_size_are_computed_by_a_graph_once_it_is_tried(
    tried: Callable[..., Tried],
) -> None:
    this, recording = tried(OWN_LOSS, n=12), Recording()
    model = DeviceModel(this.spec, "cpu", graphs=recording.graphs)
    replays = []
    for first, last in [(0, 4), (4, 6), (0, 4), (1, 5), (2, 6), (3, 7), (4, 8), (0, 3), (5, 9)]:
        part = this.rows(slice(first, last))
        part.params = this.params * (1 + first)

        assert_same(with_model(part, model).train(batch_id=first), part.train(batch_id=first))
        replays.append(recording.replays)

    # The third in a row makes it, the next one is computed both ways, one of another size neither.
    assert replays == [0, 0, 0, 0, 0, 1, 2, 2, 3]
    assert recording.made == 1
    assert recording.refused == [True, False]


@pytest.mark.parametrize(
    ("source", "options", "wrong", "reason"),
    [
        (OWN_LOSS, {"dropout": 0.5}, False, "forward draws random numbers"),
        (OWN_LOSS, {}, True, "gives other numbers than its operations one by one"),
        (
            OWN_LOSS.replace("return (logits", "waits(); return (logits"),
            {},
            False,
            "loss failed at .*: RuntimeError: called a synchronizing CUDA operation",
        ),
    ],
    ids=["dropout", "other bits", "waits"],
)
def test_what_no_graph_can_be_made_of_is_computed_without_and_named(
    tried: Callable[..., Tried],
    caplog: pytest.LogCaptureFixture,
    source: str,
    options: dict[str, Any],
    wrong: bool,
    reason: str,
) -> None:
    recording = Recording(wrong=wrong)
    this = tried("def waits():\n    pass\n\n" + source, **options)
    module = sys.modules[this.spec.options["class"].split(":")[0]]

    def refuse_waiting(refused: bool) -> None:
        def waits() -> None:
            if refused:
                raise RuntimeError("called a synchronizing CUDA operation")

        module.waits = waits  # type: ignore[attr-defined]

    recording.graphs._refuse_waiting = refuse_waiting
    model = DeviceModel(this.spec, "cpu", graphs=recording.graphs)

    with caplog.at_level(logging.WARNING):
        for batch in range(6):
            expected = this.train(batch_id=batch)
            assert_same(with_model(this, model).train(batch_id=batch), expected)

    (record,) = caplog.records
    assert record.getMessage().startswith("model.cuda_graphs has no effect")
    assert re.search(reason, record.getMessage())


# Whatever a module makes is to be on the device of its inputs. (DIEN's GRU asks CUDA itself.)

OURS: dict[str, tuple[dict[str, Any], dict[str, int], dict[str, int | None], tuple[str, ...]]] = {
    "dlrm": ({"class": "worker.models.torch.dlrm:Dlrm"}, {"a": 4, "b": 4}, {}, ()),
    "dcn": ({"class": "worker.models.torch.dcn:DcnV2"}, {"a": 4, "b": 2}, {}, ()),
    "dssm": ({"class": "worker.models.torch.dssm:Dssm", "item": "b"}, {"a": 4, "b": 2}, {}, ()),
    "mmoe": ({"class": "worker.models.torch.mmoe:Mmoe"}, {"a": 4}, {}, ("x", "y")),
    "ple": ({"class": "worker.models.torch.ple:Ple"}, {"a": 4}, {}, ("x", "y")),
    "esmm": ({"class": "worker.models.torch.esmm:Esmm"}, {"a": 4}, {}, ("x", "y")),
    "din": (
        {"class": "worker.models.torch.din:Din", "history": "h", "target": "a"},
        {"a": 4, "h": 4},
        {"h": None},
        (),
    ),
}


@pytest.mark.parametrize("name", OURS)
def test_our_models_make_what_they_need_on_the_device_of_their_inputs(name: str) -> None:
    """With tensors that have a device and no values, by which torch traces models without GPUs."""
    options, dims, sequences, tasks = OURS[name]
    spec = replace(
        sequence_spec(options, dims, sequences), tasks=tasks, task_weights=(1.0,) * len(tasks)
    )
    kind = custom_class(options)
    inputs = ModuleInputs(3, dims, sequences=sequences, tasks=tasks, dense=spec.dense_names)
    own = {option: value for option, value in options.items() if option != "class"}

    with FakeTensorMode():
        with torch.device("cuda:0"):
            module = kind(inputs, **own)
        layout = Layout(spec, 6, (3,) * len(sequences), parameters=1, on_device=True)
        given = layout.read(torch.empty(layout.size, device="cuda:0"))
        logits = module(given.dense, given.embeddings)
        found = list(logits.values()) if tasks else [logits]
        if getattr(module, "batch_loss", None) is not None:
            found += module.batch_loss(given.dense, given.embeddings, given.labels, given.weights)
        if hasattr(module, "loss"):
            found += [own_loss(module.loss, torch.stack(found, 1), given.labels, tasks)]

    assert {str(each.device) for each in found} == {"cuda:0"}
