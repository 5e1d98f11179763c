"""The neo4j driver against a neo4j: a program gives the same bare, instrumented and protected."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest
from support.engines_venv import QUICK, bare, needs_engines, run
from support.neo4j_server import needs_neo4j, neo4j_server

from llmkg_otel.testing import OtlpReceiver

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [needs_engines, needs_neo4j, pytest.mark.timeout(300)]

CALLS = Counter(execute_query=3, execute_write=1, execute_read=1, run=5)
FAILED = Counter({("run", "CypherSyntaxError"): 1, ("run", "ConstraintError"): 1})


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with neo4j_server(tmp_path_factory.mktemp("neo4j")) as address:
        yield address


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_the_program_does_what_it_is_there_for(uri: str, kind: str) -> None:
    told = bare(f"neo4j_app.py {kind} {uri}")
    assert told["records"] == ["Berlin", "Oslo", "Paris"]
    assert told["attempts"] == [2, 2]
    assert (told["streamed"], len(told["errors"])) == (2500 * 2501 // 2, 2)


@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize("protect", ["false", "true"])
def test_the_known_profile_tells_of_each_call_and_changes_nothing(uri: str, kind: str, protect: str) -> None:
    app = f"neo4j_app.py {kind} {uri}"
    with OtlpReceiver() as receiver:
        assert run(app, {**QUICK, **receiver.environment(), "LLMKG_PROTECT": protect}) == bare(app)
        spans = receiver.spans(scope="llmkg_otel", kind="CLIENT")
        protected = receiver.metric("llmkg.operation.duration")
    assert Counter(span.name for span in spans) == CALLS
    kinds = [(span.name, span.attributes.get("error.type")) for span in spans]
    assert Counter(each for each in kinds if each[1] is not None) == FAILED
    assert protected == {}
    assert "Paris" not in str([span.attributes for span in spans])


@pytest.mark.parametrize(("kind", "prefix"), [("sync", ""), ("async", "Async")])
def test_all_methods_of_its_classes_are_protected_by_name_alone_and_change_nothing(
    uri: str, kind: str, prefix: str
) -> None:
    app = f"neo4j_app.py {kind} {uri}"
    classes = [f"neo4j:{prefix}{each}" for each in ("Driver", "Session", "Transaction", "ManagedTransaction")]
    targets = {"LLMKG_INSTRUMENT": ",".join(classes), "LLMKG_PROTECT": "true"}
    with OtlpReceiver() as receiver:
        assert run(app, {**QUICK, **receiver.environment(), **targets}) == bare(app)
        durations = receiver.metric("llmkg.operation.duration")
    counted: Counter[str] = Counter()
    for attributes, point in durations.items():
        counted[str(dict(attributes)["llmkg.operation.name"])] += point.count
    lead = prefix and "async_"
    assert counted[f"{lead}driver_execute_query"] == 3
    assert counted[f"{lead}session_run"] == 3
    assert counted[f"{lead}transaction_run"] == 2
    assert counted[f"{lead}session_execute_write"] == 1
