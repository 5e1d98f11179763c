"""Planted secrets: wherever one stands in a log record, no way out of the process has it."""

from __future__ import annotations

import base64
import json
import logging
import string
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.log_ways import every_way_out

from llmkg_otel.telemetry.redaction import REDACTED, plain_value
from llmkg_otel.telemetry.secret_text import is_secret_name, redact_text

if TYPE_CHECKING:
    from collections.abc import Callable

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
    [
        *("password", "PASSWD", "api_key", "apiKey", "X-Api-Key", "client_secret", "access_token", "db.pwd"),
        *("session_id", "JSESSIONID", "AccountKey", "X-Amz-Signature", "X-Goog-Signature", "auth_tokens"),
    ]
)
short = st.sampled_from(["DB_PASS", "pass", "NEO4J_AUTH", "basic-auth", "dbPass", "connect.sid"])
"""Names of secrets where a value is given to them; else everyday words."""


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
        "list": f"called with { ({name: ['a]', secret], 'n': 1})!r}",
        "deep": f"called with { ({name: ({'a': [b')', (secret, 1)]}, 'x'), 'n': 1})!r}",
        "json list": f"sent {json.dumps({name: ['a', {'b': secret}]})}",
        "flag": f"run --verbose --{name} {secret} --dry-run",
        "flag=": f"run --{name}={secret} --dry-run",
        "argv": f"Command '{['run', f'--{name}', secret, '-v']!r}' returned 1",
        "xml": f"<a:{name} Type='text'>{secret}</a:{name}>",
        "escaped xml": f"&lt;{name}&gt;{secret}&lt;/{name}&gt;",
        "cdata": f"<{name}><![CDATA[{secret}]]></{name}>",
    }[form]


def keyed(prefix: str, alphabet: str, length: int) -> st.SearchStrategy[str]:
    """Return keys of a service: with FIRST and LAST in them if the alphabet has them, else all is one."""
    body = st.text(alphabet, min_size=length - 6, max_size=length - 6)
    return body.map(lambda each: f"using {prefix}{FIRST}{each}{LAST}.")


ALPHANUMERIC = string.ascii_letters + string.digits
KEYS = {
    "sk-": 48,
    "sk-proj-": 120,
    "sk-ant-api03-": 95,
    "sk-or-v1-": 64,
    "sk_live_": 24,
    "rk_test_": 24,
    "whsec_": 32,
    "ghp_": 36,
    "gho_": 36,
    "github_pat_": 82,
    "glpat-": 20,
    "xoxb-": 50,
    "xoxe.xoxp-1-": 60,
    "xapp-1-": 60,
    "AIza": 35,
    "ya29.": 100,
    "GOCSPX-": 28,
    "1//0": 60,
    "hf_": 34,
    "gsk_": 52,
    "npm_": 36,
    "r8_": 37,
    "xai-": 80,
    "pplx-": 48,
    "nvapi-": 64,
    "pypi-AgEIcHlwaS5vcmc": 150,
    "SG.0123456789abcdefghijkl.": 43,
    "hvs.": 90,
    "ATATT3": 180,
    "lin_api_": 40,
    "123456789:AA": 33,
    "https://hooks.slack.com/services/T0/B0/": 24,
    "https://discord.com/api/webhooks/12/": 68,
    "https://x.example/f?code=": 56,
}
"""Prefixes of services' keys, and how many characters follow."""


texts = st.one_of(
    st.builds(written, names, odd, st.sampled_from(["assigned", "told"])),
    st.builds(written, names, anything, st.sampled_from(["json", "repr", "pairs", "bytes", "query"])),
    st.builds(written, names, plain, st.just("json in json")),
    st.builds(written, names, anything, st.sampled_from(["list", "deep", "json list", "argv"])),
    st.builds(written, names, plain, st.sampled_from(["flag", "flag=", "xml", "escaped xml", "cdata"])),
    st.builds(written, short, odd, st.just("assigned")),
    st.builds(written, short, anything, st.sampled_from(["json", "repr", "list", "deep", "json list"])),
    st.builds(written, short, plain, st.sampled_from(["flag=", "query"])),
    st.builds(lambda secret: f"NEO4J_AUTH=neo4j/{secret}", odd),
    st.builds(lambda secret: f"a?sv=1&sig={quote(secret)}&se=2", anything),
    st.builds(
        lambda user, secret, tail: (
            f"sent basic {base64.b64encode(f'{user}:{secret}'.encode()).decode()}{tail}"
        ),
        st.text(WORDS, min_size=4),
        anything,
        st.sampled_from(["", " to kg", '"']),
    ),
    st.one_of([keyed(prefix, ALPHANUMERIC, length) for prefix, length in KEYS.items()]),
    st.builds(
        lambda scheme, host, secret: f"cloned {scheme}://{secret}{host}/kg.git",
        st.sampled_from(["https", "git", "http"]),
        st.sampled_from(["@host", ":@host", ":x-oauth-basic@host:8443"]),
        plain,
    ),
    st.builds(
        lambda scheme, user, secret: (
            f"no answer from {scheme}://{user}:{FIRST}{secret}{LAST}@db:5432/kg, retried"
        ),
        st.sampled_from(["postgresql", "redis", "bolt+s", "https"]),
        st.text(WORDS, max_size=5),
        st.text(WORDS + "/#@:?!%$", min_size=4, max_size=20),
    ),
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
    plain.map(lambda secret: f"-----BEGIN EC PRIVATE KEY-----\n{secret}\n-----END EC PRIVATE KEY-----"),
    plain.map(
        lambda secret: f"-----BEGIN PGP PRIVATE KEY BLOCK-----\n\n{secret}\n=x\n-----END PGP PRIVATE KEY"
    ),
)
"""A secret as it stands in text."""


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


def shaped(secret: Any) -> st.SearchStrategy[Any]:
    """Return the secret in whatever a record can hold."""
    return st.recursive(
        st.sampled_from([secret, str(secret).encode(), Odd(str(secret)), 12345678, {secret}]),
        lambda inner: st.one_of(
            st.lists(inner, min_size=1, max_size=3),
            st.tuples(inner, inner),
            st.dictionaries(st.sampled_from(["x", 7, b"y"]), inner, min_size=1),
        ),
        max_leaves=6,
    )


@given(data=st.data(), name=names, short_name=short)
@settings(max_examples=60, deadline=None)
def test_what_stands_under_a_secret_name_is_hidden_whatever_it_is(
    data: st.DataObject, name: str, short_name: str
) -> None:
    value = data.draw(anything.flatmap(shaped))
    extra = {
        name: value,
        "in": [{short_name: value}, {name.encode(): value, 1: 2}],
        "headers": [(name, value), (name.encode(), value), [b"authorization", value]],
        "argv": ["run", f"--{name}", value, "-v", b"--" + name.encode(), value],
    }
    with every_way_out() as told:
        logging.getLogger("engine").error("hm", extra=extra)
    for said in told.everything().values():
        assert said.count(REDACTED) == 8
        assert not [part for part in (FIRST, LAST, "12345678") if part in said]


NAMED = [
    "[{'name': 'DB_PASSWORD', 'value': 'Zq7Xk9'}]",
    '{"key":"api_key","value":"Zq7 and Xk9","type":"text"}',
    '{"key": "api_key", "value": {"a": ["Zq7", "Xk9"]}}',
    json.dumps({"body": json.dumps({"name": "DB_PASSWORD", "value": "Zq7Xk9"})}),
    "[{'name': 'Authorization', 'value': 'Basic Zq7Xk9'}]",
    "env:\n- name: DB_PASSWORD\n  value: Zq7Xk9\n",
    "{Name:DB_PASSWORD Value:Zq7Xk9 ValueFrom:nil}",
    '<add key="password" value="Zq7Xk9"/>',
]


@pytest.mark.parametrize("text", NAMED)
def test_what_stands_beside_the_name_of_a_secret_is_hidden_and_its_key_is_not(text: str) -> None:
    told = redact_text(text)
    assert "value" in told.lower()
    assert told.count(REDACTED) == 1
    assert not [part for part in (FIRST, LAST) if part in told]


@pytest.mark.parametrize(
    "entry",
    [
        {"name": "DB_PASSWORD", "value": "Zq7Xk9"},
        {"value": "Zq7Xk9", "key": "api_key", "optional": True},
        {"Key": b"apiKey", "Value": ["Zq7", "Xk9"]},
        {b"name": b"Authorization", b"value": b"Zq7Xk9"},
    ],
)
def test_the_value_of_an_entry_that_names_a_secret_is_hidden(entry: dict[Any, Any]) -> None:
    kept = {"name": "max_tokens", "value": "256"}
    (told, other) = plain_value({"env": [entry, kept]})["env"]
    assert other == kept
    assert len(told) == len(entry)
    assert [key.lower() for key, each in told.items() if each == REDACTED] == ["value"]


ENDED = [
    *("password1", "password_confirmation", "DB_PASSWORD_PROD", "OPENAI_API_KEY_2", "api_key_prod"),
    *("secret_value", "PASSWORD_HASH", "api-key-prod-eu", "db.password.value", "passwordConfirmation"),
    *("apiKeyProd", "secret_id", "password[0]", "password[new]", "access_token_prod", "session_id2"),
]
"""Names of secrets that say more behind the word that tells."""


@pytest.mark.parametrize("name", ENDED)
def test_a_secrets_name_is_known_whatever_it_ends_with(name: str) -> None:
    assert is_secret_name(name)
    assert plain_value({name: "Zq7Xk9"}) == {name: REDACTED}
    for form in ("assigned", "told", "json", "repr", "json in json", "flag", "flag=", "argv", "xml"):
        told = redact_text(written(name, "Zq7Xk9", form))
        assert FIRST not in told, told
        assert name in told, told


@pytest.mark.parametrize(
    "text", ["\u017fecret=Zq7", "pa\u017f\u017fword=Zq7", "to\u212aen=Zq7", "ba\u017fic dXNlcjpacTc6WHRx"]
)
def test_a_name_in_letters_that_fold_to_its_own_is_known(text: str) -> None:
    assert redact_text(text).endswith(REDACTED)


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
        *(
            "token: null",
            "token=None",
            "token: true, x",
            "{'token': None, 'password': False}",
            "--token --verbose",
        ),
        *(
            "sk_search_results_by_name",
            "hf_load_dataset_from_hub_by_name",
            "gsk_build_index_of_entities_by_name",
        ),
        *(
            "sk-learn-based-entity-resolver-v2",
            "npm_config_registry_url_of_ours",
            "xai-style-answers-of-models",
        ),
        *(
            "max_tokens: 4096",
            "prompt_tokens=12 completion_tokens=9",
            "token_count: 7",
            '{"total_tokens": 12}',
        ),
        *("first pass: parsing", "Input should be 'pass', 'warn' or 'fail'", "author=alice", "bypass=on"),
        *('{"url":"http://x","a":"b@c"}', '{"url":"bolt://neo4j:7687","mail":"a@b.c"}', "bolt://kg:7687/a@b"),
        *("postgresql://alice@db/kg", "redis://cache:6379", "http://a:80/x and b@c", "?code=404&key=abc"),
        *("secretary=alice", "passwordless=true", "key_count=3", "token_budget: 7", "credentialing: done"),
        *(
            "password_age=30",
            "password_min_length: 12",
            "api_key_count=3",
            "secretName: tls",
            "passwords_file=x",
        ),
        *("{'name': 'max_tokens', 'value': '256'}", "signature_version=4", "KEY_PASSWORD_FILE=/run/x"),
        *(
            'File "/app/credentials.py", line 12, in refresh',
            "secret_text.py:34: error",
            "password.go:7 said",
        ),
        *("NoCredentialsError: none found", "SignatureDoesNotMatch: see the docs", "--password-file /run/x"),
        *("bearer authentication is off", "basic authentication", "routing_key=orders.created"),
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redact_text(text) == text


def test_names_of_secrets_are_told_from_names_that_only_sound_like_them() -> None:
    secret = [
        "password",
        "db.password",
        "apiKey",
        "X-API-Key",
        "operator_token",
        "auth_tokens",
        "Set-Cookie",
        "DB_PASS",
        "auth",
    ]
    other = ["tokens", "max_tokens", "tokenizer", "key", "key_prefix", "secretary", "password_age", "author"]
    other += ["passwordless", "credentials_file", "secretKeyRef", "token_count", "key_count"]
    assert [name for name in (*secret, *other) if is_secret_name(name)] == secret


def test_values_keep_their_shape() -> None:
    value = {"n": 1, "f": 0.5, "none": None, "token": None, "on": True, "list": [1, ("a", 2)], "set": {3}}
    assert plain_value(value) == value | {"list": [1, ["a", 2]], "set": "{3}"}


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "seed",
    [
        "a",
        "=",
        "token=[",
        "password='",
        '\\"',
        "token='\\",
        "://u:1@",
        "--token ",
        "<password>",
        "secret_",
        "password1",
        "password[",
        "'secret','a",
        "'secret','a':",
        "secret value",
        "secret_age=",
    ],
)
def test_a_long_text_made_to_slow_redaction_down_is_read_all_the_same(seed: str) -> None:
    text = seed * (1_000_000 // len(seed))
    assert FIRST not in redact_text(f"{text} password={FIRST}")
