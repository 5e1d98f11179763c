from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from llmkg_otel.engine.chunks import split_into_passages


@given(st.text(alphabet="ab .!\n", max_size=400), st.integers(1, 50))
def test_passages_hold_all_the_words_in_order_and_none_is_too_long(text: str, most: int) -> None:
    passages = split_into_passages(text, most)
    assert all(0 < len(passage) <= most for passage in passages)
    assert "".join("".join(passages).split()) == "".join(text.split())


def test_paragraphs_are_kept_whole_while_they_fit() -> None:
    text = "one two.\n\nthree four.\n\nfive six seven eight."
    assert split_into_passages(text, 21) == ["one two.\nthree four.", "five six seven eight."]


def test_a_long_paragraph_is_cut_at_a_sentence() -> None:
    assert split_into_passages("It rains. It pours.", 12) == ["It rains.", "It pours."]
