"""Word and character recognition rates, script accuracy, and their intervals by photograph.

Every metric is a sum over words divided by a sum over words, and comes as a `Score` that keeps both a word.
Strings are compared after `normalise`. Joiners (ZWJ, ZWNJ) count by default, because they change what is seen
in Indic scripts and in Persian and Urdu; `keep=""` drops them on both sides.
"""

import unicodedata
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from mstr_hf.models.text import normalise

JOINERS = "\u200c\u200d"

# The first word of a letter's Unicode name -> ISO 15924.
_SCRIPTS = {
    "ARABIC": "Arab",
    "BENGALI": "Beng",
    "CJK": "Hani",
    "CYRILLIC": "Cyrl",
    "DEVANAGARI": "Deva",
    "GREEK": "Grek",
    "GUJARATI": "Gujr",
    "GURMUKHI": "Guru",
    "HANGUL": "Hang",
    "HEBREW": "Hebr",
    "HIRAGANA": "Hira",
    "KANNADA": "Knda",
    "KATAKANA": "Kana",
    "LATIN": "Latn",
    "MALAYALAM": "Mlym",
    "MEETEI": "Mtei",
    "ORIYA": "Orya",
    "SINHALA": "Sinh",
    "TAMIL": "Taml",
    "TELUGU": "Telu",
    "THAI": "Thai",
}


@dataclass(frozen=True)
class Score:
    """A metric with what each word adds to it.

    Attributes:
        parts: float [N], what each word adds to the numerator.
        totals: float [N], what each word adds to the denominator; 0 leaves the word out.
    """

    parts: np.ndarray
    totals: np.ndarray

    @property
    def value(self) -> float:
        """The metric as a fraction from 0 to 1; NaN if it is over no word."""
        return _ratio(self.parts.sum(), self.totals.sum())

    def interval(self, photos: Sequence[str | None]) -> tuple[float, float]:
        """Bootstraps the 95% interval by photograph, since words of one photograph fail together.

        The photographs are drawn with replacement 1000 times, the same ones in every call.

        Args:
            photos: The photograph of each word [N]; a word without one stands alone.

        Returns:
            Lower and upper end, fractions from 0 to 1; NaN if the metric is over fewer than two photographs.

        Raises:
            ValueError: If there is not one photograph a word.
        """
        keys = [index if photo is None else photo for index, photo in enumerate(photos)]
        numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
        group = [numbers[key] for key in keys]
        sums = np.array([np.bincount(group, self.parts), np.bincount(group, self.totals)])
        sums = sums[:, sums[1] > 0]
        size = sums.shape[1]
        if size < 2:
            return float("nan"), float("nan")
        generator = np.random.default_rng(0)
        draws = (sums[:, generator.integers(size, size=size)].sum(axis=1) for _ in range(1000))
        low, high = np.quantile([_ratio(*draw) for draw in draws], [0.025, 0.975])
        return float(low), float(high)


def wrr(predictions: Sequence[str], references: Sequence[str], keep: str = JOINERS) -> Score:
    """Word recognition rate: the share of words that are read without any mistake.

    Args:
        predictions: What was read [N].
        references: What stands there [N].
        keep: Joiners that count as characters.

    Raises:
        ValueError: If the lists differ in length, or a reference is empty once normalised.
    """
    pairs = _pairs(predictions, references, keep)
    return _score((prediction == reference, 1) for prediction, reference in pairs)


def wrr_alphanumeric(predictions: Sequence[str], references: Sequence[str]) -> Score:
    """Word recognition rate as in the English benchmarks: lower case, and only a-z and 0-9 count.

    A reference without any of them (an ampersand) is compared whole, in lower case, so that the rate is over
    the same words as `wrr`.

    Args:
        predictions: What was read [N].
        references: What stands there [N].

    Raises:
        ValueError: If the lists differ in length, or a reference is empty once normalised.
    """

    def matches(prediction: str, reference: str) -> bool:
        prediction, reference = prediction.lower(), reference.lower()
        if plain := _alphanumeric(reference):
            return _alphanumeric(prediction) == plain
        return prediction == reference

    return _score((matches(*pair), 1) for pair in _pairs(predictions, references, keep=""))


def crr(
    predictions: Sequence[str],
    references: Sequence[str],
    keep: str = JOINERS,
    units: Callable[[str], Sequence[str]] = str,
) -> Score:
    """Character recognition rate: max(0, 1 - sum of edit distances / sum of reference lengths).

    Args:
        predictions: What was read [N].
        references: What stands there [N].
        keep: Joiners that count as characters.
        units: What counts as a character: code points, or `graphemes`.

    Raises:
        ValueError: If the lists differ in length, or a reference is empty once normalised.
    """
    return _score(
        (length - distance, length)
        for distance, length in _distances(_pairs(predictions, references, keep), units)
    )


def crr_per_word(
    predictions: Sequence[str],
    references: Sequence[str],
    keep: str = JOINERS,
    units: Callable[[str], Sequence[str]] = str,
) -> Score:
    """Character recognition rate of each word, max(0, 1 - edit distance / reference length), averaged.

    Args:
        predictions: What was read [N].
        references: What stands there [N].
        keep: Joiners that count as characters.
        units: What counts as a character: code points, or `graphemes`.

    Raises:
        ValueError: If the lists differ in length, or a reference is empty once normalised.
    """
    return _score(
        (max(0.0, 1 - distance / length), 1)
        for distance, length in _distances(_pairs(predictions, references, keep), units)
    )


def script_accuracy(predictions: Sequence[str], references: Sequence[str]) -> Score:
    """Share of words read in the right script, over words whose reference has a letter.

    Args:
        predictions: What was read [N].
        references: What stands there [N].

    Raises:
        ValueError: If the lists differ in length, or a reference is empty once normalised.
    """
    scripts = (
        (script(prediction), script(reference))
        for prediction, reference in _pairs(predictions, references, keep="")
    )
    return _score((read == true, 1) if true != "Zyyy" else (0, 0) for read, true in scripts)


def script(text: str) -> str:
    """The ISO 15924 code that most letters of a text belong to; the earlier one at a tie.

    `"Zyyy"` (common) without a letter, `"Zzzz"` for scripts this package does not know.
    """
    scripts = Counter(_letter_script(character) for character in text if character.isalpha())
    return max(scripts, key=scripts.__getitem__, default="Zyyy")


def graphemes(text: str) -> list[str]:
    """Splits a text into extended grapheme clusters (UAX #29), what a reader perceives as characters.

    Raises:
        ImportError: If the package `regex` is missing.
    """
    import regex  # only installed with mstr_hf[data]

    return regex.findall(r"\X", text)


def edit_distance(first: Sequence[Hashable], second: Sequence[Hashable]) -> int:
    """Levenshtein distance between two sequences, by the bit-parallel algorithm of Myers.

    It keeps a whole column of the dynamic-programming table in two integers: bit i of `up` (`down`) says that
    entry i + 1 is one more (less) than entry i. G. Myers, "A fast bit-vector algorithm for approximate string
    matching based on dynamic programming", JACM 46(3), 1999, as given by H. Hyyrö, 2003.
    """
    if first == second:
        return 0
    if len(first) < len(second):
        first, second = second, first
    if not second:
        return len(first)
    places: dict[Hashable, int] = {}
    for index, item in enumerate(first):
        places[item] = places.get(item, 0) | 1 << index
    ones = (1 << len(first)) - 1
    last = 1 << (len(first) - 1)
    up, down, distance = ones, 0, len(first)
    for item in second:
        match = places.get(item, 0)
        diagonal = (((match & up) + up) ^ up) | match | down
        right = down | (ones & ~(diagonal | up))
        left = up & diagonal
        if right & last:
            distance += 1
        elif left & last:
            distance -= 1
        right = right << 1 | 1
        up = (left << 1 | ~(diagonal | right)) & ones
        down = right & diagonal & ones
    return distance


def _pairs(predictions: Sequence[str], references: Sequence[str], keep: str) -> list[tuple[str, str]]:
    if len(predictions) != len(references):
        raise ValueError(
            f"{len(predictions)} predictions for {len(references)} references; give one for each"
        )
    pairs = [
        (normalise(prediction, keep), normalise(reference, keep))
        for prediction, reference in zip(predictions, references, strict=True)
    ]
    for index, (_, reference) in enumerate(pairs):
        if not reference:
            raise ValueError(
                f"reference {index}, {references[index]!r}, is empty once normalised; leave it out"
            )
    return pairs


def _distances(
    pairs: Iterable[tuple[str, str]], units: Callable[[str], Sequence[str]]
) -> Iterable[tuple[int, int]]:
    """Yields the edit distance and the reference's length of each pair."""
    for prediction, reference in pairs:
        characters = units(reference)
        yield edit_distance(units(prediction), characters), len(characters)


def _score(words: Iterable[tuple[float, float]]) -> Score:
    parts, totals = np.array(list(words), dtype=float).reshape(-1, 2).T
    return Score(parts, totals)


def _ratio(part: float, total: float) -> float:
    return max(0.0, float(part / total)) if total else float("nan")


def _alphanumeric(text: str) -> str:
    return "".join(character for character in text if character.isascii() and character.isalnum())


@cache
def _letter_script(letter: str) -> str:
    return _SCRIPTS.get(unicodedata.name(letter, "").partition(" ")[0], "Zzzz")
