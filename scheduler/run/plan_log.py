"""What the plan of a stream grew by, written down before anyone is told of it.

`plan/` in the run directory holds an extension a line, in files named by the first batch that they
have. Whoever goes on from a checkpoint goes on with the same batches as those before him.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from runtime.durable import flush_directory
from runtime.strict_json import json_text
from runtime.typed import from_json, to_json
from scheduler.coordinator.growing_plan import Extension, PlanState

PLAN_FOLDER = "plan"
MAX_FILE_BYTES = 4 << 20


class PlanLog:
    """Appends extensions, and reads them back.

    Args:
        run: the run directory.
        begins: the plan that the job goes on from; what was written down after it stays, as far as
            it follows it.

    Attributes:
        is_whole: whether what was there goes on from where `begins` ends.
    """

    def __init__(self, run: Path, begins: PlanState, *, max_bytes: int = MAX_FILE_BYTES) -> None:
        self._folder = run / PLAN_FOLDER
        self._max_bytes = max_bytes
        self._folder.mkdir(exist_ok=True)
        self._end = begins.planned
        self.is_whole = self._take_over(begins.planned)
        if not self.is_whole:
            shutil.rmtree(self._folder)
            self._folder.mkdir()
            self._end = begins.planned

    def append(self, extension: Extension) -> None:
        """Put an extension onto the disk; raises OSError where there is no room."""
        files = self._files()
        path = files[-1][1] if files else None
        if path is None or path.stat().st_size >= self._max_bytes:
            path = self._folder / f"from-{extension.first:015d}.jsonl"
        data = (json_text(to_json(extension)) + "\n").encode()
        with open(path, "ab") as file:
            before = file.tell()
            try:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            except OSError:
                with contextlib.suppress(OSError):
                    os.truncate(path, before)
                raise
        if before == 0:
            flush_directory(self._folder)
        self._end = extension.stop

    def extensions(self, first: int) -> Iterator[Extension]:
        """Yield what was written down from a batch on, in order, as far as it is there now."""
        files = self._files()
        for number, (_, path) in enumerate(files):
            if number + 1 < len(files) and files[number + 1][0] < first:
                continue
            with open(path, "rb") as file:
                for line in file:
                    extension = from_json(Extension, json.loads(line))
                    if extension.first >= first:
                        yield extension

    def forget(self, below: int) -> None:
        """Remove files that have no batch from an id on."""
        files = self._files()
        for (_, path), (following, _) in pairwise(files):
            if following > below:
                return
            path.unlink(missing_ok=True)

    def _take_over(self, planned: int) -> bool:
        """Look whether what is there goes on from `planned`; a line that was cut off goes."""
        files = self._files()
        if not files:
            return True
        if files[0][0] > planned:
            return False
        for _, path in files:
            data = path.read_bytes()
            whole = data.rfind(b"\n") + 1
            if whole < len(data):
                os.truncate(path, whole)
        try:
            for extension in self.extensions(planned):
                if extension.first != self._end:
                    return False
                self._end = extension.stop
        except (ValueError, RecursionError):
            return False
        return True

    def _files(self) -> list[tuple[int, Path]]:
        found = sorted(self._folder.glob("from-*.jsonl"))
        return [(int(path.stem.removeprefix("from-")), path) for path in found]
