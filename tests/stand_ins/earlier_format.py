"""Checkpoints as earlier versions wrote them, made of ones that were written today."""

import hashlib
import json
from pathlib import Path

from ps.checkpoint.sealed_json import sealed_text, unsealed


def without_parts(directory: Path) -> Path:
    """Make a checkpoint one of format version 2 that does not list the parts of its files."""
    for path in directory.glob("parts-*"):
        path.unlink()
    manifest = directory / "manifest.json"
    data = unsealed(json.loads(manifest.read_text()))
    data["format_version"] = 2
    data["files"] = [
        {
            "path": entry["path"],
            "bytes": entry["bytes"],
            "sha256": hashlib.sha256((directory / entry["path"]).read_bytes()).hexdigest(),
            "rows": entry["rows"],
        }
        for entry in data["files"]
        if not entry["path"].startswith("parts-")
    ]
    manifest.write_text(sealed_text(data)[0])
    return directory
