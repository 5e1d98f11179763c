from __future__ import annotations

import json
import re
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from support.options import BAD, LEAVES, OPERATION, SCHEMA, merge, nest, problem, read

from llmkg_otel._config_sources import Section, describe
from llmkg_otel.config import (
    CircuitBreakerConfig,
    MonitoringConfig,
    ProductionConfig,
    RateLimitConfig,
    RateLimitRule,
    ResourceLimits,
    RetryConfig,
)
from llmkg_otel.errors import ConfigurationError
from llmkg_otel.limiting.token_bucket import TokenBucket

SEED: list[tuple[type[Section], dict[str, float]]] = [
    (
        RetryConfig,
        {
            "max_retries": 3,
            "base_delay_ms": 100,
            "max_delay_ms": 5000,
            "backoff_multiplier": 2.0,
            "jitter_factor": 0.1,
        },
    ),
    (
        CircuitBreakerConfig,
        {"failure_threshold": 5, "recovery_timeout": 60, "success_threshold": 3, "timeout": 10},
    ),
    (
        ResourceLimits,
        {
            "max_memory_bytes": 2_000_000_000,
            "max_cpu_percent": 80.0,
            "max_concurrent_operations": 1000,
            "max_database_connections": 100,
            "max_request_size_bytes": 10_000_000,
            "max_response_size_bytes": 50_000_000,
            "operation_timeout_seconds": 30,
        },
    ),
    (
        MonitoringConfig,
        {"max_metric_points": 1000, "metric_retention_seconds": 3600, "alert_check_interval_seconds": 30},
    ),
    (RateLimitConfig, {"requests_per_second": 100, "burst_capacity": 200}),
]


@pytest.mark.parametrize(("section", "defaults"), SEED)
def test_the_defaults_are_those_of_the_seed_document(
    section: type[Section], defaults: dict[str, float]
) -> None:
    assert {name: getattr(section(), name) for name in defaults} == defaults


BOUND = f"slos.{OPERATION}.latency_seconds"
"""An option that may have only some values, and 90 seconds is none of them."""


@pytest.mark.parametrize(
    "path", [path for path in LEAVES if re.search(r"(_seconds|timeout)$", path) and path != BOUND]
)
def test_a_timedelta_is_accepted_wherever_seconds_are(path: str) -> None:
    assert read(ProductionConfig(**nest(path, timedelta(minutes=1.5))), path) == 90.0


@pytest.mark.parametrize(("path", "value", "rule"), BAD)
def test_a_bad_value_is_told_with_its_path_itself_and_what_is_allowed(
    path: str, value: Any, rule: str
) -> None:
    message = problem(**nest(path, value))
    secret = re.search("token|secret|storage_uri|url|authorization", path)
    assert message.startswith(f"{path} = {'(hidden)' if secret else repr(value)}: ")
    assert rule in message


def test_several_errors_are_all_listed_at_once() -> None:
    bad: dict[str, Any] = {}
    for path, value, _ in sorted(BAD, key=lambda each: each[0].endswith(".objective")):  # given beside others
        bad = merge(bad, nest(path, value))
    told = {re.split(" = |: ", line)[0] for line in problem(**bad, typo=1).splitlines()}
    assert told == {*LEAVES, "typo"}


@pytest.mark.parametrize(
    "path", [path for path in LEAVES if "." in path and not path.startswith("auth_tokens.")]
)
def test_a_misspelt_option_is_refused_and_the_nearest_suggested(path: str) -> None:
    section, _, name = path.rpartition(".")
    assert problem(**nest(path[:-1], 1)) == f"{path[:-1]}: unknown option; did you mean {name}?"
    assert f"{section}.zzz: unknown option; known here: " in problem(**nest(f"{section}.zzz", 1))


def test_a_misspelt_section_is_refused_and_the_nearest_suggested() -> None:
    assert problem(retri={}) == "retri: unknown option; did you mean retry?"


@pytest.mark.parametrize(
    "text", ["fast", "", "100", "-5/second", "5/second; 9/minute", "1" * 400 + "/second"]
)
def test_a_rate_in_words_that_cannot_be_read_is_refused_with_an_example(text: str) -> None:
    assert 'is written like "100/second"' in problem(rate_limiting={"per_user": text})


def test_without_a_burst_a_second_of_calls_may_come_at_once() -> None:
    assert [RateLimitRule(requests_per_second=rate).burst for rate in (0.1, 1, 2.5)] == [1, 1, 2.5]


def test_the_longest_delay_may_not_be_below_the_first() -> None:
    told = problem(retry={"max_delay_ms": 99})
    assert told == "retry: max_delay_ms must be at least base_delay_ms (100)"


def test_a_section_that_is_built_alone_refuses_a_bad_value_too() -> None:
    with pytest.raises(ConfigurationError, match=r"^max_retries = -1: should be greater"):
        RetryConfig(max_retries=-1)


@pytest.mark.parametrize("level", ["DEBUG", "Info", "warning"])
def test_the_log_level_may_be_written_in_any_case(level: str) -> None:
    assert ProductionConfig(monitoring={"log_level": level}).monitoring.log_level == level.lower()


def test_the_json_schema_knows_every_default_and_refuses_unknown_options() -> None:
    assert json.loads(json.dumps(SCHEMA)) == SCHEMA
    assert {part.get("additionalProperties") for part in (SCHEMA, *SCHEMA["$defs"].values())} == {False}
    defaults = ProductionConfig().model_dump(mode="json")
    for path, schema in LEAVES.items():
        section, _, name = path.partition(".")
        if "default" in schema and name and "." not in name:
            assert defaults[section][name] == schema["default"], path


@pytest.mark.parametrize("path", [path for path in LEAVES if path.count(".") == 1])
def test_nothing_can_be_changed_once_it_is_built(path: str) -> None:
    config = ProductionConfig()
    section, name = path.split(".")
    with pytest.raises(ValidationError, match="frozen"):
        setattr(config, section, None)
    if isinstance(part := getattr(config, section), Section):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(part, name, None)


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.binary()
    | st.timedeltas()
    | st.sampled_from([10**400, "9" * 400 + "/second", 1e-320]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text() | st.integers(), inner, max_size=3),
    max_leaves=5,
)


@given(st.lists(st.tuples(st.sampled_from(sorted(LEAVES)) | st.text(), ANYTHING), max_size=4))
def test_any_mapping_builds_what_works_or_is_a_configuration_error(options: list[tuple[str, Any]]) -> None:
    tree: dict[str, Any] = {}
    for path, value in options:
        tree = {**tree, **nest(path, value)}
    try:
        config = ProductionConfig.load(None, **{key: tree[key] for key in tree if key not in {"file", "cls"}})
    except ConfigurationError:
        return
    assert TokenBucket(config.rate_limiting).take(0.0) == 0.0
    assert describe(config, None, tree)
