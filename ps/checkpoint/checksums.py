"""Checksums of a checkpoint's files, which the manifest holds, and of their parts.

    format version 1, 2   SHA-256 of a file, and of each of its parts
    from 3 on             BLAKE3 of each part and of what follows the last one; of a file BLAKE3 of
                          these digests, one after another. A list of parts has none of its own:
                          BLAKE3 of the file

So each byte is hashed once. Both are cryptographic: who knows the checksum of a manifest from
elsewhere knows that what it names is what was written.

Source: O'Connor et al. 2020, BLAKE3: one function, fast everywhere.
"""

import hashlib
from collections.abc import Iterable
from typing import Protocol

from blake3 import blake3

DIGEST_BYTES = 32
TREE_VERSION = 3
"""The first format version whose files have the checksum of their parts' checksums."""


class Hasher(Protocol):
    """What hashlib and blake3 give."""

    def update(self, data: memoryview, /) -> object: ...

    def digest(self) -> bytes: ...


def new_hasher(format_version: int) -> Hasher:
    """Return what computes the checksum of a part."""
    return hashlib.sha256() if format_version < TREE_VERSION else blake3()


def digest_of(data: bytes | memoryview, format_version: int) -> bytes:
    """Return the checksum of a part, or of a file that has none listed."""
    hasher = new_hasher(format_version)
    hasher.update(memoryview(data))
    return hasher.digest()


def tree_digest(digests: Iterable[bytes]) -> bytes:
    """Return a file's checksum from those of its parts and of what follows the last one."""
    return digest_of(b"".join(digests), TREE_VERSION)
