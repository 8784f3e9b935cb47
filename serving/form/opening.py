"""Open a serving form: map its arrays, and make tables of them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ps.spec import StoreSpec
from serving.errors import ServingError
from serving.form.files import (
    MANIFEST,
    FormManifest,
    let_go,
    map_array,
    read_manifest,
    verify,
)
from serving.rows.layers import LayerArrays, no_layer
from serving.rows.paging import RowCache, VectorFile
from serving.rows.quantized import RowsAs, kind_for, width_of
from serving.rows.table import PagedLayers, ServedTable, thresholds
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


_NOTHING = np.empty((0, 1), np.float32)


class _Layers:
    """A base or an overlay, whose arrays are mapped once, also where several versions have them."""

    def __init__(self, folder: Path, manifest: FormManifest) -> None:
        self.folder, self.manifest = folder, manifest
        self.written = _written(folder)
        self._layers: dict[str, LayerArrays] = {}
        self._files: dict[str, VectorFile] = {}

    def of(self, table: str) -> LayerArrays:
        if table not in self._layers:
            name = f"tables/{table}"
            self._layers[table] = LayerArrays(
                entries=_mapped(self.folder, self.manifest, f"{name}/index"),
                values=_mapped(self.folder, self.manifest, f"{name}/values"),
                rowless=_mapped(self.folder, self.manifest, f"{name}/rowless"),
                frequency=_mapped(self.folder, self.manifest, f"{name}/frequency"),
            )
        return self._layers[table]

    def file_of(self, table: str) -> VectorFile:
        """Return the file of a table's vectors, which is read instead of what is mapped of it."""
        if table not in self._files:
            name = f"tables/{table}/values"
            shape = self.manifest.files[name].shape
            self._files[table] = VectorFile(self.folder / name, *shape)
        return self._files[table]

    def arrays(self) -> list[npt.NDArray[Any]]:
        """Those that are mapped, and read where they are."""
        return [
            array
            for name, layer in self._layers.items()
            for array in (layer._replace(values=_NOTHING) if name in self._files else layer)
        ]


class Form:
    """One version of a model as it lies in files: a base, and an overlay where it is no base.

    Args:
        folder: of the base or the overlay.
        like: a version that was opened before: what both have in common is not read and mapped
            again, so that its pages stay where they are found.

    Attributes:
        manifest: of the folder.
        base_name: name of the base's folder, its own where it is one.
        model: the dense model, features and contract.
        dense: float32[dense parameters].

    Raises:
        ServingError: a file is missing or damaged, as far as can be seen without reading it all.
    """

    def __init__(self, folder: Path, like: "Form | None" = None) -> None:
        self.folder = folder
        self.manifest: FormManifest = read_manifest(folder)
        self._own = _Layers(folder, self.manifest)
        self._base = self._base_of(like)
        self.base_name = self._base.folder.name
        self.store, self.model = self._described(like)
        self.dense = self.array("dense")

    def _described(self, like: "Form | None") -> tuple[StoreSpec, SavedModel]:
        manifest = self.manifest
        if like is not None:
            known = like.manifest
            if (known.store, known.model) == (manifest.store, manifest.model):
                return like.store, like.model
        try:
            return StoreSpec.from_json(manifest.store), saved_model_from_json(manifest.model)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ServingError(f"{self.folder} does not describe a model: {error}") from error

    def _base_of(self, like: "Form | None") -> _Layers:
        if self.manifest.base is None:
            return self._own
        folder = self.folder.parent / Path(self.manifest.base).name
        if like is not None and like.base_name == folder.name:
            known = like._base
            if known.folder == folder and known.written == _written(folder):
                return known
        return _Layers(folder, read_manifest(folder))

    @property
    def is_base(self) -> bool:
        return self.manifest.kind == "base"

    @property
    def num_rows(self) -> tuple[int, int]:
        """Rows of the base, and keys that the overlay says something of."""
        base = sum(
            e.shape[0] for n, e in self._base.manifest.files.items() if n.endswith("/values")
        )
        if self.is_base:
            return base, 0
        keys = sum(e.shape[0] for n, e in self.manifest.files.items() if n.endswith("/keys"))
        return base, keys

    @property
    def vector_bytes(self) -> int:
        """What vectors take, those of its base included."""
        files = [*self._base.manifest.files.items()]
        if not self.is_base:
            files += self.manifest.files.items()
        return sum(entry.num_bytes for name, entry in files if name.endswith("/values"))

    @property
    def num_bytes(self) -> int:
        """What its files take, those of its base included."""
        files = [*self._base.manifest.files.values()]
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
        return OverlayArrays(self._own.of(table), keys)

    @property
    def width(self) -> int:
        """Float32 places of the widest vector of a table."""
        return max(
            (e.shape[1] for n, e in self._base.manifest.files.items() if n.endswith("/values")),
            default=1,
        )

    def tables(self, cache: RowCache | None = None) -> dict[str, ServedTable]:
        """Map all tables, those that others read included.

        Args:
            cache: reads vectors from their files; None: they are mapped, too.
        """
        names = {
            name.split("/")[1] for name in self._base.manifest.files if name.startswith("tables/")
        }
        specs = [spec for spec in self.store.tables if spec.name in names]
        asked = thresholds(specs)
        tables: dict[str, ServedTable] = {}
        for spec in sorted(specs, key=lambda spec: spec.base is not None):
            kept_as = kind_for(spec, self.manifest.rows)
            base = self._base.of(spec.name)
            if base.values.shape[1] != width_of(spec.dim, kept_as):
                raise ServingError(f"{self._base.folder} is damaged: vectors of {spec.name!r}")
            overlay = no_layer(base.values.shape[1])
            if not self.is_base:
                overlay = self._own.of(spec.name)
            filters = {
                count: self.array(f"tables/{spec.name}/reached-{count}")
                for count in asked.get(spec.name, ())
            }
            read = None if spec.base is None else tables[spec.base]
            paged = None
            if cache is not None:
                top = self._base if self.is_base else self._own
                paged = PagedLayers(cache, (self._base.file_of(spec.name), top.file_of(spec.name)))
            tables[spec.name] = ServedTable(
                spec,
                base,
                overlay,
                kept_as=kept_as,
                filters=filters.__getitem__,
                read=read,
                paged=paged,
            )
        return tables

    def has_base_of(self, other: "Form") -> bool:
        """Whether both lie on the same base, mapped once."""
        return self._base is other._base

    def new_since(self, other: "Form") -> list[npt.NDArray[Any]]:
        """Return the arrays of its tables that another version has not mapped."""
        found = [] if self.has_base_of(other) else self._base.arrays()
        return found if self.is_base else found + self._own.arrays()

    def let_go_of_base(self) -> None:
        """No version that lies on its base is needed any more."""
        for array in self._base.arrays():
            let_go(array)

    def verify(self) -> None:
        """Read all files, also the base's, and hold them against their checksums.

        Raises:
            ServingError: names the first that is damaged.
        """
        self.verify_own()
        if not self.is_base:
            verify(self._base.folder, self._base.manifest)

    def verify_own(self) -> None:
        """Do so with the files of the folder itself.

        Raises:
            ServingError: names the first that is damaged.
        """
        verify(self.folder, self.manifest)


def _written(folder: Path) -> tuple[int, int, int]:
    """Return what tells a manifest from another one of its name."""
    try:
        found = (folder / MANIFEST).stat()
    except OSError as error:
        raise ServingError(f"{folder / MANIFEST} can't be used: {error}") from error
    return found.st_ino, found.st_size, found.st_mtime_ns


def _mapped(folder: Path, manifest: FormManifest, name: str) -> npt.NDArray[Any]:
    entry = manifest.files.get(name)
    if entry is None:
        raise ServingError(f"{folder} is damaged: it lacks {name}")
    return map_array(folder, name, entry)
