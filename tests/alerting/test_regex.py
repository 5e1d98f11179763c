"""Patterns match as RE2's do; the expected answers were confirmed with Go's regexp package."""

import time

import pytest

from llmkg_otel.alerting.promql.regex import Pattern
from llmkg_otel.errors import ConfigurationError


@pytest.mark.parametrize(
    ("pattern", "matching", "other"),
    [
        ("", [""], ["a"]),
        ("a|b", ["a", "b"], ["ab", "", "a\n"]),
        ("a.c", ["abc", "a\nc"], ["ac"]),
        ("(?-s:a.c)", ["abc"], ["a\nc"]),
        ("a$", ["a"], ["a\n"]),
        ("(?m)a$\n^b", ["a\nb"], ["ab"]),
        ("(?i)Abc", ["abc", "ABC"], ["abd"]),
        ("a(?i)b|c", ["ab", "aB", "C"], ["Ab"]),
        ("((?i)b)c", ["Bc"], ["BC"]),
        ("(?i)k", ["k", "K", "\u212a"], ["x"]),
        (r"\d+", ["12"], ["\u0661", ""]),
        (r"[^\d]", ["a", "\u0661"], ["1"]),
        ("[[:alpha:]-]+", ["a-b"], ["1"]),
        ("[]a]", ["]", "a"], ["b"]),
        ("[a&&b]", ["a", "&", "b"], ["c"]),
        ("a{2,3}", ["aa", "aaa"], ["a", "aaaa"]),
        ("a{,2}", ["a{,2}"], ["a", "aa"]),
        ("(a*)*b", ["b", "aab"], ["a"]),
        (r"\Qa.b\E+", ["a.b", "a.bb"], ["axb", "a.ba.b"]),
        (r"\x41\x{1F600}\101", ["A\U0001f600A"], ["A"]),
        (r"a\b.\bb", ["a b"], ["aab"]),
        ("(?P<name>a)(?<other>b)", ["ab"], ["a"]),
        ("10\\.0\\..*:9100", ["10.0.1.2:9100"], ["10a0.1.2:9100"]),
        ("é+", ["éé"], ["e"]),
        ("(?i)é", ["É"], ["e"]),
        (r"\p{Greek}", ["\u03b1"], ["a"]),
        ("(" * 300 + "a" + ")" * 300, ["a"], [""]),
        (r"\\C", ["\\C"], ["C"]),
    ],
)
def test_a_pattern_matches_the_whole_text_only(pattern: str, matching: list[str], other: list[str]) -> None:
    compiled = Pattern(pattern)
    assert [text for text in matching if not compiled.fullmatch(text)] == []
    assert [text for text in other if compiled.fullmatch(text)] == []


@pytest.mark.parametrize(
    "pattern",
    [
        "(",
        ")",
        "a)",
        "*",
        "a**",
        "a++",
        "{2}",
        "[a",
        "[b-a]",
        "a{2,1}",
        "a{1001}",
        "(?=a)",
        "(?<=a)",
        r"\1",
        r"\C",
        r"\y",
        "\\",
        "[[:nope:]]",
        "(?x)a",
        r"\x{110000}",
        "((((a{1000}){1000}){1000}))",
    ],
)
def test_what_re2_refuses_or_is_not_supported_is_refused(pattern: str) -> None:
    with pytest.raises(ConfigurationError, match="regular expression"):
        Pattern(pattern)


def test_a_pattern_that_would_make_a_backtracker_run_for_ages_answers_at_once() -> None:
    compiled = Pattern("(a+)+(a|a)*(.*a){10}b")
    started = time.perf_counter()
    assert not compiled.fullmatch("a" * 500)
    assert time.perf_counter() - started < 5


def test_answers_are_remembered_within_a_bound() -> None:
    compiled = Pattern("a.*")
    for number in range(10_000):
        assert compiled.fullmatch(f"a{number}")
    assert len(compiled._answers) <= 4096
