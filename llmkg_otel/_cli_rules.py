"""`llmkg-otel rules`: check and test rule files, evaluate an expression, export the rules for Prometheus."""

from __future__ import annotations

import argparse
import logging
import re
import sys
import time
import urllib.request
from datetime import UTC, datetime
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmkg_otel.config import ProductionConfig
from llmkg_otel.errors import ConfigurationError

if TYPE_CHECKING:
    from llmkg_otel.alerting.samples import SampleStore

__all__ = ["add_rules"]

_PAGE_BYTES = 64 * 2**20
_TIMEOUT_SECONDS = 10.0
_LONGEST_PAUSE = 86_400


def add_rules(commands: Any) -> None:
    """Add the command and its own commands to a parser."""
    rules = commands.add_parser("rules", help="check, test and export alert rules; evaluate an expression")
    parts = rules.add_subparsers(required=True, dest="what", metavar="COMMAND")
    check = parts.add_parser("check", help="check that rule files can be evaluated here, exactly")
    check.add_argument("files", nargs="+", type=Path, metavar="FILE")
    check.set_defaults(command=_check)
    test = parts.add_parser("test", help="run promtool's unit-test files on the evaluator of this package")
    test.add_argument("files", nargs="+", type=Path, metavar="FILE")
    test.set_defaults(command=_test)
    export = parts.add_parser("export", help="print the built-in rules and those of `slos` as a rule file")
    export.set_defaults(command=_export)
    for parser in (check, export):
        parser.add_argument("--config", type=Path, metavar="FILE")
    _add_eval(parts)


def _add_eval(parts: Any) -> None:
    parser = parts.add_parser("eval", help="evaluate an expression on a /metrics page")
    parser.add_argument("expression", metavar="EXPR")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--url", help="scrape this page (without a path: /metrics)")
    source.add_argument(
        "--snapshot", type=Path, metavar="FILE", help="a page that was kept: text or OpenMetrics"
    )
    parser.add_argument(
        "--time",
        type=_time,
        metavar="T",
        help="snapshot: evaluate then, and what has no time of its own is of then; seconds or RFC 3339",
    )
    parser.add_argument("--scrapes", type=_count, default=1, metavar="N", help="url: scrape so often (1)")
    parser.add_argument("--every", type=_seconds, default=15.0, metavar="S", help="url: seconds between (15)")
    parser.set_defaults(command=_eval, parser=parser)


def _check(options: argparse.Namespace) -> int:
    from llmkg_otel.alerting.configured import reach_seconds  # noqa: PLC0415
    from llmkg_otel.alerting.rules import load_rules  # noqa: PLC0415 - compiles PromQL: other commands need not

    config = ProductionConfig.load(options.config)
    retention, interval = reach_seconds(config), config.monitoring.alert_check_interval_seconds
    status = 0
    for path in options.files:
        print("Checking", path, flush=True)
        try:
            loaded = load_rules(path, retention_seconds=retention, interval_seconds=interval)
        except ConfigurationError as error:
            status = _failed([str(error)])
        else:
            for warning in loaded.warnings:
                print("  WARNING:", warning)
            print(f"  SUCCESS: {sum(len(group.rules) for group in loaded.groups)} rules found")
    return status


def _test(options: argparse.Namespace) -> int:
    from llmkg_otel.alerting.unit_test_file import load_unit_tests  # noqa: PLC0415
    from llmkg_otel.alerting.unit_tests import run_unit_tests  # noqa: PLC0415

    logging.getLogger("llmkg_otel.alerting").addHandler(logging.NullHandler())  # failures are printed below
    status = 0
    for path in options.files:
        print("Testing", path, flush=True)
        try:
            file = load_unit_tests(path)
            for pattern in file.unmatched:
                print("  WARNING: no file match pattern", pattern, file=sys.stderr)
            failures = run_unit_tests(file)
        except ConfigurationError as error:
            failures = [str(error)]
        if failures:
            status = _failed(failures)
        else:
            print("  SUCCESS")
    return status


def _failed(reasons: list[str]) -> int:
    print("  FAILED:", *reasons, sep="\n", file=sys.stderr, flush=True)
    return 1


def _export(options: argparse.Namespace) -> int:
    from llmkg_otel.alerting.configured import own_rules  # noqa: PLC0415
    from llmkg_otel.alerting.export import rule_file_text  # noqa: PLC0415

    files = own_rules(ProductionConfig.load(options.config))
    print(rule_file_text(group for file in files for group in file.groups), end="")
    return 0


def _eval(options: argparse.Namespace) -> int:
    from llmkg_otel.alerting import exposition  # noqa: PLC0415
    from llmkg_otel.alerting.printed import show_metric, show_number  # noqa: PLC0415
    from llmkg_otel.alerting.promql import EvaluationError, Expression  # noqa: PLC0415
    from llmkg_otel.alerting.samples import SampleStore  # noqa: PLC0415

    if options.time is not None and options.url is not None:
        options.parser.error("--time is for --snapshot: what is scraped is of now")
    most = exposition.MAX_SAMPLES * options.scrapes
    store = SampleStore(retention_seconds=1e10, max_points=1_000_000, max_series=most)
    try:
        expression = Expression(options.expression)
        at = _scrape(store, options) if options.url is not None else _read(store, options)
        vector = expression.evaluate(store, at)
    except (ConfigurationError, EvaluationError) as error:
        print(f"llmkg-otel: {error}", file=sys.stderr)
        return 1
    for labels, value in vector:
        print(f"{show_metric(labels)} => {show_number(value)} @[{show_number(round(at, 3))}]")
    return 0


def _read(store: SampleStore, options: argparse.Namespace) -> float:
    from llmkg_otel.alerting.exposition import append_exposition  # noqa: PLC0415

    try:
        text = options.snapshot.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{options.snapshot}: cannot be read: {error}") from None
    return append_exposition(store, text, options.time, now=time.time(), name=str(options.snapshot))


def _scrape(store: SampleStore, options: argparse.Namespace) -> float:
    from llmkg_otel.alerting.exposition import append_exposition  # noqa: PLC0415

    found = re.fullmatch(r"(https?://[^/?#\s]+)(/[^?#\s]+)?/?(\?\S*)?", options.url)
    if found is None:
        raise ConfigurationError("--url must begin with http:// or https:// and a host")
    url = found[1] + (found[2] or "/metrics").rstrip("/") + (found[3] or "")
    at = 0.0
    for number in range(options.scrapes):
        if number:
            time.sleep(options.every)
        at = time.time()
        append_exposition(store, _page(url), at, now=at, name=url)
    return at


def _page(url: str) -> str:
    """Return what is there; OSError says why it cannot be read."""
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_SECONDS) as response:  # noqa: S310 - checked above
            body = response.read(_PAGE_BYTES + 1)
    except (OSError, HTTPException, ValueError) as error:
        raise OSError(f"{url}: cannot be read: {' '.join(str(error).split())}") from None
    if len(body) > _PAGE_BYTES:
        raise ConfigurationError(f"{url}: the page has more than {_PAGE_BYTES:,} bytes")
    return str(body, "utf-8", "replace")


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: must be a number from 1 up")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1
    if not 0 <= seconds <= _LONGEST_PAUSE:
        raise argparse.ArgumentTypeError(f"{text!r}: must be seconds from 0 to {_LONGEST_PAUSE}")
    return seconds


def _time(text: str) -> float:
    try:
        return datetime.fromtimestamp(float(text), UTC).timestamp()
    except (ValueError, OverflowError, OSError):
        pass
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: must be seconds since 1970, or RFC 3339") from None
