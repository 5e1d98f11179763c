"""A class that is not there is a clear error that names what is; one that is not imported costs nothing."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest
from support.stores import PROFILE, Store, instrumented

from llmkg_otel import LLMKGInstrumentor, ProductionConfig
from llmkg_otel.engine.profiles import PROFILES, Method, Profile, target
from llmkg_otel.errors import ConfigurationError
from llmkg_otel.instrumentation.targets import check_module, public_methods

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ("suport.stores:Store", r"no module suport\.stores; did you mean support\?"),
        ("support.store:Store", r"no module support\.store; did you mean stores\? support has: .*stores"),
        ("support.stores.deep:Store", r"no module support\.stores\.deep; support\.stores has: none"),
        ("zzzzqq:Store", "no module zzzzqq; nothing of that name is installed or on the path"),
        (
            "support.stores:Stor",
            r"no class Stor in support\.stores; did you mean Store\? support\.stores has:",
        ),
        ("support.stores:QUICK", "a dict QUICK, and no class, in support.stores"),
        ("__main__:Store", "classes of __main__ cannot be instrumented; give them a module"),
    ],
)
def test_a_misspelt_name_is_an_error_that_names_what_is_there(named: str, message: str) -> None:
    before = dict(vars(Store))
    with pytest.raises(ConfigurationError, match=message):
        LLMKGInstrumentor().instrument(config=ProductionConfig(instrument=(named,)))
    assert dict(vars(Store)) == before


@pytest.mark.parametrize("named", ["Store", "support.stores", "support/stores.py:Store", "a:b:c", ":x", "a:"])
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


def test_a_class_missing_from_a_module_that_is_imported_later_is_an_error_of_the_import(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "acme_other.py").write_text("class Memory: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    with (
        instrumented(Profile(name="memory", classes=("acme_other:Memry",))),
        pytest.raises(ConfigurationError, match=r"did you mean Memory\?"),
    ):
        __import__("acme_other")


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
