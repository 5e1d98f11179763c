"""Every option does something, and a test sees it: what only parses is a promise that nobody keeps."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from mcp import Client
from support.servers import Servers, http_get

import llmkg_otel
from llmkg_otel._config_sources import Section
from llmkg_otel.config import NotifyConfig, OperationConfig, ProductionConfig, RateLimitRule, SloConfig
from llmkg_otel.engine.profiles import Method, Profile

if TYPE_CHECKING:
    from collections.abc import Iterator

PARSING = ("test_config.py", "test_config_sources.py")
"""Tests of how options are written; that one is accepted says nothing of what it does."""

SECTIONS: dict[str, type[Section]] = {
    **{name: type(part) for name, part in ProductionConfig() if isinstance(part, Section)},
    "notify": NotifyConfig,
    "operations": OperationConfig,
    "per_user": RateLimitRule,
    "profiles": Profile,
    "methods": Method,
    "slos": SloConfig,
}
OPTIONS = [(section, name) for section, model in SECTIONS.items() for name in model.model_fields]
NAMES = [name for _, name in OPTIONS]


def nodes(file: Path) -> Iterator[ast.AST]:
    """Yield the nodes of a file, less the bodies of validators: a value that is only checked does nothing."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.FunctionDef) and "validator" in "".join(
            map(ast.unparse, node.decorator_list)
        ):
            node.body = []
        yield node


def set_by(node: ast.AST) -> Iterator[str]:
    """Yield the options that a node gives a value: a keyword, a key of a dict, a variable or a flag."""
    match node:
        case ast.keyword(arg=str(name)):
            yield name
        case ast.Dict():
            yield from (str(key.value) for key in node.keys if isinstance(key, ast.Constant))
        case ast.Constant(value=str(text)):
            yield from (path.lower() for path in re.findall(r"LLMKG_([A-Z_]+)", text))
            yield from (flag.replace("-", "_") for flag in re.findall(r"^--([a-z-]+)$", text))


READ = {
    node.attr
    for file in Path(llmkg_otel.__file__).parent.rglob("*.py")
    for node in nodes(file)
    if isinstance(node, ast.Attribute)
}
TESTS = {
    file.read_text(): {name for node in nodes(file) for name in set_by(node)}
    for file in Path(__file__).parent.rglob("*.py")
    if file.name not in PARSING
}


@pytest.mark.parametrize(("section", "name"), OPTIONS)
def test_an_option_is_read_by_the_package_and_set_by_a_test_of_what_it_does(section: str, name: str) -> None:
    assert name in READ
    alone = {f"{section}__{name}", f"{section}_{name}"} | ({name} if NAMES.count(name) == 1 else set())
    model = SECTIONS[section].__name__
    assert any(alone & names or (name in names and model in text) for text, names in TESTS.items())


async def test_the_server_serves_at_the_path_that_is_configured(tmp_path: Path) -> None:
    servers = Servers(tmp_path)
    try:
        server = servers.start(env={"LLMKG_SERVER__PATH": "/knowledge"})
        assert server.mcp_url.endswith("/knowledge")
        async with Client(server.mcp_url) as client:
            assert (await client.list_tools()).tools
        assert http_get(server.mcp_url.replace("/knowledge", "/mcp")).status == 404
    finally:
        servers.kill_remaining()
