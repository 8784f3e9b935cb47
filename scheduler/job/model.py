"""What a job trains: its tables of embeddings, and the dense model beside them."""

import json
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from embedding.optimizers.rule import NO_DENSE_CLIP_NORM
from embedding.spec.admission import BloomAdmission, CounterAdmission, ProbabilisticAdmission
from embedding.spec.composition import Composition
from embedding.spec.eviction import Eviction
from embedding.spec.initial_values import (
    Constant,
    GlorotUniform,
    Normal,
    TruncatedNormal,
    Uniform,
    Zeros,
)
from embedding.spec.optimizers import Adagrad, Adam, Optimizer
from embedding.spec.table import ValueDtype
from embedding.spec.tiers import Tiers

InitializerConfig = Annotated[
    Uniform | GlorotUniform | Normal | TruncatedNormal | Constant | Zeros,
    Field(discriminator="type"),
]
OptimizerConfig = Annotated[Optimizer, Field(discriminator="type")]
CompositionConfig = Annotated[Composition, Field(discriminator="type")]
_ADAGRADS = {"adagrad", "rowwise_adagrad", "adagrad_decay", "adagrad_decay_v2"}


def _counter_by_default(value: Any) -> Any:
    return {"type": "counter", **value} if isinstance(value, dict) else value


AdmissionConfig = Annotated[
    Annotated[
        CounterAdmission | BloomAdmission | ProbabilisticAdmission, Field(discriminator="type")
    ],
    BeforeValidator(_counter_by_default),
]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class TableConfig(_Section):
    """What a table has different from `embedding`."""

    dim: int | None = Field(None, ge=1, le=4096)
    initializer: InitializerConfig | None = None
    optimizer: OptimizerConfig | None = None
    admission: AdmissionConfig | None = None
    eviction: Eviction | None = None
    default_value: float | None = None
    value_dtype: ValueDtype | None = None
    track_usage: bool | None = None
    tiers: Tiers | None = None
    composition: CompositionConfig | None = None


class EmbeddingConfig(_Section):
    """Defaults of every table.

    Args:
        first_order_optimizer: of the tables of first-order weights that some models have; None:
            `optimizer`.
    """

    dim: int = Field(16, ge=1, le=4096)
    initializer: InitializerConfig = Uniform()
    optimizer: OptimizerConfig = Adagrad()
    first_order_optimizer: OptimizerConfig | None = None
    admission: AdmissionConfig | None = None
    eviction: Eviction | None = None
    default_value: float = 0.0
    value_dtype: ValueDtype = "float32"
    track_usage: bool | None = None
    tiers: Tiers | None = None


def _dense_adagrad(value: Any) -> Any:
    """Give Adagrad the defaults of dense parameters: every step updates them, as it does no row."""
    if isinstance(value, dict) and str(value.get("type", "")) in _ADAGRADS:
        return {"learning_rate": 0.01, "initial_accumulator": 1e-4, **value}
    return value


class ModelConfig(_Section):
    """The dense model; what a type takes beyond these keys is described in docs/models.md.

    Args:
        options: those keys, which stand beside the others in a job file.
    """

    type: Literal["dlrm", "deepfm", "wide_deep", "linear", "custom", "torch"]
    optimizer: Annotated[OptimizerConfig, BeforeValidator(_dense_adagrad)] = Adam()
    clip_global_norm: float | None = Field(None, gt=0)
    options: dict[str, Any] = {}

    @model_validator(mode="before")
    @classmethod
    def _options_apart(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        own = {name: value[name] for name in cls.model_fields if name in value}
        own.pop("options", None)
        return {**own, "options": {k: v for k, v in value.items() if k not in own}}

    @model_serializer(mode="wrap")
    def _options_beside(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values = handler(self)
        return {**{k: v for k, v in values.items() if k != "options"}, **values["options"]}

    @field_validator("optimizer")
    @classmethod
    def _without_rows(cls, value: Optimizer) -> Optimizer:
        if value.clip_norm is not None:
            raise ValueError(f"{NO_DENSE_CLIP_NORM}, or model.clip_global_norm")
        return value

    @field_validator("options")
    @classmethod
    def _plain_options(cls, value: dict[str, Any]) -> dict[str, Any]:
        """Options travel in checkpoints as JSON, and have to come back as they were."""
        for name, option in value.items():
            try:
                same = json.loads(json.dumps(option, allow_nan=False)) == option
            except (TypeError, ValueError):
                same = False
            if not same:
                raise ValueError(
                    f"option {name!r} must be numbers, texts, lists and mappings by text,"
                    f" got {option!r}"
                )
        return value
