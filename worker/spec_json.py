"""The specs of a dense model and its features, read back from the manifest of a checkpoint."""

from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from worker.contract import DataContract
from worker.spec import FeatureSpec, ModelSpec


class SavedModel(BaseModel):
    """What a manifest says of the model; written as `asdict` of both.

    Attributes:
        spec: the dense model and its lookups.
        features: the columns of a sample, as they were in training.
        contract: what else decides keys and inputs; None where the manifest does not say it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    spec: ModelSpec
    features: FeatureSpec
    contract: DataContract | None = None


def saved_model_from_json(data: dict[str, Any]) -> SavedModel:
    """Read both specs.

    Raises:
        ValueError: a field is missing, not known or of another type, or the specs don't fit each
            other; the message names the first field that is wrong.
    """
    try:
        saved = SavedModel.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"{field or 'the model'}: {first['msg']}") from error
    if saved.spec.num_dense != len(saved.features.dense):
        raise ValueError(
            f"the model takes {saved.spec.num_dense} dense features, {len(saved.features.dense)}"
            " are listed"
        )
    for lookup in saved.spec.lookups:
        if not 0 <= lookup.feature < len(saved.features.sparse):
            raise ValueError(
                f"a lookup names sparse feature {lookup.feature}, {len(saved.features.sparse)}"
                " are listed"
            )
    return saved
