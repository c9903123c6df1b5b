import random
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import uharfbuzz as hb
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from fontTools.ttLib.tables.TupleVariation import TupleVariation

from mstr_hf.models.text import normalise, visual_order
from mstr_hf.synthesis.fonts import Face, FontIndex, covers, hb_font
from mstr_hf.synthesis.rendering import FontStyle, Ink, random_style, render_character, render_line


def face_of(fonts: FontIndex, lang: str, family: str, style: str = "") -> Face:
    for face in fonts.by_language[lang]:
        if face.family == family and face.style in (style, style or "Regular", "Book"):
            return face
    pytest.skip(f"missing: font {family} {style} (see the fixture fonts)")


@pytest.fixture
def latin(fonts) -> hb.Font:
    return hb_font(face_of(fonts, "en", "DejaVu Sans"))


@pytest.fixture
def devanagari(fonts) -> hb.Font:
    return hb_font(face_of(fonts, "hi", "Noto Sans Devanagari"))


@pytest.fixture
def arabic(fonts) -> hb.Font:
    return hb_font(face_of(fonts, "ar", "DejaVu Sans"))


def same(first: np.ndarray, second: np.ndarray) -> bool:
    """Whether two masks show the same, up to a pixel of position and size and the rounding of edges."""
    shape = tuple(max(a, b) + 2 for a, b in zip(first.shape, second.shape, strict=True))
    if np.abs(np.subtract(first.shape, second.shape)).max() > 1:
        return False
    one = np.zeros(shape)
    one[1 : 1 + first.shape[0], 1 : 1 + first.shape[1]] = first
    best = 1.0
    for y in range(shape[0] - second.shape[0] + 1):
        for x in range(shape[1] - second.shape[1] + 1):
            two = np.zeros(shape)
            two[y : y + second.shape[0], x : x + second.shape[1]] = second
            best = min(best, np.abs(one - two).sum() / one.sum())
    return best < 0.25


def ink_rows(mask: np.ndarray) -> float:
    """Mean row of the ink, as a fraction of the height."""
    weights = mask.astype(float).sum(1)
    return float((weights * np.arange(len(weights))).sum() / weights.sum() / len(weights))


# -------------------- lines


def test_ink_is_tightly_cropped_and_knows_its_baseline(latin):
    heights = {}
    for text in ("x", "xg", "-", "A.a"):
        ink = render_line(latin, text, 40)
        assert ink.mask.dtype == np.uint8 and ink.mask.max() > 200
        for edge in (ink.mask[0], ink.mask[-1], ink.mask[:, 0], ink.mask[:, -1]):
            assert edge.any(), text
        heights[text] = (len(ink.mask), ink.baseline)
    # the letter stands on the line, the tail hangs below it, the dash floats above it
    assert heights["x"][1] == pytest.approx(heights["x"][0], abs=1)
    assert heights["xg"][1] == pytest.approx(heights["x"][1], abs=1) and heights["xg"][0] > heights["xg"][1] + 5
    assert heights["-"][1] > heights["-"][0] + 4


def test_text_is_upright(latin):
    mask = render_line(latin, "L", 40).mask.astype(float)
    half = len(mask) // 2
    assert mask[half:].sum() > 1.3 * mask[:half].sum()
    assert mask[:, : mask.shape[1] // 3].sum() > mask[:, -mask.shape[1] // 3 :].sum()


def test_size_is_in_pixels_per_em(latin):
    small, large = (render_line(latin, "Hx", size).mask.shape for size in (20, 60))
    assert np.divide(large, small) == pytest.approx([3, 3], rel=0.1)


def test_rendering_is_a_function_of_its_arguments(latin):
    plain = render_line(latin, "Word", 30)
    bold = render_line(latin, "Word", 30, FontStyle(bold=0.05))
    slanted = render_line(latin, "Word", 30, FontStyle(slant=0.5))
    loose = render_line(latin, "Word", 30, FontStyle(spacing=0.3))
    again = render_line(latin, "Word", 30)
    assert np.array_equal(plain.mask, again.mask) and np.array_equal(plain.spans, again.spans)
    assert bold.mask.sum() > 1.1 * plain.mask.sum()
    assert slanted.mask.shape[1] > plain.mask.shape[1] and not same(slanted.mask, plain.mask)
    assert loose.mask.shape[1] == pytest.approx(plain.mask.shape[1] + 3 * 0.3 * 30, abs=2)
    assert loose.spans[-1, 0] == pytest.approx(plain.spans[-1, 0] + 3 * 0.3 * 30, abs=1)


@pytest.mark.parametrize(
    ("lang", "text"),
    [
        ("en", "Hello"),
        ("en", "two words"),
        ("en", "naïve É"),
        ("hi", "हिन्दी"),
        ("hi", "क्षत्रिय 12"),
        ("ar", "سلام"),
        ("ar", "سلام12"),
        ("ar", "12سلام"),
        ("ar", "س1"),
        ("ar", "سلام AB"),
        ("ar", "AB سلام 12"),
        ("ar", "(سلام)"),
        ("ar", "سلام-12-سلام"),
        ("ar", "٣٤ سلام 5%"),
        ("ar", "أهلًا"),
    ],
)
def test_spans_run_from_left_to_right_in_visual_order(fonts, lang, text):
    families = {"en": "DejaVu Sans", "hi": "Noto Sans Devanagari", "ar": "DejaVu Sans"}
    ink = render_line(hb_font(face_of(fonts, lang, families[lang])), text, 40)
    assert ink.text == normalise(text)
    assert ink.spans.shape == (len(ink.text), 2) and ink.spans.dtype == np.float32
    assert (ink.spans[:, 0] <= ink.spans[:, 1]).all()
    centres = ink.spans.mean(1)[visual_order(ink.text)]
    assert (np.diff(centres) >= -1e-3).all(), centres
    assert ink.spans.min() > -8 and ink.spans.max() < ink.mask.shape[1] + 8


def test_right_to_left_text_is_drawn_from_right_to_left(arabic):
    whole, word, number = (render_line(arabic, text, 40).mask for text in ("سلام12", "سلام", "12"))
    assert same(whole[:, -word.shape[1] :], word)
    left = whole[:, : number.shape[1]]
    assert same(left[left.any(1)], number)
    swapped = render_line(arabic, "12سلام", 40).mask
    right = swapped[:, -number.shape[1] :]
    assert same(right[right.any(1)], number)


def test_letters_are_joined_whatever_stands_beside_them(arabic, devanagari):
    word = render_line(arabic, "سلام", 40).mask
    for text in ("سلامA", "Aسلام", "AB سلام", "é سلام"):
        mask = render_line(arabic, text, 40).mask
        # the word is at one end; Latin letters are no wider than this
        ends = [part[part.any(1)] for part in (mask[:, : word.shape[1]], mask[:, -word.shape[1] :])]
        assert any(same(end, word) for end in ends), text
    word = render_line(devanagari, "हिन्दी", 40).mask
    for text in ("हिन्दी A", "A हिन्दी", "AB12हिन्दी"):
        mask = render_line(devanagari, text, 40).mask
        ends = [part[part.any(1)] for part in (mask[:, : word.shape[1]], mask[:, -word.shape[1] :])]
        assert any(same(end, word) for end in ends), text


def test_brackets_are_mirrored_in_right_to_left_text(arabic):
    alone = render_line(arabic, "(", 40).mask
    left = render_line(arabic, "(س)", 40).mask[:, : alone.shape[1]]
    assert same(left[left.any(1)], alone)


def test_a_cluster_is_divided_among_its_characters(devanagari):
    ink = render_line(devanagari, "क्षि", 40)  # one cluster: four characters share its width
    widths = ink.spans[:, 1] - ink.spans[:, 0]
    assert ink.text == "क्षि" and widths == pytest.approx([widths[0]] * 4, rel=1e-4)


def test_joiners_are_kept_on_demand(devanagari):
    text = "क्\u200dष"
    assert render_line(devanagari, text, 40).text == "क्ष"
    kept = render_line(devanagari, text, 40, keep="\u200d")
    assert kept.text == text and len(kept.spans) == 4
    # a half form in place of the conjunct
    assert kept.mask.shape[1] > 1.2 * render_line(devanagari, "क्ष", 40).mask.shape[1]


def test_what_cannot_be_seen_is_an_error(latin):
    for text in (" ", "\u200d"):
        with pytest.raises(ValueError, match=r"nothing visible was drawn for .*: choose another face"):
            render_line(latin, text, 30)


# -------------------- styles


def test_random_styles():
    axes = {"wght": (100.0, 400.0, 900.0), "wdth": (75.0, 100.0, 125.0)}
    drawn = [random_style(random.Random(seed), axes, connected=False) for seed in range(400)]
    assert drawn[3] == random_style(random.Random(3), dict(reversed(axes.items())), connected=False)
    for style in drawn:
        values = dict(style.variations)
        assert all(low <= values[tag] <= high for tag, (low, _, high) in axes.items())
    for change in ("spacing", "bold", "slant"):
        assert 0.05 < np.mean([getattr(style, change) != 0 for style in drawn]) < 0.5
    assert all(random_style(random.Random(seed), axes, connected=True).spacing == 0 for seed in range(100))


def variable_font(path: Path) -> hb.Font:
    """A font whose one letter is a box, as wide as its weight says."""
    pen = TTGlyphPen(None)
    for point in ((100, 0), (200, 0), (200, 700), (100, 700)):
        (pen.lineTo if pen.points else pen.moveTo)(point)
    pen.closePath()
    builder = FontBuilder(1000)
    builder.setupGlyphOrder([".notdef", "I"])
    builder.setupCharacterMap({ord("I"): "I"})
    builder.setupGlyf({".notdef": TTGlyphPen(None).glyph(), "I": pen.glyph()})
    builder.setupHorizontalMetrics({".notdef": (500, 0), "I": (800, 100)})
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": "Box", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.setupFvar([("wght", 400, 400, 900, "Weight")], [])
    wider = [(0, 0), (500, 0), (500, 0), (0, 0), (0, 0), (0, 0), (0, 0), (0, 0)]
    builder.setupGvar({"I": [TupleVariation({"wght": (0.0, 1.0, 1.0)}, wider)]})
    builder.save(path)
    return hb.Font(hb.Face(hb.Blob.from_file_path(str(path))))


def test_a_style_leaves_nothing_behind_on_the_font(tmp_path):
    font = variable_font(tmp_path / "box.ttf")
    plain = render_line(font, "I", 100).mask
    heavy = render_line(font, "I", 100, FontStyle(variations=(("wght", 900.0),), slant=0.2)).mask
    assert plain.shape == (70, 10) and heavy.shape[1] > 60
    assert np.array_equal(render_line(font, "I", 100).mask, plain)


# -------------------- characters


def test_characters_keep_their_place_in_the_line(latin):
    place = {char: ink_rows(render_character(latin, char, 64, 64)) for char in ".,'-_x\u0307\u0323\u00b7"}
    assert place["\u0307"] < place["\u00b7"] < place["."] < place["\u0323"]
    assert place["'"] < place["-"] < place["_"]
    assert place["."] - place["\u0307"] > 0.3 and place[","] - place["'"] > 0.3


def test_marks_keep_their_place_in_every_script(devanagari, arabic):
    for font, above, below in ((devanagari, "\u0902", "\u093c"), (arabic, "\u064e", "\u0650")):
        high, low = (ink_rows(render_character(font, char, 64, 64)) for char in (above, below))
        assert high < 0.45 < 0.6 < low


def test_marks_stand_without_the_circle_and_on_a_letter(devanagari):
    alone = render_character(devanagari, "\u0941", 64, 64)
    on_letter = render_character(devanagari, "\u0941", 64, 64, base="क")
    letter = render_character(devanagari, "क", 64, 64)
    assert 0 < alone.sum() < 0.5 * letter.sum() < letter.sum() < on_letter.sum()
    assert not alone[:30].any()  # the circle would be there


def test_every_mark_is_drawn_by_itself(fonts):
    for lang, marks in (("en", "\u0301\u0308"), ("hi", "ािु्ंँ़"), ("ar", "\u064b\u0651\u0652")):
        for face in fonts.by_language[lang]:
            for char in marks:
                if not covers(face, "\u25cc" + char):
                    continue
                mask = render_character(hb_font(face), char, 32, 48)
                letter = render_character(hb_font(face), {"en": "M", "hi": "क", "ar": "س"}[lang], 32, 48)
                assert 0 < mask.sum() < letter.sum(), (face, unicodedata.name(char))


def test_wide_characters_are_narrowed_and_narrow_ones_move(latin):
    narrow = render_character(latin, "W", 48, 20)
    assert narrow.shape == (48, 20) and narrow[:, 1:-1].any(0).all()
    assert narrow[:, [0, -1]].sum() < 0.05 * narrow.sum()
    tall = render_character(latin, "W", 48, 90)
    assert np.flatnonzero(narrow.any(1)).tolist() == np.flatnonzero(tall.any(1)).tolist()
    columns = [np.flatnonzero(render_character(latin, "i", 32, 48, shift=s).any(0)).mean() for s in (-1, 0, 1)]
    assert columns[0] < 8 and columns[1] == pytest.approx(23.5, abs=2) and columns[2] > 40


def test_the_frame_is_that_of_the_line_unless_the_ink_leaves_it(latin):
    def height(line: tuple[float, float]) -> int:
        return int(render_character(latin, "H", 60, 60, line=line).any(1).sum())

    capital = latin.get_glyph_extents(latin.get_nominal_glyph(ord("H")))
    cap = capital.y_bearing
    assert height((2 * cap, -cap)) == pytest.approx(20, abs=2)
    assert height((1.2 * cap, -0.2 * cap)) == pytest.approx(60 / 1.4, abs=2)
    low = render_character(latin, "H", 60, 60, line=(0.5 * cap, 0.0))
    assert low[0].any() and low[-1].any()  # higher than the line, yet whole


def test_a_character_without_ink_is_an_error(latin):
    with pytest.raises(ValueError, match=r"nothing visible was drawn for U\+0020"):
        render_character(latin, " ", 32, 48)


def test_an_ink_is_what_it_says(latin):
    ink = render_line(latin, "a b", 40)
    assert isinstance(ink, Ink) and ink.text == "ab"
    gap = ink.spans[1, 0] - ink.spans[0, 1]
    assert gap > 8 and not ink.mask[:, int(ink.spans[0, 1]) + 4 : int(ink.spans[1, 0]) - 1].any()
