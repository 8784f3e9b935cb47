"""What can't be trained is told by name before a job begins, and failures by the user's line."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from torch_models import Tried, make_spec

from worker.models import build_model
from worker.models.user_code import UserCodeError

torch = pytest.importorskip("torch")

LINEAR = """
class M(nn.Module):
    def __init__(self, inputs, *, scale=1.0):
        super().__init__()
        self.linear = nn.Linear(inputs.width, 1)
        {more}

    def forward(self, dense, embeddings):
        x = torch.cat([dense, *embeddings.values()], dim=1)
        {begin}
        return {logits}
"""


def linear(
    more: str = "pass", begin: str = "pass", logits: str = "self.linear(x).squeeze(1)"
) -> str:
    return LINEAR.format(more=more, begin=begin, logits=logits)


def refused(tried: Callable[..., Tried], source: str, **options: object) -> str:
    with pytest.raises(ValueError, match=r"model") as caught:
        tried(source, **options).model.examine()
    return str(caught.value)


def test_an_ordinary_module_is_taken(tried: Callable[..., Tried]) -> None:
    tried(linear()).model.examine()
    tried(
        linear(more='self.register_buffer("c", torch.ones(1))', begin="x = x * self.c")
    ).model.examine()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("self.twice = self.linear.weight", "'linear.weight' is the same tensor as 'twice'"),
        ("self.narrow = nn.Parameter(torch.ones(2).half())", "'narrow' is float16, expected"),
        ("self.wide = nn.Parameter(torch.ones(2).double())", "'wide' is float64, expected float32"),
        ("self.lazy = nn.LazyLinear(3)", r"'lazy\.weight' has no shape yet"),
        ("self.fixed = nn.Parameter(torch.ones(2), requires_grad=False)", "'fixed' does not req"),
        ("self.view = nn.Parameter(self.linear.weight.detach()[0])", "'linear.weight' shares its"),
        ("self.away = nn.Parameter(torch.ones(2, device='meta'))", "'away' is on meta"),
        ("self.unused = nn.Linear(2, 2)", r"no gradient .* 'unused\.weight', 'unused\.bias'"),
        ("nn.init.constant_(self.linear.bias, float('nan'))", "initial parameters are not all fin"),
    ],
)
def test_parameters_that_cant_be_trained_are_named(
    tried: Callable[..., Tried], more: str, said: str
) -> None:
    assert re.search(said, refused(tried, linear(more=more)))


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (linear(logits="self.linear(x)"), r"returned \[8, 1\] for n = 8; add \.squeeze\(1\)"),
        (linear(logits="self.linear(x).squeeze()"), r"returned \[\] for n = 1; \.squeeze\(\) with"),
        (linear(logits="self.linear(x).sum()"), r"returned \[\] for n = 8"),
        (linear(logits="None"), "a tensor of floats .*, got None"),
        (linear(logits="(self.linear(x) > 0).squeeze(1)"), "got a tensor of torch.bool"),
        (linear(logits="self.linear(x).squeeze(1).detach()"), "depend neither on parameters nor"),
        (linear(logits="torch.log(self.linear(x).squeeze(1) - 99)"), "logits that are not finite"),
        (
            linear(logits="self.linear(x).squeeze(1) + torch.sqrt(0 * dense[:, 0] * x[:, -1])"),
            "gradients are not finite",
        ),
        (linear(logits="self.linear(x).squeeze(1) + torch.rand(1)"), None),
        (linear(more="self.n = 0", begin="self.n += 1; x = x * self.n"), "keep nothing from batch"),
        (linear(begin="x = x + self.linear.weight.data.mul_(2).sum()"), "changes the parameters"),
        (linear(more="self.norm = nn.BatchNorm1d(9)", begin="x = self.norm(x)"),
         r"buffer 'norm\.\w+' of a BatchNorm1d.* torch\.nn\.LayerNorm"),
        (linear(more='self.register_buffer("seen", torch.zeros(1))', begin="self.seen += len(x)"),
         "training changes buffer 'seen' of a M"),
        (linear(more='self.register_buffer("seen", torch.zeros(1))',
                begin="self.seen = self.seen + 1"), "training changes buffer 'seen'"),
        (linear().replace("dense, embeddings", "dense"), r"takes \(dense\): too many"),
        (linear().replace("(self, dense, embeddings)", "(self, dense, embeddings, mask)"),
         "forward is called as forward.dense, embeddings.*missing.*'mask'"),
        (linear() + "\n    def loss(self, logits, labels):\n"
         "        return nn.functional.mse_loss(logits, labels)\n", "reduction='none'"),
        ("class M:\n    pass\n", r"is no torch\.nn\.Module; .* custom"),
    ],
)  # fmt: skip
def test_what_a_module_may_not_do_is_told(
    tried: Callable[..., Tried], source: str, said: str | None
) -> None:
    if said is None:  # it draws where it predicts, too
        said = "the same batch gives other numbers the second time"
    assert re.search(said, refused(tried, source)), refused(tried, source)


@pytest.mark.parametrize(
    "more",
    [
        "self.linear.bias.data[0] = float(np.random.rand())",
        "self.mask = torch.tensor(np.random.rand(9)).float()",
        'self.register_buffer("mask", torch.tensor(np.random.rand(9)).float())',
    ],
)
def test_what_is_another_one_in_every_process_is_refused(
    tried: Callable[..., Tried], more: str
) -> None:
    begin = "x = x * self.mask" if "mask" in more else "pass"
    source = "import numpy as np\n" + linear(more=more, begin=begin)

    assert "made a second time it gives other numbers" in refused(tried, source)


def test_constants_may_be_drawn_from_the_generator_of_torch(tried: Callable[..., Tried]) -> None:
    mask = 'self.register_buffer("mask", torch.rand(9))'

    tried(linear(more=mask, begin="x = x * self.mask")).model.examine()


def test_logits_that_are_not_finite_in_prediction_alone_are_refused(
    tried: Callable[..., Tried],
) -> None:
    source = linear(begin="x = x if self.training else x / 0")

    assert "not finite (NaN or infinity) in prediction" in refused(tried, source)


def test_a_module_may_take_features_out_of_what_it_is_given(tried: Callable[..., Tried]) -> None:
    tried(linear(begin="embeddings.pop(next(iter(embeddings)))")).model.examine()


def test_batch_norm_without_running_statistics_is_taken(tried: Callable[..., Tried]) -> None:
    source = linear(
        more="self.norm = nn.BatchNorm1d(9, track_running_stats=False)",
        begin="x = self.norm(x) if len(x) > 1 else x",
    )

    tried(source).model.examine()


@pytest.mark.parametrize(
    ("source", "line", "said"),
    [
        (linear(more="1 / 0"), "        1 / 0", "its __init__ failed .*ZeroDivisionError"),
        (linear(begin="x = x[:, 1:]"), "squeeze(1)", "forward failed .*RuntimeError: mat1"),
        (linear(begin="x = embeddings['c']"), "x = embeddings['c']", "forward failed .*KeyError"),
        (
            linear(begin="raise SystemExit(0)"),
            "raise SystemExit(0)",
            "forward failed .*SystemExit: 0",
        ),
        (linear(begin="raise OSError('gone')"), "raise OSError", "forward failed .*OSError: gone"),
    ],
)
def test_a_failure_is_told_by_the_line_of_its_file(
    tried: Callable[..., Tried], tmp_path: Path, source: str, line: str, said: str
) -> None:
    text = refused(tried, source)

    assert re.search(said, text)
    (file,) = tmp_path.glob("torch_module_*.py")
    lines = file.read_text().splitlines()
    number = next(at for at, each in enumerate(lines, 1) if line in each)
    assert f" at {file}, line {number}, in " in text
    assert "Traceback" not in text


def test_too_little_memory_is_no_failure_of_the_class(tried: Callable[..., Tried]) -> None:
    with pytest.raises(MemoryError, match="no room"):
        tried(linear(begin="raise MemoryError('no room')")).model.examine()


def test_it_fails_as_a_value_that_workers_can_send(tried: Callable[..., Tried]) -> None:
    this = tried(linear(begin="assert not (x > 90).any(), 'too large'"))
    this.dense[2, 1] = 99

    with pytest.raises(UserCodeError, match=r"forward failed at .*AssertionError: too large"):
        this.train()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"scael": 2}, "model.scael: class .* has no such option; did you mean 'scale'"),
        ({"precision": "fp16"}, "model.precision 'fp16' is not known; .*float32, tf32, bf16"),
        ({"inputs": 3}, "model.inputs: class .* has no such option"),
        ({"presicion": "bf16"}, "model.presicion: .* no such option; did you mean 'precision', a"),
        ({"cuda_graph": True}, "did you mean 'cuda_graphs', a key of ours. Of its own: scale"),
        ({"optimiser": {"type": "adam"}}, "did you mean 'optimizer', a key of ours"),
        ({"clas": "a:B"}, "did you mean 'class', a key of ours"),
    ],
)
def test_options_that_are_not_known_are_named(
    tried: Callable[..., Tried], options: dict[str, object], said: str
) -> None:
    assert re.search(said, refused(tried, linear(), **options))


def test_an_option_that_is_missing_is_named(tried: Callable[..., Tried]) -> None:
    text = refused(tried, linear().replace("scale=1.0", "scale"))

    assert "missing a required argument: 'scale'" in text


def test_a_loss_of_the_job_and_one_of_the_module_are_one_too_many(
    tried: Callable[..., Tried],
) -> None:
    from dataclasses import replace

    source = linear() + "\n    def loss(self, logits, labels):\n        return logits * labels\n"
    spec = replace(tried(source).spec, loss="fake_negative_weighting")

    with pytest.raises(ValueError, match=r"training\.loss is fake_negative_weighting, and"):
        build_model(spec)


def test_nothing_is_left_of_an_examination(tried: Callable[..., Tried]) -> None:
    this = tried(linear())
    expected = this.train()
    this.model.examine()

    for one, other in zip(expected, this.train(), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("flags", "told"), [("fpu avx2 avx512f", True), ("fpu amx_bf16 amx_tile", False)]
)
def test_it_is_told_where_a_processor_has_nothing_for_bf16(
    tried: Callable[..., Tried],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    flags: str,
    told: bool,
) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nflags\t\t: {flags}\n")
    monkeypatch.setattr("runtime.processor.CPU_INFO", tmp_path / "cpuinfo")

    tried(linear()).model.examine()
    assert not caplog.text
    tried(linear(), precision="bf16").model.examine()

    assert ("no instructions for it: float32 is faster" in caplog.text) == told


@pytest.mark.parametrize(
    ("layer", "told"),
    [
        ("nn.Embedding(50, 2)", "other is a torch.nn.Embedding of its own, of 50 x 2: every batch"),
        ("nn.EmbeddingBag(50, 2)", "other is a torch.nn.EmbeddingBag of its own, of 50 x 2"),
        (
            "nn.Linear(2, 50_000)",
            "150,010 dense parameters, 100,000 of them in other.weight: every batch of every worker"
            " pulls and pushes all of them, 1 MB each way",
        ),
        ("nn.Linear(2, 3)", None),
    ],
)
def test_what_belongs_into_tables_or_is_very_large_is_warned_of(
    tried: Callable[..., Tried],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    layer: str,
    told: str | None,
) -> None:
    monkeypatch.setattr("worker.models.torch.examining._MANY", 100_000)
    uses = "x = x + sum(p.sum() for p in self.other.parameters()) * 1e-6"

    tried(linear(more=f"self.other = {layer}", begin=uses)).model.examine()

    if told is None:
        assert not caplog.text
    else:
        (record,) = caplog.records
        assert told in record.getMessage()


def test_without_torch_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.models.torch.find_spec", lambda name: None)

    with pytest.raises(ValueError, match=r"pip install 'synchromesh\[torch\]'"):
        make_spec({"class": "any:M"})
