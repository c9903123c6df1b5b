import random

import pytest

from mstr_hf.charsets import load_charset
from mstr_hf.models.text import display, normalise
from mstr_hf.synthesis import words
from mstr_hf.synthesis.words import CONJUNCT_SHARE, MAX_LENGTH, WordsError, WordSource, character_histogram, load_words

LANGUAGES = ("en", "hi", "bn", "ta", "te", "ar")


@pytest.fixture(params=LANGUAGES)
def source(request: pytest.FixtureRequest) -> WordSource:
    try:
        return load_words(request.param)
    except WordsError as error:
        pytest.skip(f"missing: {error}")


def test_drawn_words_can_be_labels(source: WordSource):
    rng = random.Random(0)
    english = load_charset("en").characters
    for _ in range(3000):
        word = source.sample(rng)
        label = normalise(word, keep="".join(source.charset.joiners))
        assert word == display(word)
        assert 0 < len(label) <= MAX_LENGTH
        assert set(label) <= source.charset.characters | english, word
        assert word == word.strip() and len(word.split()) <= 7 and "  " not in word


def test_equal_seeds_draw_equal_words(source: WordSource):
    first, second, other = random.Random(7), random.Random(7), random.Random(8)
    drawn = [source.sample(first) for _ in range(200)]
    assert drawn == [source.sample(second) for _ in range(200)]
    assert drawn != [source.sample(other) for _ in range(200)]


def unread(source: WordSource) -> set[str]:
    """What no picture shows: kashidas belong to the layout, and Telugu's joiners look alike."""
    return {words.KASHIDA} | ({words.ZWJ} if source.charset.script in words.ONE_JOINER_SCRIPTS else set())


def test_every_character_is_drawn(source: WordSource):
    histogram = character_histogram(source, 30_000, seed=0)
    idle = {character for character, count in histogram.items() if count == 0}
    assert idle == unread(source) & source.charset.characters
    assert list(histogram.values()) == sorted(histogram.values(), reverse=True)


def test_mixture_holds_words_and_all_other_forms(source: WordSource):
    rng = random.Random(1)
    drawn = [source.sample(rng) for _ in range(3000)]
    listed = set(source.words)
    assert 0.5 < sum(word.lower() in listed or word in listed for word in drawn) / len(drawn) < 0.9
    assert 0.04 < sum(" " in word for word in drawn) / len(drawn) < 0.1
    assert any(word.isdecimal() and word.isascii() for word in drawn)
    assert any(character in word for word in drawn for character in "()\"'")
    for digit in source.charset.digits:
        assert any(digit in word for word in drawn)


def test_frequent_words_are_drawn_more_often():
    source = _load("en")
    rng = random.Random(0)
    top, tail = set(source.words[:100]), set(source.words[-100:])
    drawn = [source.sample(rng).lower() for _ in range(20_000)]
    assert sum(word in top for word in drawn) > 10 * sum(word in tail for word in drawn)


@pytest.mark.parametrize("lang", ["en", "ru", "el"])
def test_languages_with_capitals_are_mostly_set_in_them(lang: str):
    source = _load(lang)
    rng = random.Random(0)
    drawn = [word for word in (source.sample(rng) for _ in range(3000)) if word.isalpha() and len(word) > 2]
    upper, lower = sum(map(str.isupper, drawn)) / len(drawn), sum(map(str.islower, drawn)) / len(drawn)
    assert 0.3 < upper < 0.5 and 0.15 < lower < 0.35


def test_arabic_is_sometimes_vocalised():
    source = _load("ar")
    rng = random.Random(0)
    drawn = [source.sample(rng) for _ in range(3000)]
    marked = [word for word in drawn if any("\u064b" <= character <= "\u0652" for character in word)]
    assert 0.04 < len(marked) / len(drawn) < 0.2


def test_no_character_of_the_charset_is_rare(source: WordSource):
    histogram = character_histogram(source, 30_000, seed=1)
    assert set(histogram) == source.charset.characters
    # at least once in 5,000 words, so a thousand times in five million
    for character in unread(source):
        histogram.pop(character, None)
    assert min(histogram.values()) >= 6, list(histogram.items())[-5:]


@pytest.mark.parametrize(
    ("label", "script", "shown"),
    [
        ("ফোন্\u200c", "Beng", "ফোন্"),
        ("ক্\u200d", "Beng", "ক্\u200d"),
        ("ఫోన్\u200d", "Telu", "ఫోన్"),
        ("క్\u200dష", "Telu", "క్\u200cష"),
        ("می\u200cخواهم", "Arab", "می\u200cخواهم"),
        ("دار\u200cم\u200c", "Arab", "دارم"),
    ],
)
def test_joiners_that_nothing_shows_are_no_part_of_a_label(label, script, shown):
    assert words._shown(label, script) == shown


def test_lists_in_other_letters_are_named(monkeypatch, tmp_path):
    (tmp_path / "list.txt").write_text("слово\nмир\n", encoding="utf-8")
    monkeypatch.setitem(words._SOURCES, "te", [words._file("mine", "write it", tmp_path / "list.txt")])
    monkeypatch.setattr(words, "cache_folder", lambda name: tmp_path)
    with pytest.raises(WordsError, match="no word of mine can be used: a list has a word a line, in letters of Telugu"):
        load_words.__wrapped__("te")


def test_wordfreq_does_not_answer_in_another_language():
    if not words._distribution("wordfreq"):
        pytest.skip("missing: wordfreq")
    assert words._wordfreq("hi").stamp() and not words._wordfreq("mr").stamp()


def test_other_scripts_have_latin_words_too():
    source = _load("hi")
    if not source.latin:
        pytest.skip("missing: words of en: pip install wordfreq")
    rng = random.Random(0)
    drawn = [source.sample(rng) for _ in range(3000)]
    latin = [word for word in drawn if word.isalpha() and word.isascii()]
    assert 0.015 < len(latin) / len(drawn) < 0.06
    assert sum(map(str.isupper, latin)) > 0.25 * len(latin)


def test_numbers_are_written_as_the_language_does():
    rng = random.Random(0)
    bengali, arabic = _load("bn"), _load("ar")
    assert any("৳" in bengali._number(rng) for _ in range(300))
    plates = [word for word in (bengali._number(rng) for _ in range(600)) if word[0] in bengali.charset.letters]
    assert plates and all(any(character.isdecimal() for character in word) for word in plates)
    numbers = [arabic._number(rng) for _ in range(600)]
    assert any("٪" in word for word in numbers) and any(word.isdecimal() and not word.isascii() for word in numbers)


def test_translated_programs_are_a_source(tmp_path, monkeypatch: pytest.MonkeyPatch):
    from babel.messages.catalog import Catalog
    from babel.messages.mofile import write_mo

    catalog = Catalog(locale="mr")
    catalog.add("Open file %s", "फाइल <b>उघडा</b> %s")
    catalog.add(("file", "files"), ("फाइल", "फाइली"))
    (tmp_path / "mr" / "LC_MESSAGES").mkdir(parents=True)
    with (tmp_path / "mr" / "LC_MESSAGES" / "x.mo").open("wb") as file:
        write_mo(file, catalog)
    monkeypatch.setattr(words, "LOCALES", tmp_path)
    source = words._translations("mr")
    assert source.stamp()
    found = {word: frequency for word, frequency in source.read() if not word.isascii()}
    assert set(found) == {"फाइल", "उघडा", "फाइली"} and found["फाइल"] == 2 * found["फाइली"]
    assert not words._translations("gu").stamp()


def test_names_of_the_locale_data_are_a_source():
    found = {word for word, _ in words._cldr("kn").read()}
    assert {"ಭಾರತ", "ಸೋಮವಾರ", "ಜನವರಿ"} <= found


def test_syllables_of_rare_characters_are_well_formed():
    syllables = _load("hi").syllables
    assert "\u0944" in syllables["\u0944"][-1]
    marks = load_charset("hi").diacritics
    assert all(cluster[0] not in marks for held in syllables.values() for cluster in held)


def test_missing_list_names_the_package(monkeypatch: pytest.MonkeyPatch):
    load_words.cache_clear()
    monkeypatch.setattr(words.shutil, "which", lambda name: None)
    monkeypatch.setitem(words._SOURCES, "te", [words._aspell("te")])
    with pytest.raises(WordsError, match="apt-get install aspell aspell-te"):
        load_words("te")


def test_compiled_list_is_read_from_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path):
    listing = tmp_path / "te_IN.dic"
    listing.write_text("3\nఅమ్మ/A\nabc\nకృష్ణ\n", encoding="utf-8")
    monkeypatch.setenv("MSTR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(words._SOURCES, "te", [words._file("tiny", "", listing)])
    monkeypatch.setattr(words, "_latin_words", lambda: [])
    load_words.cache_clear()
    try:
        source = load_words("te")
        assert sorted(source.words) == ["అమ్మ", "కృష్ణ"]
        load_words.cache_clear()
        monkeypatch.setattr(words, "_compile", None)
        assert load_words("te") == source
    finally:
        load_words.cache_clear()


def _load(lang: str) -> WordSource:
    try:
        return load_words(lang)
    except WordsError as error:
        pytest.skip(f"missing: {error}")


@pytest.mark.parametrize(("lang", "conjunct"), [("hi", "स्ट"), ("bn", "ন্ট"), ("te", "ర్ట"), ("ta", "ண்ட")])
def test_rare_conjuncts_are_drawn_as_well(lang, conjunct):
    source = load_words(lang)
    assert all(conjunct in word for word in source.conjuncts[conjunct])
    rng = random.Random(0)
    drawn = sum(conjunct in source.sample(rng) for _ in range(4000))
    assert drawn > 4000 * CONJUNCT_SHARE / len(source.conjuncts) * 0.5
    assert not load_words("en").conjuncts
