import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mstr_hf.models.text import display, normalise, visual_order

ZWNJ, ZWJ = "\u200c", "\u200d"


def visual(text: str) -> str:
    return "".join(text[i] for i in visual_order(text))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("क़लम", "क\u093cलम"),
        ("কো", "ক\u09c7\u09be"),
        ("café", "cafe\u0301"),
        ("ﷺ", "صلىاللهعليهوسلم"),  # a ligature that decomposes to words with spaces between
        ("ﻻ", "لا"),
        (" two\u00a0 words\t\n", "twowords"),
        ("½™…", "1\u20442TM..."),
        ("zero\u200bwidth\ufeff\u00ad\u2060", "zerowidth"),
        ("\u202bعربي\u202c\u200f\u2067\u2069\u061c", "عربي"),
        ("كـتاب", "كـتاب"),  # tatweel has ink
        (f"र{ZWJ}क{ZWNJ}", "रक"),
        ("❤\ufe0f", "❤"),
        ("", ""),
    ],
)
def test_normalise(text, expected):
    assert normalise(text) == expected


def test_normalise_keeps_joiners_on_request():
    text = f"র{ZWJ}্য \u200b{ZWNJ}"
    assert normalise(text, keep=ZWJ + ZWNJ) == f"র{ZWJ}্য{ZWNJ}"
    assert normalise(text, keep=ZWJ) == f"র{ZWJ}্য"


def test_normalise_orders_marks_that_an_invisible_character_kept_apart():
    assert normalise("a\u0301\u034f\u0327") == "a\u0327\u0301"


@given(st.text(), st.sampled_from(["", ZWJ, ZWNJ + ZWJ]))
@example("a\u0301\u034f\u0327", "")
@example("\u0344\u200d\u0323", "")
def test_normalise_is_idempotent_and_keeps_nothing_unseen(text, keep):
    once = normalise(text, keep)
    assert normalise(once, keep) == once
    assert unicodedata.is_normalized("NFKD", once)
    assert not any(character.isspace() or character in "\u200b\ufeff\u00ad\u200e\u2066" for character in once)
    assert normalise(display(once), keep) == once


def test_display_composes():
    assert display("cafe\u0301 ক\u09c7\u09be") == "café কো"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("سوق", "قوس"),
        ("سوق 24", "24 قوس"),
        ("سوق ١٢٣ جدة", "ةدج ١٢٣ قوس"),
        ("1,250.50 ريال", "لاير 1,250.50"),
        ("مطعم Blue Sky!", "!Blue Sky معطم"),
        ("12 ب", "ب 12"),
        ("Blue 24!", "Blue 24!"),
        ("नमस्ते", "नमस्ते"),
        ("", ""),
    ],
)
def test_visual_order(text, expected):
    assert visual(text) == expected


@given(st.text(alphabet=st.sampled_from("سوقאב abZ12٣٤-.,() \u064b\u0301क")))
def test_visual_order_is_undone_by_itself(text):
    assert sorted(visual_order(text)) == list(range(len(text)))
    assert visual(visual(text)) == text


@given(st.text())
def test_visual_order_is_undone_by_itself_for_any_text(text):
    assert visual(visual(text)) == text
