"""The neo4j driver's own code against a socket: what each of its calls tells. Not a neo4j server."""

from __future__ import annotations

from typing import TYPE_CHECKING

import neo4j
import pytest
from opentelemetry.trace import SpanKind
from support.bolt import FAILING, bolt_server
from support.stores import instrumented

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llmkg_otel.testing import CapturedTelemetry


@pytest.fixture(scope="module")
def uri() -> Iterator[str]:
    with bolt_server() as address:
        yield address


def told(telemetry: CapturedTelemetry) -> list[tuple[str, object, object]]:
    for span in telemetry.spans():
        assert span.kind is SpanKind.CLIENT
        assert (span.attributes or {})["db.system.name"] == "neo4j"
    attributes = [(span.name, span.attributes or {}) for span in telemetry.spans()]
    return [(name, a.get("error.type"), a.get("db.response.returned_rows")) for name, a in attributes]


def read(transaction: neo4j.ManagedTransaction) -> list[int]:
    return [row["n"] for row in transaction.run("MATCH (n) RETURN n")]


def test_sync_calls_are_told_of_once_each_and_protected_by_the_driver_itself(uri: str) -> None:
    with instrumented(protect=True) as telemetry, neo4j.GraphDatabase.driver(uri) as driver:
        assert [row["n"] for row in driver.execute_query("RETURN 1").records] == [1, 2]
        with driver.session() as session:
            assert [row["n"] for row in session.run("RETURN 1")] == [1, 2]
            assert session.execute_read(read) == [1, 2]
            assert session.execute_write(read) == [1, 2]
            with session.begin_transaction() as transaction:
                assert [row["n"] for row in transaction.run("RETURN 1")] == [1, 2]
            with pytest.raises(neo4j.exceptions.CypherSyntaxError):
                session.run(f"{FAILING} with a secret")
        assert told(telemetry) == [
            ("execute_query", None, 2),
            ("run", None, None),
            ("execute_read", None, None),
            ("execute_write", None, None),
            ("run", None, None),
            ("run", "CypherSyntaxError", None),
        ]
        assert "secret" not in str([span.to_json() for span in telemetry.spans()])
        assert telemetry.metric("llmkg.operation.duration") == {}


async def test_async_calls_are_told_of_once_each(uri: str) -> None:
    async def aread(transaction: neo4j.AsyncManagedTransaction) -> list[int]:
        return [row["n"] async for row in await transaction.run("MATCH (n) RETURN n")]

    with instrumented() as telemetry:
        async with neo4j.AsyncGraphDatabase.driver(uri) as driver:
            assert [row["n"] for row in (await driver.execute_query("RETURN 1")).records] == [1, 2]
            async with driver.session() as session:
                assert [row["n"] async for row in await session.run("RETURN 1")] == [1, 2]
                assert await session.execute_read(aread) == [1, 2]
        assert told(telemetry) == [
            ("execute_query", None, 2),
            ("run", None, None),
            ("execute_read", None, None),
        ]


def test_a_server_that_is_not_there_is_told_of() -> None:
    with instrumented() as telemetry, neo4j.GraphDatabase.driver("bolt://127.0.0.1:1") as driver:
        session = driver.session()
        with pytest.raises(neo4j.exceptions.ServiceUnavailable):
            session.run("RETURN 1")
        session.close()
        assert told(telemetry) == [("run", "ServiceUnavailable", None)]
