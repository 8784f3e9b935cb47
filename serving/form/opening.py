"""Open a serving form: map its arrays, and make tables of them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ps.spec import StoreSpec
from serving.errors import ServingError
from serving.form.files import FormManifest, map_array, read_manifest, verify
from serving.rows.layers import LayerArrays, no_layer
from serving.rows.quantized import RowsAs, kind_for, width_of
from serving.rows.table import ServedTable, thresholds
from worker.spec_json import SavedModel, saved_model_from_json


def form_name(kind: str, step: int, seal: str, rows: RowsAs) -> str:
    """Return the name of the folder that a checkpoint's form has."""
    return f"{kind}-{step:012d}-{seal[:16]}" + ("" if rows == "float32" else f"-{rows}")


@dataclass(frozen=True, slots=True)
class OverlayArrays:
    """What an overlay has of a table.

    Args:
        layer: as kernels read it.
        keys: int64[rows + rowless keys], by number.
    """

    layer: LayerArrays
    keys: npt.NDArray[np.int64]


class Form:
    """One version of a model as it lies in files: a base, and an overlay where it is no base.

    Args:
        folder: of the base or the overlay.

    Attributes:
        manifest: of the folder.
        base_name: name of the base's folder, its own where it is one.
        model: the dense model, features and contract.
        dense: float32[dense parameters].

    Raises:
        ServingError: a file is missing or damaged, as far as can be seen without reading it all.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest: FormManifest = read_manifest(folder)
        self._base_folder, self._base = folder, self.manifest
        if self.manifest.base is not None:
            self._base_folder = folder.parent / Path(self.manifest.base).name
            self._base = read_manifest(self._base_folder)
        self.base_name = self._base_folder.name
        try:
            self.store = StoreSpec.from_json(self.manifest.store)
            self.model: SavedModel = saved_model_from_json(self.manifest.model)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ServingError(f"{folder} does not describe a model: {error}") from error
        self.dense = self.array("dense")

    @property
    def is_base(self) -> bool:
        return self.manifest.kind == "base"

    @property
    def num_rows(self) -> tuple[int, int]:
        """Rows of the base, and keys that the overlay says something of."""
        base = sum(e.shape[0] for n, e in self._base.files.items() if n.endswith("/values"))
        if self.is_base:
            return base, 0
        keys = sum(e.shape[0] for n, e in self.manifest.files.items() if n.endswith("/keys"))
        return base, keys

    @property
    def vector_bytes(self) -> int:
        """What vectors take, those of its base included."""
        files = [*self._base.files.items()]
        if not self.is_base:
            files += self.manifest.files.items()
        return sum(entry.num_bytes for name, entry in files if name.endswith("/values"))

    @property
    def num_bytes(self) -> int:
        """What its files take, those of its base included."""
        files = [*self._base.files.values()]
        if not self.is_base:
            files += self.manifest.files.values()
        return sum(entry.num_bytes for entry in files)

    def array(self, name: str) -> npt.NDArray[Any]:
        """Map one array of the folder."""
        return _mapped(self.folder, self.manifest, name)

    def overlay_of(self, table: str) -> OverlayArrays | None:
        """Return what the overlay has of a table; None of a base."""
        if self.is_base:
            return None
        keys = self.array(f"tables/{table}/keys")
        return OverlayArrays(_layer(self.folder, self.manifest, table), keys)

    def tables(self) -> dict[str, ServedTable]:
        """Map all tables, those that others read included."""
        names = {name.split("/")[1] for name in self._base.files if name.startswith("tables/")}
        specs = [spec for spec in self.store.tables if spec.name in names]
        asked = thresholds(specs)
        tables: dict[str, ServedTable] = {}
        for spec in sorted(specs, key=lambda spec: spec.base is not None):
            kept_as = kind_for(spec, self.manifest.rows)
            base = _layer(self._base_folder, self._base, spec.name)
            if base.values.shape[1] != width_of(spec.dim, kept_as):
                raise ServingError(f"{self._base_folder} is damaged: vectors of {spec.name!r}")
            overlay = no_layer(base.values.shape[1])
            if not self.is_base:
                overlay = _layer(self.folder, self.manifest, spec.name)
            filters = {
                count: self.array(f"tables/{spec.name}/reached-{count}")
                for count in asked.get(spec.name, ())
            }
            read = None if spec.base is None else tables[spec.base]
            tables[spec.name] = ServedTable(
                spec,
                base,
                overlay,
                kept_as=kept_as,
                filters=filters.__getitem__,
                read=read,
            )
        return tables

    def verify(self) -> None:
        """Read all files, also the base's, and hold them against their checksums.

        Raises:
            ServingError: names the first that is damaged.
        """
        self.verify_own()
        if not self.is_base:
            verify(self._base_folder, self._base)

    def verify_own(self) -> None:
        """Do so with the files of the folder itself.

        Raises:
            ServingError: names the first that is damaged.
        """
        verify(self.folder, self.manifest)


def _mapped(folder: Path, manifest: FormManifest, name: str) -> npt.NDArray[Any]:
    entry = manifest.files.get(name)
    if entry is None:
        raise ServingError(f"{folder} is damaged: it lacks {name}")
    return map_array(folder, name, entry)


def _layer(folder: Path, manifest: FormManifest, table: str) -> LayerArrays:
    name = f"tables/{table}"
    arrays = LayerArrays(
        entries=_mapped(folder, manifest, f"{name}/index"),
        values=_mapped(folder, manifest, f"{name}/values"),
        rowless=_mapped(folder, manifest, f"{name}/rowless"),
        frequency=_mapped(folder, manifest, f"{name}/frequency"),
    )
    return arrays
