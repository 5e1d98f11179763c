"""Generated series and values of unit tests are read as by promtool, or refused as by promtool."""

from __future__ import annotations

import json
import random
import subprocess
from typing import TYPE_CHECKING

from support.prometheus import failures

from llmkg_otel.alerting.unit_test_file import load_unit_tests
from llmkg_otel.alerting.unit_tests import run_unit_tests
from llmkg_otel.errors import ConfigurationError

if TYPE_CHECKING:
    from support.prometheus import Promtool

CASES = 60
SERIES = (
    *("a", "a{}", "a{,}", "a:b", "sum", "and", "1a", "{__name__='a'}", '{"a"}', '{"a",b="c"}', 'a{"b"="c"}'),
    *('a{b="c"}', 'a{b="c",}', "a{b='c'}", "a{b=`c\\d`}", 'a{ b = "c" }', 'a{b="\\x41"}', 'a{b="\\q"}'),
    *('a{b=""}', 'a{b="\u00e9"}', 'a{b="\u2028"}', 'a{b!="c"}', 'a{1b="c"}', 'a{b="c"b="d"}', "a{b", ""),
)
NUMBERS = (
    *(
        "1",
        "0",
        ".5",
        "1.",
        "1e3",
        "1E-2",
        "12.25",
        "1_0",
        "Inf",
        "NaN",
        "inf",
        "nan",
        "+3",
        "-2",
        "+Inf",
        "-NaN",
    ),
    *("0x1", "1e", "--1", "1.2.3"),
)
OTHERS = (
    "_",
    "_x2",
    "_x0",
    "__",
    "stale",
    "Stale",
    "stalex2",
    "x",
    "1x",
    "x3",
    "_x-1",
    "1x2.5",
    "1x1e1",
    "a",
)


def item(generator: random.Random) -> str:
    number, step = generator.choice(NUMBERS), generator.choice(NUMBERS)
    forms = (number, number, f"{number}x{generator.randrange(4)}", f"{number}+{step}x2", f"{number}-{step}x3")
    return generator.choice((*forms, generator.choice(OTHERS)))


def test_series_and_values_are_read_as_promtool_reads_them(promtool3: Promtool) -> None:
    generator = random.Random(6)
    refused = 0
    file = promtool3.directory / "test.yaml"
    never = [{"labels": "never", "value": 1}]
    questions = [{"expr": '{__name__=~".+"}', "eval_time": f"{at}m", "exp_samples": never} for at in range(6)]
    for number in range(CASES):
        series = SERIES[number] if number < len(SERIES) else "a"
        values = " ".join(item(generator) for _ in range(generator.randint(1, 3))) if series == "a" else "1 2"
        given = {"interval": "1m", "input_series": [{"series": series, "values": values}]}
        file.write_text(json.dumps({"tests": [given | {"promql_expr_test": questions}]}, ensure_ascii=False))
        command = [promtool3.path, "test", "rules", str(file)]
        theirs = subprocess.run(command, capture_output=True, text=True, check=False).stderr
        try:
            ours = "\n".join(run_unit_tests(load_unit_tests(file)))
        except ConfigurationError:
            ours = ""
            refused += 1
        assert failures(ours) == failures(theirs), (series, values)
    assert CASES / 4 < refused < CASES * 3 / 4
