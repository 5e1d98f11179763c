from __future__ import annotations

import json
import os
from itertools import combinations
from typing import TYPE_CHECKING, Any
from unittest import mock

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from support.options import LEAVES, OPERATION, nest, problem, read, variable

from llmkg_otel._config_sources import describe
from llmkg_otel.config import ProductionConfig, RateLimitConfig, RetryConfig
from llmkg_otel.errors import ConfigurationError

if TYPE_CHECKING:
    from pathlib import Path

SECRET = "s3cret-of-the-house"
SOURCES = ("file", "environment", "argument")


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("LLMKG_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "llmkg.yaml"


def write(path: Path, tree: dict[str, dict[str, Any]]) -> Path:
    """Write a file of one level of sections, as YAML or TOML by its suffix."""
    toml = "".join(
        f"[{name}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in section.items())
        for name, section in tree.items()
    )
    path.write_text(toml if path.suffix == ".toml" else yaml.safe_dump(tree))
    return path


@pytest.mark.parametrize("suffix", [".yaml", ".yml", ".toml"])
@pytest.mark.parametrize("given_in", [mix for count in range(4) for mix in combinations(SOURCES, count)])
def test_the_strongest_source_wins_and_the_others_keep_their_neighbours(
    given_in: tuple[str, ...], suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written, arguments, expected = None, {}, RetryConfig().model_dump()
    if "file" in given_in:
        written = write(tmp_path / f"llmkg{suffix}", {"retry": {"max_retries": 11, "base_delay_ms": 1}})
        expected |= {"max_retries": 11, "base_delay_ms": 1}
    if "environment" in given_in:
        monkeypatch.setenv("LLMKG_RETRY__MAX_RETRIES", "12")
        monkeypatch.setenv("LLMKG_RETRY__MAX_DELAY_MS", "2000")
        expected |= {"max_retries": 12, "max_delay_ms": 2000}
    if "argument" in given_in:
        arguments = {"retry": {"max_retries": 13, "jitter_factor": 0.3}}
        expected |= arguments["retry"]
    assert ProductionConfig.load(written, **arguments).retry.model_dump() == expected


def test_a_section_object_as_an_argument_stands_for_the_whole_section(file: Path) -> None:
    write(file, {"retry": {"base_delay_ms": 1}})
    assert ProductionConfig.load(file, retry=RetryConfig(max_retries=9)).retry == RetryConfig(max_retries=9)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("LLMKG_RETRI__MAX_RETRIES", "; did you mean LLMKG_RETRY?"),
        ("LLMKG_SERVR", "; did you mean LLMKG_SERVER?"),
        ("LLMKG_CONFG", "; did you mean LLMKG_CONFIG?"),
        ("llmkg_config", "; did you mean LLMKG_CONFIG?"),
        ("LLMKG_PROTCT", "; did you mean LLMKG_PROTECT?"),
        ("LLMKG_INSTRUMNT", "; did you mean LLMKG_INSTRUMENT?"),
        ("LLMKG_ZZZZZZZZ", ""),
    ],
)
def test_an_unknown_variable_is_an_error_that_suggests_the_nearest(
    name: str, nearest: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "1")
    monkeypatch.setenv("LLMKG_OTHER", "1")
    assert f"{name}: unknown environment variable{nearest}" in problem().splitlines()
    assert "LLMKG_OTHER: unknown" in problem()


def test_a_misspelt_option_in_a_variable_is_told_by_its_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMKG_RETRY__MAX_RETRY", "1")
    assert problem() == "retry.max_retry: unknown option; did you mean max_retries?"


def test_variables_that_are_not_ours_are_let_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    untouched = ProductionConfig()
    monkeypatch.setenv("OTHER_RETRY", "anything")
    assert ProductionConfig() == untouched


def test_a_variable_names_the_file_to_read_where_no_other_is_given(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLMKG_CONFIG", str(write(file, {"retry": {"max_retries": 7}})))
    other = write(tmp_path / "other.toml", {"retry": {"max_retries": 8}})
    assert ProductionConfig.load(retry={"base_delay_ms": 1}).retry == RetryConfig(
        max_retries=7, base_delay_ms=1
    )
    assert ProductionConfig.load(other).retry.max_retries == 8
    assert ProductionConfig().retry == RetryConfig()  # the constructor reads no file
    rows = describe(ProductionConfig.load(), None, {})
    assert [row for row in rows if row[2] != "default"] == [("retry.max_retries", "7", f"file {file}")]
    monkeypatch.setenv("LLMKG_CONFIG", "")
    assert ProductionConfig.load() == ProductionConfig()


def test_a_default_file_that_cannot_be_read_is_told_with_the_variable_that_names_it(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLMKG_CONFIG", str(file))
    assert problem() == f"LLMKG_CONFIG: {file}: cannot be read: No such file or directory"


def test_a_variable_may_hold_a_whole_section_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMKG_RETRY", '{"max_retries": 7}')
    assert ProductionConfig().retry == RetryConfig(max_retries=7)
    monkeypatch.setenv("LLMKG_RETRY", "seven")
    assert problem() == "retry = 'seven': should be a valid dictionary or instance of RetryConfig"


def test_tokens_are_written_in_a_variable_as_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMKG_AUTH_TOKENS", " alice = a1== , bob=b2,")
    tokens = ProductionConfig().auth_tokens
    assert {name: token.get_secret_value() for name, token in tokens.items()} == {
        "alice": "a1==",
        "bob": "b2",
    }


@pytest.mark.parametrize(
    "value", [SECRET, f"={SECRET}", f"a={SECRET},b=", f"a={SECRET},a=x", f'{{"a": "{SECRET}']
)
def test_wrong_tokens_are_refused_without_being_shown(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMKG_AUTH_TOKENS", value)
    assert problem().startswith("auth_tokens = (hidden): ")
    assert SECRET not in problem()


@pytest.mark.parametrize(
    "text",
    [
        f"auth_tokens: {{a: '{SECRET}",
        f"auth_tokens: {{a: {SECRET}: b}}",
        f"auth_tokens: {{a: *{SECRET}}}",
        f"auth_tokens: {{a: !{SECRET} b}}",
        f"auth_tokens: {{a: !{SECRET}!b c}}",
        f"auth_tokens: {{a: !!int {SECRET}}}",
        f"auth_tokens: [{SECRET}]",
        f"server: {{operator_tokn: {SECRET}}}",
        f"server: operator_token={SECRET}",
        f"server: {{operator_token: [{SECRET}]}}",
        f"circuit_sharing: {{storage_uri: http://:{SECRET}@host}}",
        f"circuit_sharing: {{storage_uri: [{SECRET}]}}",
        f"circuit_sharing: {{storage_ur: {SECRET}}}",
        f"circuit_sharing: storage_uri=redis://:{SECRET}@host",
    ],
)
def test_a_secret_is_never_quoted_from_a_file_that_is_wrong(text: str, file: Path) -> None:
    file.write_text(text)
    assert SECRET not in problem(file)


def test_a_secret_is_never_quoted_from_a_variable_that_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMKG_SERVER", f'{{"operator_token": "{SECRET}"')
    assert SECRET not in problem()


@pytest.mark.parametrize(
    "path", ["rate_limiting", "rate_limiting.per_user", f"operations.{OPERATION}.rate_limit"]
)
@pytest.mark.parametrize(
    ("text", "average", "burst"),
    [("100/second", 100, 100), ("600 per 5 minutes", 2, 600), ("1/hour", 1 / 3600, 1)],
)
def test_a_rate_may_be_written_in_words_in_every_source(
    path: str, text: str, average: float, burst: int, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_text(yaml.safe_dump(nest(path, text)))
    configs = [ProductionConfig(**nest(path, text)), ProductionConfig.load(file)]
    monkeypatch.setenv(variable(path), text)
    for config in (*configs, ProductionConfig()):
        rule = read(config, path)
        assert (rule.requests_per_second, rule.burst_capacity) == (pytest.approx(average), burst)


def test_a_stronger_source_may_change_one_option_of_a_rate_in_words(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_text("rate_limiting: 50/second")
    monkeypatch.setenv("LLMKG_RATE_LIMITING__BURST_CAPACITY", "7")
    limits = ProductionConfig.load(file).rate_limiting
    assert limits == RateLimitConfig(requests_per_second=50, burst_capacity=7)


def test_describe_tells_value_and_origin_of_every_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree: dict[str, dict[str, Any]] = {
        "retry": {"max_retries": 1, "base_delay_ms": 5},
        "auth_tokens": {"a": SECRET},
        "circuit_sharing": {"storage_uri": f"redis://:{SECRET}@host"},
    }
    toml = write(tmp_path / "llmkg.toml", tree)
    monkeypatch.setenv("LLMKG_RETRY__MAX_RETRIES", "2")
    monkeypatch.setenv("LLMKG_RATE_LIMITING", "9/second")
    monkeypatch.setenv("LLMKG_SERVER__OPERATOR_TOKEN", SECRET)
    arguments = {"health": {"history_size": 7}}
    rows = describe(ProductionConfig.load(toml, **arguments), toml, arguments)
    several = ("alerting.notify.", "operations.", "slos.", "auth_tokens.", "rate_limiting.per_user.")
    options = [path for path in LEAVES if not path.startswith(several)]
    assert sorted(path for path, _, _ in rows) == sorted(
        [*options, "alerting.notify", "operations", "slos", "auth_tokens.a", "rate_limiting.per_user"]
    )
    assert [row for row in rows if row[2] != "default"] == [
        ("rate_limiting.requests_per_second", "9.0", "environment"),
        ("rate_limiting.burst_capacity", "9", "environment"),
        ("retry.max_retries", "2", "environment"),
        ("retry.base_delay_ms", "5.0", f"file {toml}"),
        ("circuit_sharing.storage_uri", "**********", f"file {toml}"),
        ("health.history_size", "7", "argument"),
        ("server.operator_token", "**********", "environment"),
        ("auth_tokens.a", "**********", f"file {toml}"),
    ]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.ini", b"", "ends in .yaml, .yml or .toml"),
        ("a.yaml", b"- 1", "holds a list, not a mapping"),
        ("a.yaml", b"1: 2", "1 is not a name"),
        ("a.yaml", b"a: {b: c", "cannot be parsed: line 1, column 9: expected"),
        ("a.yaml", b"a: 2001-99-99", "cannot be parsed: "),
        ("a.yaml", b"operations: &a {b: *a}", ":1: an alias stands inside of what it stands for"),
        ("a.yaml", b"retry:\n  max_retries: 1\n  max_retries: 2", ":3: 'max_retries' is given twice"),
        ("a.yaml", b"retry: {}\nengine: {}\nretry: {}", ":3: 'retry' is given twice"),
        ("a.yaml", b"alerting: {rule_files: [a, {b: 1,\n b: 1}]}", ":2: 'b' is given twice"),
        ("a.toml", b"[retry]\nmax_retries = 1\nmax_retries = 2", "Cannot overwrite a value"),
        ("a.yaml", b"\xff", "cannot be parsed: "),
        ("a.toml", b"a = ", "cannot be parsed: Invalid value (at"),
        ("missing/a.yaml", None, "cannot be read: No such file"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(
    name: str, content: bytes | None, said: str, tmp_path: Path
) -> None:
    unusable = tmp_path / name
    if content is not None:
        unusable.write_bytes(content)
    assert problem(unusable).startswith(f"{unusable}:")
    assert said in problem(unusable)


def test_an_alias_and_a_merge_are_no_duplicates(file: Path) -> None:
    file.write_text("operations: {a: &a {timeout: 1, idempotent: true}, b: {<<: *a, timeout: 2}, c: *a}")
    operations = ProductionConfig.load(file).operations
    assert [operations[name].timeout for name in "abc"] == [1, 2, 1]
    assert all(operation.idempotent for operation in operations.values())


def test_a_file_without_options_changes_nothing(file: Path) -> None:
    file.write_text("# nothing\n")
    assert ProductionConfig.load(file) == ProductionConfig()


VALUES = st.none() | st.integers() | st.floats() | st.text() | st.lists(st.integers())


@given(st.text() | st.dictionaries(st.sampled_from(sorted(LEAVES)) | st.integers(), VALUES).map(str))
def test_any_text_as_a_file_builds_or_is_a_configuration_error(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    for suffix in (".yaml", ".toml"):
        path = tmp_path_factory.getbasetemp() / f"any{suffix}"
        path.write_bytes(text.encode(errors="surrogatepass"))
        _load_or_refuse(path)


@given(st.sampled_from(sorted(LEAVES)), st.text(st.characters(codec="utf-8", exclude_characters="\0")))
def test_any_text_in_a_variable_builds_or_is_a_configuration_error(path: str, text: str) -> None:
    for place in (path, path.rpartition(".")[0]):
        with mock.patch.dict(os.environ, {variable(place): text}):
            _load_or_refuse(None)


def _load_or_refuse(path: Path | None) -> None:
    try:
        config = ProductionConfig.load(path)
    except ConfigurationError:
        return
    assert len(describe(config, path, {})) > 50
