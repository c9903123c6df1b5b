from collections import Counter

import numpy as np
import pytest

from mstr_hf.charsets import load_charsets
from mstr_hf.models.text import normalise
from mstr_hf.synthesis import characters as character_module
from mstr_hf.synthesis.characters import FRAME_HEIGHT, FRAME_WIDTH, CharacterSynthesiser
from mstr_hf.synthesis.fonts import covers, hb_font
from mstr_hf.synthesis.rendering import FontStyle
from mstr_hf.vocabulary import build_vocabulary

CHARSETS = load_charsets(["en", "hi", "ar"])
ROWS = build_vocabulary(CHARSETS).rows
LETTERS = {charset.lang: charset.letters for charset in CHARSETS}


@pytest.fixture(scope="module")
def characters(fonts) -> CharacterSynthesiser:
    return CharacterSynthesiser(fonts, ROWS, LETTERS)


def test_a_crop_is_a_function_of_seed_and_index(fonts, characters):
    other = CharacterSynthesiser(fonts, ROWS, LETTERS)
    backwards = [other.character(5, index) for index in reversed(range(40))][::-1]
    for index, crop in enumerate(backwards):
        same = characters.character(5, index)
        assert np.array_equal(same.image, crop.image) and (same.row, same.lang) == (crop.row, crop.lang)
    assert any(characters.character(6, index).row != crop.row for index, crop in enumerate(backwards))
    assert len({crop.image.tobytes() for crop in backwards}) == 40


def test_crops_show_their_row(characters):
    for index in range(150):
        crop = characters.character(0, index)
        assert crop.image.shape == (FRAME_HEIGHT, FRAME_WIDTH) == (40, 48) and crop.image.dtype == np.uint8
        assert crop.lang in ROWS[crop.row].languages
    spread = [characters.character(0, index).image.std() for index in range(150)]
    assert np.median(spread) > 12


def test_damage_that_hides_the_character_costs_another_draw(characters, monkeypatch):
    visible = characters.character(7, 0)
    verdicts = iter([False, False])
    legible = character_module.legible
    monkeypatch.setattr(character_module, "legible", lambda *images: next(verdicts, True) and legible(*images))
    again = characters.character(7, 0)
    assert next(verdicts, None) is None and not np.array_equal(again.image, visible.image)
    assert (again.row, again.lang) == (visible.row, visible.lang)


def test_every_row_comes_round_and_hard_ones_more_often_in_training(fonts, characters, monkeypatch):
    monkeypatch.setattr(characters, "crop", lambda row, lang, seed, index: (row, lang))
    count = len(characters.turns)
    laps = [[characters.character(0, lap * count + place) for place in range(count)] for lap in range(20)]
    times = Counter(row for row, _ in laps[0])
    assert times.keys() == {row for row, _ in characters.drawable}
    by_character = {ROWS[row].character: count for row, count in times.items()}
    expected = {"A": 1, "क": 1, "!": 1, "ा": 2, "5": 2, "५": 2, "ب": 2, "َ": 4, "٥": 4}
    assert {char: by_character[char] for char in expected} == expected
    assert set(Counter(CharacterSynthesiser(fonts, ROWS, LETTERS, split="heldout").turns).values()) == {1}
    assert sorted(row for row, _ in laps[0]) == sorted(row for row, _ in laps[1]) and laps[0] != laps[1]
    # what several languages write comes in the fonts of each
    assert {pair for lap in laps for pair in lap} == set(characters.drawable)


def test_no_mark_makes_another_letter_of_its_carrier(characters):
    assert {"अ", "आ", "ऋ", "ॐ"} <= set(LETTERS["hi"])
    assert set(LETTERS["hi"]) - set(characters.carriers["hi"]) == {c for c in LETTERS["hi"] if not "क" <= c <= "ह"}
    assert characters.carriers["ar"] == list(LETTERS["ar"]) and characters.carriers["en"] == list(LETTERS["en"])


def test_characters_stay_whole(fonts, characters, monkeypatch):
    monkeypatch.setattr(character_module, "compose", lambda noise, mask: mask.astype(np.float32))
    monkeypatch.setattr(character_module, "degrade", lambda noise, image, severity: image.astype(np.uint8))
    rims = []
    for index in range(300):
        image = characters.character(2, index).image
        rims.append(image[[0, -1]].sum() / image.sum())
    assert np.mean(np.array(rims) > 0.1) < 0.05


def test_a_line_is_as_high_as_letters_need(fonts, characters):
    shares = []
    for lang, families in characters.families.items():
        for face in (face for family in families for face in family):
            font = hb_font(face)
            FontStyle().apply(font)
            inks = [font.get_glyph_extents(font.get_nominal_glyph(ord(c))) for c in LETTERS[lang] if covers(face, c)]
            top, bottom = characters._line(face, lang)
            highest, lowest = max(ink.y_bearing for ink in inks), min(ink.y_bearing + ink.height for ink in inks)
            assert bottom < lowest < highest < top
            shares.append((highest - lowest) / (top - bottom))
    assert min(shares) == pytest.approx(max(shares)) == pytest.approx(1 / 1.28)


def test_what_has_ink_is_drawable(characters):
    drawable = {ROWS[row].character for row, _ in characters.drawable}
    assert not drawable & {"\u200c", "\u200d"}
    missing = {row.character for row in ROWS} - drawable
    assert all(normalise(character, "") == "" or not character.isalnum() for character in missing), missing
    assert len(missing) < 10
    assert {lang for _, lang in characters.drawable} == {"en", "hi", "ar"}
    # a Western digit is drawn in the fonts of every language
    digit = next(index for index, row in enumerate(ROWS) if row.character == "7")
    assert [lang for row, lang in characters.drawable if row == digit] == ["en", "hi", "ar"]


def test_lookalikes_differ_by_their_place(fonts, characters):
    clean = CharacterSynthesiser(fonts, ROWS, LETTERS, severity=0.0)
    rows = {row.character: index for index, row in enumerate(ROWS)}

    def height(character: str, lang: str) -> float:
        """Mean row of what stands out from the paper, over many crops."""
        places = []
        for index in range(40):
            image = clean.crop(rows[character], lang, 3, index).image.astype(float)
            ink = np.abs(image - np.median(image)) > 0.5 * np.abs(image - np.median(image)).max()
            places.append(np.nonzero(ink)[0].mean())
        return float(np.median(places))

    assert height("'", "en") + 4 < height("-", "en") < height(".", "en") - 3
    assert height("\u0902", "hi") + 4 < height("\u093c", "hi")


def test_heldout_crops_come_from_other_fonts(fonts, characters):
    heldout = CharacterSynthesiser(fonts, ROWS, LETTERS, split="heldout")
    for lang, families in heldout.families.items():
        train = {face.group for family in characters.families[lang] for face in family}
        assert families and not train & {face.group for family in families for face in family}
