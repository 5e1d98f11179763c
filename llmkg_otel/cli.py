"""The command line: serve, checkpoints, restore, rules, dashboards, demo, doctor, config."""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from llmkg_otel._cli_rules import add_rules
from llmkg_otel._config_sources import describe
from llmkg_otel.config import ProductionConfig
from llmkg_otel.errors import ConfigurationError
from llmkg_otel.shutdown.budget import longest_shutdown
from llmkg_otel.shutdown.manifest import CheckpointError, checkpoints_in, verify
from llmkg_otel.telemetry.variables import check_before_import

__all__ = ["main"]

Command = Callable[[argparse.Namespace], int]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status: 0 well, 1 not well, 2 for wrong use or configuration."""
    options = _parser().parse_args(arguments)
    command: Command = options.command
    try:
        check_before_import()
        return command(options)
    except CheckpointError as error:
        print(f"llmkg-otel: {error}", file=sys.stderr)
        return 1
    except (ConfigurationError, OSError) as error:
        print(f"llmkg-otel: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        extra = options.name if options.name in ("dashboards", "demo") else "server"
        print(f"llmkg-otel: {error.name} is missing: pip install 'llmkg-otel[{extra}]'", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="llmkg-otel", description=__doc__)
    parser.add_argument("--version", action="version", version=version("llmkg-otel"))
    commands = parser.add_subparsers(required=True, dest="name", metavar="COMMAND")
    _add_serve(commands)
    _add_checkpoints(commands)
    add_rules(commands)
    demo = commands.add_parser("demo", help="run the server under real load and faults; check the books")
    demo.add_argument("--duration", type=float, default=20.0, metavar="S", help="seconds of load (20)")
    demo.add_argument("--json", action="store_true", help="print the summary as JSON")
    demo.add_argument("--keep", action="store_true", help="go on serving afterwards, until Ctrl-C")
    demo.set_defaults(command=_demo)
    doctor = commands.add_parser("doctor", help="check that the installed packages fit together")
    doctor.set_defaults(command=_doctor)
    dashboards = commands.add_parser("dashboards", help="write the Grafana dashboards")
    dashboards.add_argument("what", choices=["build"])
    dashboards.add_argument("--out", type=Path, default=Path("dashboards"), metavar="DIR", help="dashboards")
    dashboards.set_defaults(command=_dashboards)
    config = commands.add_parser("config", help="show the effective configuration, and what follows from it")
    config.add_argument(
        "what",
        choices=["show", "schema", "grace"],
        help="every option and its origin; the JSON schema; the termination grace period a pod needs",
    )
    config.add_argument(
        "--pre-stop", type=float, default=0, metavar="S", help="grace: of the preStop sleep (0)"
    )
    _add_config(config)
    config.set_defaults(command=_config)
    return parser


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, metavar="FILE")


def _add_checkpoints(commands: Any) -> None:
    checkpoints = commands.add_parser(
        "checkpoints", help="list the checkpoints, and check that each is whole"
    )
    checkpoints.add_argument("--directory", type=Path, metavar="DIR", help="where they are")
    _add_config(checkpoints)
    checkpoints.set_defaults(command=_checkpoints)
    back = commands.add_parser("restore", help="put a checkpoint in the place of the engine's file")
    back.add_argument(
        "--from",
        dest="source",
        type=Path,
        required=True,
        metavar="DIR",
        help="a checkpoint, or a directory of them: the newest",
    )
    back.add_argument("--engine-path", type=Path, metavar="FILE", help="the engine's file")
    back.add_argument("--force", action="store_true", help="replace a file that is there, and keep it beside")
    _add_config(back)
    back.set_defaults(command=_restore)


def _add_serve(commands: Any) -> None:
    serve = commands.add_parser("serve", help="serve the embedded engine over MCP, until SIGTERM")
    _add_config(serve)
    serve.add_argument("--transport", choices=["http", "stdio"], default="http")
    serve.add_argument("--host", help="address of the MCP server")
    serve.add_argument("--port", type=int, help="port of the MCP server; 0 takes a spare one")
    serve.add_argument("--ops-host", help="address of the operators' port")
    serve.add_argument("--ops-port", type=int, help="the operators' port, with stdio too; 0: a spare one")
    serve.add_argument("--insecure", action="store_true", default=None, help="serve others without auth")
    serve.add_argument("--engine-path", type=Path, metavar="FILE", help="the engine's file")
    serve.set_defaults(command=_serve)


def _serve(options: argparse.Namespace) -> int:
    from llmkg_otel.server.run import run_embedded  # noqa: PLC0415 - needs the server extra

    with asyncio.Runner() as runner:
        report = runner.run(run_embedded(_load(options), transport=options.transport))
        status = 0 if report.clean else 1
        if options.transport == "stdio":
            os._exit(status)  # all is flushed, and the thread that waits for input would never let go
    return status


def _load(options: argparse.Namespace) -> ProductionConfig:
    server = {
        "host": options.host,
        "port": options.port,
        "ops_host": options.ops_host,
        "ops_port": options.ops_port,
        "insecure": options.insecure,
    }
    given = {
        "server": {key: value for key, value in server.items() if value is not None},
        "engine": {"path": options.engine_path} if options.engine_path is not None else {},
    }
    return ProductionConfig.load(options.config, **{key: value for key, value in given.items() if value})


def _checkpoints(options: argparse.Namespace) -> int:
    directory = options.directory or ProductionConfig.load(options.config).checkpoint.directory
    if directory is None:
        raise ConfigurationError("checkpoint.directory is not set: name one with --directory")
    whole = True
    for checkpoint in checkpoints_in(directory):
        try:
            manifest = verify(checkpoint)
        except CheckpointError as error:
            print(f"{checkpoint}  BAD: {error}")
            whole = False
        else:
            counts = ", ".join(f"{count} {name}" for name, count in manifest.counts.items())
            print(f"{checkpoint}  {manifest.created.isoformat('T', 'seconds')}  {counts}")
    return 0 if whole else 1


def _restore(options: argparse.Namespace) -> int:
    from llmkg_otel.restore import restore  # noqa: PLC0415 - rarely needed

    engine_path = options.engine_path or ProductionConfig.load(options.config).engine.path
    manifest, before = restore(options.source.absolute(), engine_path.absolute(), force=options.force)
    print(f"{engine_path} is as it was at {manifest.created.isoformat('T', 'seconds')}")
    if before is not None:
        print(f"what was there before is {before}")
    return 0


def _demo(options: argparse.Namespace) -> int:
    from llmkg_otel.demo.run import run_demo  # noqa: PLC0415 - needs the demo extra

    return run_demo(options.duration, as_json=options.json, keep=options.keep)


def _doctor(_options: argparse.Namespace) -> int:
    from llmkg_otel.doctor import findings  # noqa: PLC0415 - reads package metadata

    found = findings()
    for finding in found:
        print(f"{'ok  ' if finding.ok else 'FAIL'}  {finding.subject}: {finding.detail}")
    return 0 if all(finding.ok for finding in found) else 1


def _dashboards(options: argparse.Namespace) -> int:
    from llmkg_otel.dashboards import write  # noqa: PLC0415 - rarely needed

    for path in write(options.out):
        print(path)
    return 0


def _config(options: argparse.Namespace) -> int:
    if options.what == "schema":
        print(json.dumps(ProductionConfig.model_json_schema(), indent=2))
        return 0
    config = ProductionConfig.load(options.config)
    if options.what == "grace":
        print(math.ceil(longest_shutdown(config) + options.pre_stop))
        return 0
    for path, value, origin in describe(config, options.config, {}):
        print(f"{path} = {value}  ({origin})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
