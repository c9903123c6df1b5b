"""Recognition rates, edit distance, script accuracy and calibration, with their intervals by photograph.

The one place where they are defined: the package scores with these functions, and so do the modules for the library
`evaluate` in the folders beside this file, which hold links to it.

Every metric of readings is a sum over words divided by a sum over words, and comes as a `Score` that keeps both a
word. Strings are compared after `normalise`. Joiners (ZWJ, ZWNJ) count by default, because they change what is seen
in Indic scripts and in Persian and Urdu; `keep=""` drops them on both sides.
"""

import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import TypeAlias

import numpy as np
import regex
from rapidfuzz.distance import Levenshtein

# A link to mstr_hf/models/text.py, since the modules for `evaluate` have no package around them.
from .text import normalise

JOINERS = "\u200c\u200d"

CALIBRATION_BINS = 15
"""Bins of equal width, as many as in Guo et al., 2017."""

_DRAWS = 1000
_CHUNK = 1 << 20  # photographs drawn at a time
_CLUSTER = regex.compile(r"\X")

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
        return float(_ratio(self.parts.sum(), self.totals.sum()))

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
        sums = _by_photograph(np.array([self.parts, self.totals]), photos)
        return _interval(lambda draws: _ratio(*draws), sums[:, sums[1] > 0])


@dataclass(frozen=True)
class Calibration:
    """How far confidences are from the share of right readings among those of like confidence.

    Attributes:
        bins: int [N], the bin of each confidence.
        confidences: float [N].
        correct: float [N], 1 where the reading is right.
        num_bins: Bins of equal width between 0 and 1.
    """

    bins: np.ndarray
    confidences: np.ndarray
    correct: np.ndarray
    num_bins: int

    @property
    def value(self) -> float:
        """The expected calibration error, a fraction from 0 to 1; NaN without readings."""
        return float(self._error(self._columns().sum(1)))

    @property
    def curve(self) -> list[tuple[int, float, float]]:
        """For each bin the number of readings, their mean confidence and the share that is right (NaN if empty)."""
        counts, confidences, correct = self._columns().sum(1).reshape(3, -1)
        return [
            (int(count), float(_ratio(confidence, count)), float(_ratio(right, count)))
            for count, confidence, right in zip(counts, confidences, correct, strict=True)
        ]

    def interval(self, photos: Sequence[str | None]) -> tuple[float, float]:
        """Bootstraps the 95% interval by photograph (see `Score.interval`).

        A mean of absolute differences is too large, the more so the fewer the readings, and once more in draws from
        them: the interval is the basic one, in which what the draws have too much is taken off.
        """
        low, high = _interval(self._error, _by_photograph(self._columns(), photos))
        return max(0.0, 2 * self.value - high), max(0.0, 2 * self.value - low)

    def _columns(self) -> np.ndarray:
        """What each reading adds to the count, confidence and right readings of each bin, `[3 * num_bins, N]`."""
        member = np.arange(self.num_bins)[:, None] == self.bins
        return np.concatenate([member, member * self.confidences, member * self.correct]).astype(float)

    def _error(self, sums: np.ndarray) -> np.ndarray:
        """Sums of the columns, `[3 * num_bins, ...]`, to the error `[...]`."""
        counts, confidences, correct = sums.reshape(3, self.num_bins, *sums.shape[1:])
        return _ratio(np.abs(confidences - correct).sum(0), counts.sum(0))


Metric: TypeAlias = Callable[[Sequence[str], Sequence[str]], Score]


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


def wrr_case_insensitive(predictions: Sequence[str], references: Sequence[str]) -> Score:
    """Word recognition rate after Unicode case folding, joiners included.

    Args:
        predictions: What was read [N].
        references: What stands there [N].

    Raises:
        ValueError: If the lists differ in length, or a reference is empty once normalised.
    """
    pairs = _pairs(predictions, references, JOINERS)
    return _score((prediction.casefold() == reference.casefold(), 1) for prediction, reference in pairs)


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


def ned(predictions: Sequence[str], references: Sequence[str], keep: str = JOINERS) -> Score:
    """Normalised edit distance: edit distance / length of the longer of the two, in code points, averaged.

    Less is better. The competitions of ICDAR report 1 - NED.

    Args:
        predictions: What was read [N].
        references: What stands there [N].
        keep: Joiners that count as characters.

    Raises:
        ValueError: If the lists differ in length, or a reference is empty once normalised.
    """
    pairs = _pairs(predictions, references, keep)
    return _score((Levenshtein.normalized_distance(*pair), 1) for pair in pairs)


def one_minus_ned(predictions: Sequence[str], references: Sequence[str]) -> Score:
    """1 - NED, see `ned`."""
    distances = ned(predictions, references)
    return Score(distances.totals - distances.parts, distances.totals)


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


def calibration(
    confidences: Sequence[float], correct: Sequence[float], num_bins: int = CALIBRATION_BINS
) -> Calibration:
    """Expected calibration error: |mean confidence - share of right readings| of each bin, averaged over readings.

    M. P. Naeini et al., "Obtaining Well Calibrated Probabilities Using Bayesian Binning", AAAI 2015; C. Guo et al.,
    "On Calibration of Modern Neural Networks", ICML 2017. Bin m of M holds confidences in ((m - 1)/M, m/M], the first
    one 0 as well.

    Args:
        confidences: How sure the reader is of each reading [N], 0 to 1.
        correct: 1 (or True) where the reading is right, else 0 [N].
        num_bins: M.

    Raises:
        ValueError: If the lists differ in length or hold anything else, or there is no bin.
    """
    scores, right = np.asarray(confidences, float), np.asarray(correct, float)
    if scores.shape != right.shape:
        raise ValueError(f"{scores.size} confidences for {right.size} readings; give one for each")
    if not ((scores >= 0) & (scores <= 1)).all():
        worst = next(score for score in scores.tolist() if not 0 <= score <= 1)
        raise ValueError(f"confidence {worst}: give fractions from 0 to 1")
    if not np.isin(right, (0, 1)).all():
        raise ValueError("give 1 for each right reading and 0 for each wrong one")
    if num_bins < 1:
        raise ValueError(f"{num_bins} bins: give 1 or more")
    bins = np.clip(np.ceil(scores * num_bins) - 1, 0, num_bins - 1)
    return Calibration(bins.astype(int), scores, right, num_bins)


METRICS: dict[str, dict[str, Metric]] = {
    "wrr": {
        "wrr": wrr,
        "wrr_case_insensitive": wrr_case_insensitive,
        "wrr_alphanumeric": wrr_alphanumeric,
        "wrr_without_joiners": partial(wrr, keep=""),
    },
    "crr": {
        "crr": crr,
        "crr_per_word": crr_per_word,
        "crr_graphemes": lambda predictions, references: crr(predictions, references, units=graphemes),
        "crr_without_joiners": partial(crr, keep=""),
    },
    "ned": {"ned": ned, "one_minus_ned": one_minus_ned},
    "script_accuracy": {"script_accuracy": script_accuracy},
}
"""Metrics of readings, by the module that gives them."""


def measure(
    module: str, predictions: Sequence[str], references: Sequence[str], photos: Sequence[str | None] | None = None
) -> dict[str, float]:
    """Computes the metrics of a module.

    Args:
        module: Key of `METRICS`.
        predictions: What was read [N].
        references: What stands there [N].
        photos: The photograph of each word [N], for intervals.

    Returns:
        Fractions from 0 to 1 by the metric's name; with photographs, `NAME_low` and `NAME_high` too.

    Raises:
        ValueError: If the lists differ in length, or a reference is empty once normalised.
    """
    scores = {name: metric(predictions, references) for name, metric in METRICS[module].items()}
    return {key: value for name, score in scores.items() for key, value in fractions(name, score, photos).items()}


def fractions(name: str, score: Score | Calibration, photos: Sequence[str | None] | None) -> dict[str, float]:
    """The value of a score under its name; with photographs, the ends of its interval under `_low` and `_high`."""
    if photos is None:
        return {name: score.value}
    low, high = score.interval(photos)
    return {name: score.value, f"{name}_low": low, f"{name}_high": high}


def script(text: str) -> str:
    """The ISO 15924 code that most letters of a text belong to; the earlier one at a tie.

    `"Zyyy"` (common) without a letter, `"Zzzz"` for scripts this package does not know.
    """
    scripts = Counter(_letter_script(character) for character in text if character.isalpha())
    return max(scripts, key=scripts.__getitem__, default="Zyyy")


def graphemes(text: str) -> list[str]:
    """Splits a text into extended grapheme clusters (UAX #29), what a reader perceives as characters."""
    return _CLUSTER.findall(text)


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
) -> Iterator[tuple[int, int]]:
    """Yields the edit distance and the reference's length of each pair."""
    for prediction, reference in pairs:
        characters = units(reference)
        equal = prediction == reference
        yield 0 if equal else Levenshtein.distance(units(prediction), characters), len(characters)


def _score(words: Iterable[tuple[float, float]]) -> Score:
    parts, totals = np.array(list(words), dtype=float).reshape(-1, 2).T
    return Score(parts, totals)


def _by_photograph(columns: np.ndarray, photos: Sequence[str | None]) -> np.ndarray:
    """Sums columns of words `[K, N]` to columns of photographs `[K, P]`."""
    if len(photos) != columns.shape[1]:
        raise ValueError(f"{len(photos)} photographs for {columns.shape[1]} words; give one for each, or None")
    numbers: dict[str | int, int] = {}
    group = [
        numbers.setdefault(index if photo is None else photo, len(numbers)) for index, photo in enumerate(photos)
    ]
    return np.array([np.bincount(group, column, len(numbers)) for column in columns])


def _interval(statistic: Callable[[np.ndarray], np.ndarray], sums: np.ndarray) -> tuple[float, float]:
    """The 95% interval of a statistic, `[K, draws]` to `[draws]`, over draws of the photographs `[K, P]`."""
    size = sums.shape[1]
    if size < 2:
        return float("nan"), float("nan")
    generator = np.random.default_rng(0)
    chunk = max(1, _CHUNK // size)
    values = []
    for start in range(0, _DRAWS, chunk):
        count = min(chunk, _DRAWS - start)
        drawn = generator.integers(size, size=(count, size)) + size * np.arange(count)[:, None]
        weights = np.bincount(drawn.ravel(), minlength=count * size).reshape(count, size)
        values.append(statistic(sums @ weights.T))
    low, high = np.quantile(np.concatenate(values), [0.025, 0.975])
    return float(low), float(high)


def _ratio(part: np.ndarray, total: np.ndarray) -> np.ndarray:
    """part / total, but at least 0; NaN where the total is 0."""
    part, total = np.asarray(part, float), np.asarray(total, float)
    return np.maximum(0, np.divide(part, total, out=np.full(part.shape, np.nan), where=total > 0))


def _alphanumeric(text: str) -> str:
    return "".join(character for character in text if character.isascii() and character.isalnum())


@cache
def _letter_script(letter: str) -> str:
    return _SCRIPTS.get(unicodedata.name(letter, "").partition(" ")[0], "Zzzz")
