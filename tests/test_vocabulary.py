import pytest
from hypothesis import given
from hypothesis import strategies as st

from mstr_hf.charsets import load_charsets
from mstr_hf.models.text import normalise
from mstr_hf.models.tokenization_mstr import SPECIAL
from mstr_hf.vocabulary import OFFSET, LabelError, build_vocabulary, rows_digest

LANGS = ["en", "hi", "bn", "ta", "te", "ar"]
VOCABULARY = build_vocabulary(load_charsets(LANGS))
ROWS = {row.character: row for row in VOCABULARY.rows}
WORDS = st.text(alphabet=st.sampled_from([row.character for row in VOCABULARY.rows]), max_size=12)


def test_one_row_a_distinct_character():
    charsets = load_charsets(LANGS)
    assert len(ROWS) == len(VOCABULARY.rows)
    assert set(ROWS) == frozenset().union(*(charset.characters for charset in charsets))
    for charset in charsets:
        for character, subtype in charset.entries:
            assert ROWS[character].subtype == subtype
            assert charset.lang in ROWS[character].languages


def test_scripts():
    assert ROWS["क"].script == "Deva" and ROWS["क"].languages == ("hi",)
    assert ROWS["\u0301"].script == "Latn"
    assert ROWS["7"].script == "Zyyy" and ROWS["7"].languages == tuple(LANGS)
    assert ROWS["।"].script == "Zyyy" and ROWS["।"].languages == ("hi", "bn")
    assert ROWS["\u200d"].script == "Zyyy" and ROWS["\u200d"].languages == ("hi", "bn", "te")
    alone = {row.character: row.script for row in build_vocabulary(load_charsets(["hi"])).rows}
    assert alone["।"] == "Deva" and alone["\u200d"] == alone["7"] == "Zyyy"


def test_rows_tokens_and_prompts_agree():
    tokenizer = VOCABULARY.tokenizer()
    assert tokenizer.convert_ids_to_tokens(list(range(9))) == [*SPECIAL, *(f"<type={k}>" for k in range(4))]
    assert tokenizer.convert_ids_to_tokens([9, 14, 15, 127]) == [
        "<lang=en>",
        "<lang=ar>",
        "<reserved_6>",
        "<reserved_118>",
    ]
    assert len(tokenizer) == OFFSET + len(VOCABULARY.rows)
    prompts = list(VOCABULARY.prompts())
    assert len(prompts) == sum(len(charset.entries) for charset in load_charsets(LANGS))
    lang_ids = {lang: tokenizer.convert_tokens_to_ids(f"<lang={lang}>") for lang in LANGS}
    for (row, lang, prompt), ids in zip(
        prompts, tokenizer([p for _, _, p in prompts])["input_ids"], strict=True
    ):
        character = VOCABULARY.rows[row].character
        assert ids == [lang_ids[lang], 5 + VOCABULARY.rows[row].subtype, OFFSET + row], prompt
        assert VOCABULARY.encode(character) == tokenizer(character)["input_ids"] == ids[2:]


@pytest.mark.parametrize("charset", load_charsets(LANGS), ids=LANGS)
def test_words_round_trip(charset):
    for word in charset.examples:
        text = VOCABULARY.validate(word)
        assert text == normalise(word)
        assert VOCABULARY.decode(VOCABULARY.encode(text)) == text


@given(WORDS)
def test_encode_agrees_with_the_tokenizer(word):
    ids = VOCABULARY.encode(word)
    assert TOKENIZER(word)["input_ids"] == ids
    assert VOCABULARY.decode(ids) == word


TOKENIZER = VOCABULARY.tokenizer()


def test_decode_skips_special_and_prompt_tokens():
    assert VOCABULARY.decode([1, 9, *VOCABULARY.encode("ab"), 2, 0, 127]) == "ab"


def test_appended_charset_leaves_ids_and_digest():
    base = build_vocabulary(load_charsets(LANGS[:4]))
    assert [row.character for row in VOCABULARY.rows[: len(base.rows)]] == [
        row.character for row in base.rows
    ]
    assert (
        rows_digest((row.character, row.subtype) for row in VOCABULARY.rows[: len(base.rows)]) == base.digest
    )
    assert VOCABULARY.digest != base.digest
    assert base.encode("क7") == VOCABULARY.encode("क7")


def test_validate_normalises_and_keeps_joiners():
    assert VOCABULARY.joiners == "\u200c\u200d"
    assert VOCABULARY.validate(" র\u200d্য\u200b") == "র\u200d্য"
    without = build_vocabulary(load_charsets(["en", "ta"]))
    assert without.joiners == "" and without.validate("a\u200db") == "ab"


def test_labels_never_shrink_silently():
    with pytest.raises(LabelError, match=r"'a漢b字漢'.*'漢' \(U\+6F22\), '字' \(U\+5B57\)$") as caught:
        VOCABULARY.validate("a漢b字漢")
    assert caught.value.characters == ("漢", "字")
    with pytest.raises(LabelError, match="no characters") as caught:
        VOCABULARY.validate("\u200b ")
    assert caught.value.characters == ()
    with pytest.raises(LabelError, match=r"'é' \(U\+00E9\)"):
        VOCABULARY.encode("é")


def test_language_mask():
    mask = VOCABULARY.language_mask(["hi", "ar"])
    assert len(mask) == len(VOCABULARY.rows)
    kept = {row.character for row, on in zip(VOCABULARY.rows, mask, strict=True) if on}
    assert kept == frozenset().union(*(charset.characters for charset in load_charsets(["hi", "ar"])))
    with pytest.raises(ValueError, match="unknown language xx: use one of en, hi"):
        VOCABULARY.language_mask(["hi", "xx"])


def test_refuses_repeated_or_no_charsets():
    for langs in ([], ["hi", "en", "hi"]):
        with pytest.raises(ValueError, match="distinct languages"):
            build_vocabulary(load_charsets(langs))
