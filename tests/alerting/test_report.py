"""Numbers and links as Prometheus writes them."""

import math

import pytest

from llmkg_otel.alerting.alert_state import ActiveAlert
from llmkg_otel.alerting.report import as_prometheus, expression_url


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (1.0, "1e+00"),
        (0.0, "0e+00"),
        (0.95, "9.5e-01"),
        (-12345.678, "-1.2345678e+04"),
        (1e100, "1e+100"),
        (1200.0, "1.2e+03"),
        (1 / 3, "3.333333333333333e-01"),
        (math.nan, "NaN"),
        (math.inf, "+Inf"),
        (-math.inf, "-Inf"),
    ],
)
def test_a_value_is_written_with_an_exponent_and_the_fewest_digits(value: float, shown: str) -> None:
    alert = ActiveAlert("A", (), (), "firing", 0.0, 0.0, value, 0.0, keep_firing_since=1.5)
    [given] = as_prometheus([alert], [])["data"]["alerts"]
    assert given["value"] == shown
    assert given["keepFiringSince"] == "1970-01-01T00:00:01.500Z"


def test_an_expression_is_linked_as_prometheus_links_it() -> None:
    expression = 'sum by (a) (rate(m{b=~"c|d"}[5m])) > 0'
    assert expression_url("http://prometheus:9090/p/", expression) == (
        "http://prometheus:9090/p/graph?g0.expr=sum+by+%28a%29+%28rate%28m%7Bb%3D~%22c%7Cd%22%7D%5B5m%5D%29%29"
        "+%3E+0&g0.tab=1"
    )
