"""Planted secrets: wherever one stands in a log record, no way out of the process has it."""

from __future__ import annotations

import io
import json
import logging
import string
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llmkg_otel.telemetry.logs import JsonLogs, LogExport
from llmkg_otel.telemetry.recent_logs import RecentLogs
from llmkg_otel.telemetry.redaction import REDACTED, is_secret_name, redact, redact_text
from llmkg_otel.testing import captured_telemetry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FIRST, LAST = "Zq7", "Xk9"
"""Each secret begins and ends with these: also a part of one is seen."""

WORDS = string.ascii_letters + string.digits
plain = st.text(WORDS, min_size=12, max_size=40).map(lambda body: FIRST + body + LAST)
odd = st.text(WORDS + string.punctuation.replace("&", ""), min_size=8, max_size=30).map(
    lambda body: FIRST + body + LAST
)
anything = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=5, max_size=30
).map(lambda body: FIRST + body + LAST)
names = st.sampled_from(
    ["password", "PASSWD", "api_key", "apiKey", "X-Api-Key", "client_secret", "access_token", "db.pwd"]
)


def written(name: str, secret: str, form: str) -> str:
    return {
        "assigned": f"connecting with {name}={secret} now",
        "told": f"{name}: {secret}",
        "json": f"sent {json.dumps({name: secret, 'n': 1})}",
        "json in json": json.dumps({"body": json.dumps({name: secret})}),
        "repr": f"called with { ({name: secret, 'n': 1})!r}",
        "pairs": f"{[(name, secret), ('accept', '*/*')]!r}",
        "bytes": f"{[(name.encode(), secret.encode())]!r}",
        "query": f"GET /x?{name}={quote(secret)}&n=1",
    }[form]


texts = st.one_of(
    st.builds(written, names, odd, st.sampled_from(["assigned", "told"])),
    st.builds(written, names, anything, st.sampled_from(["json", "repr", "pairs", "bytes", "query"])),
    st.builds(written, names, plain, st.just("json in json")),
    plain.map(lambda secret: f"Authorization: Bearer {secret}"),
    plain.map(lambda secret: f"refused 'Bearer {secret}' of a caller"),
    odd.map(lambda secret: f"authorization: Basic {secret}\r\naccept: */*"),
    odd.map(lambda secret: f"Cookie: theme=dark; session={secret}"),
    st.builds(
        lambda scheme, user, secret: (
            f"cannot reach {scheme}://{user}:{quote(secret, safe='')}@db:5432/kg?x=1"
        ),
        st.sampled_from(["postgresql", "redis", "bolt+s", "https", "mongodb+srv"]),
        st.text(WORDS, max_size=5),
        anything,
    ),
    plain.map(lambda secret: f"token eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjMifQ.{secret} is late"),
    st.builds(str.__add__, st.sampled_from(["sk-proj-", "ghp_", "glpat-", "hf_", "AIza" + "a" * 30]), plain),
    plain.map(lambda secret: f"-----BEGIN EC PRIVATE KEY-----\n{secret}\n-----END EC PRIVATE KEY-----"),
)
"""A secret as it stands in text."""


class Told:
    """What left by each way: JSON lines on stderr, the ring, and OTLP."""

    def __init__(self) -> None:
        self.stderr, self.ring = io.StringIO(), RecentLogs(10)
        self.otlp: list[Any] = []

    def everything(self) -> dict[str, str]:
        lines = [json.loads(line) for line in self.stderr.getvalue().splitlines()]
        records = [[each.log_record.body, dict(each.log_record.attributes or {})] for each in self.otlp]
        ways = {"stderr": lines, "ring": self.ring.read(), "otlp": records}
        assert [len(told) for told in ways.values()] == [1, 1, 1]
        return {way: json.dumps(told, ensure_ascii=False, default=str) for way, told in ways.items()}


@contextmanager
def every_way_out(*, redact: bool = True) -> Iterator[Told]:
    told = Told()
    told.ring = RecentLogs(10, redact=redact)
    with captured_telemetry() as captured:
        export = LogExport(logger_provider=captured.logger_provider, redact=redact)
        with JsonLogs("info", told.stderr, redact=redact):
            logging.getLogger().addHandler(export)
            told.ring.start()
            try:
                yield told
            finally:
                told.ring.stop()
                logging.getLogger().removeHandler(export)
        told.otlp = captured.logs()


def in_the_message(logger: logging.Logger, text: str) -> None:
    logger.error(text)


def in_an_argument(logger: logging.Logger, text: str) -> None:
    logger.error("it said %r", {"body": [text]})


def in_an_attribute(logger: logging.Logger, text: str) -> None:
    logger.error("failed", extra={"detail": text, "deep": {"list": [text, ("a", text)]}, "at": Odd(text)})


def in_an_exception(logger: logging.Logger, text: str) -> None:
    try:
        try:
            raise ConnectionError(text)  # noqa: TRY301 - a chain is what is tested
        except ConnectionError as error:
            raise RuntimeError("outer", text) from error
    except RuntimeError:
        logger.exception("failed")


class Odd:
    """What JSON has no form for."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text


@pytest.mark.parametrize("place", [in_the_message, in_an_argument, in_an_attribute, in_an_exception])
@given(text=texts)
@settings(max_examples=60, deadline=None)
@example("password=Zq7\ud800Xk9")
@example('password="Zq7 it ends nowhere Xk9')
@example("password = 'Zq7\\' quoted Xk9'")
def test_a_planted_secret_leaves_by_no_way(place: Callable[[logging.Logger, str], None], text: str) -> None:
    with every_way_out() as told:
        place(logging.getLogger("engine"), text)
    for way, said in told.everything().items():
        assert REDACTED in said, way
        assert FIRST not in said, (way, said)
        assert LAST not in said, (way, said)


@pytest.mark.parametrize("value", ["Zq7-hunter-Xk9", 12345678, ["Zq7"], {"x": "Xk9"}, b"Zq7"])
def test_what_stands_under_a_secret_name_is_hidden_whatever_it_is(value: object) -> None:
    with every_way_out() as told:
        logging.getLogger("engine").error("hm", extra={"apiKey": value, "in": [{"db.password": value}]})
    for said in told.everything().values():
        assert said.count(REDACTED) == 2
        assert not [part for part in ("Zq7", "Xk9", "12345678") if part in said]


def test_redaction_can_be_switched_off() -> None:
    with every_way_out(redact=False) as told:
        logging.getLogger("engine").error("password=%s", "hunter2-again")
    for said in told.everything().values():
        assert "password=hunter2-again" in said


@given(st.text())
@settings(max_examples=300)
def test_redacting_twice_is_redacting_once_and_never_fails(text: str) -> None:
    once = redact_text(text)
    assert redact_text(once) == once


@pytest.mark.parametrize(
    "text",
    [
        "max_tokens=256 and 1200 prompt tokens: 7 completion",
        "https://kb.example:8443/facts?limit=10#a@b",
        "mail to alice@example.com",
        "circuit breaker find_facts: closed -> open",
        "find_facts: attempt 1 failed, next in 0.100 s",
        "the token bucket is empty; passwords are hashed",
        "task-force-of-sixteen-letters-and-more",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redact_text(text) == text


def test_names_of_secrets_are_told_from_names_that_only_sound_like_them() -> None:
    secret = ["password", "db.password", "apiKey", "X-API-Key", "operator_token", "auth_tokens", "Set-Cookie"]
    other = ["tokens", "max_tokens", "tokenizer", "key", "key_prefix", "secretary", "password_age"]
    assert [name for name in (*secret, *other) if is_secret_name(name)] == secret


def test_values_keep_their_shape() -> None:
    value = {"n": 1, "f": 0.5, "none": None, "token": None, "on": True, "list": [1, ("a", 2)], "set": {3}}
    assert redact(value) == value | {"list": [1, ["a", 2]], "set": "{3}"}
