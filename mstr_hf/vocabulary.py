"""The one place that joins charsets to the tokenizer, the prompts, the bank's rows and the language masks."""

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Sequence

from mstr_hf.charsets import Charset
from mstr_hf.models.prototype_bank import PrototypeBank, rows_digest
from mstr_hf.models.text import normalise
from mstr_hf.models.tokenization_mstr import SPECIAL, MSTRTokenizer

OFFSET = 128
"""Id of the first character: token id = bank row + OFFSET."""

SUBTYPES = ("letter", "diacritic", "digit", "punctuation")
"""Names of the subtypes, in the order of their ids."""

COMMON_SCRIPT = "Zyyy"
"""Script code of a character that belongs to no script, or to several."""

_TYPES = tuple(f"<type={subtype}>" for subtype in range(len(SUBTYPES)))
_MAX_LANGUAGES = OFFSET - len(SPECIAL) - len(_TYPES)


class LabelError(ValueError):
    """A label that cannot be encoded.

    Attributes:
        characters: The characters that have no id, in the order of the label; empty for an empty label.
    """

    def __init__(self, label: str, characters: Sequence[str]):
        self.characters = tuple(dict.fromkeys(characters))
        named = ", ".join(f"{character!r} (U+{ord(character):04X})" for character in self.characters)
        reason = f"not in the charsets: {named}" if named else "no characters"
        super().__init__(f"label {label!r}: {reason}")


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of the prototype bank: one distinct character.

    Attributes:
        character: A single code point.
        subtype: 0 letter, 1 diacritic, 2 digit, 3 punctuation or symbol.
        script: ISO 15924 code, `Zyyy` where several scripts use the character.
        languages: Languages that use it, in the order of the vocabulary.
    """

    character: str
    subtype: int
    script: str
    languages: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """The characters of some languages, with one id each (see `build_vocabulary`).

    Attributes:
        rows: The characters; row i has token id i + OFFSET.
        languages: Language codes.
        joiners: Zero-width joiners that labels keep, a string.
    """

    rows: tuple[Row, ...]
    languages: tuple[str, ...]
    joiners: str

    @classmethod
    def from_bank(cls, bank: PrototypeBank) -> "Vocabulary":
        """The vocabulary of a bank's rows, whatever has become of the charsets since."""
        rows = zip(bank.characters, bank.subtypes, bank.scripts, map(tuple, bank.languages), strict=True)
        return cls(tuple(Row(*row) for row in rows), tuple(bank.all_languages), bank.joiners)

    @functools.cached_property
    def _ids(self) -> dict[str, int]:
        return {row.character: index for index, row in enumerate(self.rows, OFFSET)}

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of the rows' characters and subtypes: what a bank's base rows are known by.

        Languages and scripts are left out, since a charset added later may share old characters.
        """
        return rows_digest((row.character, row.subtype) for row in self.rows)

    def prompts(self) -> Iterator[tuple[int, str, str]]:
        """Yields `(row, language, prompt)` for each row and each language that uses it."""
        for index, row in enumerate(self.rows):
            for lang in row.languages:
                yield index, lang, f"<lang={lang}> <type={row.subtype}> <char={row.character}>"

    def encode(self, text: str) -> list[int]:
        """Returns the token ids of a normalised text.

        Raises:
            LabelError: If a character has no id.
        """
        try:
            return [self._ids[character] for character in text]
        except KeyError:
            raise LabelError(text, [character for character in text if character not in self._ids]) from None

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the normalised text of token ids; special and prompt tokens are skipped."""
        return "".join(self.rows[index - OFFSET].character for index in ids if index >= OFFSET)

    def validate(self, label: str) -> str:
        """Returns the normalised label.

        Raises:
            LabelError: If it is empty or has characters without an id; the error names them.
        """
        text = normalise(label, keep=self.joiners)
        missing = [character for character in text if character not in self._ids]
        if missing or not text:
            raise LabelError(label, missing)
        return text

    def language_mask(self, langs: Iterable[str]) -> list[bool]:
        """Returns, for each row, whether one of the languages uses it.

        Raises:
            ValueError: If a language is not in the vocabulary.
        """
        wanted = set(langs)
        if unknown := ", ".join(sorted(wanted - set(self.languages))):
            raise ValueError(f"unknown language {unknown}: use one of {', '.join(self.languages)}")
        return [not wanted.isdisjoint(row.languages) for row in self.rows]

    def tokenizer(self) -> MSTRTokenizer:
        """Returns the tokenizer that has these ids."""
        slots = [f"<lang={lang}>" for lang in self.languages]
        slots += [f"<reserved_{k}>" for k in range(len(slots), _MAX_LANGUAGES)]
        return MSTRTokenizer.from_tokens([*SPECIAL, *_TYPES, *slots, *(row.character for row in self.rows)])


def build_vocabulary(charsets: Sequence[Charset]) -> Vocabulary:
    """Joins charsets; a charset added at the end leaves all earlier ids as they are.

    Raises:
        ValueError: If there are no charsets or too many, or two are of the same language.
    """
    languages = tuple(charset.lang for charset in charsets)
    if not 0 < len(languages) == len(set(languages)) <= _MAX_LANGUAGES:
        raise ValueError(f"charsets {languages}: give 1 to {_MAX_LANGUAGES} charsets of distinct languages")
    subtypes: dict[str, int] = {}
    scripts: dict[str, set[str]] = {}
    users: dict[str, list[str]] = {}
    for charset in charsets:
        shared = {character for character, _ in charset.common} | set(charset.joiners)
        for character, subtype in charset.entries:
            subtypes.setdefault(character, subtype)
            scripts.setdefault(character, set()).add(COMMON_SCRIPT if character in shared else charset.script)
            users.setdefault(character, []).append(charset.lang)
    rows = tuple(
        Row(
            character,
            subtype,
            next(iter(scripts[character])) if len(scripts[character]) == 1 else COMMON_SCRIPT,
            tuple(users[character]),
        )
        for character, subtype in subtypes.items()
    )
    joiners = "".join(sorted({joiner for charset in charsets for joiner in charset.joiners}))
    return Vocabulary(rows, languages, joiners)
