"""A checkpoint on disk: a directory with the engine's data and a manifest that tells whether it is whole.

    DIRECTORY/checkpoint-00000042/data
    DIRECTORY/checkpoint-00000042/manifest.json

Numbers only grow, so that order does not hang on a clock.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from llmkg_otel._disk import digest
from llmkg_otel.errors import LlmkgOtelError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["CheckpointError", "Manifest", "checkpoints_in", "next_name", "verify"]

DATA = "data"
MANIFEST = "manifest.json"

_NAME = re.compile(r"checkpoint-(\d{8,})")


class CheckpointError(LlmkgOtelError):
    """A checkpoint could not be saved, or cannot be used; the message says why."""

    reason = "checkpoint"


class Manifest(BaseModel):
    """What a checkpoint holds. `counts` were read just before the copy began, so it holds at least these.

    `schema_version` is of the engine's data, None for an engine that does not tell. The fingerprint is of
    the configuration that was in force, secrets left out.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    manifest_version: Literal[1] = 1
    created: AwareDatetime
    engine: str
    schema_version: int | None
    size_bytes: int
    sha256: str
    counts: dict[str, int]
    config_fingerprint: str
    library_version: str


def checkpoints_in(directory: Path) -> list[Path]:
    """Return the checkpoints of a directory, the newest first; none if it does not exist."""
    if not directory.is_dir():
        return []
    return sorted((each for each in directory.iterdir() if _number(each)), key=_number, reverse=True)


def next_name(directory: Path) -> str:
    """Return the name of the checkpoint to come."""
    return f"checkpoint-{max(map(_number, checkpoints_in(directory)), default=0) + 1:08d}"


def verify(checkpoint: Path) -> Manifest:
    """Return the manifest of a checkpoint whose data is what was saved; reads all of it.

    Raises CheckpointError that says what is missing or wrong.
    """
    try:
        manifest = Manifest.model_validate_json((checkpoint / MANIFEST).read_bytes())
        data = checkpoint / DATA
        size = data.stat().st_size
        if size != manifest.size_bytes:
            raise CheckpointError(f"data has {size} bytes, the manifest says {manifest.size_bytes}")
        if digest(data) != manifest.sha256:
            raise CheckpointError("data is not what was saved: its SHA-256 differs from the manifest's")
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise CheckpointError(
            f"{MANIFEST} cannot be read: {where} {first['msg']}".replace("  ", " ")
        ) from None
    except OSError as error:
        raise CheckpointError(f"{error.filename}: {error.strerror}") from None
    return manifest


def _number(path: Path) -> int:
    """Return a checkpoint's number, 0 for anything else."""
    match = _NAME.fullmatch(path.name)
    return int(match[1]) if match else 0
