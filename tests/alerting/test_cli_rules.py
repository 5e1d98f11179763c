"""`llmkg-otel rules`: the same verdicts and words as promtool, and one clear line for what is refused."""

from __future__ import annotations

import re
import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml
from support.prometheus import failures

from llmkg_otel.alerting import configured, exposition
from llmkg_otel.alerting.rules import load_default_rules, load_rules
from llmkg_otel.cli import main

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.prometheus import Promtool

    from llmkg_otel.system import ProductionSystem

RULES = Path(__file__).parent / "rules"
UNIT_TESTS = sorted(path for path in RULES.rglob("*.yaml") if "tests:" in path.read_text())


def ours(*arguments: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    capsys.readouterr()
    status = main(["rules", *arguments])
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return status, captured.out, captured.err


@pytest.mark.parametrize("path", UNIT_TESTS, ids=lambda path: path.stem)
def test_a_unit_test_has_the_verdict_and_the_report_of_promtool(
    path: Path, promtool: Promtool, capsys: pytest.CaptureFixture[str]
) -> None:
    if promtool.is_version_2 and path.name.startswith("version_3"):
        pytest.skip("what it tests is not in version 2")
    theirs = subprocess.run(
        [promtool.path, "test", "rules", str(path)], capture_output=True, text=True, check=False
    )
    status, out, err = ours("test", str(path), capsys=capsys)
    assert status == theirs.returncode == (1 if path.parent.name == "failing" else 0)
    assert ("SUCCESS" in out) == ("SUCCESS" in theirs.stdout) == (status == 0)
    if not promtool.is_version_2:  # which prints a few of them otherwise
        assert failures(err) == [
            re.sub(r"(\dm)0s\b", r"\1", each) for each in failures(theirs.stderr + theirs.stdout)
        ]


def test_the_rules_and_the_unit_test_of_the_documentation_are_sound_for_both(
    promtool: Promtool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (Path(__file__).parents[2] / "docs" / "alerting.md").read_text()
    files = dict(
        re.findall(r"^`(\w+\.yaml)`[^`]*(?:`[^`]+`[^`]*)*?```yaml\n(.*?)```", page, re.DOTALL | re.MULTILINE)
    )
    assert set(files) == {"rules.yaml", "rules_test.yaml"}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert ours("check", str(tmp_path / "rules.yaml"), capsys=capsys)[0] == 0
    assert ours("test", str(tmp_path / "rules_test.yaml"), capsys=capsys) == (
        0,
        f"Testing {tmp_path / 'rules_test.yaml'}\n  SUCCESS\n",
        "",
    )
    command = [promtool.path, "test", "rules", str(tmp_path / "rules_test.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_there_are_unit_tests_that_fail_in_every_way() -> None:
    assert len(UNIT_TESTS) > 10
    assert {path.parent.name for path in UNIT_TESTS} == {"rules", "failing"}


def test_files_are_checked_each_and_one_that_is_wrong_is_told_with_line_and_part(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("groups:\n- name: g\n  rules:\n  - alert: A\n    expr: sum(up) > limitk(1, up)\n")
    status, out, err = ours("check", str(wrong), str(RULES / "sound.yaml"), capsys=capsys)
    assert status == 1
    assert out == f"Checking {wrong}\nChecking {RULES / 'sound.yaml'}\n  SUCCESS: 5 rules found\n"
    assert f"{wrong}:5: rule A: " in err
    assert "limitk" in err


def test_a_rule_that_looks_back_further_than_samples_are_kept_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LLMKG_MONITORING__METRIC_RETENTION_SECONDS", "600")
    rules = tmp_path / "rules.yaml"
    rules.write_text("groups: [{name: g, rules: [{alert: A, expr: 'rate(a_total[1h]) > 1'}]}]")
    status, out, _ = ours("check", str(rules), capsys=capsys)
    assert status == 0
    assert "WARNING" in out
    assert "samples are kept for 600 s" in out


def test_an_interval_that_the_configured_loop_cannot_keep_is_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "rules.yaml").write_text("groups: [{name: g, interval: 45s, rules: []}]")
    config = tmp_path / "config.yaml"
    for seconds, told in ((30, True), (15, False)):
        config.write_text(f"monitoring: {{alert_check_interval_seconds: {seconds}}}")
        assert main(["rules", "check", str(tmp_path / "rules.yaml"), "--config", str(config)]) == 0
        assert ("group g has an interval of 45 s" in capsys.readouterr().out) is told


def test_a_file_that_is_not_there_is_told_without_a_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("check", "test"):
        status, _, err = ours(command, "/no/such/file.yaml", capsys=capsys)
        assert status == 1
        assert "/no/such/file.yaml: cannot be read" in err
    assert ours("eval", "up", "--snapshot", "/no/such/file", capsys=capsys)[0] == 2
    assert ours("eval", "up", "--url", "http://127.0.0.1:1/", capsys=capsys)[0] == 2


def test_what_is_exported_is_a_rule_file_for_prometheus_with_the_rules_that_run_here(
    promtool: Promtool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, _ = ours("export", capsys=capsys)
    assert status == 0
    exported = tmp_path / "exported.yaml"
    exported.write_text(out)
    done = subprocess.run(
        [promtool.path, "check", "rules", str(exported)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    again, defaults = load_rules(exported), load_default_rules()
    assert len(again.groups) >= len(defaults.groups) > 0
    for group, original in zip(again.groups, defaults.groups, strict=False):
        assert (group.name, group.interval_seconds) == (original.name, original.interval_seconds)
        for rule, meant in zip(group.rules, original.rules, strict=True):
            assert [getattr(rule, name) for name in fields(rule)] == [
                getattr(meant, name) for name in fields(meant)
            ]


def fields(rule: object) -> list[str]:
    return [name for name in rule.__slots__ if name != "line"]  # type: ignore[attr-defined]


def test_an_exported_rule_keeps_every_field(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    groups = yaml.safe_load((RULES / "sound.yaml").read_text())["groups"]
    groups[0] |= {"limit": 5, "query_offset": "1m30s"}
    file = tmp_path / "rules.yaml"
    file.write_text(yaml.safe_dump({"groups": groups}))
    monkeypatch.setattr(configured, "load_default_rules", lambda **_: load_rules(file))
    _, out, _ = ours("export", capsys=capsys)
    assert yaml.safe_load(out)["groups"] == groups


PAGE = """# HELP calls_total Calls.
# TYPE calls_total counter
calls_total{op="a\\"b"} 12
calls_total {op="c",} 1e3 1700000000000
temperature -0.5
old_counter 1
"""


def test_an_expression_is_evaluated_on_a_page_that_was_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "metrics.txt"
    page.write_text(PAGE)

    def answer(expression: str, *more: str) -> list[str]:
        status, out, err = ours("eval", expression, "--snapshot", str(page), *more, capsys=capsys)
        assert (status, err) == (0, "")
        return sorted(out.splitlines())

    assert answer("calls_total * 1e20") == [
        '{op="a\\"b"} => 1200000000000000000000 @[1700000000]',
        '{op="c"} => 100000000000000000000000 @[1700000000]',
    ]
    assert answer("temperature", "--time", "1700000060.5") == ["temperature => -0.5 @[1700000060.5]"]
    assert answer("time()", "--time", "2023-11-14T22:13:20+00:00") == ["{} => 1700000000 @[1700000000]"]
    assert answer('calls_total{op="c"}', "--time", "1700000400") == []  # older than the lookback
    assert answer("temperature > 0") == []
    _, out, _ = ours("eval", 'sort_desc({__name__=~"t.*|o.*"})', "--snapshot", str(page), capsys=capsys)
    assert out == "old_counter => 1 @[1700000000]\ntemperature => -0.5 @[1700000000]\n"


def test_openmetrics_has_seconds_several_times_and_exemplars(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "metrics.txt"
    page.write_text(
        "# TYPE calls counter\ncalls_total 0 1700000000\n"
        'calls_total 60 1700000060.000 # {trace_id="x"} 1 1.5\n# EOF\n'
    )
    status, out, _ = ours("eval", "rate(calls_total[2m])", "--snapshot", str(page), capsys=capsys)
    assert (status, out) == (0, "{} => 0.5 @[1700000060]\n")


async def test_an_expression_is_evaluated_on_what_a_real_server_says_over_several_scrapes(
    make_system: Callable[..., ProductionSystem], capsys: pytest.CaptureFixture[str]
) -> None:
    from llmkg_otel.server.ops import OpsServer

    system = make_system(server={"ops_port": 0})
    async with system:
        await system.execute_protected_operation("op", lambda: None)
        with OpsServer(system) as ops:
            asked = (
                "eval",
                'llmkg_breaker_calls_total{name="op"} or llmkg_lifecycle_status{state="serving"}',
            )
            status, out, err = ours(*asked, "--url", ops.url, capsys=capsys)
            assert (status, err) == (0, "")
            assert 'llmkg_lifecycle_status{state="serving"} => 1 @[' in out
            expression = 'count_over_time(llmkg_lifecycle_status{state="serving"}[1m])'
            many = ("--url", f"{ops.url}/metrics", "--scrapes", "3", "--every", "0.01")
            status, out, _ = ours("eval", expression, *many, capsys=capsys)
            assert out.startswith('{state="serving"} => 3 @[')
            status, _, err = ours("eval", "up", "--url", f"{ops.url}/no-such-page", capsys=capsys)
    assert status == 2
    assert "404" in err


@pytest.mark.parametrize(
    ("expression", "reason"),
    [
        ("sum(", "not valid PromQL"),
        ("max_over_time(a[280y:1s])", "more than 2,000,000 steps"),
        ('a{b=~"((((x{1000}){1000}){1000}){1000})"}', "illegal regex"),
        ("limitk(1, a)", "limitk"),
        ("a[5m]", "instant vector"),
        ("(" * 5000 + "a" + ")" * 5000, "nested deeper"),
        ("a + on () a", "many-to-many|duplicate series"),
    ],
)
def test_an_expression_that_is_refused_or_costs_too_much_is_told_in_one_line(
    expression: str, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "metrics.txt"
    page.write_text('a{n="1"} 1\na{n="2"} 1\n')
    started = time.perf_counter()
    status, out, err = ours("eval", expression, "--snapshot", str(page), capsys=capsys)
    assert time.perf_counter() - started < 10
    assert (status, out) == (1, "")
    assert re.search(reason, err)
    assert len(err.splitlines()) == 1
    assert len(err) < 1000


def test_a_regular_expression_bomb_that_is_valid_takes_no_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "metrics.txt"
    page.write_text(f'a{{n="{"a" * 5000}!"}} 1\n')
    started = time.perf_counter()
    status, out, _ = ours("eval", 'a{n=~"(a+)+(a|aa)+"}', "--snapshot", str(page), capsys=capsys)
    assert (status, out) == (0, "")
    assert time.perf_counter() - started < 10


def test_a_page_of_a_million_series_is_refused_once_it_is_too_many(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "metrics.txt"
    with page.open("w") as file:
        file.writelines(f'a{{n="{number}"}} 1\n' for number in range(1_000_000))
    status, _, err = ours("eval", "count(a)", "--snapshot", str(page), capsys=capsys)
    assert status == 1
    assert err == f"llmkg-otel: {page}: more than 100,000 samples; so many are not evaluated\n"


def test_as_many_series_as_a_page_may_have_are_all_evaluated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(exposition, "MAX_SAMPLES", 100)
    page = tmp_path / "metrics.txt"
    lines = [f'a{{n="{number}"}} 1\n' for number in range(101)]
    page.write_text("".join(lines[:100]))
    evaluated = ("eval", "count(a)", "--snapshot", str(page), "--time", "9")
    assert ours(*evaluated, capsys=capsys) == (0, "{} => 100 @[9]\n", "")
    page.write_text("".join(lines))
    assert ours(*evaluated, capsys=capsys)[0] == 1


@pytest.mark.parametrize(
    "line", ["a{", "a", "a one", 'a{b="1",b="2"} 1', "{} 1", 'a{b="\\q"} 1', "a 1 2 3", "a{b=c} 1"]
)
def test_a_line_that_is_no_sample_is_told_with_its_number(
    line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "metrics.txt"
    page.write_text(f"# a comment\n{line}\n")
    status, _, err = ours("eval", "a", "--snapshot", str(page), capsys=capsys)
    assert status == 1
    assert err.startswith(f"llmkg-otel: {page}:2: ")
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("template", ["{{ range .Labels }}x{{ end }}", '{{ template "x" }}', "{{ $x := 1 }}"])
def test_a_template_that_loops_is_refused_by_check(
    template: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rules = tmp_path / "rules.yaml"
    rule = {"alert": "A", "expr": "up", "annotations": {"summary": template}}
    rules.write_text(yaml.safe_dump({"groups": [{"name": "g", "rules": [rule]}]}))
    status, _, err = ours("check", str(rules), capsys=capsys)
    assert status == 1
    assert "rule A: not supported yet: the template action" in err


@pytest.mark.parametrize(
    ("tests", "reason"),
    [
        ({"input_series": [{"series": "a", "values": "1x1000000000"}]}, "more than 1,000,000 points"),
        ({"input_series": [{"series": "a", "values": "_x999999 1 1"}]}, "more than 1,000,000 points"),
        ({"promql_expr_test": [{"expr": "1", "eval_time": "100y"}]}, "more than 1,000,000 evaluations"),
        ({"input_series": [{"series": "a", "values": "{{schema:1}}"}]}, "native histogram"),
    ],
)
def test_a_unit_test_that_would_never_end_is_refused(
    tests: dict[str, object], reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "t.yaml"
    file.write_text(yaml.safe_dump({"tests": [tests]}))
    status, _, err = ours("test", str(file), capsys=capsys)
    assert status == 1
    assert reason in err


def test_a_time_belongs_to_a_snapshot(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["rules", "eval", "up", "--url", "http://127.0.0.1:1", "--time", "1"])
    assert caught.value.code == 2
    assert "--time is for --snapshot" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "value", "reason"),
    [
        ("--scrapes", "0", "must be a number from 1 up"),
        ("--scrapes", "many", "must be a number from 1 up"),
        ("--every", "-1", "must be seconds from 0"),
        ("--every", "nan", "must be seconds from 0"),
        ("--time", "yesterday", "must be seconds since 1970, or RFC 3339"),
        ("--time", "nan", "must be seconds since 1970, or RFC 3339"),
        ("--time", "1e300", "must be seconds since 1970, or RFC 3339"),
    ],
)
def test_an_option_that_is_wrong_is_told_with_what_is_allowed(
    option: str, value: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["rules", "eval", "up", "--snapshot", "page", f"{option}={value}"])
    assert caught.value.code == 2
    assert f"argument {option}: {value!r}: {reason}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("url", "status"),
    [
        ("host/metrics", 1),
        ("file:///etc/passwd", 1),
        ("http://", 1),
        ("http://127.0.0.1:port/", 2),
        ("http://[::1/", 2),
        ("http://127.0.0.1:1", 2),
    ],
)
def test_a_url_that_cannot_be_scraped_is_told_in_one_line(
    url: str, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    found, out, err = ours("eval", "up", "--url", url, capsys=capsys)
    assert (found, out, len(err.splitlines())) == (status, "", 1)
    assert err.startswith("llmkg-otel: ")


def test_a_server_that_speaks_no_http_is_told_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"SSH-2.0\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        status, _, err = ours(
            "eval", "up", "--url", f"http://127.0.0.1:{server.getsockname()[1]}", capsys=capsys
        )
        thread.join()
    assert (status, len(err.splitlines())) == (2, 1)
    assert "cannot be read" in err
