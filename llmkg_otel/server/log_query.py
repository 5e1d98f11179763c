"""What /logs may be asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from llmkg_otel.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic_core import ErrorDetails

__all__ = ["LogQuery"]


class LogQuery(BaseModel):
    """The parameters of /logs, as `RecentLogs.read` takes them; None matches anything."""

    model_config = ConfigDict(extra="forbid")

    limit: int = Field(default=100, ge=1)
    level: Literal["debug", "info", "warning", "error"] = "debug"
    event: str | None = None
    correlation_id: str | None = None

    @classmethod
    def of(cls, parameters: Mapping[str, str]) -> Self:
        """Read query parameters; raise InvalidInputError that names each wrong one and what is allowed."""
        try:
            return cls.model_validate(dict(parameters))
        except ValidationError as error:
            raise InvalidInputError("; ".join(map(_told, error.errors()))) from None


def _told(error: ErrorDetails) -> str:
    name = error["loc"][0]
    if error["type"] == "extra_forbidden":
        return f"{name} is no parameter of /logs; known: {', '.join(LogQuery.model_fields)}"
    return f"{name}: {error['msg']}, not {error['input']!r}"
