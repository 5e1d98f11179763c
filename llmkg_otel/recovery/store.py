"""The circuits of a fleet in Redis or Valkey: one hash each, one script, one channel for transitions."""

from __future__ import annotations

import time
from contextlib import closing, contextmanager
from importlib import resources
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from llmkg_otel.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from llmkg_otel.config import CircuitBreakerConfig

__all__ = ["AWAY_SECONDS", "HEARTBEAT_SECONDS", "CircuitStore", "Question", "Verb", "Word"]

Verb = Literal["look", "trip", "close", "recall", "probe", "used", "succeeded", "released"]

HEARTBEAT_SECONDS = 0.25
"""How long the channel may be silent before the store is asked for a sign of life."""

AWAY_SECONDS = 0.5
"""How long an answer may take before the store counts as away. Calls wait for FLEET_SECONDS at most, and
are refused when a store that is only slow keeps them waiting: ten times as long, since a store that comes
and goes would make each process probe alone again and again."""

_MICROSECONDS = 1_000_000


class Question(NamedTuple):
    """One verb of lua/circuit.lua for one circuit.

    `token` is that of the probe that is reported (0: none), `at` when the circuit opened or closed (of
    the monotonic clock; None: now).
    """

    verb: Verb
    circuit: str
    config: CircuitBreakerConfig
    token: int = 0
    at: float | None = None


class Word(NamedTuple):
    """What the store says of a circuit.

    `state` is open, closed or absent, `fence` grows with each transition and lease, `wait` is the
    seconds until a probe may be had, `token` that of the probe just granted (0: none; -1: it is lent to
    another, for `wait` at most).
    """

    circuit: str
    state: str
    fence: int
    wait: float
    token: int = 0


class CircuitStore:
    """Exchanges with the store, each in AWAY_SECONDS or an error of the client. For any thread.

    `uri` is in the notation of the `limits` library. Keys are `{key_prefix}:circuit:{name}`; they expire
    an hour after the last change, or after 10 times the circuit's `recovery_timeout` or `timeout`, if
    that is longer. The channel is `{key_prefix}:circuits`, with `:{database}` unless that is 0: a server
    has its channels for all its databases. Nothing is connected before it is needed. Raises
    ConfigurationError for a URI that cannot be used, or whose client library is missing.
    """

    def __init__(self, uri: str, key_prefix: str) -> None:
        self._uri = uri
        self._prefix = key_prefix
        self._channel = f"{key_prefix}:circuits"  # until _open knows the database
        self._opened: tuple[Any, Any] | None = None
        try:
            self._open()
        except ConfigurationError:
            raise
        except Exception:  # noqa: BLE001 - a cluster's client connects at once: it will be tried again
            self._opened = None

    def exchange(self, questions: Sequence[Question]) -> list[Word]:
        """Put many questions in one round trip; return each circuit's state afterwards."""
        client, script = self._open()
        answers = self._run(client, script.sha, questions)
        if any(type(answer).__name__ == "NoScriptError" for answer in answers):  # none of them has run
            self.prepare()
            answers = self._run(client, script.sha, questions)
        words = []
        for question, answer in zip(questions, answers, strict=True):
            if isinstance(answer, Exception):
                raise answer
            state, fence, wait, granted = answer
            words.append(Word(question.circuit, _text(state), fence, wait / _MICROSECONDS, granted))
        return words

    def prepare(self) -> None:
        """Connect, and give the store the script: an exchange is then one round trip."""
        client, script = self._open()
        client.script_load(script.script)

    def _run(self, client: Any, sha: str, questions: Sequence[Question]) -> list[Any]:
        pipeline, now = client.pipeline(transaction=False), time.monotonic()
        for verb, circuit, config, token, at in questions:
            lent_for = config.timeout + AWAY_SECONDS  # an attempt, and the ways of the probe and the report
            times = [config.recovery_timeout, lent_for, 0.0 if at is None else now - at]
            recovery, lease, age = (round(seconds * _MICROSECONDS) for seconds in times)
            key, threshold = f"{self._prefix}:circuit:{circuit}", config.success_threshold
            arguments = [verb, circuit, self._channel, recovery, lease, threshold, token, age]
            pipeline.execute_command("EVALSHA", sha, 1, key, *arguments)
        answers: list[Any] = pipeline.execute(raise_on_error=False)
        return answers

    @contextmanager
    def subscribed(self) -> Iterator[Callable[[], Word | None]]:
        """Subscribe to all transitions, and give a function that waits for the next one.

        It returns None when nothing has happened for HEARTBEAT_SECONDS, and raises if the store is
        silent even when it is asked.
        """
        client, _ = self._open()
        with closing(client.pubsub()) as subscription:
            subscription.subscribe(self._channel)
            _next_message(subscription, AWAY_SECONDS)

            def next_word() -> Word | None:
                message = subscription.get_message(timeout=HEARTBEAT_SECONDS)
                if message is None:
                    subscription.ping()
                    message = _next_message(subscription, AWAY_SECONDS)
                return _parsed(_text(message["data"])) if message["type"] == "message" else None

            yield next_word

    def close(self) -> None:
        """Close every connection."""
        if self._opened is not None:
            from llmkg_otel._storage import clients_of  # noqa: PLC0415 - as in _open

            for client in clients_of(self._opened[0]):
                client.close()

    def _open(self) -> tuple[Any, Any]:
        """Return the client and its script."""
        if self._opened is None:
            from llmkg_otel._storage import open_storage  # noqa: PLC0415 - slow to import, rarely needed

            storage: Any = open_storage(self._uri, self._prefix, AWAY_SECONDS)
            client = storage.storage
            if database := _database_of(client):
                self._channel = f"{self._prefix}:circuits:{database}"
            lua = resources.files(__package__) / "lua" / "circuit.lua"
            self._opened = client, client.register_script(lua.read_text("utf-8"))
        return self._opened


def _database_of(client: Any) -> int:
    pool = getattr(client, "connection_pool", None)  # a cluster's client has none, and one database
    return 0 if pool is None else int(pool.connection_kwargs.get("db") or 0)


def _next_message(subscription: Any, timeout: float) -> Any:
    message = subscription.get_message(timeout=timeout)
    if message is None:
        raise TimeoutError(f"no answer within {timeout * 1000:.0f} ms")
    return message


def _parsed(message: str) -> Word:
    fence, state, wait, circuit = message.split(" ", 3)
    return Word(circuit, state, int(fence), int(wait) / _MICROSECONDS)


def _text(value: bytes | str) -> str:
    """Decode what a client has not: its URI may ask for either."""
    return value.decode() if isinstance(value, bytes) else value
