"""Measure alert rules: 200 over 2,000 series here and in a real Prometheus (about 2 min).

`python benchmarks/alerting.py`. Both read the same series at the same pace for the length of the rules'
windows; then this process evaluates its rules, and Prometheus says itself how long its group takes
(prometheus_rule_group_last_duration_seconds). Also measured: the memory of 1,000 series of 1,000 points.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import shutil
import statistics
import subprocess
import tempfile
import threading
import time
import tracemalloc
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import yaml
from _measure import aligned, machine, verdict

from llmkg_otel.alerting.evaluator import AlertEvaluator
from llmkg_otel.alerting.rules import load_rules
from llmkg_otel.alerting.samples import SampleStore

if TYPE_CHECKING:
    from llmkg_otel.alerting.rules import RuleGroup
    from llmkg_otel.events import Event

SERIES = 2_000
RULES = 200
WINDOW = 60  # seconds: at a scrape every 6 s as many points as 5 min at the default 30 s
SCRAPE = 6
OURS, THEIRS, COLLECTED = "evaluated here", "evaluated in Prometheus", "collected here"
Samples = list[tuple[str, dict[str, str], float]]


class Metrics:
    """Ten services' metrics: counters, gauges and histograms, 200 series each; every read moves them on."""

    def __init__(self) -> None:
        self._random = random.Random(7)
        self._values: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
        for service in range(10):
            for instance in range(10):
                labels = (("instance", f"i{instance}"), ("job", f"job{service}"))
                for code in ("200", "404", "500", "503"):
                    self._values[f"requests_{service}_total", (("code", code), *labels)] = 0.0
                for name in ("memory", "queue", "load"):
                    self._values[f"{name}_{service}", labels] = 0.0
                for le in ("0.05", "0.1", "0.25", "0.5", "1", "2.5", "5", "10", "30", "60", "120", "+Inf"):
                    self._values[f"latency_{service}_bucket", (*labels, ("le", le))] = 0.0
                self._values[f"latency_{service}_count", labels] = 0.0

    def read(self) -> Samples:
        for key in self._values:
            grown = self._random.random()
            gauge = not key[0].endswith(("_total", "_bucket", "_count"))
            self._values[key] = grown if gauge else self._values[key] + round(grown * 10)
        return [(name, dict(labels), value) for (name, labels), value in self._values.items()]


def rules() -> str:
    """Return a rule file of RULES rules as people write them, each over 10 to 120 series."""
    forms = (
        "sum by (job) (rate(requests_{n}_total[1m])) > {t}",
        'sum by (job) (rate(requests_{n}_total{{code=~"5.."}}[1m])) / sum by (job) ({requests}) > {t}',
        "histogram_quantile(0.99, sum by (job, le) (rate(latency_{n}_bucket[1m]))) > {t}",
        "memory_{n} > {t}",
        "avg by (job) (queue_{n}) > {t} and on (job) max by (job) (load_{n}) > {t}",
        "max_over_time(queue_{n}[1m]) > {t}",
        "absent(latency_{n}_count) or sum(rate(latency_{n}_count[1m])) == 0",
        "predict_linear(memory_{n}[1m], 3600) > {t}",
        "changes(load_{n}[1m]) > {t} unless on (instance) queue_{n} > {t}",
        "sum by (job, instance) (increase(latency_{n}_count[1m])) < 1",
    )
    listed: list[dict[str, Any]] = []
    for number in range(RULES):
        form, round_ = forms[number % len(forms)], number // len(forms)
        requests = f"rate(requests_{round_ % 10}_total[1m])"
        expr = form.format(n=round_ % 10, t=(50 + round_, 0.2)[round_ == 3], requests=requests)
        if number % 25 == 24:
            listed.append({"record": f"recorded_{number}", "expr": expr.rpartition(" > ")[0] or expr})
            continue
        listed.append(
            {
                "alert": f"Alert{number}",
                "expr": expr,
                "for": "1m",
                "labels": {"severity": "page"},
                "annotations": {"summary": "{{ $labels.job }} is at {{ $value | humanize }}"},
            }
        )
    return yaml.safe_dump({"groups": [{"name": "bench", "rules": listed}]}, width=1000)


class Page:
    """The newest samples, as /metrics shows them."""

    def __init__(self) -> None:
        self.body = b""
        page = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.end_headers()
                self.wfile.write(page.body)

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def show(self, samples: Samples) -> None:
        def line(name: str, labels: dict[str, str], value: float) -> str:
            inner = ",".join(f'{key}="{text}"' for key, text in labels.items())
            return f"{name}{{{inner}}} {value}"

        self.body = ("\n".join(line(*sample) for sample in samples) + "\n").encode()


class Prometheus:
    """A real one, scraping a page and evaluating the rules; a child on a spare port."""

    def __init__(self, directory: Path, page: Page, rule_file: Path) -> None:
        target = f"127.0.0.1:{page.server.server_address[1]}"
        scrape = {"job_name": "bench", "honor_labels": True, "static_configs": [{"targets": [target]}]}
        configuration = {
            "global": {"scrape_interval": f"{SCRAPE}s", "evaluation_interval": "2s"},
            "rule_files": [str(rule_file)],
            "scrape_configs": [scrape],
        }
        (directory / "prometheus.yml").write_text(yaml.safe_dump(configuration))
        with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as spare:
            self._url = f"127.0.0.1:{spare.server_address[1]}"
        self._process = subprocess.Popen(
            [
                shutil.which("prometheus") or "prometheus",
                f"--config.file={directory / 'prometheus.yml'}",
                f"--storage.tsdb.path={directory / 'data'}",
                f"--web.listen-address={self._url}",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def ask(self, query: str) -> float:
        url = f"http://{self._url}/api/v1/query?query={quote(query)}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            result = json.load(answer)["data"]["result"]
        return float(result[0]["value"][1]) if result else 0.0

    def group_seconds(self) -> float:
        with urllib.request.urlopen(f"http://{self._url}/metrics", timeout=10) as answer:
            for line in answer.read().decode().splitlines():
                if line.startswith("prometheus_rule_group_last_duration_seconds{"):
                    return float(line.rpartition(" ")[2])
        raise RuntimeError("Prometheus reports no rule group")

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(30)


class Silent:
    def on_event(self, event: Event) -> None:
        """Hear nothing: what is told costs the listener."""


def alone(groups: tuple[RuleGroup, ...], store: SampleStore, now: float, turns: int) -> list[float]:
    """Return the seconds that all expressions take when none uses another's result."""
    taken = []
    for _ in range(turns):
        started = time.perf_counter()
        for rule in (rule for group in groups for rule in group.rules):
            rule.expression.evaluate(store, now)
        taken.append(time.perf_counter() - started)
    return taken


def evaluated(
    groups: tuple[RuleGroup, ...], store: SampleStore, now: float, turns: int
) -> tuple[list[float], int]:
    """Return the seconds of each evaluation, a millisecond apart on the rules' own clock, and the alerts."""
    evaluator = AlertEvaluator(groups, store, Silent(), interval_seconds=30)
    taken = []
    for turn in range(turns):
        gc.collect()
        started = time.perf_counter()
        evaluator.evaluate(now + turn / 1000)
        taken.append(time.perf_counter() - started)
    failures = evaluator.errors()
    if failures:
        raise RuntimeError(f"{failures[0].rule}: {failures[0].error}")
    return taken[1:], len(evaluator.active())


def megabytes() -> float:
    """Return what 1,000 series of 1,000 points take."""
    series = [("series", {"n": str(n), "operation": "search", "job": "api"}) for n in range(1000)]
    tracemalloc.start()
    store = SampleStore(1e6, 1000)
    for at in range(1100):
        store.append(float(at), [(name, labels, at * 1.5) for name, labels in series])
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return used / 1e6


def measure(turns: int) -> tuple[dict[str, list[float]], tuple[int, float]]:
    """Return the seconds that each thing takes, and how many alerts are active here and there."""
    metrics, page, store = Metrics(), Page(), SampleStore(3600, 1000)
    theirs, collected = [], []
    with tempfile.TemporaryDirectory() as name:
        rule_file = Path(name) / "rules.yml"
        rule_file.write_text(rules())
        groups = load_rules(rule_file).groups
        page.show(metrics.read())
        prometheus = Prometheus(Path(name), page, rule_file)
        try:
            for _ in range((WINDOW + 5 * SCRAPE) // SCRAPE):
                samples = metrics.read()
                page.show(samples)
                started = time.perf_counter()
                store.append(time.time(), samples)
                collected.append(time.perf_counter() - started)
                time.sleep(SCRAPE)
            for _ in range(turns):
                theirs.append(prometheus.group_seconds())
                time.sleep(2)
            alerts = prometheus.ask("count(ALERTS)")
            store.append(time.time(), samples)
            ours, active = evaluated(groups, store, time.time(), turns * 2)
            unshared = alone(groups, store, time.time(), turns)
        finally:
            prometheus.stop()
            page.server.shutdown()
    seconds = {OURS: ours, "  nothing shared": unshared, THEIRS: theirs, COLLECTED: collected}
    return seconds, (active, alerts)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--turns", type=int, default=15, help="evaluations of Prometheus to look at (15)")
    options = parser.parse_args()
    print(f"{machine()}; {RULES} rules, {SERIES} series, {WINDOW // SCRAPE} points a window\n")
    seconds, alerts = measure(options.turns)
    rows = [["", "min ms", "median ms", "max ms"]]
    for name, taken in seconds.items():
        times = (min(taken), statistics.median(taken), max(taken))
        rows.append([name, *(f"{value * 1000:.1f}" for value in times)])
    print(aligned(rows))
    print(f"active alerts: {alerts[0]} here, {alerts[1]:.0f} there, where scrapes fell at other instants\n")
    middle = {name: statistics.median(taken) for name, taken in seconds.items()}
    print(verdict("an evaluation takes", middle[OURS], 0.25, at_most=True, unit=" s"))
    print(verdict("times Prometheus' own", middle[OURS] / middle[THEIRS], 25, at_most=True, unit=" x"))
    share = (middle[OURS] + middle[COLLECTED]) / 30 * 100
    print(verdict("one core, every 30 s", share, 1, at_most=True, unit=" %"))
    print(verdict("1,000 series x 1,000 points", megabytes(), 20, at_most=True, unit=" MB"))


if __name__ == "__main__":
    main()
