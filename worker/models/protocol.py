"""What a dense model is: its parameters, and training and prediction on one batch."""

import importlib
import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from embedding.spec.initial_values import Constant, Initializer, Normal, TruncatedNormal, Uniform
from runtime.near_names import near_name
from worker.models.user_code import told

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Parameter:
    """One dense parameter.

    Args:
        name: unique in the model.
        shape: its axes; weights of a layer are [inputs, outputs].
        initial: distribution of its initial values; zeros if not given.

    Raises:
        ValueError: the shape or the initial distribution is not legal.
    """

    name: str
    shape: tuple[int, ...]
    initial: Initializer = field(default_factory=Constant)

    def __post_init__(self) -> None:
        if not isinstance(self.shape, tuple) or any(
            type(axis) is not int or axis < 0 for axis in self.shape
        ):
            raise ValueError(
                f"parameter {self.name!r}: shape must be a tuple of whole numbers >= 0, "
                f"got {self.shape!r}"
            )
        if not isinstance(self.initial, Initializer):
            raise ValueError(
                f"parameter {self.name!r}: initial must be one of the initializers of "
                f"embedding.spec, got {self.initial!r}"
            )

    @property
    def size(self) -> int:
        return prod(self.shape)


@dataclass(frozen=True, slots=True)
class SampleVectors:
    """The vector of each lookup of each sample, where it lies.

    Args:
        flat: float32[any], what holds them.
        positions: int64[lookups, n], C-contiguous: where in `flat` each one begins.
    """

    flat: FloatArray
    positions: npt.NDArray[np.int64]

    @classmethod
    def of_pooled(
        cls, pooled: FloatArray, columns: Sequence[int], positions: npt.NDArray[np.int64]
    ) -> "SampleVectors":
        """Return views of float32[n, W], C-contiguous, where lookups begin at these columns.

        Args:
            positions: int64[lookups, n], C-contiguous, written and kept.
        """
        samples = np.arange(0, pooled.size, pooled.shape[1])
        np.add(np.array(columns)[:, np.newaxis], samples, out=positions)
        return cls(pooled.reshape(-1), positions)


@dataclass(frozen=True, slots=True)
class PackedParameters:
    """A model's parameters as its `predict` reads them, packed once for many batches.

    Args:
        of_network: whatever the network that packed them takes.
    """

    of_network: Any


@dataclass(frozen=True, slots=True)
class SharedInputs:
    """What runs of a batch's samples have in common, so that it need be computed once for each.

    Args:
        group: int64[n], the run of each sample: 0, then the same or one more than the one before.
        firsts: int64[runs], the first sample of each run.
        lookups: for each lookup, whether its vector is the same within a run.
        dense: whether all dense features are.
    """

    group: npt.NDArray[np.int64]
    firsts: npt.NDArray[np.int64]
    lookups: tuple[bool, ...]
    dense: bool

    @classmethod
    def of(
        cls, group: npt.NDArray[np.int64], lookups: Sequence[bool], *, dense: bool
    ) -> "SharedInputs":
        """Find where runs begin."""
        firsts = np.flatnonzero(np.diff(group, prepend=-1))
        return cls(group, firsts, tuple(lookups), dense)

    def part(self, rows: slice) -> "SharedInputs":
        """Return what is said of some consecutive samples."""
        group = self.group[rows]
        if group.size == self.group.size:
            return self
        if group.size:
            group = group - group[0]
        return SharedInputs.of(group, self.lookups, dense=self.dense)

    @property
    def leading(self) -> int:
        """How many of the first lookups are shared."""
        return [*self.lookups, False].index(False)


Inputs = TypeVar("Inputs", FloatArray, SampleVectors, contravariant=True)


class Model(Protocol[Inputs]):
    """The dense part of a model, for one compute thread: it holds work buffers.

    A model may have an attribute `reads_vectors`; where that is true it gets the samples' vectors
    where they lie, and no pooled copy: `pooled` is then `SampleVectors`, and `grad_pooled`
    float32[any], laid out as `pooled.flat`, to which the gradient of every vector is added.

    It may have a method `packed(params)`; what that returns, `PackedParameters`, is then taken by
    `predict` in place of `params`, with the same result.

    Where `predicts_by_sample` is true, `predict` also takes `SharedInputs` as its last argument;
    `pooled` has all inputs of all samples all the same, and the result is the same to the last bit.

    It may have `use_threads(threads)`: it is told how many it may use and gets batches whole, in
    place of one model for each thread and a part of the batch for each; `begin_batch(batch_id)`,
    called before `train`, for what it draws at random; `initial_values(seed)`, float32[P], in place
    of what `parameters` say; `examine()`, called once before a job begins, which raises ValueError
    where the model can't be trained; and `state(params)`, the arrays that it is exported as, by
    name.

    One that computes beside its caller, on a device, is a `BesideModel`, and gets batches whole.

    The parameters lie one after another, in the order of `parameters` and each in C order, in one
    float32 vector of length P. A batch has n >= 0 samples; W is `ModelSpec.pooled_width`.
    """

    parameters: tuple[Parameter, ...]

    def train(
        self,
        params: FloatArray,
        dense: FloatArray,
        pooled: Inputs,
        labels: FloatArray,
        grad_params: FloatArray,
        grad_pooled: FloatArray,
        weights: FloatArray | None = None,
    ) -> float:
        """Compute the loss of a batch and its gradients.

        Args:
            params: float32[P], read.
            dense: float32[n, num_dense], C-contiguous, read.
            pooled: float32[n, W], C-contiguous, read.
            labels: float32[n], 0 or 1, read; of several tasks float32[n, tasks], NaN where a
                sample does not count in one.
            grad_params: float32[P], written (not added to): gradient of the returned sum.
            grad_pooled: float32[n, W], C-contiguous, written likewise.
            weights: float32[n], >= 0, read: what each sample's loss is multiplied by; given in jobs
                with `data.weight` alone, so a model for others can do without.

        Returns:
            The sum (not the mean) of the samples' log losses, each multiplied by its weight.
        """
        ...

    def predict(self, params: FloatArray, dense: FloatArray, pooled: Inputs) -> FloatArray:
        """Return the samples' logits, float32[n], in a new array; of several tasks [n, tasks].

        Arguments as in `train`.
        """
        ...


class BesideModel(Model[Inputs], Protocol[Inputs]):
    """A model that computes a batch while its caller does something else.

    `begin` takes what `train` does, but for the gradients, which `end` writes; batches end in the
    order in which they were begun. `predict` may come in between.
    """

    def begin(
        self,
        params: FloatArray,
        dense: FloatArray,
        pooled: Inputs,
        labels: FloatArray,
        weights: FloatArray | None = None,
    ) -> Any:
        """Begin a batch; what it was given may be written afterwards. Return what `end` takes."""
        ...

    def has_ended(self, begun: Any) -> bool:
        """Whether `end` would return at once."""
        ...

    def await_end(self, begun: Any) -> None:
        """Wait until `end` would return at once; may be called by any thread."""
        ...

    def end(self, begun: Any, grad_params: FloatArray, grad_pooled: FloatArray) -> float:
        """Wait for a batch, write its gradients and return its loss, as `train` does."""
        ...


def num_parameters(model: Model[Any]) -> int:
    """Return the length P of the model's parameter vector."""
    return sum(parameter.size for parameter in model.parameters)


def takes_weights(model: Model[Any]) -> bool:
    """Whether a model's `train` can be given the weights of samples, its last argument."""
    try:
        inspect.signature(model.train).bind(*[None] * 7)
    except TypeError:
        return False
    return True


def parameter_views(flat: FloatArray, parameters: Sequence[Parameter]) -> list[FloatArray]:
    """Return each parameter of the flat vector in its shape, without a copy."""
    views = []
    begin = 0
    for parameter in parameters:
        views.append(flat[begin : begin + parameter.size].reshape(parameter.shape))
        begin += parameter.size
    assert begin == len(flat), f"the vector has {len(flat)} values, the parameters {begin}"
    return views


def initial_parameters(model: Model[Any], seed: int) -> FloatArray:
    """Draw the initial values, float32[P]: one Philox stream, parameter after parameter.

    Those of a model that has `initial_values` are its own.
    """
    own = getattr(model, "initial_values", None)
    if own is not None:
        drawn: FloatArray = own(seed)
        return drawn
    generator = np.random.Generator(np.random.Philox(seed))
    flat = np.empty(num_parameters(model), np.float32)
    for view, parameter in zip(
        parameter_views(flat, model.parameters), model.parameters, strict=True
    ):
        view[...] = _draw(generator, parameter.initial, parameter.shape)
    return flat


def _draw(
    generator: np.random.Generator, initial: Initializer, shape: tuple[int, ...]
) -> npt.NDArray[np.float64]:
    match initial:
        case Constant():
            return np.full(shape, initial.value)
        case Uniform():
            return generator.uniform(-initial.scale, initial.scale, shape)
        case Normal():
            return generator.normal(initial.mean, initial.stddev, shape)
        case TruncatedNormal():
            values = generator.standard_normal(shape)
            while (outside := np.abs(values) > 2).any():
                values[outside] = generator.standard_normal(np.count_nonzero(outside))
            return initial.mean + initial.stddev * values
    raise AssertionError(f"unknown initializer {initial!r}")


def name_hint(name: object, known: Iterable[str]) -> str:
    """Return the end of an error about an unknown name: the nearest known one, and all of them."""
    known = list(known)
    near = near_name(str(name), known)
    question = f"did you mean {near!r}? " if near else ""
    return f"{question}Known: {', '.join(known)}"


def custom_class(options: Mapping[str, Any]) -> Any:
    """Import the class that a custom model's options name as `module:Class`.

    Raises:
        ValueError: the option is missing or malformed, or names nothing that can be imported.
    """
    path = options.get("class")
    if (
        not isinstance(path, str)
        or path.count(":") != 1
        or not all(path.split(":"))
        or path.startswith(".")
        or "/" in path
    ):
        raise ValueError(
            f"model.class of types custom and torch must be 'module:Class', got {path!r}; "
            "for example 'my_models:LogisticRegression'"
        )
    module_name, _, class_name = path.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ValueError(
            f"model.class {path!r}: importing {module_name!r} failed: {error}. The module must be "
            "installed, or lie in the directory that the job is started from"
        ) from error
    except (Exception, SystemExit) as error:  # whatever the module raises
        raise ValueError(
            f"model.class {path!r}: importing {module_name!r} failed{told(error)}"
        ) from error
    found = getattr(module, class_name, None)
    if not isinstance(found, type):
        have = "no such name" if found is None else f"it is {found!r}, which is no class"
        raise ValueError(f"model.class {path!r}: looked for a class {class_name!r}, {have}")
    return found


def check_model(model: object, path: str) -> None:
    """Refuse an object that lacks what `Model` asks for.

    Raises:
        ValueError: names all that is missing, or the first parameter that is not legal.
    """
    missing = [name for name in ("train", "predict") if not callable(getattr(model, name, None))]
    missing = [f"method {name!r}" for name in missing]
    if not hasattr(model, "parameters"):
        missing.append("attribute 'parameters'")
    if missing:
        raise ValueError(
            f"model.class {path!r} is not a model: it has no {', no '.join(missing)}; "
            "docs/models.md says what a model must have"
        )
    seen = set()
    for parameter in model.parameters:  # type: ignore[attr-defined]
        if not isinstance(parameter, Parameter):
            raise ValueError(
                f"model.class {path!r}: parameters must hold worker.models.Parameter, "
                f"got {parameter!r}"
            )
        if parameter.name in seen:
            raise ValueError(f"model.class {path!r} has two parameters {parameter.name!r}")
        seen.add(parameter.name)
