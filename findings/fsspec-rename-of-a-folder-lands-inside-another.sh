#!/usr/bin/env bash
# fsspec 2026.9.0: `rename` (an alias of `mv`) of a folder onto one that exists puts it *into* that one, as the shell's mv does, and
# reports success: after rename("model.partial", "model") the new files are at model/model.partial and the old ones stay
# where readers look. The in-memory file system does so too. os.rename and pyarrow's LocalFileSystem.move refuse it.
# Expected: what a rename is, all or nothing: the name changes, or an error says that it is taken. Publishing a checkpoint or
# a dataset by write-aside-and-rename so keeps the old version for ever, silently, from the second time on.
# What to do: look whether the name is taken and remove or choose another one; os.rename where the target is local.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check fsspec==2026.9.0 pyarrow==26.0.1
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import os

import fsspec
import pyarrow.fs


def publish(fs, root):
    """Write two versions aside and rename each; return all files."""
    for version in (b"old", b"new"):
        fs.makedirs(f"{root}/model.partial", exist_ok=True)
        fs.pipe(f"{root}/model.partial/weights", version)
        fs.rename(f"{root}/model.partial", f"{root}/model", recursive=True)
    return {path.split(root)[-1]: fs.cat_file(path) for path in fs.find(root)}


here = os.getcwd()
for fs, root in ((fsspec.filesystem("file"), f"{here}/local"), (fsspec.filesystem("memory"), "/x")):
    found = publish(fs, root)
    print(type(fs).__name__, found)
    assert found == {"/model/weights": b"old", "/model/model.partial/weights": b"new"}

os.makedirs("model.partial")
for rename in (os.rename, pyarrow.fs.LocalFileSystem().move):
    try:
        rename("model.partial", "local/model")
        raise AssertionError(f"{rename} does it too")
    except OSError as error:
        print(rename, error)
PYTHON
