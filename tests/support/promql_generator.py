"""Series and PromQL expressions made from a seed: all that is supported, in every combination.

Values are mostly multiples of 1/4, so that sums are exact whatever their order: promtool loads series in
an order of its own.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from llmkg_otel.alerting.promql.calendar import CALENDAR
from llmkg_otel.alerting.promql.elementwise import ELEMENTWISE
from llmkg_otel.alerting.promql.ranges import RANGE_FUNCTIONS

AGGREGATIONS = ("sum", "avg", "min", "max", "count", "group", "stddev", "stdvar")
ARITHMETIC = ("+", "-", "*", "/", "^", "atan2")  # % has forms of its own: it magnifies a last digit
COMPARISONS = ("==", "!=", ">", "<", ">=", "<=")
LABELS = ("job", "instance", "code", "le", "version", "__name__", "nothing")
NUMBERS = ("NaN", "Inf", "-Inf", "1e-3", "0x1F", "5m")
BEST = ("topk", "bottomk")
POINTS = 40


@dataclass
class Generator:
    """Makes series and expressions; the same seed makes the same ones."""

    seed: int
    random: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)

    def one(self, *choices: str) -> str:
        return self.random.choice(choices)

    # Series

    def series(self) -> list[tuple[str, str]]:
        """Return a set of series, every 59th point of which may be anything."""
        found = []
        for job in ("api", "web"):
            found += [(f't{{job="{job}"}}', self._gauge())]
            for instance in ("0", "1"):
                labels = f'job="{job}",instance="{instance}"'
                found += [
                    (f"g{{{labels}}}", self._gauge()),
                    (f'i{{{labels},version="{self.random.randrange(3)}"}}', self._steady()),
                    (f"at{{{labels}}}", self._clock()),
                    *((f'c_total{{{labels},code="{code}"}}', self._counter()) for code in ("200", "500")),
                ]
                found += self._histogram(labels)
        found += [(f'rank{{n="{n}"}}', self._rank(n)) for n in range(5)]
        return found

    def _points(self, make: list[str]) -> str:
        """Put gaps, staleness and odd values among the points."""
        odd = self.random.random()
        points = make[: self.random.choice((POINTS, POINTS, POINTS, 5, 20))]
        for index in range(len(points)):
            if self.random.random() < 0.04 and odd < 0.7:
                points[index] = self.one("_", "_", "_", "stale")
            elif self.random.random() < 0.04 and odd < 0.15:
                points[index] = self.one("NaN", "Inf", "-Inf", "NaN", "-1", "1e300")
        if self.random.random() < 0.1:
            start = self.random.randrange(len(points))
            points[start : start + 12] = ["_"] * len(points[start : start + 12])
        return " ".join(points)

    def _gauge(self) -> str:
        scale = self.random.choice((1, 4, 100))
        return self._points([str(self.random.randrange(-20, 60) / 4 * scale) for _ in range(POINTS)])

    def _steady(self) -> str:
        return self._points(["1"] * POINTS)

    def _clock(self) -> str:
        start = self.random.choice((0, 951_782_000, 1_700_000_000, -86_400 * 40_000))
        return self._points([str(start + self.random.randrange(40_000_000)) for _ in range(POINTS)])

    def _counter(self) -> str:
        value, values = float(self.random.choice((0, 0, 7, 1000))), []
        step = self.random.choice((0, 1, 5, 100))
        for _ in range(POINTS):
            value = 0.0 if self.random.random() < 0.03 else value + self.random.randrange(step + 1)
            values.append(str(value))
        return self._points(values)

    def _rank(self, number: int) -> str:
        return " ".join(str(self.random.randrange(100) * 5 + number) for _ in range(POINTS))

    def _histogram(self, labels: str) -> list[tuple[str, str]]:
        rising = self.random.random() < 0.8
        bounds = self.one(
            "0.1 0.5 2.5 +Inf", "-1 0 1 +Inf", "1 2", "0.5 +Inf", "1 1.0 2 +Inf", "x 1 +Inf"
        ).split()
        values = [[0.0] * len(bounds)]
        for _ in range(POINTS):
            grown = [self.random.randrange(4) for _ in bounds]
            if rising:
                grown = [sum(grown[: index + 1]) for index in range(len(bounds))]
            values.append([before + more for before, more in zip(values[-1], grown, strict=True)])
        return [
            (f'h_bucket{{{labels},le="{bound}"}}', " ".join(str(row[index]) for row in values[1:]))
            for index, bound in enumerate(bounds)
        ]

    # Expressions

    def expression(self, depth: int = 3) -> str:
        if self.random.random() < 0.03:
            return self.scalar(depth)
        return self.vector(depth)

    def selector(self) -> str:
        name = self.one("c_total", "g", "t", "i", "at", "h_bucket", "c_total", "g")
        matchers = self.one(
            *("", "", "{job='api'}", "{job!='web'}", "{instance=~'0|1'}", "{job=~'a.*',code=''}"),
            *("{code!~'2..'}", "{instance!='1'}", "{nothing=''}", "{job=~'.*i',job!~'w.*'}", "{job='none'}"),
        )
        if self.random.random() < 0.05:
            return self.one(
                "{__name__=~'g|i'}", "{__name__='g'}", "{__name__=~'c_.*',code='200'}", "{job='api'}"
            )
        return name + matchers

    def when(self) -> str:
        """Return an offset, an @ modifier, both in either order, or nothing."""
        offset = f" offset {self.one('', '-')}{self.one('1m', '90s', '59s', '1ms', '2m500ms', '10m')}"
        at = f" @ {self.one('600', '0', '123.456', '1200', 'start()', 'end()', '1e3')}"
        return self.one("", "", "", "", "", offset, offset, at, offset + at, at + offset)

    def window(self, depth: int) -> str:
        width = self.one("1m", "2m", "5m", "10m", "59s", "1m1s500ms", "1h", "30s")
        if depth > 0 and self.random.random() < 0.35:
            step = self.one("", "", "1m", "30s", "59s", "7s", "2m", "100s500ms")
            inner = self.vector(depth - 1) if self.random.random() < 0.7 else self.selector() + self.when()
            # Prometheus 3.5 misplaces @ inside of a subquery whose first step is the instant of the query.
            when = self.one("", " offset 1m", " offset 90s") if "@" in inner else self.when()
            return f"({inner})[{self.one('2m', '5m', '10m', '59s', '1m1s500ms')}:{step}]{when}"
        return f"{self.selector()}[{width}]{self.when()}"

    def number(self) -> str:
        return self.one("0", "1", "2", "-1", "0.5", "0.25", "3", "100", "-2.5", "1e3", *NUMBERS)

    def scalar(self, depth: int) -> str:
        if depth <= 0 or self.random.random() < 0.5:
            return self.number()
        match self.random.randrange(6):
            case 0:
                return self.one("time()", "pi()", "(time() - 100)")
            case 1:
                return f"scalar({self.vector(depth - 1)})"
            case 2:
                return f"-({self.scalar(depth - 1)})"
            case 3:
                return f"({self.scalar(depth - 1)} {self.one(*COMPARISONS)} bool {self.scalar(depth - 1)})"
            case _:
                return f"({self.scalar(depth - 1)} {self.one(*ARITHMETIC)} {self.scalar(depth - 1)})"

    def vector(self, depth: int) -> str:
        if depth <= 0:
            return self.selector() + self.when()
        makers = (
            *(self._range_function,) * 5,
            *(self._aggregation,) * 4,
            *(self._two_vectors,) * 4,
            *(self._with_scalar,) * 3,
            *(self._function,) * 4,
            *(self._relabelled,) * 2,
            self._selected,
        )
        return self.random.choice(makers)(depth - 1)

    def _selected(self, _: int) -> str:
        return self.selector() + self.when()

    def _range_function(self, depth: int) -> str:
        window = self.window(depth)
        match self.random.randrange(12):
            case 0:
                return f"quantile_over_time({self.scalar(depth)}, {window})"
            case 1:
                return f"predict_linear({window}, {self.scalar(depth)})"
            case 2:
                return f"absent_over_time({window})"
            case _:
                return f"{self.one(*RANGE_FUNCTIONS)}({window})"

    def labels(self) -> str:
        return ", ".join(self.random.sample(LABELS, self.random.randrange(4)))

    def _aggregation(self, depth: int) -> str:
        by = self.one(
            "", f"by ({self.labels()})", f"without ({self.labels()})", "by (job)", "by (job, instance)"
        )
        match self.random.randrange(10):
            case 0:
                return f"quantile {by} ({self.scalar(depth)}, {self.vector(depth)})"
            case 1:
                # Go's and C's functions differ in the last digit, and here it becomes a label.
                inner = f"round(clamp({self.vector(depth)}, -100, 100), 0.25)"
                return f"count_values {by} ('{self.one('value', 'job', 'a-b')}', {inner})"
            case 2:  # of equal values topk takes those that promtool happened to load first
                return f"{self.one(*BEST)} ({self.one('1', '2', '3', '9', '0', '-1')}, rank{self.when()})"
            case 3:
                return f"count {by} ({self.one(*BEST)} {by} ({self.scalar(depth)}, {self.vector(depth)}))"
            case 4:
                return f"{self.one(*AGGREGATIONS)}({self.vector(depth)}) {by}"
            case _:
                return f"{self.one(*AGGREGATIONS)} {by} ({self.vector(depth)})"

    def _two_vectors(self, depth: int) -> str:
        left = self.vector(depth)
        right = left if self.random.random() < 0.3 else self.vector(depth)
        on = self.one(
            *("", "on (job)", "on (job, instance)", "on ()", "ignoring (code, le)", "ignoring (version)"),
            *(f"on ({self.labels()})", f"ignoring ({self.labels()})"),
        )
        if self.random.random() < 0.3:
            return f"({left} {self.one('and', 'or', 'unless')} {on} {right})"
        operator = self.one(*ARITHMETIC, *COMPARISONS, "%", *(f"{each} bool" for each in COMPARISONS))
        if operator == "%":
            left, right = self.selector() + self.when(), self.selector() + self.when()
        group = self.one(
            "", "", "group_left", "group_right", "group_left (version)", "group_right (code, version)"
        )
        return f"({left} {operator} {on} {group if on else ''} {right})"

    def _with_scalar(self, depth: int) -> str:
        operator = self.one(*ARITHMETIC, *COMPARISONS, "%", *(f"{each} bool" for each in COMPARISONS))
        sides = [self.vector(depth), self.scalar(depth)]
        if operator == "%":
            sides = [self.selector() + self.when(), self.number()]
        self.random.shuffle(sides)
        return f"({sides[0]} {operator} {sides[1]})"

    def _function(self, depth: int) -> str:  # noqa: C901 - a list of forms
        inner = self.vector(depth)
        match self.random.randrange(14):
            case 0:
                return f"{self.one(*CALENDAR)}({self.one('', 'at', inner)})"
            case 1:
                return f"absent({self.one(inner, self.selector(), 'none{job=' + repr('x') + '}')})"
            case 2:
                return f"clamp({inner}, {self.scalar(depth)}, {self.scalar(depth)})"
            case 3:
                return f"{self.one('clamp_min', 'clamp_max')}({inner}, {self.scalar(depth)})"
            case 4:
                return f"round({inner}{self.one('', ', ' + self.scalar(depth))})"
            case 5:
                return f"{self.one('sort', 'sort_desc')}({inner})"
            case 6:
                return f"timestamp({self.one(inner, self.selector() + self.when(), f'({self.selector()})')})"
            case 7:
                return f"vector({self.scalar(depth)})"
            case 8:
                return f"histogram_quantile({self.scalar(depth)}, {self._buckets(depth)})"
            case 9:
                bounds = self.one("0, 1", "-Inf, 0.5", "0.25, +Inf", "1, 0", "0.1, 0.3", "-1, -0.5", "NaN, 1")
                return f"histogram_fraction({bounds}, {self._buckets(depth)})"
            case 10:
                return f"-{inner}"
            case _:
                return f"{self.one(*ELEMENTWISE)}({inner})"

    def _buckets(self, depth: int) -> str:
        rate = f"{self.one('rate', 'increase')}(h_bucket[{self.one('2m', '5m', '10m')}])"
        return self.one(
            rate, f"sum by (le, job) ({rate})", f"sum by (le) ({rate})", "h_bucket", self.vector(depth)
        )

    def _relabelled(self, depth: int) -> str:
        target, source = (
            self.one("job", "dst", "__name__", "code", "a-b"),
            self.one("job", "instance", "__name__", "none"),
        )
        if self.random.random() < 0.4:
            sources = "".join(
                f", '{self.one('job', 'instance', 'none', 'code')}'" for _ in range(self.random.randrange(3))
            )
            return f"label_join({self.vector(depth)}, '{target}', '{self.one('-', '')}'{sources})"
        regex = self.one("(.*)", "a(.*)", "(?P<x>.)(.+)?", ".*", "", "none", "(w)|(a).*", "(.)(.)(.)")
        template = self.one(
            "$1", "${1}x", "$x-$2", "", "a$$b", "$1_a", "${x}$0", "$", "$3$2$1", "${", "$01", "é$1"
        )
        return f"label_replace({self.vector(depth)}, '{target}', '{template}', '{source}', '{regex}')"
