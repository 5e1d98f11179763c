"""Uninstrumenting puts back the very attributes that were there."""

from __future__ import annotations

import functools
import sqlite3
from typing import Any

import pytest
from support import stores
from support.stores import PROFILE, Base, Loud, Store, instrumented

from llmkg_otel import LLMKGInstrumentor, ProductionConfig
from llmkg_otel.engine.profiles import Method, Profile
from llmkg_otel.errors import ConfigurationError


def attributes() -> list[dict[str, Any]]:
    return [dict(vars(each)) for each in (Base, Store, Loud)]


def same(before: list[dict[str, Any]]) -> bool:
    """Say whether every attribute is the same object as before, and there are no others."""
    return all(
        old.keys() == new.keys() and all(old[name] is new[name] for name in old)
        for old, new in zip(before, attributes(), strict=True)
    )


def test_every_attribute_is_the_same_object_again_each_time() -> None:
    before = attributes()
    for _ in range(2):
        with instrumented():
            assert not same(before)
            assert "inherited" in vars(Store)
            assert vars(Base) == before[0]
        assert same(before)


def test_instrumenting_twice_is_instrumenting_once(caplog: pytest.LogCaptureFixture) -> None:
    before = attributes()
    with instrumented() as telemetry:
        LLMKGInstrumentor().instrument(config=ProductionConfig())
        assert "already instrumented" in caplog.text
        Store().fetch("k")
        assert len(telemetry.spans()) == 1
    assert same(before)


def test_two_profiles_of_one_class_do_not_wrap_a_method_twice() -> None:
    before = attributes()
    other = Profile(name="other", classes=PROFILE.classes, methods={"fetch": Method()})
    with instrumented(other, PROFILE) as telemetry:
        Store().fetch("k")
        [span] = telemetry.spans()
    assert (span.attributes or {})["db.system.name"] == "other"
    assert same(before)


def test_what_somebody_has_wrapped_around_ours_stays_and_ours_does_nothing(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Store, "fetch", Store.fetch)  # so that it is put back at the end
    seen = []
    with instrumented() as telemetry:
        ours = Store.fetch

        @functools.wraps(ours)
        def theirs(*args: Any) -> Any:
            seen.append(args[1:])
            return ours(*args)

        Store.fetch = theirs  # type: ignore[method-assign, assignment]
        assert Store().fetch("k") == ["k"]
        assert len(telemetry.spans()) == 1
    assert vars(Store)["fetch"] is theirs
    assert "Store.fetch was replaced by others" in caplog.text
    assert Store().fetch("k") == ["k"]
    assert seen == [("k",), ("k",)]
    assert len(telemetry.spans()) == 1


def test_a_method_that_is_held_from_before_uninstrumenting_does_its_work() -> None:
    with instrumented() as telemetry:
        held = Store().fetch
    assert held("k") == ["k"]
    assert telemetry.spans() == []


def test_a_class_of_c_code_is_replaced_in_its_module_and_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "Database", sqlite3.Connection, raising=False)
    profile = Profile(
        name="database",
        classes=("support.stores:Database",),
        methods={"execute": Method(), "commit": Method()},
    )
    with instrumented(profile) as telemetry:
        database = stores.Database(":memory:")  # type: ignore[attr-defined]
        assert database.execute("select 1").fetchall() == [(1,)]
        database.commit()
        assert isinstance(database, sqlite3.Connection)
        assert isinstance(sqlite3.connect(":memory:"), stores.Database)  # type: ignore[attr-defined]
        database.close()
        assert [span.name for span in telemetry.spans()] == ["execute", "commit"]
    assert stores.Database is sqlite3.Connection  # type: ignore[attr-defined]


def test_a_class_that_takes_neither_attributes_nor_subclasses_is_a_clear_error() -> None:
    with (
        pytest.raises(ConfigurationError, match="re:Pattern is a class of C code that takes no subclass"),
        instrumented(Profile(name="pattern", classes=("re:Pattern",), methods={"match": Method()})),
    ):
        pass


def test_all_public_methods_of_a_class_that_is_only_named_are_told_of() -> None:
    before = attributes()
    config = {"instrumentation": {"profiles": ()}, "instrument": "support.stores:Loud, support.stores:Store"}
    with instrumented(**config) as telemetry:
        Loud().fetch("k")
        list(Store().scan(1))
        Store().inherited()
        assert (Store().size, Store.make().steps, Store.helper()) == (0, [], 1)
        told = [(span.name, (span.attributes or {})["db.system.name"]) for span in telemetry.spans()]
    assert told == [("fetch", "store"), ("fetch", "loud"), ("scan", "store"), ("inherited", "store")]
    assert same(before)
