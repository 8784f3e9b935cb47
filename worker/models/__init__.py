"""Dense models: DLRM, DeepFM, Wide & Deep, logistic regression, the caller's own, torch's."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from worker.models.deepfm import DEFAULTS as DEEPFM_OPTIONS
from worker.models.deepfm import DeepFm
from worker.models.dlrm import DEFAULTS as DLRM_OPTIONS
from worker.models.dlrm import Dlrm
from worker.models.interaction import common_dim
from worker.models.layers import read_widths
from worker.models.linear import DEFAULTS as LINEAR_OPTIONS
from worker.models.linear import Linear, require_weights
from worker.models.loss import LogLossModel, Network, log_loss
from worker.models.protocol import (
    BesideModel,
    Model,
    PackedParameters,
    Parameter,
    SampleVectors,
    SharedInputs,
    check_model,
    custom_class,
    initial_parameters,
    name_hint,
    num_parameters,
    parameter_views,
    takes_weights,
)
from worker.models.torch import require_torch
from worker.models.wide_deep import DEFAULTS as WIDE_DEEP_OPTIONS
from worker.models.wide_deep import LINEAR_SUFFIX, WideDeep
from worker.spec import Lookup, ModelSpec, SparseFeature

__all__ = [
    "FIRST_ORDER_MODELS",
    "BesideModel",
    "LogLossModel",
    "Model",
    "Network",
    "PackedParameters",
    "Parameter",
    "SampleVectors",
    "SharedInputs",
    "build_model",
    "initial_parameters",
    "log_loss",
    "needed_lookups",
    "num_parameters",
    "parameter_views",
    "takes_weights",
]

_NETWORKS: dict[str, Callable[[ModelSpec], Network[Any]]] = {
    "dlrm": Dlrm,
    "deepfm": DeepFm,
    "wide_deep": WideDeep,
    "linear": Linear,
}
# Those that have, for each table, another of first-order weights.
FIRST_ORDER_MODELS = ("deepfm", "wide_deep")
_OPTIONS: dict[str, Mapping[str, tuple[int, ...]]] = {
    "dlrm": DLRM_OPTIONS,
    "deepfm": DEEPFM_OPTIONS,
    "wide_deep": WIDE_DEEP_OPTIONS,
    "linear": LINEAR_OPTIONS,
}


def build_model(spec: ModelSpec, *, on_gpu: bool = False) -> Model[Any]:
    """Build a model with work buffers of its own: one for each compute thread.

    Args:
        on_gpu: whether it computes on this process's GPU; one of torch can.

    Raises:
        ValueError: the type, an option or the lookups are not legal, or a custom model is not one.
    """
    _check_type(spec.type)
    if not spec.num_dense and not spec.lookups:
        raise ValueError(f"model {spec.type} has no input: give it a dense or a sparse feature")
    column = 0
    for lookup in spec.lookups:
        if lookup.column != column:
            raise ValueError(
                f"the lookup of table {lookup.table!r} begins at column {lookup.column}, expected "
                f"{column}: lookups must lie side by side, in order"
            )
        column += lookup.width
    assert spec.type == "torch" or not on_gpu, "the job is refused before"
    if spec.type == "torch":
        require_torch()
        # These load torch: only who asks waits for that.
        if on_gpu:
            from worker.models.torch.device_model import DeviceModel
            from worker.models.torch.gpu import DEVICE

            return DeviceModel(spec, DEVICE)
        from worker.models.torch.module_model import ModuleModel

        return ModuleModel(spec)
    if spec.type != "custom":
        return LogLossModel(_NETWORKS[spec.type](spec), spec.loss)
    kind = custom_class(spec.options)
    path = spec.options["class"]
    try:
        model = kind(spec)
    except Exception as error:  # whatever the class raises
        raise ValueError(f"model.class {path!r} can't be made of the job: {error!r}") from error
    check_model(model, path)
    return model


def needed_lookups(
    model_type: str,
    options: Mapping[str, Any],
    sparse: Sequence[SparseFeature],
    dims: Mapping[str, int],
) -> tuple[Lookup, ...]:
    """Return the inputs that a model takes, and so the tables that a job has.

    Every feature gives one lookup of its table. For `deepfm` and `wide_deep` every feature then
    gives a second one, of its first-order weights: table `<table>_linear`, of dim 1.

    Args:
        model_type: `dlrm`, `deepfm`, `wide_deep`, `linear`, `custom` or `torch`.
        options: of the model; checked here, so that a job is refused before it starts.
        sparse: the job's sparse features, in order.
        dims: dim of each table that they name.

    Raises:
        ValueError: the type or an option is not known or legal, the model takes no sequences and a
            feature is one, a table has no dim, the tables
            of a model that needs one dim differ, a linear one's are wider than 1, or a table's name
            is kept for first-order weights.
    """
    _check_type(model_type)
    for feature in sparse:
        if feature.table not in dims:
            raise ValueError(
                f"sparse feature {feature.name!r} names table {feature.table!r}, which has no dim; "
                f"known: {sorted(dims)}"
            )
    _check_sequences(model_type, sparse)
    if model_type in ("custom", "torch"):
        if model_type == "torch":
            require_torch()
        custom_class(options)
    else:
        read_widths(model_type, options, _OPTIONS[model_type])
    if model_type in ("dlrm", "deepfm"):
        common_dim(model_type, {feature.table: dims[feature.table] for feature in sparse})
    if model_type == "linear":
        require_weights({feature.table: dims[feature.table] for feature in sparse})

    tables = [(feature.table, dims[feature.table]) for feature in sparse]
    if model_type in FIRST_ORDER_MODELS:
        for feature in sparse:
            if feature.table.endswith(LINEAR_SUFFIX):
                raise ValueError(
                    f"table {feature.table!r} of sparse feature {feature.name!r}: names that end "
                    f"in {LINEAR_SUFFIX!r} are kept for the first-order weights of {model_type}; "
                    "rename the table"
                )
        tables += [(feature.table + LINEAR_SUFFIX, 1) for feature in sparse]
    lookups: list[Lookup] = []
    column = 0
    for i, (table, dim) in enumerate(tables):
        # A first-order weight is no vector whose length could be limited.
        max_norm = sparse[i].max_norm if i < len(sparse) else None
        number = i % len(sparse)
        feature = sparse[number]
        one_by_one = feature.combiner == "none"
        lookup = Lookup(
            feature=number,
            table=table,
            dim=dim,
            column=column,
            max_norm=max_norm,
            sequence=one_by_one,
            length=feature.max_length if one_by_one else None,
        )
        lookups.append(lookup)
        column += lookup.width
    return tuple(lookups)


def _check_sequences(model_type: str, sparse: Sequence[SparseFeature]) -> None:
    for feature in sparse:
        if feature.combiner == "none" and model_type != "torch":
            raise ValueError(
                f"sparse feature {feature.name!r} has combiner none, and a model of type"
                f" {model_type} takes one vector for each feature: let it be sum, mean, sqrtn or"
                " max, or take a model of type torch (docs/torch.md)"
            )


def _check_type(model_type: str) -> None:
    known = [*_NETWORKS, "custom", "torch"]
    if model_type not in known:
        raise ValueError(f"model.type {model_type!r} is not known; {name_hint(model_type, known)}")
