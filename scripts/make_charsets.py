"""Makes the charset files of `mstr_hf/charsets` from Unicode data, or checks them against word lists.

    python scripts/make_charsets.py            # writes the files
    python scripts/make_charsets.py --check    # share of the characters of word lists that they cover

A language is a row of `LANGUAGES`: the code points in modern use. Unicode decides what is a letter, a mark, a
digit or punctuation, and how a code point decomposes: what NFKD takes apart is replaced by its parts. The
check needs `wordfreq`, and Debian's `hunspell-te` for Telugu.
"""

import argparse
import collections
import json
import string
import sys
import unicodedata
from pathlib import Path
from typing import Any

from mstr_hf.charsets import (
    DIACRITIC,
    DIGIT,
    LETTER,
    PUNCTUATION,
    Charset,
    load_charset,
    load_charsets,
    subtype_of,
)
from mstr_hf.models.text import normalise

FOLDER = Path(__file__).parent.parent / "mstr_hf" / "charsets"
COMMON = string.digits + string.punctuation + "¡¢£¥§©«®°±·»¿×÷–—‘’“”†•′⁄€₹"
JOINERS = "\u200c\u200d"
TELUGU_WORDS = Path("/usr/share/hunspell/te_IN.dic")
LARGEST_LIST = 50_000
REQUIRED_COVERAGE = 0.999

# The code points between those listed are archaic, or of other languages.
LANGUAGES: dict[str, dict[str, Any]] = {
    "en": {
        "name": "English",
        "script": "Latn",
        # The marks are those of loanwords: à é â ñ ö ç.
        "points": "0041-005A 0061-007A 0300-0303 0308 0327",
        "examples": "the and house market street open school water Monday city",
    },
    "hi": {
        "name": "Hindi",
        "script": "Deva",
        "virama": "\u094d",
        "nukta": "\u093c",
        "joiners": JOINERS,
        "points": "0901-0903 0905-0939 093C-094D 0950 0958-0970",
        "examples": "भारत हिन्दी बाज़ार विद्यालय पानी दुकान सड़क स्वागत मंदिर डॉक्टर",
    },
    "bn": {
        "name": "Bengali",
        "script": "Beng",
        "virama": "\u09cd",
        "nukta": "\u09bc",
        "joiners": JOINERS,
        "points": "0964-0965 0981-0983 0985-09B9 09BC-09CE 09D7-09EF 09F3",
        "examples": "বাংলা বাজার বিদ্যালয় পানি দোকান রাস্তা স্বাগতম বাড়ি হঠাৎ চাঁদ",
    },
    "ta": {
        "name": "Tamil",
        "script": "Taml",
        "virama": "\u0bcd",
        "points": "0B83-0BB9 0BBE-0BCD 0BD0-0BD7 0BE6-0BEF",
        "examples": "தமிழ் சந்தை பள்ளி தண்ணீர் கடை சாலை நல்வரவு ஔவை ஃபேன் புதிய",
    },
    "te": {
        "name": "Telugu",
        "script": "Telu",
        "virama": "\u0c4d",
        "joiners": JOINERS,
        "points": "0C01-0C03 0C05-0C33 0C35-0C39 0C3D-0C4D 0C56 0C60-0C6F",
        "examples": "తెలుగు బజారు పాఠశాల నీరు దుకాణం వీధి స్వాగతం ఇల్లు కైలాసం కొత్త",
    },
    "ar": {
        "name": "Arabic",
        "script": "Arab",
        "direction": "rtl",
        # The last four letters write p, ch, v and g of foreign names.
        "points": "060C 061B 061F 0621-063A 0640-0655 0660-066C 0670 067E 0686 06A4 06AF",
        "examples": "العربية سوق مدرسة ماء شارع مرحبا بيت مستشفى مؤسسة الآن",
    },
}


def charset_fields(lang: str) -> dict[str, Any]:
    """Returns the contents of a charset file."""
    row = LANGUAGES[lang]
    stretches = [[int(end, 16) for end in stretch.split("-")] for stretch in row["points"].split()]
    points = [chr(point) for ends in stretches for point in range(ends[0], ends[-1] + 1)]
    parts = sorted(set(unicodedata.normalize("NFKD", "".join(points))))
    of_subtype = {subtype: [part for part in parts if subtype_of(part) == subtype] for subtype in range(4)}
    fields = {
        "lang": lang,
        "name": row["name"],
        "script": row["script"],
        "direction": row.get("direction", "ltr"),
        "letters": of_subtype[LETTER],
        "diacritics": of_subtype[DIACRITIC],
        "digits": of_subtype[DIGIT],
        "punctuation": of_subtype[PUNCTUATION],
        "common": [[character, subtype_of(character)] for character in COMMON],
        "examples": row["examples"].split(),
    }
    optional = {name: row[name] for name in ("virama", "nukta") if name in row}
    return fields | optional | ({"joiners": list(row["joiners"])} if "joiners" in row else {})


def as_json(fields: dict[str, Any]) -> str:
    """Returns the text of a charset file: one line a field, lone marks and invisible characters escaped."""

    def dump(value: Any) -> str:
        if isinstance(value, list):
            return f"[{', '.join(map(dump, value))}]"
        lone = isinstance(value, str) and len(value) == 1 and unicodedata.category(value)[0] in "MC"
        return json.dumps(value, ensure_ascii=lone)

    return "{\n" + ",\n".join(f'  "{name}": {dump(value)}' for name, value in fields.items()) + "\n}\n"


def words(lang: str) -> list[str]:
    """Returns the largest free word list of a language: the most frequent words where they are ranked."""
    if lang == "te":
        # After the number of words come lines of "word" or "word/flags".
        return [line.split("/")[0] for line in TELUGU_WORDS.read_text(encoding="utf-8").splitlines()[1:]]
    import wordfreq

    return wordfreq.top_n_list(lang, LARGEST_LIST, wordlist="best")


def reason(character: str, charset: Charset) -> str:
    """Says why a character that word lists have is not in a charset."""
    for other in load_charsets([lang for lang in LANGUAGES if lang != charset.lang]):
        if character in other.characters:
            return f"belongs to {other.lang}"
    reasons = ("letters of other scripts or languages", "rare marks", "digits of other scripts", "pictograms")
    subtype = subtype_of(character)
    return "no ink" if subtype is None else reasons[subtype]


def check(lang: str) -> bool:
    """Prints how much of its word list a charset covers and what is left out; returns whether it is enough.

    The lists come from the web and hold words of other languages and pictograms: only words with a letter of
    the charset count.
    """
    charset = load_charset(lang)
    letters = frozenset(charset.letters)
    normalised = [normalise(word, keep="".join(charset.joiners)) for word in words(lang)]
    own = [word for word in normalised if not letters.isdisjoint(word)]
    counts = collections.Counter("".join(own))
    missing = {c: count for c, count in counts.most_common() if c not in charset.characters}
    coverage = 1 - sum(missing.values()) / counts.total()
    print(
        f"{lang}: {coverage:.4%} of {counts.total():,} characters in {len(own):,} words are covered"
        f" ({len(normalised) - len(own):,} listed words have no {charset.name} letter)"
    )
    by_reason: dict[str, list[str]] = {}
    for character, count in missing.items():
        by_reason.setdefault(reason(character, charset), []).append(f"U+{ord(character):04X} x{count}")
    for why, characters in by_reason.items():
        print(f"    {why}: {', '.join(characters)}")
    return coverage >= REQUIRED_COVERAGE


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="measure coverage instead of writing")
    if parser.parse_args().check:
        enough = [check(lang) for lang in LANGUAGES]
        return 0 if all(enough) else 1
    for lang in LANGUAGES:
        (FOLDER / f"{lang}.json").write_text(as_json(charset_fields(lang)), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
