"""What decides a key or an input beside the features, kept with a model and held against its data.

Equal values of two types are different keys: 7, "7" and a date have no row in common, and a
timestamp's key is its number in its unit.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from worker.errors import DataError
from worker.spec import FeatureSpec

_log = logging.getLogger(__name__)

RULES = 1
"""Version of docs/data.md: the hash of strings, what a null becomes, what a label may be."""


@dataclass(frozen=True, slots=True)
class ColumnKind:
    """What a sparse column of a plan holds.

    Args:
        column: its name in the job.
        kind: of its keys, as `worker.data.key_hash.key_kind`.
        file: the first one with values in it.
    """

    column: str
    kind: str
    file: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DataContract:
    """Part of a model's spec in a manifest.

    Args:
        rules: version of the rules by which columns became keys and inputs.
        keys: the kind of each sparse feature's keys, by its name; none where all were null.
    """

    rules: int = RULES
    keys: dict[str, str]

    def __post_init__(self) -> None:
        if self.rules != RULES:
            raise ValueError(
                f"its data became keys and inputs by rules of version {self.rules}, this software"
                f" has version {RULES}"
            )


def kinds_of_features(features: FeatureSpec, kinds: Sequence[ColumnKind]) -> dict[str, ColumnKind]:
    """Return what each feature's column holds, by the feature's name, where a plan knows it."""
    by_column = {each.column: each for each in kinds}
    return {
        feature.name: by_column[feature.column]
        for feature in features.sparse
        if feature.column in by_column
    }


def check_same_kinds(
    features: FeatureSpec, kinds: Sequence[ColumnKind], others: Sequence[ColumnKind]
) -> None:
    """Refuse data whose keys are not those of other data of the same features.

    Raises:
        DataError: names the column, both files and both kinds.
    """
    for name, other in kinds_of_features(features, others).items():
        check_kinds(features, kinds, {name: other.kind}, repr(other.file))


def check_kinds(
    features: FeatureSpec, kinds: Sequence[ColumnKind], expected: Mapping[str, str], where: str
) -> None:
    """Refuse data whose keys are not those that rows were trained for.

    Args:
        features: of the data.
        kinds: of the data's plan.
        expected: kinds by the name of the feature.
        where: what expects them.

    Raises:
        DataError: names file, column and both kinds.
    """
    for name, found in kinds_of_features(features, kinds).items():
        wanted = expected.get(name, found.kind)
        if found.kind != wanted:
            raise DataError(
                what="a sparse column would give other keys than the model's",
                file=found.file,
                column=found.column,
                got=f"got {found.kind}, expected {wanted} as in {where}",
                remedy="Equal values of two types are different keys: write the column with the"
                " type that it had",
            )


def check_contract(
    features: FeatureSpec, kinds: Sequence[ColumnKind], contract: DataContract | None, where: str
) -> None:
    """Hold data against what a checkpoint says; warn where it says nothing.

    Raises:
        DataError: as `check_kinds`.
    """
    if contract is None:
        _log.warning(
            "%s does not say which types its columns had, so the types of the data were not"
            " checked: equal values of other types are other keys",
            where,
        )
        return
    check_kinds(features, kinds, contract.keys, where)
