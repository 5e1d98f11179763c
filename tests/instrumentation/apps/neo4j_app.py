"""A program on the neo4j driver, async or sync, with the server at a URI. Knows nothing of llmkg_otel."""

import asyncio
import json
import sys

import neo4j
from neo4j.exceptions import ConstraintError, CypherSyntaxError, ResultConsumedError, TransientError

CLEAR = "MATCH (n) DETACH DELETE n"
CONSTRAINT = "CREATE CONSTRAINT city IF NOT EXISTS FOR (c:City) REQUIRE c.name IS UNIQUE"
CREATE = """UNWIND $rows AS row
CREATE (c:City {name: row.name})-[:CAPITAL_OF]->(:Country {name: row.of}) RETURN c.name AS name"""
FIND = "MATCH (c:City)-[:CAPITAL_OF]->(l:Country) RETURN c.name AS city, l.name AS of ORDER BY city"
ROWS = [{"name": "Paris", "of": "France"}, {"name": "Berlin", "of": "Germany"}]
ERRORS = (ConstraintError, CypherSyntaxError, ResultConsumedError)


def sync(uri: str) -> dict[str, object]:
    told: dict[str, object] = {"errors": []}
    attempts = []

    def write(transaction: neo4j.ManagedTransaction, rows: list[dict[str, str]]) -> list[str]:
        attempts.append(len(rows))
        names = [record["name"] for record in transaction.run(CREATE, rows=rows)]
        if len(attempts) == 1:
            raise TransientError("not now")
        return names

    with neo4j.GraphDatabase.driver(uri) as driver:
        driver.execute_query(CONSTRAINT)
        driver.execute_query(CLEAR)
        with driver.session() as session:
            told["written"] = session.execute_write(write, ROWS)
            told["found"] = session.execute_read(lambda transaction: transaction.run(FIND).data())
            result = session.run("UNWIND range(1, 2500) AS n RETURN n")
            told["streamed"] = sum(record["n"] for record in result)
            for query in ("RETURN nonsense nonsense", "CREATE (:City {name: 'Paris'})"):
                try:
                    session.run(query).consume()
                except ERRORS as error:
                    told["errors"].append([type(error).__name__, error.code])
            with session.begin_transaction() as transaction:
                transaction.run("CREATE (:City {name: 'Rome'})")
                transaction.rollback()
            with session.begin_transaction() as transaction:
                told["counters"] = str(transaction.run("CREATE (:City {name: 'Oslo'})").consume().counters)
                transaction.commit()
        records, summary, keys = driver.execute_query("MATCH (c:City) RETURN c.name AS name ORDER BY name")
        told |= {"records": [record["name"] for record in records], "keys": keys, "type": summary.query_type}
    return told | {"attempts": attempts}


async def asynchronous(uri: str) -> dict[str, object]:
    told: dict[str, object] = {"errors": []}
    attempts = []

    async def write(transaction: neo4j.AsyncManagedTransaction, rows: list[dict[str, str]]) -> list[str]:
        attempts.append(len(rows))
        names = [record["name"] async for record in await transaction.run(CREATE, rows=rows)]
        if len(attempts) == 1:
            raise TransientError("not now")
        return names

    async def find(transaction: neo4j.AsyncManagedTransaction) -> list[dict[str, str]]:
        return await (await transaction.run(FIND)).data()

    async with neo4j.AsyncGraphDatabase.driver(uri) as driver:
        await driver.execute_query(CONSTRAINT)
        await driver.execute_query(CLEAR)
        async with driver.session() as session:
            told["written"] = await session.execute_write(write, ROWS)
            told["found"] = await session.execute_read(find)
            result = await session.run("UNWIND range(1, 2500) AS n RETURN n")
            told["streamed"] = sum([record["n"] async for record in result])
            for query in ("RETURN nonsense nonsense", "CREATE (:City {name: 'Paris'})"):
                try:
                    await (await session.run(query)).consume()
                except ERRORS as error:
                    told["errors"].append([type(error).__name__, error.code])
            async with await session.begin_transaction() as transaction:
                await transaction.run("CREATE (:City {name: 'Rome'})")
                await transaction.rollback()
            async with await session.begin_transaction() as transaction:
                made = await transaction.run("CREATE (:City {name: 'Oslo'})")
                told["counters"] = str((await made.consume()).counters)
                await transaction.commit()
        records, summary, keys = await driver.execute_query(
            "MATCH (c:City) RETURN c.name AS name ORDER BY name"
        )
        told |= {"records": [record["name"] for record in records], "keys": keys, "type": summary.query_type}
    return told | {"attempts": attempts}


kind, uri = sys.argv[1:]
json.dump(sync(uri) if kind == "sync" else asyncio.run(asynchronous(uri)), sys.stdout, sort_keys=True)
