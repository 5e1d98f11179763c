"""The expected texts were printed by promtool 3.5.3 for the same templates and values."""

import math

import pytest

from llmkg_otel.alerting.templates import Template
from llmkg_otel.errors import ConfigurationError

LABELS = (("__name__", "up"), ("b", "2"), ("job", "api gate-way"))


def expand(text: str, value: float = 1234567.5) -> str:
    return Template(text).expand(LABELS, value)


@pytest.mark.parametrize(
    ("value", "printed"),
    [
        (0.0, "0"),
        (-0.0, "-0"),
        (1.0, "1"),
        (1.5, "1.5"),
        (100000.0, "100000"),
        (999999.5, "999999.5"),
        (1e6, "1e+06"),
        (1234567.0, "1.234567e+06"),
        (12345678.5, "1.23456785e+07"),
        (1e20, "1e+20"),
        (123456789012345678.0, "1.2345678901234568e+17"),
        (-2500000.0, "-2.5e+06"),
        (0.0001, "0.0001"),
        (0.00001, "1e-05"),
        (0.00012345, "0.00012345"),
        (1e100, "1e+100"),
        (math.nan, "NaN"),
        (math.inf, "+Inf"),
        (-math.inf, "-Inf"),
    ],
)
def test_a_value_prints_as_go_does(value: float, printed: str) -> None:
    assert expand("{{ $value }}|{{ .Value }}", value) == f"{printed}|{printed}"


@pytest.mark.parametrize(
    ("function", "value", "printed"),
    [
        ("humanize", 0.0, "0"),
        ("humanize", 1234567.0, "1.235M"),
        ("humanize", 999.96, "1000"),
        ("humanize", 0.00012345, "123.4u"),
        ("humanize", math.nan, "NaN"),
        ("humanize", 1e30, "1e+06Y"),
        ("humanize1024", 1023.0, "1023"),
        ("humanize1024", 1536.0, "1.5ki"),
        ("humanize1024", 0.5, "0.5"),
        ("humanizePercentage", 0.1234567, "12.35%"),
        ("humanizePercentage", math.inf, "+Inf%"),
        ("humanizeDuration", 0.0, "0s"),
        ("humanizeDuration", 59.0, "59s"),
        ("humanizeDuration", 60.5, "1m 0s"),
        ("humanizeDuration", 3599.9, "59m 59s"),
        ("humanizeDuration", 90061.5, "1d 1h 1m 1s"),
        ("humanizeDuration", -90061.0, "-1d 1h 1m 1s"),
        ("humanizeDuration", 0.0015, "1.5ms"),
        ("humanizeDuration", 1e-7, "100ns"),
        ("humanizeDuration", 1.5, "1.5s"),
    ],
)
def test_humanize_functions_print_as_prometheus_does(function: str, value: float, printed: str) -> None:
    assert expand("{{ " + function + " $value }}", value) == printed
    assert expand("{{ $value | " + function + " }}", value) == printed


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("plain { } text", "plain { } text"),
        ("{{ $labels.job }} and {{ .Labels.b }}", "api gate-way and 2"),
        ("{{ $labels.missing }}|", "|"),
        ("{{ $labels }}", "map[__name__:up b:2 job:api gate-way]"),
        ("{{$value}}", "1.2345675e+06"),
        ("a {{- $labels.b -}} c", "a2c"),
        ("{{ $labels.job | title }}", "Api Gate-Way"),
        ('{{ title "don\'t stop x1y 2z3 _foo a.b c:d" }}', "Don't Stop X1y 2Z3 _Foo A.b C:d"),
        ("{{ $labels.job | toUpper }}", "API GATE-WAY"),
        ("{{ toLower `RAW` }}", "raw"),
        ('{{ "a\\"b" }}', 'a"b'),
        ('{{ printf "%.2f" $value }}', "1234567.50"),
        ('{{ $value | printf "%.0f %%" }}', "1234568 %"),
        ('{{ printf "%s is %v" $labels.b $value }}', "2 is 1.2345675e+06"),
        ('{{ printf "%-5s|%5v|%08.1f" $labels.b $labels.b $value }}', "2    |    2|1234567.5"),
        ('{{ printf "%d" $value }}', "%!d(float64=1.2345675e+06)"),
        ('{{ printf "%.1f" $labels.b }}', "%!f(string=2)"),
        ('{{ printf "%d %d" 5 }}', "5 %!d(MISSING)"),
        ('{{ printf "x" 5 }}', "x%!(EXTRA int=5)"),
        ("{{ humanize $labels.b }}", "2"),
        ("{{ $value | humanize | toLower }}", "1.235m"),
        ("{{ toUpper `Straße ŉ ᾳ ﬁ é` }}", "STRAßE ŉ ᾼ ﬁ É"),
        ("{{ toLower `ΔΣ İ` }}", "δ\u03c3 i"),
        ("{{ title `ǆ ß éa ﬁ` }}", "ǅ Ss Éa Fi"),
        (
            '{{ printf "%9d|%-9d|%+09d" $value $value $value }}',
            "%!d(float64=1.2345675e+06)|%!d(float64=1.2345675e+06)|%!d(float64=+1.2345675e+06)",
        ),
        (
            '{{ printf "%9.2f|%-9f|%09f" $labels.b $labels.b $labels.b }}',
            "%!f(string=        2)|%!f(string=2        )|%!f(string=000000002)",
        ),
        ('{{ printf "%09f|%09.2f|%+9f" 5 5 5 }}', "%!f(int=000000005)|%!f(int=       05)|%!f(int=       +5)"),
        ('{{ printf "%s" $labels }}', "map[__name__:up b:2 job:api gate-way]"),
        ('{{ printf "%-3s|" $labels }}', "map[__name__:up  b  :2   job:api gate-way]|"),
        ("{{ humanize `-Infinity` }} {{ humanize `inf` }} {{ humanize `NaN` }}", "-Inf +Inf NaN"),
        ("{{ humanize `0x1.8p1` }} {{ humanize `1_000` }} {{ humanize `0x_1p4` }}", "3 1k 16"),
        (
            "{{ 9223372036854775807 }} {{ -9223372036854775808 }} {{ 007.5 }}",
            "9223372036854775807 -9223372036854775808 7.5",
        ),
        ("{{ humanizeTimestamp 1435781430.781 }}", "2015-07-01 20:10:30.78 +0000 UTC"),
        ("{{ humanizeTimestamp -1.5 }}", "1969-12-31 23:59:58.5 +0000 UTC"),
        ("{{ humanizeTimestamp `-2944770368.674` }}", "1876-09-07 00:13:51.327 +0000 UTC"),
        ("{{ humanizeTimestamp 0 }} {{ humanizeTimestamp `Inf` }}", "1970-01-01 00:00:00 +0000 UTC +Inf"),
    ],
)
def test_a_template_expands_as_in_prometheus(text: str, printed: str) -> None:
    assert expand(text) == printed


@pytest.mark.parametrize("text", ["api", "+nan", "0x10", "1e400", "0x1p5000", "٣", " 5", "1__0", "1_e5", "."])
def test_a_function_that_cannot_take_its_argument_replaces_the_text_with_an_error(text: str) -> None:
    assert expand("x {{ humanize `" + text + "` }}").startswith("<error expanding template: ")


def test_a_timestamp_beyond_64_bits_of_nanoseconds_is_an_error() -> None:
    assert expand("{{ humanizeTimestamp $value }}", 9223372036.0) == "2262-04-11 23:47:16 +0000 UTC"
    assert expand("{{ humanizeTimestamp $value }}", 9223372037.0).startswith("<error expanding template: ")


@pytest.mark.parametrize(
    "action",
    [
        "if $value",
        "range $labels",
        'query "up"',
        "$externalLabels.x",
        "$x := 1",
        'define "x"',
        'template "x"',
        "len $labels",
        "$labels.a.b",
        "nope $value",
        "$value $value",
        "",
        "|",
        "$value |",
        "humanize",
        "humanize $value 1",
        'printf "%q" $value',
        'printf "%[1]s" $value',
        'printf "%*d" 1 2',
        "printf $labels.b",
        'printf "%.2s" $labels.b',
        'printf "%05s" $labels.b',
        "/* comment */",
        'env "HOME"',
        'printf "%1000000000d" 5',
        'printf "%.1000000000f" $value',
        'block "x" .',
        "while true",
        "pathPrefix",
        "externalURL",
        "$externalURL",
        'tableLink "up"',
        'first (query "up")',
        "call $value",
        "$labels.__proto__.x",
        "safeHtml $value",
        "humanize humanize",
        "010",
        "humanize -08",
        "9223372036854775808",
        "9" * 5000,
    ],
)
def test_what_loops_reads_or_is_not_exact_is_refused(action: str) -> None:
    with pytest.raises(ConfigurationError):
        Template("{{ " + action + " }}")


def test_an_action_without_an_end_is_refused() -> None:
    for text in ("{{ $value", "a {{", '{{ "}}'):
        with pytest.raises(ConfigurationError, match="without an end"):
            Template(text)


def test_a_text_without_actions_is_static() -> None:
    assert Template("critical").static
    assert not Template("{{ $labels.severity }}").static
