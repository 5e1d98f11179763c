from __future__ import annotations

import json
import os
import re
from datetime import timedelta
from itertools import chain, combinations
from typing import TYPE_CHECKING, Any
from unittest import mock

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from llmkg_otel._config_sources import describe
from llmkg_otel.config import (
    CircuitBreakerConfig,
    MonitoringConfig,
    ProductionConfig,
    RateLimitConfig,
    RateLimitRule,
    ResourceLimits,
    RetryConfig,
    Section,
)
from llmkg_otel.errors import ConfigurationError
from llmkg_otel.limiting.token_bucket import TokenBucket

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SECRET = "s3cret-of-the-house"
SCHEMA = ProductionConfig.model_json_schema()
OPERATION = "retry"  # an operation may be called like an option


def leaves(schema: dict[str, Any] = SCHEMA, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each option's path and what the JSON schema says of its value."""
    for part in (schema, *schema.get("anyOf", ())):
        if "$ref" in part:
            yield from leaves(SCHEMA["$defs"][part["$ref"].rpartition("/")[2]], path)
            return
    if "properties" in schema:
        for name, option in schema["properties"].items():
            yield from leaves(option, f"{path}.{name}" if path else name)
    elif "additionalProperties" in schema:
        yield from leaves(schema["additionalProperties"], f"{path}.{OPERATION}")
    else:
        yield path, next((s for s in schema.get("anyOf", ()) if s["type"] != "null"), schema)


LEAVES = dict(leaves())
SECONDS = [path for path in LEAVES if re.search(r"(_seconds|timeout)$", path)]


def bad_values(schema: dict[str, Any]) -> Iterator[tuple[Any, str]]:
    """Yield values just outside of what an option allows, and how the rule must be told."""
    for key, step, rule in [
        ("minimum", -1, "greater than or equal to"),
        ("exclusiveMinimum", 0, "greater than"),
        ("maximum", 1, "less than or equal to"),
    ]:
        if key in schema:
            yield schema[key] + step, f"should be {rule} {schema[key]:{'g' if schema[key] < 1 else '.0f'}}"
    if schema["type"] == "number":
        yield from ((float(text), "should be") for text in ("nan", "inf", "-inf"))
    if "minLength" in schema:
        yield "x" * (schema["minLength"] - 1), f"should have at least {schema['minLength']}"
    if "pattern" in schema:
        yield "no match", "should match pattern"
    if "enum" in schema:
        yield "loud", "should be 'debug', 'info', 'warning' or 'error'"
    wrong = {"boolean": "perhaps", "integer": 2.5, "number": "soon", "string": 5, "array": 5}
    yield (
        wrong[schema["type"]],
        "is not a valid path" if schema.get("format") == "path" else "should be a valid",
    )


BAD = [(path, value, rule) for path, schema in LEAVES.items() for value, rule in bad_values(schema)]


def nest(path: str, value: Any) -> dict[str, Any]:
    first, _, rest = path.partition(".")
    return {first: nest(rest, value) if rest else value}


def merge(tree: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    return tree | {
        key: merge(tree.get(key, {}), value) if isinstance(value, dict) else value
        for key, value in other.items()
    }


def read(config: ProductionConfig, path: str) -> Any:
    value: Any = config
    for part in path.split("."):
        value = value[part] if isinstance(value, dict) else getattr(value, part)
    return value


def variable(path: str) -> str:
    return "LLMKG_" + path.replace(".", "__").upper()


def problem(file: Path | None = None, **arguments: Any) -> str:
    with pytest.raises(ConfigurationError) as caught:
        ProductionConfig.load(file, **arguments)
    return str(caught.value)


def write(path: Path, tree: dict[str, dict[str, Any]]) -> Path:
    """Write a file of one level of sections, as YAML or TOML by its suffix."""
    lines = [
        f"[{name}]\n" + "".join(f"{k} = {json.dumps(v)}\n" for k, v in s.items()) for name, s in tree.items()
    ]
    path.write_text("\n".join(lines) if path.suffix == ".toml" else yaml.safe_dump(tree))
    return path


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("LLMKG_")]:
        monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("section", "defaults"),
    [
        (
            RetryConfig,
            "max_retries=3 base_delay_ms=100 max_delay_ms=5000 backoff_multiplier=2.0 jitter_factor=0.1",
        ),
        (CircuitBreakerConfig, "failure_threshold=5 recovery_timeout=60 success_threshold=3 timeout=10"),
        (
            ResourceLimits,
            "max_memory_bytes=2000000000 max_cpu_percent=80.0 max_concurrent_operations=1000"
            " max_request_size_bytes=10000000 max_response_size_bytes=50000000 operation_timeout_seconds=30",
        ),
        (
            MonitoringConfig,
            "max_metric_points=1000 metric_retention_seconds=3600 alert_check_interval_seconds=30",
        ),
        (RateLimitConfig, "requests_per_second=100 burst_capacity=200"),
    ],
)
def test_the_defaults_are_those_of_the_seed_document(section: type[Section], defaults: str) -> None:
    expected = {name: float(value) for name, value in (pair.split("=") for pair in defaults.split())}
    assert {name: getattr(section(), name) for name in expected} == expected


@pytest.mark.parametrize("suffix", [".yaml", ".yml", ".toml"])
@pytest.mark.parametrize(
    "sources", [*chain.from_iterable(combinations(("file", "environment", "argument"), n) for n in range(4))]
)
def test_the_strongest_source_wins_and_the_others_keep_their_neighbours(
    sources: tuple[str, ...], suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, arguments, own = None, {}, {"base_delay_ms": 100.0, "max_delay_ms": 5000.0, "jitter_factor": 0.1}
    if "file" in sources:
        file = write(tmp_path / f"llmkg{suffix}", {"retry": {"max_retries": 11, "base_delay_ms": 1}})
        own["base_delay_ms"] = 1
    if "environment" in sources:
        monkeypatch.setenv("LLMKG_RETRY__MAX_RETRIES", "12")
        monkeypatch.setenv("LLMKG_RETRY__MAX_DELAY_MS", "2000")
        own["max_delay_ms"] = 2000
    if "argument" in sources:
        arguments = {"retry": {"max_retries": 13, "jitter_factor": 0.3}}
        own["jitter_factor"] = 0.3
    strongest = {"": 3, "file": 11, "environment": 12, "argument": 13}[sources[-1] if sources else ""]
    retry = ProductionConfig.load(file, **arguments).retry
    assert retry == RetryConfig(max_retries=strongest, **own)


@pytest.mark.parametrize("path", SECONDS)
def test_a_timedelta_is_accepted_wherever_seconds_are(path: str) -> None:
    config = ProductionConfig(**nest(path, timedelta(minutes=1.5)))
    assert read(config, path) == 90.0


@pytest.mark.parametrize(("path", "value", "rule"), BAD)
def test_a_bad_value_is_told_with_its_path_itself_and_what_is_allowed(
    path: str, value: Any, rule: str
) -> None:
    message = problem(**nest(path, value))
    shown = "(hidden)" if "token" in path else repr(value)
    assert message.startswith(f"{path} = {shown}: ")
    assert rule.replace("1e-09", "1e-9") in message


@pytest.mark.parametrize("path", LEAVES)
def test_a_misspelt_option_is_refused_and_the_nearest_suggested(path: str) -> None:
    section, _, name = path.rpartition(".")
    if section == "auth_tokens":  # there every name is a user's
        return
    assert problem(**nest(path[:-1], 1)) == f"{path[:-1]}: unknown option; did you mean {name}?"
    assert f"{section}.zzz: unknown option; known here: " in problem(**nest(f"{section}.zzz", 1))


def test_several_errors_are_all_listed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    bad: dict[str, Any] = {}
    for path, value, _ in BAD:
        bad = merge(bad, nest(path, value))
    told = {re.split(" = |: ", line)[0] for line in problem(**bad, typo=1).splitlines()}
    assert told == {*LEAVES, "typo"}
    monkeypatch.setenv("LLMKG_RETRI__MAX_RETRIES", "1")
    monkeypatch.setenv("LLMKG_HELTH", "1")
    assert {line.split(":")[0] for line in problem().splitlines()} == {
        "LLMKG_RETRI__MAX_RETRIES",
        "LLMKG_HELTH",
    }


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("LLMKG_RETRI__MAX_RETRIES", "LLMKG_RETRY"),
        ("LLMKG_SERVR", "LLMKG_SERVER"),
        ("LLMKG_CONFG", "LLMKG_CONFIG"),
    ],
)
def test_an_unknown_variable_is_an_error_that_suggests_the_nearest(
    name: str, nearest: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "1")
    assert problem() == f"{name}: unknown environment variable; did you mean {nearest}?"


def test_a_misspelt_option_in_a_variable_is_told_by_its_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMKG_RETRY__MAX_RETRY", "1")
    assert problem() == "retry.max_retry: unknown option; did you mean max_retries?"


@pytest.mark.parametrize("name", ["LLMKG_CONFIG", "LLMKG_INSTRUMENT", "LLMKG_PROTECT"])
def test_variables_that_are_not_options_are_let_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "anything")
    assert ProductionConfig() == ProductionConfig()


def test_tokens_are_written_in_a_variable_as_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMKG_AUTH_TOKENS", " alice = a1== , bob=b2,")
    tokens = ProductionConfig().auth_tokens
    assert {name: token.get_secret_value() for name, token in tokens.items()} == {
        "alice": "a1==",
        "bob": "b2",
    }


@pytest.mark.parametrize(
    "value", [SECRET, f"={SECRET}", f"a={SECRET},b=", f"a={SECRET},a=x", '{"a": "' + SECRET]
)
def test_wrong_tokens_are_refused_without_being_shown(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMKG_AUTH_TOKENS", value)
    assert problem().startswith("auth_tokens = (hidden): ")


@pytest.mark.parametrize(
    "text",
    [
        f"auth_tokens: {{a: '{SECRET}",
        f"auth_tokens: {{a: {SECRET}: b}}",
        f"auth_tokens:\n  a: *{SECRET}\n",
        f"auth_tokens:\n  a: !{SECRET} b\n",
        f"auth_tokens:\n  a: !{SECRET}!b c\n",
        f"auth_tokens:\n  a: !!int {SECRET}\n",
        f"auth_tokens: [{SECRET}]",
        f"server: {{operator_tokn: {SECRET}}}",
        f"server: operator_token={SECRET}",
        f"server: {{operator_token: [{SECRET}]}}",
    ],
)
def test_a_secret_is_never_quoted_from_a_file_that_is_wrong(text: str, tmp_path: Path) -> None:
    file = tmp_path / "llmkg.yaml"
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
    path: str, text: str, average: float, burst: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "llmkg.yaml"
    file.write_text(yaml.safe_dump(nest(path, text)))
    configs = [ProductionConfig(**nest(path, text)), ProductionConfig.load(file)]
    monkeypatch.setenv(variable(path), text)
    for config in (*configs, ProductionConfig()):
        rule = read(config, path)
        assert (rule.requests_per_second, rule.burst_capacity, rule.burst) == (
            pytest.approx(average),
            burst,
            burst,
        )


def test_a_stronger_source_may_change_one_option_of_a_rate_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "llmkg.yaml"
    file.write_text("rate_limiting: 50/second")
    monkeypatch.setenv("LLMKG_RATE_LIMITING__BURST_CAPACITY", "7")
    assert ProductionConfig.load(file).rate_limiting == RateLimitConfig(
        requests_per_second=50, burst_capacity=7
    )


@pytest.mark.parametrize(
    "text", ["fast", "", "100", "-5/second", "5/second; 9/minute", "1" * 400 + "/second"]
)
def test_a_rate_that_cannot_be_read_is_refused_with_an_example(text: str) -> None:
    assert 'is written like "100/second"' in problem(rate_limiting={"per_user": text})


def test_without_a_burst_a_second_of_calls_may_come_at_once() -> None:
    assert [RateLimitRule(requests_per_second=rate).burst for rate in (0.1, 1, 2.5)] == [1, 1, 2.5]


def test_the_longest_delay_may_not_be_below_the_first() -> None:
    assert problem(retry={"max_delay_ms": 99}) == "retry: max_delay_ms must be at least base_delay_ms (100)"


def test_describe_tells_value_and_origin_of_every_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(
        tmp_path / "llmkg.toml",
        {"retry": {"max_retries": 1, "base_delay_ms": 5}, "auth_tokens": {"a": SECRET}},
    )
    monkeypatch.setenv("LLMKG_RETRY__MAX_RETRIES", "2")
    monkeypatch.setenv("LLMKG_RATE_LIMITING", "9/second")
    monkeypatch.setenv("LLMKG_SERVER__OPERATOR_TOKEN", SECRET)
    arguments = {"health": {"history_size": 7}}
    rows = describe(ProductionConfig.load(file, **arguments), file, arguments)
    known = {
        path
        for path in LEAVES
        if not path.startswith(("operations.", "auth_tokens.", "rate_limiting.per_user."))
    }
    assert {path for path, _, _ in rows} == known | {"operations", "rate_limiting.per_user", "auth_tokens.a"}
    assert len(rows) == len(known) + 3
    assert [row for row in rows if row[2] != "default"] == [
        ("rate_limiting.requests_per_second", "9.0", "environment"),
        ("rate_limiting.burst_capacity", "9", "environment"),
        ("retry.max_retries", "2", "environment"),
        ("retry.base_delay_ms", "5.0", f"file {file}"),
        ("health.history_size", "7", "argument"),
        ("server.operator_token", "**********", "environment"),
        ("auth_tokens.a", "**********", f"file {file}"),
    ]


def test_the_json_schema_knows_every_default_and_refuses_unknown_options() -> None:
    assert json.loads(json.dumps(SCHEMA)) == SCHEMA
    assert {part.get("additionalProperties") for part in (SCHEMA, *SCHEMA["$defs"].values())} == {False}
    dumped = ProductionConfig().model_dump(mode="json")
    for path, schema in LEAVES.items():
        section, _, name = path.partition(".")
        if "default" in schema and "." not in name:
            assert dumped[section][name] == schema["default"], path


@pytest.mark.parametrize("path", [path for path in LEAVES if path.count(".") == 1])
def test_nothing_can_be_changed_once_it_is_built(path: str) -> None:
    config = ProductionConfig()
    section, name = path.split(".")
    with pytest.raises(ValidationError, match="frozen"):
        setattr(config, section, None)
    if isinstance(part := getattr(config, section), Section):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(part, name, None)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.ini", b"", "ends in .yaml, .yml or .toml"),
        ("a.yaml", b"- 1", "holds a list, not a mapping"),
        ("a.yaml", b"1: 2", "not a name"),
        ("a.yaml", b"a: {b: c", "line 1, column 9: expected"),
        ("a.yaml", b"a: 2001-99-99", "cannot be parsed"),
        ("a.yaml", b"\xff", "cannot be parsed"),
        ("a.toml", b"a = ", "cannot be parsed: Invalid value (at"),
        ("missing/a.yaml", None, "cannot be read: No such file"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(
    name: str, content: bytes | None, said: str, tmp_path: Path
) -> None:
    file = tmp_path / name
    if content is not None:
        file.write_bytes(content)
    assert (message := problem(file)).startswith(f"{file}: ")
    assert said in message


def test_an_empty_file_changes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("# nothing\n")
    assert ProductionConfig.load(file) == ProductionConfig()


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.binary()
    | st.timedeltas()
    | st.just(10**400),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text() | st.integers(), inner, max_size=3),
    max_leaves=5,
)


@given(st.sampled_from(sorted(LEAVES)) | st.text(min_size=1), ANYTHING, st.text())
def test_any_mapping_builds_a_working_configuration_or_is_a_configuration_error(
    path: str, value: Any, key: str
) -> None:
    try:
        config = ProductionConfig(**nest(path, value) | ({key: value} if key.isalpha() else {}))
    except ConfigurationError:
        return
    assert 0 < TokenBucket(config.rate_limiting).take(0.0) + 1 < float("inf")
    assert describe(config, None, {})


@given(st.text() | ANYTHING.map(repr) | st.dictionaries(st.sampled_from(sorted(LEAVES)), ANYTHING).map(str))
@settings(max_examples=200)
def test_any_text_as_a_file_builds_or_is_a_configuration_error(tmp_path_factory: Any, text: str) -> None:
    for suffix in (".yaml", ".toml"):
        file = tmp_path_factory.getbasetemp() / f"any{suffix}"
        file.write_bytes(text.encode(errors="surrogatepass"))
        try:
            assert ProductionConfig.load(file) is not None
        except ConfigurationError as error:
            assert str(error)


@given(st.sampled_from(sorted(LEAVES)), st.text(st.characters(codec="utf-8", exclude_characters="\0")))
def test_any_text_in_a_variable_builds_or_is_a_configuration_error(path: str, text: str) -> None:
    name = variable(path.rpartition(".")[0]) if len(text) % 2 else variable(path)
    with mock.patch.dict(os.environ, {name: text}):
        try:
            assert ProductionConfig() is not None
        except ConfigurationError as error:
            assert str(error)
