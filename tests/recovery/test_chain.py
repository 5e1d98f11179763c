"""An engine's exception keeps its own chain: what it was raised from, and nothing of this layer's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from support.calls import PATHS

if TYPE_CHECKING:
    from support.calls import Path

    from llmkg_otel.system import ProductionSystem


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("chained", ["from", "during", "alone"])
async def test_the_last_failure_has_the_chain_it_was_raised_with(
    path: Path, chained: str, system: ProductionSystem
) -> None:
    reasons: list[BaseException] = []

    def fails() -> Any:
        reason = KeyError(len(reasons))
        reasons.append(reason)
        if chained == "from":
            raise ConnectionError from reason
        if chained == "alone":
            raise ConnectionError
        try:
            raise reason
        except KeyError:
            raise ConnectionError  # noqa: B904 - that is the case to look at

    with pytest.raises(ConnectionError) as caught:
        await path(system, fails)
    last = reasons[-1]
    assert caught.value.__cause__ is (last if chained == "from" else None)
    assert caught.value.__context__ is (last if chained == "during" else None)
