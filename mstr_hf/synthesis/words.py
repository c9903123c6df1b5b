"""Draw the words that synthetic images show: dictionary words, numbers, punctuation, random syllables.

Word lists are read at run time from packages that are installed beside this one; none is part of it. Every
drawn word is checked against the charset, so that it can be a label.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import importlib.util
import itertools
import logging
import random
import re
import shutil
import subprocess
import unicodedata
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import regex

from mstr_hf.charsets import PUNCTUATION, Charset, load_charset
from mstr_hf.models.text import display, normalise
from mstr_hf.synthesis.cache import cache_folder, read_json, write_json

logger = logging.getLogger(__name__)

MAX_LENGTH = 54
USUAL_LENGTH = 24
MAX_WORDS = 150_000
SYLLABLES = 150
LOCALES = Path("/usr/share/locale")
# Frequencies of words span six decades; this power lets rare words in and still favours those on every sign.
FREQUENCY_POWER = 0.4
# Signs are full of loan words, whose conjuncts are rare in running text: such a share of the words is drawn for a
# conjunct that is chosen evenly, among those of at least so many words, of which so many are kept.
CONJUNCT_SHARE = 0.3
CONJUNCT_WORDS = (10, 150)

# Percent of words, numbers, words with punctuation, random strings, single characters, several words, and Latin words
# among those of other scripts.
MIXTURE = (59, 8, 13, 8, 1, 8, 3)
# How many words a box with several of them has, how often, and how long they are together at most.
SEVERAL = {2: (7, 14), 3: (2, 22), 4: (1, 28)}
# What stands between them, and how often.
BETWEEN = {" ": 80, ", ": 8, ",": 6, " & ": 3, "/": 3}
# What ends a word on a sign, and how often: of 671 photographed words 21 end in a comma, 7 in a colon, 6 in a full
# stop. A comma that training hardly shows is taken for a piece of the next word.
ENDINGS = {",": 14, ".": 6, ":": 6, "!": 2, "?": 1, ";": 1, "...": 1}
# Latin words on the signs of other scripts are names and a few common nouns.
LATIN_WORDS = 20_000
OPENING = {"(": ")", "[": "]", '"': '"', "'": "'", "“": "”", "‘": "’", "«": "»"}
# Code point modulo 128 of the plain consonants: the blocks of the Brahmic scripts were laid out alike.
BRAHMIC_CONSONANTS = range(0x15, 0x3A)
# Letters of the Arabic script that do not join the next one.
FINAL_LETTERS = frozenset("ءآأؤإاةدذرزوىژەۀ")
ZWNJ, ZWJ = "\u200c", "\u200d"
# The longer stroke between joined Arabic letters.
KASHIDA = "\u0640"
# Scripts whose fonts draw both joiners alike.
ONE_JOINER_SCRIPTS = ("Telu", "Knda")
BRAHMIC_SCRIPTS = ("Deva", "Beng", "Guru", "Gujr", "Orya", "Taml", "Telu", "Knda", "Mlym")


class WordsError(RuntimeError):
    """A word list is not installed; the message names the package and the command."""


@dataclass(frozen=True)
class WordSource:
    """Words of one language, drawn with any random generator; equal generators draw equal words.

    Attributes:
        charset: The language's charset.
        characters: The charset's characters and the English ones: a drawn word holds these and spaces only.
        words: Dictionary words, NFC.
        cumulative: Running sum of the words' weights.
        syllables: Character -> grapheme clusters of the language that hold it, NFC.
        conjuncts: Conjunct -> words that hold it; empty for scripts without a virama.
        latin: Common English words for the signs of another script; empty for Latin scripts.
    """

    charset: Charset
    characters: frozenset[str] = field(repr=False)
    words: list[str] = field(repr=False)
    cumulative: list[float] = field(repr=False)
    syllables: dict[str, list[str]] = field(repr=False)
    conjuncts: dict[str, list[str]] = field(repr=False)
    latin: list[str] = field(repr=False)

    def sample(self, rng: random.Random) -> str:
        """A word as it is drawn: NFC, in logical order; sometimes it is several words."""
        kinds = (
            self._word,
            self._number,
            self._punctuated,
            self._random,
            self._character,
            self._several,
            self._latin_word if self.latin else self._word,
        )
        while True:
            text = rng.choices(kinds, MIXTURE)[0](rng)
            if KASHIDA in text:  # which belongs to the layout, not to a word
                continue
            label = normalise(text, keep="".join(self.charset.joiners))
            # a few long ones stay, so that the tail is learnt too
            limit = USUAL_LENGTH if rng.random() < 0.9 else MAX_LENGTH
            if 0 < len(label) <= limit and self.characters.issuperset(label):
                return display(text)

    def _dictionary(self, rng: random.Random) -> str:
        if self.conjuncts and rng.random() < CONJUNCT_SHARE:
            return rng.choice(self.conjuncts[rng.choice(list(self.conjuncts))])
        return rng.choices(self.words, cum_weights=self.cumulative)[0]

    def _word(self, rng: random.Random) -> str:
        word = self._dictionary(rng)
        if self.charset.cased:
            return _recase(rng, word)
        if self.charset.script == "Arab":
            return _vocalise(rng, word)
        return word

    def _number(self, rng: random.Random) -> str:
        text = rng.choice(_NUMBERS)(rng)
        own_currency = [sign for sign in self.charset.punctuation if unicodedata.category(sign) == "Sc"]
        if own_currency and rng.random() < 0.5:
            text = re.sub("[$£€¥₹]", rng.choice(own_currency), text)
        if self.charset.script != "Latn" and rng.random() < 0.06:  # plates, flats and rows: 12-ক, क२३४५
            letters = "".join(rng.choice(self.charset.letters) for _ in range(rng.randint(1, 2)))
            parts = [letters, _digits(rng, rng.randint(1, 4))]
            text = rng.choice(["", "-", "/"]).join(parts if rng.random() < 0.6 else parts[::-1])
        if self.charset.digits and rng.random() < 0.35:
            text = text.translate(str.maketrans("0123456789", "".join(self.charset.digits)))
            if self.charset.script == "Arab" and rng.random() < 0.5:
                text = text.translate(str.maketrans("%.,", "٪٫٬"))
        return text

    def _punctuated(self, rng: random.Random) -> str:
        word = self._word(rng)
        form = rng.random()
        if form < 0.7:
            own = [sign for sign in self.charset.punctuation if unicodedata.category(sign) == "Po"]
            endings = ENDINGS | dict.fromkeys(["'s", "-"] if self.charset.script == "Latn" else own, 2)
            return word + rng.choices(list(endings), list(endings.values()))[0]
        if form < 0.84:
            opening = rng.choice(list(OPENING))
            return opening + word + OPENING[opening]
        if form < 0.88:
            return word + rng.choice("-/&+@_") + self._word(rng)
        if form < 0.93:
            return "".join(f"{self._syllable(rng)}." for _ in range(rng.randint(2, 4)))
        signs = [character for character, subtype in self.charset.common if subtype == PUNCTUATION]
        sign = rng.choice([*signs, *self.charset.punctuation])
        return rng.choice([sign + word, word + sign])

    def _random(self, rng: random.Random) -> str:
        # Signs and digits that words never hold are seen here, as often as each other, among letters or not.
        share = rng.choice([0.0, 0.0, 0.2, 0.7])
        length = min(8, 1 + int(rng.expovariate(0.4)))
        return "".join(self._sign(rng) if rng.random() < share else self._syllable(rng) for _ in range(length))

    def _sign(self, rng: random.Random) -> str:
        """A character that is no letter or mark."""
        signs = len(self.charset.digits) + len(self.charset.punctuation)
        place = rng.randrange(signs + len(self.charset.common))
        return (*self.charset.digits, *self.charset.punctuation)[place] if place < signs else (
            self.charset.common[place - signs][0]
        )

    def _syllable(self, rng: random.Random) -> str:
        """A syllable that the script allows, around a character chosen evenly: rare ones are drawn too."""
        return rng.choice(self.syllables[rng.choice(list(self.syllables))])

    def _character(self, rng: random.Random) -> str:
        own = [*self.charset.letters, *self.charset.digits]
        common = [character for character, _ in self.charset.common]
        return rng.choice(own if rng.random() < 0.6 else common)

    def _latin_word(self, rng: random.Random) -> str:
        return _recase(rng, rng.choice(self.latin))

    def _several(self, rng: random.Random) -> str:
        count = rng.choices(list(SEVERAL), [often for often, _ in SEVERAL.values()])[0]
        for _ in range(20):
            others = rng.choices([self._word, self._number], [4, 1], k=count - 1)
            words = [draw(rng) for draw in (self._word, *others)]
            if sum(map(len, words)) <= SEVERAL[count][1]:
                break
        return rng.choices(list(BETWEEN), list(BETWEEN.values()))[0].join(words)


@functools.cache
def load_words(lang: str) -> WordSource:
    """Words of a language from the lists that are installed; compiled once, then read from the cache.

    Raises:
        WordsError: If no list of the language is installed, or none is known.
    """
    charset = load_charset(lang)
    if lang not in _SOURCES:
        raise WordsError(f"no word list is known for language {lang!r}: known are {', '.join(_SOURCES)}")
    sources = [source for source in _SOURCES[lang] if source.stamp()]
    if not sources:
        mend = " or ".join(source.install for source in _SOURCES[lang])
        raise WordsError(f"no word list of language {lang!r} is installed: {mend}")
    for source in _SOURCES[lang]:
        if source not in sources:
            logger.warning("fewer words of %s: %s is missing: %s", charset.name, source.name, source.install)
    # the rules are this very file, so that no cache outlives a change of them
    rules = Path(__file__).read_text(encoding="utf-8") + repr(charset)
    versions = repr([(source.name, source.stamp()) for source in sources])
    digest = hashlib.sha256((rules + versions).encode()).hexdigest()[:12]
    cache = cache_folder("words") / f"{lang}-{digest}.json"
    content = read_json(cache)
    if content is None:
        content = _compile(charset, sources)
        if not content["words"]:
            names = ", ".join(source.name for source in sources)
            raise WordsError(
                f"no word of {names} can be used: a list has a word a line, in letters of {charset.name}'s charset"
            )
        write_json(cache, content)
    cumulative = list(itertools.accumulate(content["weights"]))
    characters = charset.characters | load_charset("en").characters
    latin = [] if charset.script == "Latn" else _latin_words()
    syllables, conjuncts = content["syllables"], content["conjuncts"]
    return WordSource(charset, characters, content["words"], cumulative, syllables, conjuncts, latin)


def _latin_words() -> list[str]:
    try:
        return [word for word in load_words("en").words[:LATIN_WORDS] if word.isascii() and word.isalpha()]
    except WordsError:  # the signs of other scripts are drawn without
        return []


def character_histogram(source: WordSource, n: int, seed: int) -> Counter[str]:
    """How often each character of the charset occurs in ``n`` drawn words, the rarest last; zeros are listed.

    Args:
        source: The words.
        n: Number of words to draw.
        seed: Seed of the draw.
    """
    rng = random.Random(seed)
    keep = "".join(source.charset.joiners)
    counts = Counter(dict.fromkeys(source.charset.characters, 0))
    for _ in range(n):
        counts.update(normalise(source.sample(rng), keep=keep))
    return Counter({c: count for c, count in counts.most_common() if c in source.charset.characters})


def histogram_report(lang: str, n: int, seed: int = 0) -> str:
    """The histogram of a language as text: first a summary with the rarest characters, then a line a character.

    Args:
        lang: Language code.
        n: Number of words to draw.
        seed: Seed of the draw.

    Raises:
        WordsError: If no list of the language is installed.
    """
    source = load_words(lang)
    histogram = character_histogram(source, n, seed)
    rarest = ", ".join(f"{character} {count}" for character, count in list(histogram.items())[:-11:-1])
    lines = [
        f"{lang}: {len(source.words)} listed words, {len(histogram)} characters; in {n} drawn words "
        f"the rarest are {rarest}"
    ]
    lines += [f"{lang}\tU+{ord(character):04X}\t{character}\t{count}" for character, count in histogram.items()]
    return "\n".join(lines)


# -------------------- forms of words


def _recase(rng: random.Random, word: str) -> str:
    """Signs are mostly capitals; a word that the list capitalises is never set in lower case."""
    form = rng.random()
    if form < 0.4:
        return word.upper()
    if form < 0.7:
        return word[0].upper() + word[1:]
    return word


def _vocalise(rng: random.Random, word: str) -> str:
    """Word lists hold no vowel marks: sometimes marks most letters, a doubled letter, or a final tanwin."""
    form = rng.random()
    if form > 0.06:
        return word
    vowels = "\u064e\u064f\u0650\u0652"
    if form < 0.03:
        return "".join(c + (rng.choice(vowels) if c.isalpha() and rng.random() < 0.7 else "") for c in word)
    if form < 0.05 and len(word) > 2:
        place = rng.randrange(1, len(word))
        return word[: place + 1] + "\u0651" + word[place + 1 :] if word[place].isalpha() else word
    return word + rng.choice("\u064b\u064c\u064d")


def _digits(rng: random.Random, count: int) -> str:
    return "".join(rng.choice("0123456789") for _ in range(count))


def _price(rng: random.Random) -> str:
    amount = f"{int(10 ** rng.uniform(0, 6)):,}" if rng.random() < 0.5 else str(int(10 ** rng.uniform(0, 5)))
    amount += rng.choice(["", "", ".00", "/-", f".{_digits(rng, 2)}"])
    return rng.choice(["₹{}", "${}", "£{}", "€{}", "¥{}", "{}₹", "{}€", "{}$"]).format(amount)


def _date(rng: random.Random) -> str:
    day, month, year = rng.randint(1, 31), rng.randint(1, 12), rng.randint(1950, 2035)
    separator = rng.choice("/-.")
    parts = [f"{day:02}", f"{month:02}", rng.choice([str(year), f"{year % 100:02}"])]
    return separator.join(parts if rng.random() < 0.8 else [str(year), *parts[1::-1]])


def _phone(rng: random.Random) -> str:
    digits = rng.choice("6789") + _digits(rng, 9)
    return rng.choice([digits, f"+91{digits}", f"{digits[:5]}-{digits[5:]}", f"({digits[:3]}){digits[3:]}",
                       f"0{digits[:2]}-{digits[2:]}", f"1800{digits[:6]}"])  # fmt: skip


def _plate(rng: random.Random) -> str:
    letters = "".join(rng.choice("ABCDEFGHIJKLMNOPQRSTUVWXYZ") for _ in range(4))
    separator = rng.choice(["", "", "-"])
    return separator.join([letters[:2], _digits(rng, 2), letters[2 : rng.randint(3, 4)], _digits(rng, 4)])


_NUMBERS: tuple[Callable[[random.Random], str], ...] = (
    lambda rng: _digits(rng, rng.randint(1, 4)),
    lambda rng: _digits(rng, rng.randint(1, 6)),
    lambda rng: str(rng.randint(1900, 2035)),
    lambda rng: f"{rng.randint(0, 23):02}:{rng.randint(0, 59):02}",
    lambda rng: f"{rng.randint(1, 12)}{rng.choice(['', ':00', ':30', '.15'])}{rng.choice(['AM', 'PM', 'am', 'pm'])}",
    lambda rng: f"{rng.randint(1, 100)}%",
    lambda rng: f"{rng.randint(0, 999)}.{_digits(rng, rng.randint(1, 2))}",
    lambda rng: f"{rng.randint(1, 99)}{rng.choice('-/+×:')}{rng.randint(1, 99)}",
    lambda rng: f"{rng.choice(['#', '-', '+', '±'])}{rng.randint(1, 999)}",
    lambda rng: f"{rng.randint(1, 50)}°",
    lambda rng: rng.choice(["", str(rng.randint(1, 20))]) + rng.choice("½¼¾"),
    _price, _date, _phone, _plate,
)  # fmt: skip


# -------------------- sources


@dataclass(frozen=True)
class _List:
    """A word list that may be installed: its version ("" if it is not), how to get it, (word, frequency)."""

    name: str
    install: str
    stamp: Callable[[], str]
    read: Callable[[], Iterator[tuple[str, float]]]


def _wordfreq(lang: str) -> _List:
    def read() -> Iterator[tuple[str, float]]:
        import wordfreq

        size = "large" if lang in wordfreq.available_languages("large") else "small"
        yield from wordfreq.get_frequency_dict(lang, size).items()

    def stamp() -> str:
        version = _distribution("wordfreq")
        if version:
            import wordfreq

            # It answers in another language, with a list of that, for those it does not have.
            return version if lang in wordfreq.available_languages("small") else ""
        return version

    return _List(f"wordfreq-{lang}", f"pip install wordfreq (if it has {lang})", stamp, read)


def _aspell(lang: str) -> _List:
    def installed() -> str:
        if not shutil.which("aspell"):
            return ""
        names = subprocess.check_output(["aspell", "dicts"], text=True).split()
        return lang if lang in names else ""

    def read() -> Iterator[tuple[str, float]]:
        command = ["aspell", "-l", lang, "--encoding=utf-8"]  # whatever the locale
        roots = subprocess.check_output([*command, "dump", "master"])
        forms = subprocess.check_output([*command, "expand"], input=roots)
        yield from ((word, 0.0) for word in forms.decode("utf-8").split())

    return _List(f"aspell-{lang}", f"apt-get install aspell aspell-{lang}", installed, read)


def _file(name: str, install: str, path: Path) -> _List:
    def stamp() -> str:
        return str(path.stat().st_mtime_ns) if path.is_file() else ""

    def read() -> Iterator[tuple[str, float]]:
        for line in path.read_text(encoding="utf-8").splitlines():
            # hunspell puts flags after a slash, and the number of words on the first line
            yield line.split("/")[0].strip(), 0.0

    return _List(name, install, stamp, read)


def _hunspell(lang: str, file: str) -> _List:
    return _file(f"hunspell-{lang}", f"apt-get install hunspell-{lang}", Path("/usr/share/hunspell") / file)


def _cldr(lang: str) -> _List:
    """Names of countries, languages, currencies, months and days, from the Unicode locale data."""

    def read() -> Iterator[tuple[str, float]]:
        from babel import Locale

        locale = Locale.parse(lang)
        names = [*locale.territories.values(), *locale.languages.values(), *locale.currencies.values()]
        for forms in (*locale.months.values(), *locale.days.values()):
            names += [name for form in forms.values() for name in form.values()]
        yield from ((word, 0.0) for name in names for word in _split(name))

    return _List(f"cldr-{lang}", "pip install babel", lambda: _distribution("babel"), read)


def _translations(lang: str) -> _List:
    """Words of the translated programs that are installed: few, but running text, so with frequencies."""
    files = sorted((LOCALES / lang / "LC_MESSAGES").glob("*.mo"))

    def stamp() -> str:
        return "".join(f"{path.name}{path.stat().st_size}" for path in files) if _distribution("babel") else ""

    def read() -> Iterator[tuple[str, float]]:
        from babel.messages.mofile import read_mo

        counts: Counter[str] = Counter()
        for path in files:
            with path.open("rb") as file:
                for message in read_mo(file):
                    for text in [message.string] if isinstance(message.string, str) else message.string or ():
                        counts.update(_split(text))
        total = counts.total()
        yield from ((word, count / total) for word, count in counts.items())

    hint = "pip install babel; apt-get install iso-codes gimp-data evolution-common"
    return _List(f"translations-{lang}", hint, stamp, read)


def _split(text: str) -> list[str]:
    return regex.findall(r"[\p{L}\p{M}\u200c\u200d]+", text)


def _distribution(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _open_tamil() -> list[_List]:
    lists = {"solthiruthi": "data/tamilvu_dictionary_words.txt", "tamilsandhi": "all-tamil-nouns.txt"}
    found = []
    for module, name in lists.items():
        spec = importlib.util.find_spec(module)
        folder = Path(spec.origin).parent if spec and spec.origin else Path(module)
        found.append(_file(f"open-tamil-{module}", "pip install open-tamil", folder / name))
    return found


_SOURCES: dict[str, list[_List]] = {
    "en": [
        _wordfreq("en"),
        _file("wamerican", "apt-get install wamerican", Path("/usr/share/dict/american-english")),
    ],
    "hi": [_wordfreq("hi"), _aspell("hi")],
    "bn": [_wordfreq("bn"), _aspell("bn")],
    "ta": [_wordfreq("ta"), *_open_tamil()],
    "te": [_hunspell("te", "te_IN.dic"), _aspell("te"), _cldr("te"), _translations("te")],
    "ar": [_wordfreq("ar")],
    "mr": [_aspell("mr"), _cldr("mr"), _translations("mr")],
    "as": [_cldr("as"), _translations("as")],
    "ml": [_hunspell("ml", "ml_IN.dic"), _aspell("ml"), _cldr("ml"), _translations("ml")],
    "kn": [_aspell("kn"), _cldr("kn"), _translations("kn")],
    "gu": [_hunspell("gu", "gu_IN.dic"), _aspell("gu"), _cldr("gu"), _translations("gu")],
    "pa": [_aspell("pa"), _cldr("pa"), _translations("pa")],
    "or": [_aspell("or"), _cldr("or"), _translations("or")],
    "ur": [_wordfreq("ur"), _cldr("ur"), _translations("ur")],
    "fa": [_wordfreq("fa")],
    "he": [_wordfreq("he")],
    "ru": [_wordfreq("ru")],
    "el": [_wordfreq("el")],
    "ko": [_wordfreq("ko")],
}


# -------------------- compiling the sources


def _compile(charset: Charset, sources: list[_List]) -> dict[str, Any]:
    """Joins the sources to words with weights, and to the syllables that occur in them."""
    keep = "".join(charset.joiners)
    allowed = {*charset.letters, *charset.diacritics, *charset.joiners}
    if charset.cased:
        allowed |= set("'-")
    letters = set(charset.letters)
    frequencies: dict[str, float] = {}
    for source in sources:
        for word, frequency in source.read():
            label = _shown(normalise(word, keep=keep), charset.script)
            if len(label) <= MAX_LENGTH and allowed.issuperset(label) and letters & set(label[:1]):
                word = display(label)
                frequencies[word] = max(frequency, frequencies.get(word, 0.0))
    # words without a known frequency are ranked by a hash, so that a cut takes them evenly from the alphabet
    words = sorted(frequencies, key=lambda word: (-frequencies[word], zlib.crc32(word.encode())))[:MAX_WORDS]
    rarest = min((frequency for frequency in frequencies.values() if frequency), default=1.0)
    weights = [round((max(frequencies[word], rarest) / rarest) ** FREQUENCY_POWER, 3) for word in words]
    return {
        "words": words,
        "weights": weights,
        "syllables": _syllables(charset, words),
        "conjuncts": _conjuncts(charset, words),
    }


def _shown(label: str, script: str) -> str:
    """A label without joiners that nothing in a picture shows: they cannot be read."""
    label = label.rstrip(ZWNJ + ZWJ if script in ONE_JOINER_SCRIPTS else ZWNJ)
    if script == "Arab":
        label = re.sub(f"(?<=[{''.join(FINAL_LETTERS)}]){ZWNJ}", "", label)
    return label.replace(ZWJ, ZWNJ) if script in ONE_JOINER_SCRIPTS else label


def _conjuncts(charset: Charset, words: list[str]) -> dict[str, list[str]]:
    """Conjunct -> words that hold it, the commonest first."""
    if not charset.virama:
        return {}
    consonant = rf"\p{{Lo}}(?:{charset.nukta})?"
    pattern = regex.compile(f"{consonant}(?:{charset.virama}{consonant})+")
    holders: dict[str, list[str]] = defaultdict(list)
    for word in words:
        for conjunct in set(pattern.findall(word)):
            holders[conjunct].append(word)
    least, most = CONJUNCT_WORDS
    return {conjunct: known[:most] for conjunct, known in holders.items() if len(known) >= least}


def _syllables(charset: Charset, words: list[str]) -> dict[str, list[str]]:
    """Character -> syllables that hold it: the commonest of the words, made-up ones where they are few."""
    counts = Counter(cluster for word in words for cluster in regex.findall(r"\X", word))
    holders: dict[str, list[str]] = defaultdict(list)
    for cluster, count in counts.most_common():
        # what occurs once is often a misspelling
        if count > 1:
            for character in set(normalise(cluster, keep="".join(charset.joiners))):
                holders[character].append(cluster)
    syllables = {letter: holders[letter][:SYLLABLES] or [letter] for letter in charset.letters}
    if charset.script == "Latn":
        # accents stand on few letters, all of which occur
        accented = {mark: holders[mark][:SYLLABLES] for mark in charset.diacritics if holders[mark]}
        return syllables | {mark: [*known, *map(str.upper, known)] for mark, known in accented.items()}
    brahmic = charset.script in BRAHMIC_SCRIPTS
    carriers = [c for c in charset.letters if not brahmic or ord(c) % 128 in BRAHMIC_CONSONANTS]
    for mark in charset.diacritics:
        made_up = [display(carrier + mark) for carrier in carriers] if len(holders[mark]) < 10 else []
        syllables[mark] = holders[mark][:SYLLABLES] + made_up
    for joiner in charset.joiners:
        # a joiner shows only after a virama: it keeps the virama, or the half form, from becoming a conjunct
        if joiner == ZWJ and charset.script in ONE_JOINER_SCRIPTS:
            continue
        link = charset.virama + joiner
        firsts = [first for first in carriers if first not in FINAL_LETTERS]
        syllables[joiner] = [first + link + second for first in firsts for second in carriers]
    return syllables
