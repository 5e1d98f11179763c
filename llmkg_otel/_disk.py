"""What makes a file last: waiting for the disk, and a digest to know it again."""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["digest", "sync"]


def sync(path: Path) -> None:
    """Wait until the disk has a file's content, or a directory's names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def digest(path: Path) -> str:
    """Return a file's SHA-256 in hexadecimal; about 1 GB/s here."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
