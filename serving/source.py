"""Where a model comes from, the newest version that lies there, and where its form is kept."""

import contextlib
import shutil
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from ps.checkpoint.errors import CheckpointError, CheckpointRemovedError
from ps.checkpoint.files import CheckpointFiles
from ps.checkpoint.intact import names_in, newest_intact
from ps.checkpoint.manifest import MANIFEST
from ps.checkpoint.read import CheckpointReader
from runtime.durable import PARTIAL
from runtime.places import Place, is_file, place_of
from serving.errors import ServingError
from serving.form.making import WhenMaking, make_base, make_overlay
from serving.form.opening import Form, form_name
from serving.rows.quantized import RowsAs
from serving.versions import Version

CHECKPOINTS = "checkpoints"
FORMS = "serving"
JOB_FILE = "job.yaml"
# How often it is looked for newer checkpoints: a list of names each time, in a store a request.
LOCAL_SECONDS, STORE_SECONDS = 0.25, 1.0
_MAX_JOB_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class Found:
    """What was found that is newer.

    Args:
        form: the folder of its form; None: there is nothing newer that can be used.
        checkpoint: its name.
        refused: checkpoints that are newer still and can't be used, each with why.
    """

    form: Path | None = None
    checkpoint: str = ""
    refused: tuple[tuple[str, str], ...] = ()


@dataclass(slots=True)
class Source:
    """The checkpoints of a run, which are followed, or one checkpoint.

    Args:
        path: of either, or the URL where they are.
        forms: the folder of serving forms, on a local disk.
        follows: whether newer checkpoints may come.
        rows: how forms keep vectors.
        skipped: checkpoints that are left out, each with why.
        when_making: called as rows are written of a form that has all of them.
    """

    path: Place
    forms: Path
    follows: bool
    rows: RowsAs = "float32"
    skipped: dict[Place, str] = field(default_factory=dict)
    when_making: WhenMaking | None = None
    # What is known to be all there. It is not read again, whether it is still needed or not.
    _known: dict[Place, CheckpointFiles] = field(default_factory=dict)
    # Overlays that were made here, or have been verified.
    _made: set[str] = field(default_factory=set)
    # Forms that were opened, by name, those that are removed left out.
    _opened: dict[str, Form] = field(default_factory=dict)

    @classmethod
    def at(
        cls, path: str | Place, forms: str | Path | None = None, rows: RowsAs = "float32"
    ) -> "Source":
        """Find out what lies at a path or URL.

        Raises:
            ServingError: neither a run directory with checkpoints nor a checkpoint.
            OSError: a store can't be looked at.
        """
        place = place_of(path)
        if is_file(place / MANIFEST):
            return cls(place, _forms_beside(place, forms), False, rows)
        if isinstance(place, Path):
            checkpoints = _checkpoints_of(place)
            if checkpoints is not None:
                return cls(checkpoints, Path(forms) if forms else place / FORMS, True, rows)
            if is_file(place / JOB_FILE):
                raise ServingError(
                    f"{place} has no checkpoint yet; come again once its job has written one, at"
                    " its end or as checkpoint.every_seconds has it"
                )
        elif names_in(place):
            return cls(place, _forms_beside(place, forms), True, rows)
        raise ServingError(
            f"{place} is neither a run directory with a folder {CHECKPOINTS}, nor a place of"
            " checkpoints in a store, nor a checkpoint; name one that `synchromesh train` has"
            " written"
        )

    def find(self, after: tuple[int, int] | None) -> Found:
        """Look for a checkpoint that is newer than all that are known, and make its form.

        One that is damaged, or that lies on nothing that is there, is refused and the one before
        it taken.

        Args:
            after: recovery epoch and step of the newest that is known; None: none is.

        Raises:
            CheckpointError, ServingError: the checkpoint, where none is followed, can't be used.
            OSError: a store can't be looked at.
        """
        refused: list[tuple[str, str]] = []
        if after is not None and not self._has_changed():
            return Found()
        while True:
            reader = self._newest(refused)
            if reader is None or (after is not None and _place(reader) <= after):
                return Found(refused=tuple(refused))
            try:
                return Found(self._form_of(reader), reader.directory.name, tuple(refused))
            except CheckpointRemovedError:
                self._forget(reader)  # something newer has taken its place
            except (CheckpointError, ServingError) as error:
                if not self.follows:
                    raise
                self.skip(reader.directory.name, str(error))
                refused.append((reader.directory.name, str(error)))

    def _newest(self, refused: list[tuple[str, str]]) -> CheckpointReader | None:
        """Return the newest checkpoint that is all there, as far as sizes and manifests tell.

        Args:
            refused: gets the name of each newer one that can't be used, once, and why.
        """
        if not self.follows:
            return CheckpointReader(self.path)
        found = newest_intact(self.path, skip=self.skipped, known=self._known)
        for each in found.passed:
            refused.append((each.path.name, each.reason))
            self.skipped[each.path] = each.reason
        return found.reader

    def _has_changed(self) -> bool:
        """Return whether there may be checkpoints that were not there before.

        Raises:
            OSError: a store can't be looked at.
        """
        if not self.follows:
            return False
        there = {self.path / name for name in names_in(self.path)}
        for known in (self._known, self.skipped):
            for gone in known.keys() - there:  # another one may come to have its name
                del known[gone]
        return not there <= self._known.keys() | self.skipped.keys()

    @property
    def usual_seconds(self) -> float:
        """How often it is looked for newer checkpoints unless somebody says otherwise."""
        return LOCAL_SECONDS if isinstance(self.path, Path) else STORE_SECONDS

    def _forget(self, reader: CheckpointReader) -> None:
        """A checkpoint was removed while it was read: look again at it and what it lies on."""
        for files in reader.chain:
            self._known.pop(files.directory, None)

    def skip(self, checkpoint: str, reason: str) -> None:
        """Leave a checkpoint out from now on: it was seen that it can't be used."""
        self.skipped[self.path / checkpoint] = reason

    def _form_of(self, reader: CheckpointReader) -> Path:
        """Return the form of a checkpoint, which is made where there is none.

        Raises:
            CheckpointError: what is read of the checkpoint is damaged.
            ServingError: the form can't be written.
        """
        for kind in ("base", "overlay"):
            found = self._form(kind, reader.manifest.step, reader.seal)
            if found is not None:
                return found.folder
        before = self._form_below(reader)
        if before is None:
            return make_base(reader, self.forms, self.rows, self.when_making)
        made = make_overlay(reader, before, self.forms)
        self._made.add(made.name)
        return made

    def base_of(self, checkpoint: str) -> Path:
        """Return a form of a checkpoint that lies on no other; raises as `find`."""
        place = self.path / checkpoint if self.follows else self.path
        return make_base(CheckpointReader(place), self.forms, self.rows)

    def base_name(self, version: Version) -> str:
        """Return the name that `base_of` gives."""
        return form_name("base", version.step, version.seal, self.rows)

    def _form_below(self, reader: CheckpointReader) -> Form | None:
        """Return the newest form on the newest base of what a delta lies on."""
        newest: Form | None = None
        overlays: list[Form] = []
        for files in reader.chain[1:]:
            step, seal = files.manifest.step, files.seal
            newest = self._form("base", step, seal)
            if newest is not None:
                break
            overlay = self._form("overlay", step, seal)
            if overlay is not None:
                overlays.append(overlay)
        if newest is None:
            return None
        return next((each for each in overlays if each.base_name == newest.base_name), newest)

    def _form(self, kind: str, step: int, seal: str) -> Form | None:
        folder = self.forms / form_name(kind, step, seal, self.rows)
        form = self._opened.pop(folder.name, None)
        if not folder.is_dir():
            return None
        try:
            if form is None:
                form = Form(folder, next(iter(self._opened.values()), None))
            if form.manifest.seal != seal:
                return None
            if not form.is_base and folder.name not in self._made:
                form.verify_own()  # it may not have come to the disk before the power went
                self._made.add(folder.name)
        except ServingError:
            shutil.rmtree(folder, ignore_errors=True)  # it is made again
            return None
        self._opened[folder.name] = form
        return form

    def _is_ours(self, name: str) -> bool:
        """Whether a form's vectors are kept as this one's: another server may use the others."""
        kept_as = name.split("-")[3:] or ["float32"]
        return kept_as == [self.rows]

    def remove_forms(self, keep: Collection[str]) -> None:
        """Remove the forms that no kept version needs; who has them mapped keeps them."""
        self._made.intersection_update(keep)
        self._opened = {name: form for name, form in self._opened.items() if name in keep}
        with contextlib.suppress(OSError):
            for folder in self.forms.iterdir():
                ours = folder.name.startswith(("base-", "overlay-")) and self._is_ours(folder.name)
                if ours and folder.name not in keep and not folder.name.startswith(PARTIAL):
                    shutil.rmtree(folder, ignore_errors=True)


def _checkpoints_of(run: Path) -> Place | None:
    """Return where a run's checkpoints are: where its job file says, else in the run directory."""
    try:
        with open(run / JOB_FILE, encoding="utf-8") as file:
            job = yaml.safe_load(file.read(_MAX_JOB_BYTES))
        path = job["checkpoint"]["path"]
        if isinstance(path, str):
            return place_of(path)
    except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError):
        pass  # there is none, or it is of a version that had no such key
    return run / CHECKPOINTS if (run / CHECKPOINTS).is_dir() else None


def _forms_beside(place: Place, forms: str | Path | None) -> Path:
    """Return where the forms of a checkpoint, or of a place of checkpoints, are kept."""
    if forms is not None:
        return Path(forms)
    if not isinstance(place, Path):
        raise ServingError(
            f"{place} is in a store; say in which folder of this machine serving forms are kept"
            " (--forms)"
        )
    parent = place.resolve().parent
    return parent.parent / FORMS if parent.name == CHECKPOINTS else parent / FORMS


def _place(reader: CheckpointReader) -> tuple[int, int]:
    return reader.manifest.recovery_epoch, reader.manifest.step
