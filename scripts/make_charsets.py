"""Makes the charset files of `mstr_hf/charsets` from Unicode data, or checks them against word lists.

    python scripts/make_charsets.py            # writes the files
    python scripts/make_charsets.py --check    # share of the characters of word lists that they cover
    python scripts/make_charsets.py --check uk # the same for one language

A language is a row of `LANGUAGES`: the code points in modern use. Unicode decides what is a letter, a mark, a
digit or punctuation, and how a code point decomposes: what NFKD takes apart is replaced by its parts. The
check needs `wordfreq`, `babel`, and Debian's packages of `WORD_LISTS`.
"""

import argparse
import collections
import json
import string
import subprocess
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
    "kn": {
        "name": "Kannada",
        "script": "Knda",
        "virama": "\u0ccd",
        "nukta": "\u0cbc",
        "joiners": JOINERS,
        "points": "0C82-0C83 0C85-0CB9 0CBC-0CD6 0CE0-0CE3 0CE6-0CEF",
        "examples": "ಕನ್ನಡ ಮಾರುಕಟ್ಟೆ ಶಾಲೆ ನೀರು ಅಂಗಡಿ ರಸ್ತೆ ಸ್ವಾಗತ ಮನೆ ಆಸ್ಪತ್ರೆ ಹೊಸ",
    },
    "ml": {
        "name": "Malayalam",
        "script": "Mlym",
        "virama": "\u0d4d",
        "joiners": JOINERS,
        # The last six are the chillus, letters without a vowel.
        "points": "0D02-0D03 0D05-0D28 0D2A-0D39 0D3D-0D4D 0D57 0D60-0D63 0D66-0D6F 0D7A-0D7F",
        "examples": "മലയാളം കേരളം വിദ്യാലയം വെള്ളം കട റോഡ് സ്വാഗതം വീട് അവൻ പുതിയ",
    },
    "gu": {
        "name": "Gujarati",
        "script": "Gujr",
        "virama": "\u0acd",
        "nukta": "\u0abc",
        "joiners": JOINERS,
        "points": "0964-0965 0A81-0A83 0A85-0AB9 0ABC-0ACD 0AD0 0AE0-0AE3 0AE6-0AEF 0AF1",
        "examples": "ગુજરાતી બજાર શાળા પાણી દુકાન રસ્તો સ્વાગત ઘર હોસ્પિટલ નવું",
    },
    "pa": {
        "name": "Punjabi",
        "script": "Guru",
        "virama": "\u0a4d",
        "nukta": "\u0a3c",
        "joiners": JOINERS,
        "points": "0964-0965 0A01-0A03 0A05-0A39 0A3C-0A4D 0A59-0A5E 0A66-0A75",
        "examples": "ਪੰਜਾਬੀ ਬਾਜ਼ਾਰ ਸਕੂਲ ਪਾਣੀ ਦੁਕਾਨ ਸੜਕ ਸੁਆਗਤ ਘਰ ਹਸਪਤਾਲ ਨਵਾਂ",
    },
    "or": {
        "name": "Odia",
        "script": "Orya",
        "virama": "\u0b4d",
        "nukta": "\u0b3c",
        "joiners": JOINERS,
        "points": "0964-0965 0B01-0B03 0B05-0B39 0B3C-0B4D 0B56-0B57 0B5C-0B63 0B66-0B71",
        "examples": "ଓଡ଼ିଆ ବଜାର ବିଦ୍ୟାଳୟ ପାଣି ଦୋକାନ ରାସ୍ତା ସ୍ୱାଗତ ଘର ଡାକ୍ତରଖାନା ନୂଆ",
    },
    # Languages of one script list its whole common stock, so that they share rows: a reader of one reads the other.
    "mr": {
        "name": "Marathi",
        "script": "Deva",
        "virama": "\u094d",
        "nukta": "\u093c",
        "joiners": JOINERS,
        "points": "0901-0903 0905-0939 093C-094D 0950 0958-0970 0972",
        "examples": "मराठी बाजार शाळा पाणी दुकान रस्ता स्वागत घर रुग्णालय ॲप",
    },
    "as": {
        "name": "Assamese",
        "script": "Beng",
        "virama": "\u09cd",
        "nukta": "\u09bc",
        "joiners": JOINERS,
        "points": "0964-0965 0981-0983 0985-09B9 09BC-09CE 09D7-09F1 09F3",
        "examples": "অসমীয়া বজাৰ বিদ্যালয় পানী দোকান ৰাস্তা স্বাগতম ঘৰ গুৱাহাটী নতুন",
    },
    "ur": {
        "name": "Urdu",
        "script": "Arab",
        "direction": "rtl",
        "joiners": "\u200c",
        "points": "060C 061B 061F 0621-063A 0640-0657 066A-066C 0670 0679 067E 0686 0688 0691 0698 06A9 06AF 06BA 06BE"
        " 06C1-06C3 06CC 06D2-06D4 06F0-06F9",
        "examples": "اردو بازار اسکول پانی دکان سڑک خوش گھر ہسپتال نئی",
    },
    "fa": {
        "name": "Persian",
        "script": "Arab",
        "direction": "rtl",
        "joiners": "\u200c",
        "points": "060C 061B 061F 0621-063A 0640-0655 066A-066C 0670 067E 0686 0698 06A9 06AF 06C0 06CC 06F0-06F9",
        "examples": "فارسی بازار مدرسه آب مغازه خیابان خانه بیمارستان می\u200cخواهم جدید",
    },
    "he": {
        "name": "Hebrew",
        "script": "Hebr",
        "direction": "rtl",
        "points": "05B0-05BF 05C1-05C2 05C7 05D0-05EA 05F3-05F4 20AA",
        "examples": "עברית שוק ספר מים חנות רחוב ברוכים בית חולים חדש",
    },
    "ru": {
        "name": "Russian",
        "script": "Cyrl",
        "points": "0401 0410-044F 0451",
        "examples": "русский рынок школа вода магазин улица подъезд дом больница ёлка",
    },
    "el": {
        "name": "Greek",
        "script": "Grek",
        "points": "0386 0388-03CE",
        "examples": "ελληνικά αγορά σχολείο νερό κατάστημα οδός Αθήνα σπίτι νοσοκομείο ταΐζω",
    },
    "ko": {
        "name": "Korean",
        "script": "Hang",
        # NFKD makes a syllable of two or three jamo: 67 rows for the 11,172 syllables. NFC joins them again.
        "points": "AC00-D7A3 20A9",
        "examples": "한국어 시장 학교 물 가게 거리 환영 집 병원 값",
    },
}

# Debian packages of the largest word lists; the other languages have theirs in wordfreq.
WORD_LISTS = {
    "te": "hunspell-te",
    "ml": "hunspell-ml",
    "gu": "hunspell-gu",
    "kn": "aspell-kn",
    "mr": "aspell-mr",
    # Their dictionaries are small or missing: words of translated programs and standards.
    "pa": "iso-codes",
    "or": "iso-codes",
    "as": "iso-codes",
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
    """Returns the largest free word list of a language: the most frequent words where they are ranked.

    Raises:
        FileNotFoundError: If it is not installed; the message names the package.
    """
    package = WORD_LISTS.get(lang)
    if package is None:
        import wordfreq

        return wordfreq.top_n_list(lang, LARGEST_LIST, wordlist="best")
    try:
        if package.startswith("aspell"):
            options = ["-l", lang, "--encoding=utf-8"]
            roots = subprocess.check_output(["aspell", *options, "dump", "master"], stderr=subprocess.DEVNULL)
            return subprocess.check_output(["aspell", *options, "expand"], input=roots).decode().split()
        if package.startswith("hunspell"):
            # After the number of words come lines of "word" or "word/flags".
            dictionaries = sorted(Path("/usr/share/hunspell").glob(f"{lang}_*.dic"))
            lines = [line for path in dictionaries for line in path.read_text(encoding="utf-8").splitlines()[1:]]
            listed = [line.split("/")[0] for line in lines]
        else:
            from babel.messages.mofile import read_mo

            listed = []
            for path in Path(f"/usr/share/locale/{lang}/LC_MESSAGES").glob("iso_*.mo"):
                with path.open("rb") as file:
                    listed += [word for message in read_mo(file) for word in str(message.string).split()]
        if listed:
            return listed
    except (OSError, subprocess.CalledProcessError):
        pass
    raise FileNotFoundError(f"no word list of {lang}: apt-get install {package}")


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
    parser.add_argument(
        "--check", nargs="*", metavar="LANG", choices=LANGUAGES, help="measure coverage, of all if none is named"
    )
    chosen = parser.parse_args().check
    if chosen is not None:
        enough = []
        for lang in chosen or LANGUAGES:
            try:
                enough.append(check(lang))
            except FileNotFoundError as error:
                print(f"{lang}: {error}")
                enough.append(False)
        return 0 if all(enough) else 1
    for lang in LANGUAGES:
        (FOLDER / f"{lang}.json").write_text(as_json(charset_fields(lang)), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
