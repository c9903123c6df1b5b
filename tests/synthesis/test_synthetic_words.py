import itertools
import random
import string

import numpy as np
import pytest
from PIL import Image

from mstr_hf.charsets import load_charset, load_charsets
from mstr_hf.models.text import normalise, visual_order
from mstr_hf.synthesis import synthetic_words
from mstr_hf.synthesis.fonts import hb_font
from mstr_hf.synthesis.rendering import render_line
from mstr_hf.synthesis.synthetic_words import KASHIDA, WordSynthesiser, _ornament, _with_kashidas, _without_kashidas
from mstr_hf.synthesis.words import WordsError, load_words
from mstr_hf.vocabulary import build_vocabulary

LANGUAGES = ("en", "hi", "ar")
VOCABULARY = build_vocabulary(load_charsets(LANGUAGES))
JOINERS = VOCABULARY.joiners


@pytest.fixture(scope="module")
def sources() -> dict:
    try:
        return {lang: load_words(lang) for lang in LANGUAGES}
    except WordsError as error:
        pytest.skip(f"missing: {error}")


@pytest.fixture(scope="module")
def words(fonts, sources) -> WordSynthesiser:
    return WordSynthesiser(fonts, sources, joiners=JOINERS)


def test_a_word_is_a_function_of_seed_and_index(fonts, sources, words):
    other = WordSynthesiser(fonts, sources, joiners=JOINERS)
    backwards = [other.word(5, index) for index in reversed(range(30))][::-1]
    for index, word in enumerate(backwards):
        same = words.word(5, index)
        assert np.array_equal(same.image, word.image)
        assert (same.text, same.lang, same.family) == (word.text, word.lang, word.family)
        assert (same.centres is None) == (word.centres is None)
        assert same.centres is None or np.array_equal(same.centres, word.centres)
    assert len({word.image.tobytes() for word in backwards}) == 30
    assert [words.word(6, index).text for index in range(30)] != [word.text for word in backwards]


def test_a_stream_is_a_share_of_the_sequence(words):
    share = list(itertools.islice(words.stream(5, 3, 4), 4))
    assert [word.text for word in share] == [words.word(5, index).text for index in (3, 7, 11, 15)]


def test_labels_and_images_are_fit_to_train_on(words):
    ratios, spreads = [], []
    for index in range(200):
        word = words.word(0, index)
        assert word.text == normalise(word.text, JOINERS) == VOCABULARY.validate(word.text)
        height, width = word.image.shape
        assert word.image.dtype == np.uint8 and 4 <= height <= 400 and 4 <= width <= 2000
        ratios.append(width / height)
        spreads.append(word.image.std())
    assert 1.2 < np.median(ratios) < 5
    assert np.median(spreads) > 15 and np.mean(np.array(spreads) > 4) > 0.97


def test_the_label_is_the_normalised_text(words):
    for text, lang in (("Straße", "en"), ("Crème brûlée", "en"), ("क्षत्रिय", "hi"), ("फ़िल्म", "hi"), ("أهلًا 12", "ar")):
        word = words.draw(3, text, lang)
        assert word.text == normalise(text, JOINERS) and word.lang == lang
        assert np.array_equal(words.draw(3, text, lang).image, word.image)
        assert not np.array_equal(words.draw(4, text, lang).image, word.image)


def test_centres_stand_where_the_characters_are(words):
    for text, lang in (("Hello.", "en"), ("सलाम", "hi"), ("سلام12", "ar"), ("12سلام", "ar")):
        drawn = [words.draw(seed, text, lang).centres for seed in range(25)]
        for centres in drawn:
            assert centres.shape == (len(text),)
            # in visual order, whatever the direction of the script
            assert (np.diff(centres) > -1e-3).all()
            assert -0.05 < centres[0] < centres[-1] < 1.05
        assert np.median([centres[-1] - centres[0] for centres in drawn]) > 0.45
    # the order is visual: the number at the end of the text stands at the left
    text = "سلام12"
    assert [text[index] for index in visual_order(text)][:2] == ["1", "2"]


def test_centres_follow_the_ink_through_all_geometry(fonts, sources):
    calm = WordSynthesiser(fonts, sources, severity=0.3, joiners=JOINERS)
    errors = []
    for seed in range(40):
        word = calm.draw(seed, "l.............l", "en")  # two strokes far apart
        image = np.asarray(Image.fromarray(word.image).resize((200, 32)), float)
        outstanding = np.abs(image - np.median(image, axis=1, keepdims=True))[8:24].mean(0)
        half = 100
        ends = (outstanding[:half].argmax() / 200, (half + outstanding[half:].argmax()) / 200)
        errors.append(max(abs(ends[0] - word.centres[0]), abs(ends[1] - word.centres[-1])))
    assert np.median(errors) < 0.04


def test_damage_that_hides_the_word_costs_another_draw(words, monkeypatch):
    visible = words.word(7, 0)
    refusals = iter([False, False])
    legible = synthetic_words.legible
    seen = []

    def judged(image, mask) -> bool:
        seen.append(image)
        return next(refusals, True) and legible(image, mask)

    monkeypatch.setattr(synthetic_words, "legible", judged)
    again = words.word(7, 0)
    assert len(seen) >= 3 and not np.array_equal(again.image, visible.image)
    assert np.array_equal(again.image, seen[-1])


def test_words_that_are_wider_than_readers_take_are_not_drawn(words, monkeypatch):
    monkeypatch.setattr("mstr_hf.synthesis.synthetic_words.MAX_RATIO", 2)
    shapes = [words.word(0, index).image.shape for index in range(15)]
    assert all(width <= 2.1 * height for height, width in shapes) and max(width for _, width in shapes) > 20


def test_kashidas_are_drawn_and_not_read(fonts):
    font = hb_font(fonts.faces("ar")[0])
    plain, wide = (render_line(font, text, 40.0) for text in ("مجتمع", "مجتمـــع"))
    stripped = _without_kashidas(wide)
    assert stripped.text == "مجتمع" and len(stripped.spans) == 5
    assert stripped.mask.shape[1] > plain.mask.shape[1]
    assert _without_kashidas(plain) is plain
    # the last letter stands where it is drawn, left of the stroke
    assert abs(stripped.spans[4].mean() - plain.spans[4].mean()) < 3
    assert stripped.spans[3].mean() > plain.spans[3].mean() + 5

    # only letters that join can be widened
    rng = random.Random(0)
    assert all(_with_kashidas(rng, "دور") == "دور" for _ in range(20))
    assert all(_with_kashidas(rng, "باب").startswith("بـ") for _ in range(20))
    assert all(_with_kashidas(rng, "دب؟") == "دب؟" for _ in range(20))


def test_kashidas_never_reach_a_label(fonts, sources):
    words = WordSynthesiser(fonts, {"ar": sources["ar"]}, joiners=JOINERS)
    assert not any(KASHIDA in words.word(3, index).text for index in range(300))
    with pytest.raises(ValueError, match="no face draws"):
        words.draw(0, KASHIDA, "ar")


@pytest.mark.parametrize("dots", [True, False])
def test_ornaments_keep_away_from_the_word(dots):
    rng = random.Random(0)
    height, tall = 60, 40
    panels = [_ornament(rng, height, tall, dots) for _ in range(200)]
    inked = [(np.flatnonzero(panel.any(1)), np.flatnonzero(panel.any(0)), panel) for panel in panels if panel.any()]
    assert len(inked) > 150 and all(len(panel) == height for panel in panels)
    assert all(panel.shape[1] - columns[-1] > 0.15 * tall for _, columns, panel in inked)
    assert all(20 < rows.mean() < 40 for rows, _, _ in inked)
    # Dots are about as high as wide, dashes longer than they are high; some of either are cut.
    assert (sum(np.ptp(columns) <= np.ptp(rows) + 1 for rows, columns, _ in inked) > 60) == dots
    assert 20 < sum(columns[0] == 0 for _, columns, _ in inked) < 180


def test_ornaments_are_drawn_and_not_read(fonts, sources, monkeypatch):
    drawn = []

    def ornament(*arguments):
        drawn.append(arguments)
        return _ornament(*arguments)

    monkeypatch.setattr(synthetic_words, "_ornament", ornament)
    words = WordSynthesiser(fonts, {"en": sources["en"]}, None, "train", 0.2)
    plain = 0
    for index in range(300):
        before = len(drawn)
        word = words.word(3, index)
        if len(drawn) > before and word.text.isalpha():
            plain += 1
            assert word.centres.min() > 0 and word.centres.max() < 1
    assert 5 < len(drawn) < 50 and plain


def test_labels_hold_only_the_characters_asked_for(fonts, sources):
    small = frozenset(string.ascii_lowercase)
    free, bound = (
        WordSynthesiser(fonts, {"en": sources["en"]}, joiners=JOINERS, characters=characters)
        for characters in (None, small)
    )
    assert not all(small.issuperset(free.word(0, index).text) for index in range(50))
    assert all(small.issuperset(bound.word(0, index).text) for index in range(50))


def test_a_text_that_no_face_draws_is_an_error(words):
    with pytest.raises(ValueError, match="no face draws 'கா' legibly: install more fonts for en"):
        words.draw(0, "கா", "en")


def test_languages_are_weighted_and_can_be_chosen(fonts, sources):
    words = WordSynthesiser(fonts, sources, {"en": 3, "hi": 1, "ar": 0}, joiners=JOINERS)
    drawn = [words.word(0, index).lang for index in range(120)]
    assert set(drawn) == {"en", "hi"} and 0.6 < drawn.count("en") / 120 < 0.9
    assert words.word(0, 1, "ar").lang == "ar"
    script = load_charset("hi").characters | load_charset("en").characters
    assert all(script.issuperset(words.word(0, index, "hi").text) for index in range(20))


def test_heldout_words_come_from_other_families(fonts, sources, words):
    heldout = WordSynthesiser(fonts, sources, split="heldout", joiners=JOINERS)
    for lang in LANGUAGES:
        families = {faces[0].family for faces in heldout.families[lang]}
        assert heldout.word(0, 0, lang).family in families
        assert families.isdisjoint(faces[0].family for faces in words.families[lang])


def test_a_family_with_many_styles_is_drawn_as_often_as_one_with_few(words):
    counts = {family[0].family: len(family) for family in words.families["en"]}
    assert max(counts.values()) > 2 * min(counts.values())
    drawn = [words.word(1, index, "en").family for index in range(300)]
    shares = {family: drawn.count(family) / 300 for family in counts}
    assert max(shares.values()) < 3 / len(counts)
