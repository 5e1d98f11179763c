"""Which methods of which engines are operations: plain data, built in or from the configuration."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from llmkg_otel._config_sources import Section
from llmkg_otel._config_types import Seconds

__all__ = ["NAME", "PROFILES", "Method", "Profile", "check_target", "protected_name", "target"]

NAME = r"[a-z][a-z0-9_]{0,62}"
"""What may name an engine or an operation: it is a label's value, and a part of variables' names."""
Name = Annotated[str, Field(pattern=f"^{NAME}$")]


def check_target(text: str) -> str:
    """Return a class's name if it has the form "pkg.module:Class"; raise ValueError."""
    module, _, name = text.partition(":")
    if not all(map(str.isidentifier, (*module.split("."), name))):
        raise ValueError('a class is given as "pkg.module:Class"')
    return text


Target = Annotated[str, AfterValidator(check_target)]
"""A class, as "pkg.module:Class"."""

MINUTES = 60.0


class Method(Section):
    """How a method is told of and protected.

    `operation` names it in telemetry (None: its own name); several methods may share one. `write` says that
    it changes something, `idempotent` that doing it twice does no harm (None: if it does not write).
    `kind` "lazy" is one whose work is done while its result is iterated: a generator, or what the result
    holds in the attribute `iterates`; "auto" looks at the function. `rows` is the attribute of the result
    that is counted ("self": the result; generators are counted anyway), `text` the parameter that is the
    query's text, and `failures` are results that mean a failure: values, or part of a mapping.
    `timeout_seconds` is what one call may take when it is protected (None: the system's default).
    """

    operation: Name | None = None
    write: bool = True
    idempotent: bool | None = None
    kind: Literal["auto", "sync", "async", "lazy"] = "auto"
    iterates: str | None = None
    rows: str | None = None
    text: str | None = None
    failures: tuple[Any, ...] = ()
    timeout_seconds: Seconds | None = None

    @property
    def repeatable(self) -> bool:
        """Whether a second attempt is harmless."""
        return not self.write if self.idempotent is None else self.idempotent


class Profile(Section):
    """An engine: its classes, its `db.system.name` (None: its name), and its operations.

    A method is looked for in the first class, and in the others where they define it themselves. No
    `methods` stand for all public ones. Exceptions of `caller_errors`, by name ("builtins.TypeError"), are
    the caller's mistakes; names that cannot be imported are left out. `protect` False is for engines that
    protect themselves: they are only told of.
    """

    name: Name
    classes: Annotated[tuple[Target, ...], Field(min_length=1)]
    system: str | None = Field(default=None, min_length=1)
    methods: dict[str, Method] = Field(default_factory=dict)
    caller_errors: tuple[str, ...] = ()
    protect: bool = True


def target(text: str) -> tuple[str, str]:
    """Return the module and the class that "pkg.module:Class" names."""
    module, _, name = text.partition(":")
    return module, name


def protected_name(profile: Profile, name: str, how: Method) -> str:
    """Return the name under which a method is configured and protected: "lightrag_query"."""
    return f"{profile.name}_{how.operation or name}"


def _reads(**options: Any) -> Method:
    return Method(write=False, **options)


_EMBEDDED = Profile(
    name="embedded",
    classes=("llmkg_otel.engine.embedded:EmbeddedKnowledgeEngine",),
    system="sqlite",
    methods={
        "store_facts": Method(kind="async", idempotent=True, rows="self"),
        "store_passage": Method(kind="async"),
        "find_facts": _reads(kind="async", rows="self"),
        "search": _reads(kind="async", rows="self", text="query"),
        "neighbours": _reads(kind="async", rows="self"),
        "stats": _reads(kind="async"),
        "backup": Method(kind="async", timeout_seconds=10 * MINUTES),
    },
    caller_errors=("llmkg_otel.errors.InvalidInputError",),
)

_FAILED_QUERY = {"status": "failure", "metadata": {}}
"""What LightRAG returns for an exception; without results it tells a reason in the metadata."""

# The sync twins (query, insert, ...) run the async methods on a loop of their own: those are told of.
_LIGHTRAG = Profile(
    name="lightrag",
    classes=("lightrag.lightrag:LightRAG",),
    methods={
        "ainsert": Method(operation="insert", kind="async", timeout_seconds=60 * MINUTES),
        "ainsert_custom_kg": Method(operation="insert_custom_kg", kind="async", timeout_seconds=10 * MINUTES),
        "aquery": _reads(
            operation="query", kind="async", text="query", failures=(None,), timeout_seconds=3 * MINUTES
        ),
        "aquery_data": _reads(
            operation="query_data",
            kind="async",
            text="query",
            failures=(_FAILED_QUERY,),
            timeout_seconds=MINUTES,
        ),
        "aquery_llm": _reads(
            operation="query_llm",
            kind="async",
            text="query",
            failures=(_FAILED_QUERY,),
            timeout_seconds=3 * MINUTES,
        ),
        "get_knowledge_graph": _reads(kind="async", rows="nodes", timeout_seconds=MINUTES),
        "acreate_entity": Method(operation="create_entity", kind="async", timeout_seconds=MINUTES),
        "acreate_relation": Method(operation="create_relation", kind="async", timeout_seconds=MINUTES),
    },
    caller_errors=("builtins.TypeError", "builtins.ValueError"),
)

_GRAPHITI = Profile(
    name="graphiti",
    classes=("graphiti_core.graphiti:Graphiti",),
    methods={
        "add_episode": Method(kind="async", timeout_seconds=10 * MINUTES),
        "add_episode_bulk": Method(kind="async", timeout_seconds=60 * MINUTES),
        "add_triplet": Method(kind="async", timeout_seconds=3 * MINUTES),
        "search": _reads(kind="async", rows="self", text="query", timeout_seconds=MINUTES),
        "search_": _reads(kind="async", rows="edges", text="query", timeout_seconds=MINUTES),
        "retrieve_episodes": _reads(kind="async", rows="self", timeout_seconds=MINUTES),
        "remove_episode": Method(kind="async", timeout_seconds=MINUTES),
        "build_communities": Method(kind="async", timeout_seconds=60 * MINUTES),
    },
    caller_errors=(
        "builtins.TypeError",
        "graphiti_core.errors.EntityTypeValidationError",
        "graphiti_core.errors.GroupIdValidationError",
        "graphiti_core.errors.NodeNotFoundError",
        "graphiti_core.errors.EdgeNotFoundError",
    ),
)

_RDFLIB = Profile(
    name="rdflib",
    classes=("rdflib.graph:Graph", "rdflib.graph:ConjunctiveGraph", "rdflib.graph:Dataset"),
    methods={
        "add": Method(kind="sync", idempotent=True),
        "remove": Method(kind="sync", idempotent=True),
        "triples": _reads(kind="lazy"),
        "query": _reads(
            kind="lazy", iterates="_genbindings", text="query_object", timeout_seconds=3 * MINUTES
        ),
        "update": Method(kind="sync", text="update_object", timeout_seconds=3 * MINUTES),
        "parse": Method(kind="sync", timeout_seconds=60 * MINUTES),
        "serialize": _reads(kind="sync", timeout_seconds=60 * MINUTES),
    },
    caller_errors=(
        "builtins.AssertionError",
        "builtins.FileNotFoundError",
        "builtins.SyntaxError",
        "builtins.TypeError",
        "builtins.ValueError",
        "pyparsing.ParseBaseException",
        "rdflib.exceptions.Error",
        "rdflib.plugin.PluginException",
        "xml.sax.SAXException",
    ),
)

_EXECUTE_QUERY = {"execute_query": Method(rows="records", text="query_")}
_IN_TRANSACTIONS = {"run": Method(text="query")}
_IN_SESSIONS = {"execute_read": _reads(), "execute_write": Method(), **_IN_TRANSACTIONS}

_NEO4J = tuple(
    Profile(name="neo4j", classes=(f"neo4j:{each}",), methods=methods, protect=False)
    for each, methods in (
        ("Driver", _EXECUTE_QUERY),
        ("Session", _IN_SESSIONS),
        ("Transaction", _IN_TRANSACTIONS),
        ("AsyncDriver", _EXECUTE_QUERY),
        ("AsyncSession", _IN_SESSIONS),
        ("AsyncTransaction", _IN_TRANSACTIONS),
    )
)

PROFILES: tuple[Profile, ...] = (_EMBEDDED, _LIGHTRAG, _GRAPHITI, _RDFLIB, *_NEO4J)
"""The engines that are known; a module that the program does not import costs nothing."""
