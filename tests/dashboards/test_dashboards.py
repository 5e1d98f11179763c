"""The dashboards as they are checked in: current, well laid out, and on nothing but the contract."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import promql_parser
import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard
from grafana_foundation_sdk.models.dashboard import Panel as SdkPanel

from llmkg_otel import alerting
from llmkg_otel.cli import main
from llmkg_otel.dashboards import BOARDS
from llmkg_otel.dashboards.promql import FAILED
from llmkg_otel.dashboards.render import COLOURS
from llmkg_otel.dashboards.self_monitoring import FOREIGN
from llmkg_otel.telemetry.semconv import INSTRUMENTS
from llmkg_otel.telemetry.table import prometheus_name

if TYPE_CHECKING:
    from collections.abc import Iterator

DIRECTORY = Path(__file__).parents[2] / "dashboards"
FILES = sorted(DIRECTORY.glob("*.json"))
DASHBOARDS = {path.stem: json.loads(path.read_text()) for path in FILES}
SCRAPED = {"instance", "job"}
CONTRACT = {
    f"{prometheus_name(instrument)}{suffix}": {
        **{name.replace(".", "_"): values for name, values in instrument.attributes.items()},
        **({"le": None} if suffix == "_bucket" else {}),
    }
    for instrument in INSTRUMENTS
    for suffix in (("_bucket", "_count", "_sum") if instrument.kind == "Histogram" else ("",))
}


def panels(uid: str) -> list[Any]:
    return [panel for panel in DASHBOARDS[uid]["panels"] if panel["type"] != "row"]


def expressions(uid: str) -> Iterator[str]:
    for panel in panels(uid):
        yield from (target["expr"] for target in panel["targets"])
    yield from (each["expr"] for each in DASHBOARDS[uid]["annotations"]["list"])


def parsed(expr: str) -> Any:
    for name, value in (("$__rate_interval", "5m"), ("$__range", "1h"), ("$objective", "0.9")):
        expr = expr.replace(name, value)
    return promql_parser.parse(expr)


def nodes(node: Any) -> Iterator[Any]:
    yield node
    for name in ("expr", "lhs", "rhs", "vector_selector", "param"):
        child = getattr(node, name, None)
        if isinstance(child, promql_parser.Expr):
            yield from nodes(child)
    for child in getattr(node, "args", None) or ():
        yield from nodes(child)


def selectors(expr: str) -> list[Any]:
    found = [each for each in nodes(parsed(expr)) if type(each).__name__ == "VectorSelector"]
    assert found, expr
    return found


def test_what_is_checked_in_is_what_the_command_writes(tmp_path: Path) -> None:
    assert main(["dashboards", "build", "--out", str(tmp_path)]) == 0
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        path.name: path.read_text() for path in FILES
    }
    assert set(DASHBOARDS) == {board.uid for board in BOARDS}


@pytest.mark.parametrize("uid", DASHBOARDS)
def test_grafanas_schema_knows_all_of_a_dashboard(uid: str) -> None:
    known = json.loads(json.dumps(Dashboard.from_json(DASHBOARDS[uid]), cls=JSONEncoder))
    for panel in known["panels"]:
        if panel["type"] != "row":  # a plugin's own options are kept as they come
            assert json.loads(json.dumps(SdkPanel.from_json(panel), cls=JSONEncoder)) == panel
    assert known == DASHBOARDS[uid]


@pytest.mark.parametrize("uid", DASHBOARDS)
def test_no_panel_lies_on_another_or_beyond_the_grid(uid: str) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARDS[uid]["panels"]:
        place = panel["gridPos"]
        columns = range(place["x"], place["x"] + place["w"])
        assert columns.stop <= 24
        cells = set(itertools.product(columns, range(place["y"], place["y"] + place["h"])))
        assert not cells & taken, panel["title"]
        taken |= cells
    bottom = max(row for _, row in taken)
    assert {row for _, row in taken} == set(range(bottom + 1))  # nor is there a gap


@pytest.mark.parametrize("uid", DASHBOARDS)
def test_ids_and_reference_ids_are_set_and_differ(uid: str) -> None:
    ids = [panel["id"] for panel in DASHBOARDS[uid]["panels"]]
    assert len(set(ids)) == len(ids)
    assert all(isinstance(each, int) and each > 0 for each in ids)
    for panel in panels(uid):
        references = [target["refId"] for target in panel["targets"]]
        assert references == [chr(ord("A") + index) for index in range(len(references))]


@pytest.mark.parametrize("uid", DASHBOARDS)
def test_every_panel_says_what_it_shows_in_which_unit_from_the_chosen_source(uid: str) -> None:
    variables = [each["name"] for each in DASHBOARDS[uid]["templating"]["list"]]
    assert variables[:2] == ["datasource", "instance"]
    used = set(re.findall(r"\$(\w+)", "".join(expressions(uid)))) - {"__rate_interval", "__range"}
    assert used == set(variables) - {"datasource"}
    titles = [panel["title"] for panel in panels(uid)]
    assert all(titles)
    for panel in panels(uid):
        assert len(panel["description"]) > 20
        assert panel["description"].endswith(".")
        assert panel["fieldConfig"]["defaults"]["unit"]
        sources = [panel["datasource"], *(target["datasource"] for target in panel["targets"])]
        assert all(each == {"type": "prometheus", "uid": "${datasource}"} for each in sources)


@pytest.mark.parametrize("uid", DASHBOARDS)
def test_every_metric_label_and_value_of_a_query_is_in_the_contract(uid: str) -> None:
    for expr in expressions(uid):
        metrics = {each.name for each in selectors(expr)}
        assert metrics <= CONTRACT.keys() | FOREIGN.keys(), metrics
        labels: dict[str, Any] = dict.fromkeys(SCRAPED)
        for metric in metrics:
            labels |= CONTRACT.get(metric) or dict.fromkeys(FOREIGN.get(metric, ()))
        grouped = {
            label
            for node in nodes(parsed(expr))
            if type(node).__name__ == "AggregateExpr" and node.modifier
            for label in node.modifier.labels
        }
        assert grouped <= labels.keys() | {"le"}, expr
        for selector in selectors(expr):
            for matcher in selector.matchers.matchers:
                assert matcher.name in labels, expr
                allowed = labels[matcher.name]
                if allowed and not matcher.value.startswith("$"):
                    assert set(matcher.value.split("|")) <= set(allowed), expr


def labels_of(node: Any) -> set[str]:
    """Return the labels by which an expression's series differ."""
    match type(node).__name__:
        case "AggregateExpr":
            assert node.modifier is None or "By" in str(node.modifier.type), node
            return set(node.modifier.labels) if node.modifier else set()
        case "BinaryExpr":
            return labels_of(node.lhs) | labels_of(node.rhs)
        case "ParenExpr":
            return labels_of(node.expr)
        case "Call":
            quantile = {"le"} if node.func.name == "histogram_quantile" else set()
            return set().union(*map(labels_of, node.args)) - quantile
        case "NumberLiteral":
            return set()
        case "VectorSelector":  # what was scraped: all of its labels but those that the query fixes
            fixed = {each.name for each in node.matchers.matchers if str(each.op).endswith("Equal")}
            return ({"instance"} | CONTRACT[node.name].keys()) - fixed
    raise AssertionError(f"nothing is said of the labels of {node}")


@pytest.mark.parametrize("uid", DASHBOARDS)
def test_a_legend_names_every_label_that_its_series_differ_by_and_a_stat_shows_one_number(uid: str) -> None:
    for panel in panels(uid):
        if panel["type"] == "table":
            continue
        legends = [target.get("legendFormat", "") for target in panel["targets"]]
        for target, legend in zip(panel["targets"], legends, strict=True):
            assert set(re.findall(r"{{(\w+)}}", legend)) == labels_of(parsed(target["expr"])), panel["title"]
        if panel["type"] == "stat":
            assert len(legends) == 1
        elif len(legends) > 1:
            assert all(legends)
            assert len(set(legends)) == len(legends), panel["title"]


@pytest.mark.parametrize("uid", DASHBOARDS)
def test_rates_are_over_what_the_scrapes_allow_and_a_window_of_its_own_is_told_of(uid: str) -> None:
    words = {"5m": "5 minutes"}
    for panel in panels(uid):
        for target in panel["targets"]:
            for window in set(re.findall(r"\[(.*?)\]", target["expr"])) - {"$__rate_interval", "$__range"}:
                assert window == target["legendFormat"] or words[window] in panel["description"], panel[
                    "title"
                ]


@pytest.mark.parametrize("uid", DASHBOARDS)
def test_thresholds_begin_at_nothing_rise_and_have_a_colour_each(uid: str) -> None:
    for panel in panels(uid):
        steps = panel["fieldConfig"]["defaults"].get("thresholds", {}).get("steps", [])
        if not steps:
            continue
        values = [step["value"] for step in steps]
        assert values[0] is None, panel["title"]
        assert values[1:] == sorted(set(values[1:])) != [], panel["title"]
        assert len({step["color"] for step in steps}) == len(steps), panel["title"]


@pytest.mark.parametrize("uid", DASHBOARDS)
def test_a_dashboard_leads_to_the_others_with_the_time_and_the_choice_that_was_made(uid: str) -> None:
    (link,) = DASHBOARDS[uid]["links"]
    assert (link["type"], link["tags"], link["includeVars"], link["keepTime"]) == (
        "dashboards",
        ["llmkg"],
        True,
        True,
    )
    assert DASHBOARDS[uid]["tags"] == ["llmkg"]


def test_every_metric_of_the_contract_is_on_a_panel() -> None:
    shown = {each.name for uid in DASHBOARDS for expr in expressions(uid) for each in selectors(expr)}
    stems = {re.sub("_(bucket|count|sum)$", "", name) for name in shown}
    missing = {prometheus_name(each) for each in INSTRUMENTS} - stems - shown
    assert not missing


def test_every_foreign_metric_that_is_declared_is_asked_for() -> None:
    shown = {each.name for uid in DASHBOARDS for expr in expressions(uid) for each in selectors(expr)}
    assert shown >= FOREIGN.keys()


def test_a_failed_call_is_the_same_to_the_dashboards_and_to_the_alert() -> None:
    rules = yaml.safe_load((Path(alerting.__file__).parent / "default_rules.yaml").read_text())
    by_name = {rule.get("alert"): rule["expr"] for group in rules["groups"] for rule in group["rules"]}
    assert f"{{error_type{FAILED}}}" in by_name["LlmkgHighErrorRate"]


def test_every_state_has_one_colour() -> None:
    named = [state for states in COLOURS.values() for state in states]
    assert len(set(named)) == len(named)
    for board in BOARDS:
        for panel in board.panels():
            assert bool(panel.states) == (panel.kind == "states")
            assert set(panel.states) <= set(named)


def test_grafana_is_provisioned_with_the_dashboards_and_with_traces_behind_exemplars() -> None:
    provisioned = yaml.safe_load((DIRECTORY / "provisioning" / "dashboards" / "llmkg.yaml").read_text())
    (provider,) = provisioned["providers"]
    assert provider["options"]["path"] == "/etc/grafana/dashboards"
    sources = yaml.safe_load((DIRECTORY / "provisioning" / "datasources" / "llmkg.yaml").read_text())
    by_type = {source["type"]: source for source in sources["datasources"]}
    (link,) = by_type["prometheus"]["jsonData"]["exemplarTraceIdDestinations"]
    assert link == {"name": "trace_id", "datasourceUid": by_type["jaeger"]["uid"]}
    asked = [
        target
        for uid in DASHBOARDS
        for panel in panels(uid)
        for target in panel["targets"]
        if target.get("exemplar")
    ]
    assert asked
    assert all("_bucket" in target["expr"] for target in asked)
