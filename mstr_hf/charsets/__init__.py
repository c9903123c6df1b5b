"""The characters of each language: one JSON file a language, made by `scripts/make_charsets.py`."""

import dataclasses
import json
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

LETTER, DIACRITIC, DIGIT, PUNCTUATION = range(4)

_FOLDER = Path(__file__).parent
_ENTRY_FIELDS = {"letters": LETTER, "diacritics": DIACRITIC, "digits": DIGIT, "punctuation": PUNCTUATION}
_TEXT_FIELDS = {
    "lang": "[a-z]{2,3}",
    "name": ".+",
    "script": "[A-Z][a-z]{3}",
    "direction": "ltr|rtl",
    "virama": ".?",
    "nukta": ".?",
}
_JOINERS = ("\u200c", "\u200d")


class CharsetError(ValueError):
    """A charset file that breaks the rules; the message names the file and the field."""


@dataclasses.dataclass(frozen=True)
class Charset:
    """The characters that one language is written with, each a single code point that NFKD leaves as it is.

    Attributes:
        lang: Language code (ISO 639), for example `hi`.
        name: English name of the language.
        script: Script code (ISO 15924), for example `Deva`.
        direction: `ltr` or `rtl`.
        letters: Letters (subtype 0).
        diacritics: Combining marks, virama and nukta included (subtype 1).
        digits: The script's own digits (subtype 2).
        punctuation: The script's own punctuation and symbols (subtype 3).
        common: Characters of no script, each with its subtype: Western digits, ASCII punctuation, symbols.
        examples: Some common words of the language.
        virama: The mark that joins consonants, or an empty string.
        nukta: The dot that makes new letters, or an empty string.
        joiners: Zero-width joiners that change the shape of letters (subtype 1, as they act like marks).
    """

    lang: str
    name: str
    script: str
    direction: str
    letters: tuple[str, ...]
    diacritics: tuple[str, ...]
    digits: tuple[str, ...]
    punctuation: tuple[str, ...]
    common: tuple[tuple[str, int], ...]
    examples: tuple[str, ...]
    virama: str = ""
    nukta: str = ""
    joiners: tuple[str, ...] = ()

    @property
    def entries(self) -> list[tuple[str, int]]:
        """All characters with their subtypes, the language's own first, then the common ones."""
        own = [
            (character, subtype)
            for field, subtype in _ENTRY_FIELDS.items()
            for character in getattr(self, field)
        ]
        return [*own, *((joiner, DIACRITIC) for joiner in self.joiners), *self.common]

    @property
    def cased(self) -> bool:
        """Whether the language has capitals."""
        return any(letter.isupper() for letter in self.letters)

    @property
    def characters(self) -> frozenset[str]:
        """All characters."""
        return frozenset(character for character, _ in self.entries)


def available_languages() -> list[str]:
    """Returns the codes of the languages that come with the package, sorted."""
    return sorted(path.stem for path in _FOLDER.glob("*.json"))


def load_charset(lang_or_path: str | Path) -> Charset:
    """Loads and checks a charset.

    Args:
        lang_or_path: A language code that comes with the package, or the path of a `.json` file.

    Raises:
        CharsetError: If there is no such charset, or the file breaks a rule.
    """
    path = Path(lang_or_path)
    if path.suffix != ".json":
        path = _FOLDER / f"{lang_or_path}.json"
        if not path.is_file():
            known = ", ".join(available_languages())
            raise CharsetError(
                f"no charset for language '{lang_or_path}': use one of {known}, or a .json file"
            )
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CharsetError(f"{path}: cannot be read as JSON: {error}") from error
    try:
        return _charset(fields)
    except CharsetError as error:
        raise CharsetError(f"{path}: {error}") from None


def load_charsets(langs: Sequence[str | Path]) -> list[Charset]:
    """Loads several charsets, in the order given (see `load_charset`)."""
    return [load_charset(lang) for lang in langs]


def subtype_of(character: str) -> int | None:
    """Returns the subtype that Unicode gives a character: None for spaces, control and format characters."""
    category = unicodedata.category(character)
    if category == "Nd":
        return DIGIT
    return {"L": LETTER, "M": DIACRITIC, "P": PUNCTUATION, "S": PUNCTUATION}.get(category[0])


def _charset(fields: Any) -> Charset:
    """Checks the contents of a charset file; the errors name the field only."""
    if not isinstance(fields, dict):
        raise CharsetError("the file must hold one JSON object")
    for field in dataclasses.fields(Charset):
        if field.default is dataclasses.MISSING and field.name not in fields:
            raise CharsetError(f"{field.name}: missing field")
    for name in fields:
        if name not in Charset.__dataclass_fields__:
            raise CharsetError(f"{name}: unknown field")

    for name, pattern in _TEXT_FIELDS.items():
        value = fields.get(name, "")
        if not isinstance(value, str) or not re.fullmatch(pattern, value):
            raise CharsetError(f"{name}: {value!r} must be a string that matches {pattern}")
    for name in (*_ENTRY_FIELDS, "joiners", "examples"):
        values = fields.get(name, [])
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            raise CharsetError(f"{name}: must be a list of strings")
        fields[name] = tuple(values)
    if not isinstance(fields["common"], list) or not all(map(_is_pair, fields["common"])):
        raise CharsetError("common: must be a list of [character, subtype] pairs")
    fields["common"] = tuple(map(tuple, fields["common"]))

    charset = Charset(**fields)
    _check_entries(charset)
    return charset


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and type(value[1]) is int


def _check_entries(charset: Charset) -> None:
    """Checks that entries are single code points in NFKD, listed once, of the right subtype."""
    fields: dict[str, Iterable[tuple[str, int]]] = {
        name: [(character, subtype) for character in getattr(charset, name)]
        for name, subtype in _ENTRY_FIELDS.items()
    }
    seen: dict[str, str] = {}
    for name, entries in (fields | {"common": charset.common}).items():
        for character, subtype in entries:
            if len(character) != 1:
                raise CharsetError(f"{name}: {character!r} must be a single code point")
            shown = f"{character!r} (U+{ord(character):04X})"
            if unicodedata.normalize("NFKD", character) != character:
                raise CharsetError(f"{name}: {shown} is not in NFKD: list what it decomposes to")
            if subtype_of(character) != subtype:
                raise CharsetError(
                    f"{name}: {shown} cannot have subtype {subtype}: Unicode gives {subtype_of(character)}"
                )
            if character in seen:
                raise CharsetError(f"{name}: {shown} is a duplicate, already in {seen[character]}")
            seen[character] = name
    for name in ("virama", "nukta"):
        mark = getattr(charset, name)
        if mark and mark not in charset.diacritics:
            raise CharsetError(f"{name}: {mark!r} must be among the diacritics")
    if not set(charset.joiners) <= set(_JOINERS) or len(set(charset.joiners)) < len(charset.joiners):
        raise CharsetError("joiners: only U+200C and U+200D, each once")
    for example in charset.examples:
        if strange := set(unicodedata.normalize("NFKD", example)) - charset.characters:
            raise CharsetError(f"examples: {example!r} has characters outside the charset: {sorted(strange)}")
