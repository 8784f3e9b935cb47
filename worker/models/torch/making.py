"""From the options of a job to a module that may be trained: made under the seed, and looked at."""

import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from runtime.near_names import near_name
from worker.models.protocol import custom_class, name_hint
from worker.models.torch import ModuleInputs
from worker.models.torch.products import Products, products_of
from worker.models.user_code import UserCodeError, user_code
from worker.spec import ModelSpec

_GENERATOR = threading.RLock()

PRECISIONS = ("float32", "tf32", "bf16")
# Of the options, those that are not for the class; and all keys of the section model that are ours.
_OWN = ("class", "precision", "products", "cuda_graphs")
_KEYS = (*_OWN, "type", "optimizer", "clip_global_norm")


@dataclass(frozen=True, slots=True)
class Made:
    """A module and what it was made of.

    Args:
        path: `model.class`.
        module: with the initial values of the job's seed.
        names: of its parameters, in its own order.
        precision: `float32`, `tf32` (on a GPU; on the CPU as `float32`) or `bf16`.
        products: what makes them on the CPU, where they are large and of float32.
    """

    path: str
    module: torch.nn.Module
    names: tuple[str, ...]
    precision: str
    products: Products

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        return list(self.module.parameters())


def make_module(spec: ModelSpec) -> Made:
    """Make the module of a job's class, its initial values drawn from the seed.

    Raises:
        ValueError: an option is not legal, or the class gives no module that can be trained.
    """
    path = str(spec.options.get("class"))
    kind = custom_class(spec.options)
    precision = spec.options.get("precision", "float32")
    if precision not in PRECISIONS:
        raise ValueError(
            f"model.precision {precision!r} is not known; {name_hint(precision, PRECISIONS)}"
        )
    products = products_of(spec.options.get("products", "auto"))
    if not issubclass(kind, torch.nn.Module):
        raise ValueError(
            f"model.class {path!r} is no torch.nn.Module; a class without torch is of model.type"
            " custom"
        )
    dims = {name: lookup.dim for name, lookup in zip(spec.lookup_names, spec.lookups, strict=True)}
    sequences = {spec.lookup_names[at]: spec.lookups[at].length for at in spec.sequences}
    inputs = ModuleInputs(
        spec.num_dense, dims, sequences=sequences, tasks=spec.tasks, dense=spec.dense_names
    )
    options = {name: value for name, value in spec.options.items() if name not in _OWN}
    _check_options(kind, path, inputs, options)
    with user_code(path, "its __init__"), seeded(spec.seed):
        module = kind(inputs, **options)
    names = _checked_names(module, path)
    _check_forward(module, path)
    return Made(path, module, names, precision, products)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Have torch's default generator begin with a seed within the block, and go on after it.

    It is the process's: one thread at a time is in such a block.
    """
    generator = torch.default_generator
    with _GENERATOR:
        before = generator.get_state()
        generator.manual_seed(seed & 0xFFFF_FFFF_FFFF_FFFF)
        try:
            yield
        finally:
            generator.set_state(before)


def _check_options(kind: Any, path: str, inputs: ModuleInputs, options: dict[str, Any]) -> None:
    """Refuse options that the class does not take, by name."""
    try:
        signature = inspect.signature(kind)
    except (TypeError, ValueError):
        return
    takes = list(signature.parameters.values())
    if any(each.kind is each.VAR_KEYWORD for each in takes):
        known = list(options)
    else:
        known = [p.name for p in takes[1:] if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    for name in options:
        if name not in known:
            own = near_name(name, _KEYS)
            hint = name_hint(name, known) if known else "it has none"
            if own is not None and near_name(name, [*known, own]) == own:
                hint = f"did you mean {own!r}, a key of ours? Of its own: {', '.join(known) or '-'}"
            raise ValueError(f"model.{name}: class {path!r} has no such option; {hint}")
    try:
        signature.bind(inputs, **options)
    except TypeError as error:
        raise ValueError(
            f"model.class {path!r} is made as Class(inputs, **options), with the other keys of"
            f" model as options; its __init__ takes {signature}: {error}"
        ) from error


def check_loss(loss: Callable[..., Any], path: str, name: str, *, several: bool) -> None:
    """Refuse a loss of the class's own that does not take what it will be given.

    Args:
        name: of the method, `loss` or `batch_loss`.
        several: whether the job has several tasks.

    Raises:
        UserCodeError: says how it is called.
    """
    takes = ["dense", "embeddings", "labels", "weights"]
    if name == "loss":
        takes = ["logits", "labels", *(["known"] if several else [])]
    try:
        signature = inspect.signature(loss)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(*takes)
    except TypeError as error:
        why = ""
        if "known" in takes:
            why = (
                ": data.labels names several tasks, so each is a dict by task, and known says which"
                " samples count in one"
            )
        elif name == "loss" and "known" in signature.parameters:
            why = ": known is for jobs of several tasks, which data.labels names"
        raise UserCodeError(
            f"model.class {path!r}: {name} is called as {name}({', '.join(takes)}), and takes"
            f" {signature}{why}"
        ) from error


def _check_forward(module: torch.nn.Module, path: str) -> None:
    signature = inspect.signature(module.forward)
    try:
        signature.bind(None, None)
    except TypeError as error:
        raise UserCodeError(
            f"model.class {path!r}: forward is called as forward(dense, embeddings), and takes"
            f" {signature}: {error}"
        ) from error


def _checked_names(module: torch.nn.Module, path: str) -> tuple[str, ...]:
    """Return the names of the parameters; refuse those that can't be trained, by name."""
    names: dict[int, str] = {}
    storages: dict[int, str] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        where = f"model.class {path!r}: parameter {name!r}"
        if isinstance(parameter, torch.nn.parameter.UninitializedParameter):
            raise UserCodeError(
                f"{where} has no shape yet (a lazy module): give its size; inputs.num_dense,"
                " inputs.dims and inputs.width say those of the inputs"
            )
        if id(parameter) in names:
            raise UserCodeError(
                f"{where} is the same tensor as {names[id(parameter)]!r}. Tied parameters are not"
                " taken: register it once, and use it in both places"
            )
        if parameter.dtype != torch.float32:
            raise UserCodeError(
                f"{where} is {_short(parameter.dtype)}, expected float32. model.precision bf16"
                " computes in bfloat16 with float32 parameters"
            )
        if parameter.device.type != "cpu" or parameter.layout != torch.strided:
            raise UserCodeError(
                f"{where} is on {parameter.device}, {_short(parameter.layout)}; expected a dense"
                " tensor on cpu"
            )
        if not parameter.requires_grad:
            raise UserCodeError(
                f"{where} does not require a gradient. What is not trained is a buffer:"
                " self.register_buffer(name, tensor)"
            )
        storage = parameter.untyped_storage().data_ptr()
        if parameter.numel() and storage in storages:
            raise UserCodeError(
                f"{where} shares its memory with {storages[storage]!r}; each needs its own"
            )
        names[id(parameter)] = storages[storage] = name
    return tuple(names.values())


def _short(kind: Any) -> str:
    return str(kind).removeprefix("torch.")
