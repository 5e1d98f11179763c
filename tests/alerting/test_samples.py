import math
import tracemalloc
from threading import Thread

import pytest

from llmkg_otel.alerting.promql import Matcher
from llmkg_otel.alerting.samples import SampleStore


def key(name: str, **labels: str) -> tuple[tuple[str, str], ...]:
    return tuple(sorted({"__name__": name, **labels}.items()))


def test_an_instant_read_gives_the_newest_value_in_a_left_open_lookback() -> None:
    store = SampleStore(3600, 100)
    store.append(100.0, [("up", {"job": "a"}, 1.0)])
    assert store.instant("up", (), 100.0) == [(key("up", job="a"), 1.0)]
    assert store.instant("up", (), 399.999) == [(key("up", job="a"), 1.0)]
    assert store.instant("up", (), 400.0) == []
    assert store.instant("up", (), 99.999) == []
    assert store.instant("up", (), 110.0, lookback=10.0) == []


def test_a_range_read_leaves_out_its_left_edge_and_keeps_its_right_one() -> None:
    store = SampleStore(3600, 100)
    for at in (0.0, 10.0, 20.0, 30.0):
        store.append(at, [("c", {}, at)])
    [series] = store.range("c", (), 0.0, 20.0)
    assert (list(series.times), list(series.values)) == ([10_000, 20_000], [10.0, 20.0])
    assert store.range("c", (), 30.0, 40.0) == []


def test_a_series_that_disappears_from_a_collection_gets_a_staleness_marker() -> None:
    store = SampleStore(3600, 100)
    store.append(0.0, [("m", {"i": "0"}, 1.0), ("m", {"i": "1"}, 2.0)])
    store.append(10.0, [("m", {"i": "0"}, 3.0)])
    assert store.instant("m", (), 10.0) == [(key("m", i="0"), 3.0)]
    assert store.instant("m", (), 9.0) == [(key("m", i="0"), 1.0), (key("m", i="1"), 2.0)]
    ranges = {series.labels: list(series.values) for series in store.range("m", (), -1.0, 10.0)}
    assert ranges == {key("m", i="0"): [1.0, 3.0], key("m", i="1"): [2.0]}
    store.append(20.0, [("m", {"i": "1"}, 5.0)])
    assert store.instant("m", (), 20.0) == [(key("m", i="1"), 5.0)]


def test_sources_do_not_make_each_others_series_stale() -> None:
    store = SampleStore(3600, 100)
    store.append(0.0, [("a", {}, 1.0)])
    store.append(0.0, [("b", {}, 2.0)], source="rule")
    store.append(1.0, [("a", {}, 1.0)])
    assert [value for _, value in store.instant("b", (), 1.0)] == [2.0]
    store.append(2.0, [], source="rule")
    assert store.instant("b", (), 2.0) == []


def test_a_nan_value_is_no_staleness_marker() -> None:
    store = SampleStore(3600, 100)
    store.append(0.0, [("m", {}, math.nan)])
    [(_, value)] = store.instant("m", (), 0.0)
    assert math.isnan(value)
    assert len(store.range("m", (), -1.0, 0.0)) == 1


def test_an_empty_label_is_no_label_and_a_repeated_series_counts_once() -> None:
    store = SampleStore(3600, 100)
    store.append(0.0, [("m", {"a": ""}, 1.0), ("m", {}, 2.0)])
    assert store.instant("m", (), 0.0) == [(key("m"), 1.0)]


def test_a_point_that_is_not_newer_is_left_out() -> None:
    store = SampleStore(3600, 100)
    store.append(10.0, [("m", {}, 1.0)])
    store.append(10.0, [("m", {}, 2.0)])
    store.append(5.0, [("m", {}, 3.0)])
    assert [list(series.values) for series in store.range("m", (), 0.0, 20.0)] == [[1.0]]


def test_points_are_bounded_in_number_and_age_and_old_series_are_forgotten() -> None:
    store = SampleStore(retention_seconds=60, max_points=3)
    for at in range(5):
        store.append(float(at), [("m", {}, float(at)), ("gone", {}, 0.0)])
    assert [list(series.values) for series in store.range("m", (), -1.0, 5.0)] == [[2.0, 3.0, 4.0]]
    store.append(63.5, [("m", {}, 9.0)])
    assert [list(series.values) for series in store.range("m", (), -1.0, 70.0)] == [[4.0, 9.0]]
    assert len(store) == 2
    store.append(130.0, [("m", {}, 10.0)])
    assert len(store) == 1


@pytest.mark.parametrize(
    ("matchers", "found"),
    [
        ((Matcher("a", "=", "x"),), {"1"}),
        ((Matcher("a", "!=", "x"),), {"2", "3"}),
        ((Matcher("a", "=", ""),), {"3"}),
        ((Matcher("a", "=~", "x|y"), Matcher("n", "!~", "[2-9]")), {"1"}),
        ((Matcher("a", "=~", ""),), {"3"}),
        ((Matcher("a", "!~", ".+"),), {"3"}),
        ((Matcher("__name__", "=~", "m|other"),), {"1", "2", "3"}),
    ],
)
def test_matchers_select_series(matchers: tuple[Matcher, ...], found: set[str]) -> None:
    store = SampleStore(3600, 100)
    store.append(0.0, [("m", {"a": "x", "n": "1"}, 0), ("m", {"a": "y", "n": "2"}, 0), ("m", {"n": "3"}, 0)])
    for name in ("m", None):
        assert {dict(labels)["n"] for labels, _ in store.instant(name, matchers, 0.0)} == found


def test_what_matchers_select_follows_the_series_that_come_and_go() -> None:
    store = SampleStore(60, 100)
    matchers = (Matcher("a", "=~", "x|y"),)
    for at, labels, found in ((0.0, "x", ["x"]), (1.0, "y", ["y"]), (2.0, "z", []), (100.0, "x", ["x"])):
        store.append(at, [("m", {"a": labels}, at)])
        for name in ("m", None):
            assert [dict(series)["a"] for series, _ in store.instant(name, matchers, at)] == found
    assert len(store) == 2  # x, and z with a marker; y is forgotten


def test_series_beyond_the_bound_are_left_out_with_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    store = SampleStore(60, 100, max_series=2)
    for at in (0.0, 1.0):
        store.append(at, [("m", {"n": str(n)}, at) for n in range(5)])
    assert [dict(labels)["n"] for labels, _ in store.instant("m", (), 1.0)] == ["0", "1"]
    assert [record.message for record in caplog.records] == [
        "Samples for alerts: 2 series are kept, others are left out"
    ]
    for at in (100.0, 200.0, 300.0):  # the others' markers are old, then forgotten, and there is room
        store.append(at, [("m", {"n": "9"}, 1.0)])
    assert len(store) == 1


def test_the_times_of_values_are_read_as_the_values_are() -> None:
    store = SampleStore(3600, 100)
    store.append(1.5, [("m", {"i": "0"}, 7.0), ("m", {"i": "1"}, 8.0)])
    store.append(10.25, [("m", {"i": "0"}, 9.0)])
    assert store.timestamps("m", (), 11.0) == [(key("m", i="0"), 10.25)]
    assert store.timestamps("m", (), 10.0) == [(key("m", i="0"), 1.5), (key("m", i="1"), 1.5)]


def test_a_range_says_when_a_series_never_falls() -> None:
    store = SampleStore(3600, 3)
    rising = []
    for at, value in enumerate((1.0, 2.0, 1.0, 1.0, 5.0, 6.0)):
        store.append(float(at), [("m", {}, value)])
        rising += [series.monotonic for series in store.range("m", (), -1.0, 10.0)]
    assert rising == [True, True, False, False, True, True]


def test_a_thousand_series_of_a_thousand_points_would_take_under_20_mb() -> None:
    names = [("series", {"n": str(n), "operation": "search"}) for n in range(20)]
    tracemalloc.start()
    try:
        store = SampleStore(1e6, 1000)
        for at in range(1010):
            store.append(float(at), [(name, labels, 1.0) for name, labels in names])
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(store) == 20
    assert used * 1000 / 20 < 20e6


def test_a_reader_on_another_thread_sees_whole_collections() -> None:
    store = SampleStore(1e6, 50)
    store.append(-1.0, [("a", {}, -1.0), ("b", {}, -1.0)])
    torn = []

    def write() -> None:
        for at in range(2000):
            store.append(float(at), [("a", {}, float(at)), ("b", {}, float(at))])

    writer = Thread(target=write)
    writer.start()
    while writer.is_alive():
        found = {value for _, value in store.instant(None, (Matcher("__name__", "=~", "a|b"),), 1e5, 1e6)}
        torn += [found] if len(found) != 1 else []
    writer.join()
    assert not torn
