"""Where a model comes from, the newest version that lies there, and where its form is kept."""

import contextlib
import shutil
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path

from ps.checkpoint.intact import newest_intact
from ps.checkpoint.manifest import MANIFEST
from ps.checkpoint.read import CheckpointReader
from runtime.durable import PARTIAL
from runtime.places import Place
from serving.errors import ServingError
from serving.form.making import make_base, make_overlay
from serving.form.opening import Form, form_name
from serving.versions import Version

CHECKPOINTS = "checkpoints"
FORMS = "serving"


@dataclass(slots=True)
class Source:
    """A run directory, whose checkpoints are followed, or one checkpoint.

    Args:
        path: of either.
        forms: the folder of serving forms.
        follows: whether newer checkpoints may come.
    """

    path: Path
    forms: Path
    follows: bool
    _skipped: dict[Place, str] = field(default_factory=dict)
    _seen: frozenset[str] = frozenset()

    @classmethod
    def at(cls, path: str | Path, forms: str | Path | None = None) -> "Source":
        """Find out what lies at a path.

        Raises:
            ServingError: neither a run directory with checkpoints nor a checkpoint.
        """
        place = Path(path)
        if (place / CHECKPOINTS).is_dir():
            return cls(place, Path(forms) if forms else place / FORMS, True)
        if (place / MANIFEST).exists():
            parent = place.resolve().parent
            beside = parent.parent / FORMS if parent.name == CHECKPOINTS else parent / FORMS
            return cls(place, Path(forms) if forms else beside, False)
        raise ServingError(
            f"{place} is neither a run directory with a folder {CHECKPOINTS}, nor a checkpoint;"
            " name one that `synchromesh train` has written"
        )

    def newest(self, refuse: Callable[[str, str], None]) -> CheckpointReader | None:
        """Return the newest checkpoint that is all there, as far as sizes and manifests tell.

        Args:
            refuse: is told the name of each newer one that can't be used, once, and why.
        """
        if not self.follows:
            return CheckpointReader(self.path)
        found = newest_intact(self.path / CHECKPOINTS, skip=self._skipped)
        for each in found.passed:
            refuse(each.path.name, each.reason)
            self._skipped[each.path] = each.reason
        return found.reader

    def has_changed(self) -> bool:
        """Return whether there are other checkpoints than when this was asked last."""
        if not self.follows:
            return False
        try:
            names = frozenset(
                p.parent.name for p in (self.path / CHECKPOINTS).glob(f"*/{MANIFEST}")
            )
        except OSError:
            return False
        changed, self._seen = names != self._seen, names
        return changed

    def skip(self, reader: CheckpointReader, reason: str) -> None:
        """Leave a checkpoint out from now on: reading it has shown that it is damaged."""
        self._skipped[reader.directory] = reason

    def form_of(self, reader: CheckpointReader) -> Form:
        """Return the form of a checkpoint, which is made where there is none.

        Raises:
            CheckpointError: what is read of the checkpoint is damaged.
            ServingError: the form can't be written.
        """
        for kind in ("base", "overlay"):
            found = self._form(kind, reader.manifest.step, reader.seal)
            if found is not None:
                return found
        before = self._form_below(reader)
        if before is not None:
            return Form(make_overlay(reader, before, self.forms))
        return self.base_of(reader)

    def base_of(self, reader: CheckpointReader) -> Form:
        """Return a form of a checkpoint that lies on no other."""
        return Form(make_base(reader, self.forms))

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
        folder = self.forms / form_name(kind, step, seal)
        if not folder.is_dir():
            return None
        try:
            form = Form(folder)
            return form if form.manifest.seal == seal else None
        except ServingError:
            shutil.rmtree(folder, ignore_errors=True)  # it is made again
            return None

    def remove_forms(self, keep: Collection[str]) -> None:
        """Remove the forms that no kept version needs; who has them mapped keeps them."""
        with contextlib.suppress(OSError):
            for folder in self.forms.iterdir():
                ours = folder.name.startswith(("base-", "overlay-"))
                if ours and folder.name not in keep and not folder.name.startswith(PARTIAL):
                    shutil.rmtree(folder, ignore_errors=True)


def version_of(form: Form) -> Version:
    """Return what a form is a version of."""
    manifest = form.manifest
    return Version(
        checkpoint=manifest.checkpoint,
        seal=manifest.seal,
        step=manifest.step,
        recovery_epoch=manifest.recovery_epoch,
        written=manifest.written,
        form=form.folder.name,
        base=form.base_name,
    )
