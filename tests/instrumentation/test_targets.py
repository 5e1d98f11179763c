"""A class that is not there is a clear error that names what is; one that is not imported costs nothing."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING

import pytest
from support import stores
from support.stores import PROFILE, Store, instrumented

from llmkg_otel import LLMKGInstrumentor, ProductionConfig
from llmkg_otel.engine.profiles import PROFILES, Method, Profile, target
from llmkg_otel.errors import ConfigurationError
from llmkg_otel.instrumentation.targets import check_module, public_methods
from llmkg_otel.testing import captured_telemetry

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ("suport.stores:Store", r"no module suport\.stores; did you mean support\?"),
        ("support.store:Store", r"no module support\.store; did you mean stores\? support has: [a-z]"),
        ("support.stores.deep:Store", r"no module support\.stores\.deep; support\.stores has: none"),
        ("zzzzqq:Store", "no module zzzzqq; nothing of that name is installed or on the path"),
        (
            "support.stores:Stor",
            r"no class Stor in support\.stores; did you mean Store\? support\.stores has:",
        ),
        ("support.stores:QUICK", "a dict QUICK, and no class, in support.stores"),
        ("__main__.foo:Store", "classes of __main__ cannot be instrumented; give them a module"),
        (
            "acme_memory.deep:Store",
            r"module acme_memory\.deep cannot be looked up: acme_memory\.__spec__ is None",
        ),
        ("__main__:Store", "classes of __main__ cannot be instrumented; give them a module"),
    ],
)
def test_a_misspelt_name_is_an_error_that_names_what_is_there(
    monkeypatch: pytest.MonkeyPatch, named: str, message: str
) -> None:
    monkeypatch.setitem(sys.modules, "acme_memory", ModuleType("acme_memory"))
    before = dict(vars(Store))
    with pytest.raises(ConfigurationError, match=message):
        LLMKGInstrumentor().instrument(config=ProductionConfig(instrument=(named,)))
    assert dict(vars(Store)) == before


@pytest.mark.parametrize(
    "named",
    [
        *("Store", "support.stores", "support/stores.py:Store", "a:b:c", ":x", "a:", "a:class Store"),
        *("Übung=a:B", "My=a:B", "=a:B", "x=y=a:B", "a b=a:B"),
    ],
)
def test_a_name_of_another_form_is_a_configuration_error(named: str) -> None:
    with pytest.raises(ConfigurationError, match=r"instrument\.0 = "):
        ProductionConfig(instrument=(named,))


@pytest.mark.parametrize("name", ["make", "helper", "size"])
def test_what_is_not_called_on_an_instance_is_no_method(name: str) -> None:
    profile = Profile(name="store", classes=PROFILE.classes, methods={name: Method()})
    with pytest.raises(ConfigurationError, match=f"Store has no method {name}"), instrumented(profile):
        pass


def test_a_method_that_is_not_there_is_an_error_that_names_those_there_are() -> None:
    profile = Profile(name="store", classes=PROFILE.classes, methods={"fetsh": Method()})
    message = r"Store has no method fetsh; did you mean fetch\? Store has: afetch, again"
    with pytest.raises(ConfigurationError, match=message), instrumented(profile):
        pass


def test_a_class_that_is_imported_later_is_instrumented_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "acme_memory.py").write_text("class Memory:\n    def recall(self):\n        return 'it'\n")
    monkeypatch.syspath_prepend(tmp_path)
    with instrumented(Profile(name="memory", classes=("acme_memory:Memory",))) as telemetry:
        assert "acme_memory" not in sys.modules
        from acme_memory import Memory  # type: ignore[import-not-found]

        assert Memory().recall() == "it"
        assert [span.name for span in telemetry.spans()] == ["recall"]
    assert Memory().recall() == "it"
    assert len(telemetry.spans()) == 1


def test_a_class_missing_from_a_module_that_is_imported_later_is_told_and_the_import_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "acme_other.py").write_text("class Memory:\n    def recall(self): return 'it'\n")
    monkeypatch.syspath_prepend(tmp_path)
    wrong = Profile(name="wrong", classes=("acme_other:Memry",))
    right = Profile(name="right", classes=("acme_other:Memory",))
    with instrumented(wrong, right) as telemetry:
        assert __import__("acme_other").Memory().recall() == "it"
        assert [span.name for span in telemetry.spans()] == ["recall"]
    assert "did you mean Memory?" in caplog.text


def test_what_takes_no_attributes_in_a_way_nobody_foresaw_is_told_and_the_import_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "acme_stiff.py").write_text(
        "class Stiff(type):\n    def __setattr__(cls, name, value): raise RuntimeError('stiff')\n"
        "class Memory(metaclass=Stiff):\n    def recall(self): return 'it'\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with instrumented(Profile(name="stiff", classes=("acme_stiff:Memory",))):
        assert __import__("acme_stiff").Memory().recall() == "it"
    assert "acme_stiff:Memory cannot be: RuntimeError('stiff')" in caplog.text


def test_from_the_environment_what_is_wrong_with_one_class_leaves_the_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(
        "LLMKG_INSTRUMENT",
        "zzzzqq:Engine,acme_memory.deep:Recall,__main__.foo:Bar,support.stores:Stor,re:Pattern,"
        "support.stores:Store",
    )
    monkeypatch.setitem(sys.modules, "acme_memory", ModuleType("acme_memory"))
    with captured_telemetry() as telemetry:
        LLMKGInstrumentor().instrument(
            tracer_provider=telemetry.tracer_provider, meter_provider=telemetry.meter_provider
        )
        Store().fetch("k")
        LLMKGInstrumentor().uninstrument()
        assert [span.name for span in telemetry.spans()] == ["fetch"]
    told = capsys.readouterr().err.splitlines()
    assert [line.split(";")[0].split("(")[0] for line in told] == [
        "llmkg-otel: instrument: there is no module zzzzqq",
        "llmkg-otel: instrument: module acme_memory.deep cannot be looked up: acme_memory.__spec__ is None",
        "llmkg-otel: instrument: classes of __main__ cannot be instrumented",
        "llmkg-otel: instrument: there is no class Stor in support.stores",
        "llmkg-otel: instrument: re:Pattern is a class of C code that takes no subclass ",
    ]


def test_from_the_environment_a_configuration_that_is_wrong_is_told_and_the_program_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LLMKG_INSTRUMENT", "Store")
    before = dict(vars(Store))
    LLMKGInstrumentor().instrument()
    LLMKGInstrumentor().uninstrument()
    assert dict(vars(Store)) == before
    assert "llmkg-otel: instrument.0 = 'Store': a class is given as" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("named", "problem"),
    [
        (
            "support.stores:Übung",
            r"gives 'übung', which is no name .*: name it yourself, as in LLMKG_INSTRUMENT=",
        ),
        (f"support.stores:{'Long' * 20}", r"gives 'long_long_.*63 at most"),
        (
            "support.stores:Rdflib",
            r"Rdflib and rdflib\.graph:Graph would both be rdflib, .*\"my_rdflib=support",
        ),
        ("support.stores:Store,array:Store", r"array:Store and support\.stores:Store would both be store"),
        (
            "store=support.stores:Loud,support.stores:Store",
            "Store and support.stores:Loud would both be store",
        ),
    ],
)
def test_a_class_whose_name_cannot_name_an_engine_or_names_another_is_an_error_that_says_what_to_do(
    named: str, problem: str
) -> None:
    before = dict(vars(Store))
    with pytest.raises(ConfigurationError, match=problem):
        LLMKGInstrumentor().instrument(config=ProductionConfig(instrument=named))
    assert dict(vars(Store)) == before


def test_classes_that_are_named_by_the_user_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    class Exercise:
        def fetch(self) -> str:
            return "exercise"

    monkeypatch.setattr(stores, "Übung", Exercise, raising=False)
    named = "support.stores:Store,exercise=support.stores:Übung,support.stores:Store"
    with instrumented(instrumentation={"profiles": ()}, instrument=named) as telemetry:
        assert (Store().fetch("k"), Exercise().fetch()) == (["k"], "exercise")
        systems = [(span.attributes or {})["db.system.name"] for span in telemetry.spans()]
    assert systems == ["store", "exercise"]


def test_a_module_beside_the_program_is_found_before_the_path_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "acme_beside.py").write_text("")
    with pytest.raises(ConfigurationError):
        check_module("acme_beside")
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "app.py")])
    check_module("acme_beside")


def test_a_known_engine_in_a_version_that_lacks_a_method_is_instrumented_without_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    lacking = Profile(name="store", classes=PROFILE.classes, methods={"fetch": Method(), "retired": Method()})
    monkeypatch.setattr("llmkg_otel.instrumentation.instrumentor.PROFILES", (lacking,))
    nothing = Profile(name="nothing", classes=("support.stores:Base",))
    with instrumented(nothing) as telemetry:
        Store().fetch("k")
        assert [span.name for span in telemetry.spans()] == ["fetch"]
    assert "this version of store is not instrumented as it should be" in caplog.text
    assert "no method retired" in caplog.text


def test_public_methods_are_those_called_on_an_instance() -> None:
    assert public_methods(Store) == [*METHODS]


METHODS = ("inherited", "afetch", "fetch", "again", "scan", "ascan", "later", "coroutine", "status", "hang")


def test_no_two_known_profiles_share_a_class_and_names_are_labels() -> None:
    classes = [each for profile in PROFILES for each in profile.classes]
    assert len(set(classes)) == len(classes)
    assert all(target(each)[1].isidentifier() for each in classes)
