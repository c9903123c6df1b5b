import copy
import dataclasses
import json
import runpy
import unicodedata
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mstr_hf import charsets
from mstr_hf.charsets import CharsetError, available_languages, load_charset, load_charsets
from mstr_hf.models.text import display, normalise
from mstr_hf.vocabulary import build_vocabulary

FIRST_SIX = ["en", "hi", "bn", "ta", "te", "ar"]
FOLDER = Path(charsets.__file__).parent
SCRIPT = runpy.run_path(str(FOLDER.parent.parent / "scripts" / "make_charsets.py"))


@pytest.fixture
def fields():
    return json.loads((FOLDER / "hi.json").read_text(encoding="utf-8"))


@pytest.fixture
def load(tmp_path):
    def load(fields):
        path = tmp_path / "hi.json"
        path.write_text(json.dumps(fields), encoding="utf-8")
        return load_charset(path)

    return load


def test_every_language_of_the_script_is_available():
    assert available_languages() == sorted(SCRIPT["LANGUAGES"])
    assert list(SCRIPT["LANGUAGES"])[:6] == FIRST_SIX


@pytest.mark.parametrize("lang", available_languages())
def test_bundled_charset(lang):
    charset = load_charset(lang)
    assert charset.lang == lang
    assert len(charset.examples) >= 10
    assert [character for character, _ in charset.entries[-len(charset.common) :]] == [
        c for c, _ in charset.common
    ]
    assert len(charset.characters) == len(charset.entries)
    assert all(unicodedata.normalize("NFKD", c) == c and len(c) == 1 for c in charset.characters)
    assert {subtype for _, subtype in charset.entries} <= {0, 1, 2, 3}


def test_common_block_is_the_same_everywhere():
    first, *others = load_charsets(available_languages())
    assert all(other.common == first.common for other in others)


@pytest.mark.parametrize(
    ("lang", "word"),
    [
        ("en", "Café-24's"),
        ("hi", "फ़ोटो"),
        ("hi", "डॉ॰"),
        ("bn", "৳৫০০"),
        ("bn", "সৌন্দর্য"),
        ("ta", "ஸ்ரீ"),
        ("te", "కై"),
        ("ar", "مُؤَسَّسَةٌ،"),
        ("ar", "ڤيديو"),
        ("ar", "٥٠٪"),
        ("kn", "ಹೈಕೋರ್ಟ್"),
        ("kn", "ಕ್ಯಾಂಟೀನ್‌"),
        ("ml", "സ്റ്റേഷൻ"),
        ("gu", "રૂ.૫૦"),
        ("pa", "ਸ਼ਹੀਦ"),
        ("or", "ଓଡ଼ିଶା।"),
        ("mr", "ऑगस्ट"),
        ("mr", "दुसऱ्या"),
        ("as", "অসমৰ"),
        ("ur", "ٹیکسی۔"),
        ("ur", "۲۰۲۴ء"),
        ("fa", "کتاب‌ها"),
        ("he", "צה״ל"),
        ("ru", "Ёжик"),
        ("el", "ΟΔΟΣ"),
        ("ko", "닭갈비"),
        ("ko", "₩500"),
    ],
)
def test_covers(lang, word):
    assert set(unicodedata.normalize("NFKD", word)) <= load_charset(lang).characters


def test_directions_and_signs():
    by_lang = {charset.lang: charset for charset in load_charsets(FIRST_SIX)}
    assert [by_lang[lang].direction for lang in FIRST_SIX] == ["ltr"] * 5 + ["rtl"]
    assert by_lang["hi"].virama == "\u094d" and by_lang["hi"].nukta == "\u093c"
    assert by_lang["te"].joiners == ("\u200c", "\u200d") and by_lang["ta"].joiners == ()
    assert ("\u200d", 1) in by_lang["bn"].entries


def test_charset_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        load_charset("en").lang = "fr"


def test_loads_a_file_of_the_user(fields, load):
    assert load(fields) == load_charset("hi")


def broken(field, change):
    return pytest.param(field, change, id=f"{field}-{change.__name__}")


def duplicate(fields):
    fields["letters"].append("क")


def duplicate_across_fields(fields):
    fields["common"].append(["।", 3])


def two_code_points(fields):
    fields["letters"].append("क्ष")


def empty_entry(fields):
    fields["letters"].append("")


def not_nfkd(fields):
    fields["letters"].append("क़")


def wrong_list(fields):
    fields["letters"].append("०")


def wrong_subtype(fields):
    fields["common"][0][1] = 3


def format_character(fields):
    fields["diacritics"].append("\u200b")


def missing(fields):
    del fields["digits"]


def unknown(fields):
    fields["digit"] = []


def not_a_list(fields):
    fields["letters"] = "कख"


def not_pairs(fields):
    fields["common"] = ["0", "1"]


def not_a_code(fields):
    fields["script"] = "Devanagari"


def sideways(fields):
    fields["direction"] = "ttb"


def no_mark(fields):
    fields["nukta"] = "\u0901\u0902"


def unlisted_mark(fields):
    fields["virama"] = "\u09cd"


def no_joiner(fields):
    fields["joiners"].append("\u200b")


def repeated_joiner(fields):
    fields["joiners"].append("\u200c")


def foreign_example(fields):
    fields["examples"].append("বাংলা")


@pytest.mark.parametrize(
    ("field", "change"),
    [
        broken("letters", duplicate),
        broken("common", duplicate_across_fields),
        broken("letters", two_code_points),
        broken("letters", empty_entry),
        broken("letters", not_nfkd),
        broken("letters", wrong_list),
        broken("common", wrong_subtype),
        broken("diacritics", format_character),
        broken("digits", missing),
        broken("digit", unknown),
        broken("letters", not_a_list),
        broken("common", not_pairs),
        broken("script", not_a_code),
        broken("direction", sideways),
        broken("nukta", no_mark),
        broken("virama", unlisted_mark),
        broken("joiners", no_joiner),
        broken("joiners", repeated_joiner),
        broken("examples", foreign_example),
    ],
)
def test_refuses_naming_file_and_field(fields, load, field, change):
    fields = copy.deepcopy(fields)
    change(fields)
    with pytest.raises(CharsetError, match=rf"hi\.json: {field}: ") as caught:
        load(fields)
    assert "\n" not in str(caught.value)


def test_refuses_what_is_no_charset(tmp_path):
    with pytest.raises(CharsetError, match=r"'xx': use one of .*hi"):
        load_charset("xx")
    with pytest.raises(CharsetError, match=r"none\.json"):
        load_charset(tmp_path / "none.json")
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(CharsetError, match=r"list\.json: .*object"):
        load_charset(tmp_path / "list.json")


@pytest.mark.parametrize("lang", SCRIPT["LANGUAGES"])
def test_file_is_what_the_script_makes(lang):
    made = SCRIPT["as_json"](SCRIPT["charset_fields"](lang))
    assert (FOLDER / f"{lang}.json").read_text(encoding="utf-8") == made


@pytest.mark.parametrize("lang", SCRIPT["LANGUAGES"])
def test_covers_its_word_list(lang, capsys):
    pytest.importorskip("wordfreq", reason="missing: wordfreq")
    try:
        covered = SCRIPT["check"](lang)
    except FileNotFoundError as error:
        pytest.skip(f"missing: {error}")
    assert covered, capsys.readouterr().out


def test_a_missing_word_list_is_named(monkeypatch):
    monkeypatch.setitem(SCRIPT["WORD_LISTS"], "kn", "hunspell-kn")
    with pytest.raises(FileNotFoundError, match="no word list of kn: apt-get install hunspell-kn"):
        SCRIPT["words"]("kn")


def test_what_is_left_out_has_a_reason():
    reasons = [SCRIPT["reason"](character, load_charset("hi")) for character in "ৰ\u0313ޠ☺\ufeff"]
    assert reasons == [
        "belongs to as",
        "rare marks",
        "letters of other scripts or languages",
        "pictograms",
        "no ink",
    ]


@pytest.mark.parametrize(
    ("old", "new", "own"),
    [
        ("hi", "mr", "ॲ"),
        ("bn", "as", "ৰৱ"),
        ("ar", "ur", "ٹڈڑژکںھہۃیے۔۰۱۲۳۴۵۶۷۸۹\u0656\u0657\u200c"),
    ],
)
def test_languages_of_one_script_share_rows(old, new, own):
    alone, both = (build_vocabulary(load_charsets(langs)) for langs in ([old], [old, new]))
    added = [row.character for row in both.rows[len(alone.rows) :]]
    assert sorted(added) == sorted(own)
    users = {row.character: row.languages for row in both.rows}
    shared = load_charset(old).characters & load_charset(new).characters
    assert all(users[character] == (old, new) for character in shared)
    assert set(load_charset(old).letters) - shared <= set("ڤ")


def test_new_languages_leave_the_ids_of_the_first_six():
    six = build_vocabulary(load_charsets(FIRST_SIX))
    others = [lang for lang in SCRIPT["LANGUAGES"] if lang not in FIRST_SIX]
    every = build_vocabulary(load_charsets([*FIRST_SIX, *others]))
    assert every.encode("".join(row.character for row in six.rows)) == six.encode(
        "".join(row.character for row in six.rows)
    )


def test_korean_is_written_in_jamo():
    letters = load_charset("ko").letters
    assert len(letters) == 19 + 21 + 27
    assert normalise("닭") == "\u1103\u1161\u11b0" and display(normalise("한국어")) == "한국어"
    # A row for each jamo writes every syllable there is.
    assert set(normalise("".join(map(chr, range(0xAC00, 0xD7A4))))) == set(letters)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
HINDI = json.loads((FOLDER / "hi.json").read_text(encoding="utf-8"))
COMMON = st.lists(st.tuples(st.text(max_size=2), st.integers(-1, 4)).map(list), max_size=3)
CHARACTERS = st.lists(st.text(max_size=2) | st.sampled_from(HINDI["letters"] + HINDI["diacritics"]), max_size=3)


@st.composite
def changed_fields(draw):
    """A charset's fields after one change: some characters more, a field of any content, or a field less."""
    fields = copy.deepcopy(HINDI)
    name = draw(st.sampled_from([*sorted(fields), "new"]))
    kind = draw(st.sampled_from(["more", "other", "none"]))
    if kind == "more" and isinstance(fields.get(name), list):
        fields[name] += draw(COMMON if name == "common" else CHARACTERS)
    elif kind == "none":
        fields.pop(name, None)
    else:
        fields[name] = draw(JSON)
    return fields


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changed_fields() | JSON)
def test_any_charset_is_loaded_by_the_rules_or_refused_in_one_line(load, fields):
    try:
        charset = load(fields)
    except CharsetError as error:
        assert "hi.json: " in str(error) and len(str(error).splitlines()) == 1
        return
    assert len({character for character, _ in charset.entries}) == len(charset.entries)
    for character, subtype in charset.entries:
        assert len(character) == 1 and unicodedata.normalize("NFKD", character) == character
        assert character in charset.joiners or charsets.subtype_of(character) == subtype
    assert {charset.virama, charset.nukta} <= {*charset.diacritics, ""}
