from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import ArrayLike

from mstr_hf.evaluation.metrics import (
    METRICS,
    Score,
    calibration,
    crr,
    crr_per_word,
    fractions,
    graphemes,
    measure,
    ned,
    one_minus_ned,
    script,
    script_accuracy,
    wrr,
    wrr_alphanumeric,
    wrr_case_insensitive,
)


def table_distance(first: Sequence, second: Sequence) -> int:
    """Levenshtein distance by the textbook table."""
    previous = list(range(len(second) + 1))
    for row, left in enumerate(first, start=1):
        current = [row]
        for column, right in enumerate(second, start=1):
            replaced = previous[column - 1] + (left != right)
            current.append(min(replaced, previous[column] + 1, current[-1] + 1))
        previous = current
    return previous[-1]


# Few characters, so that repeats and near misses are frequent; longer than a machine word too.
words = st.text("abকা", max_size=80)
# Characters that neither join others nor are dropped.
references = st.text("abকা", min_size=1, max_size=80)


@given(words, references)
def test_rates_equal_those_of_the_table(prediction: str, reference: str) -> None:
    distance = table_distance(prediction, reference)
    assert crr([prediction], [reference]).parts.tolist() == [len(reference) - distance]
    assert crr_per_word([prediction], [reference]).value == pytest.approx(max(0, 1 - distance / len(reference)))
    longer = max(len(prediction), len(reference))
    assert ned([prediction], [reference]).value == pytest.approx(distance / longer)
    assert one_minus_ned([prediction], [reference]).value == pytest.approx(1 - distance / longer)


@given(st.lists(st.sampled_from(["ক্ষি", "ক", "ta"])), st.lists(st.sampled_from(["ক্ষি", "ক", "ta"]), min_size=1))
def test_clusters_are_compared_whole(prediction: list[str], reference: list[str]) -> None:
    def clusters(texts: list[str]) -> list[str]:
        return [cluster for text in texts for cluster in (list(text) if text == "ta" else [text])]

    score = crr(["".join(prediction)], ["".join(reference)], units=graphemes)
    true = clusters(reference)
    assert score.totals.tolist() == [len(true)]
    assert score.parts.tolist() == [len(true) - table_distance(clusters(prediction), true)]


# Language, prediction, reference, edit distance and length in code points after NFKD, the same in graphemes.
CASES = [
    ("en", "Cafe", "Café", 1, 5, 1, 4),  # the accent is a code point of its own
    ("hi", "हिन्दि", "हिन्दी", 1, 6, 1, 2),  # the last vowel sign; ह + ि, then the conjunct न्द + ी
    ("bn", "বাংলা", "বাংলা", 0, 5, 0, 2),
    ("bn", "বাল", "বাংলা", 2, 5, 2, 2),  # ং and the last া missing; both clusters differ
    ("ta", "தமிழ", "தமிழ்", 1, 5, 1, 3),  # without pulli
    ("te", "తెలగు", "తెలుగు", 1, 6, 1, 3),
    ("ar", "سلام", "سلام", 0, 4, 0, 4),
    ("ar", "سلم", "سلام", 1, 4, 1, 4),
]


@pytest.mark.parametrize(("lang", "prediction", "reference", "distance", "length", "far", "size"), CASES)
def test_rates_of_one_word(
    lang: str, prediction: str, reference: str, distance: int, length: int, far: int, size: int
) -> None:
    assert wrr([prediction], [reference]).value == (distance == 0)
    characters = crr([prediction], [reference])
    assert (characters.parts.tolist(), characters.totals.tolist()) == ([length - distance], [length])
    clusters = crr([prediction], [reference], units=graphemes)
    assert (clusters.parts.tolist(), clusters.totals.tolist()) == ([size - far], [size])


def test_micro_and_mean_character_rates_differ_and_stay_above_zero() -> None:
    predictions, references = ["abcd", "xyzxyz"], ["abcd", "no"]
    # Distances 0 and 6 over lengths 4 and 2.
    assert crr(predictions, references).value == 0
    assert crr_per_word(predictions, references).value == 0.5
    # Distances 0 and 2 over lengths 4 and 2: 1 - 2/6, and the mean of 1 and 0.
    assert crr(["abcd", "xy"], references).value == pytest.approx(2 / 3)
    assert crr_per_word(["abcd", "xy"], references).value == 0.5
    assert crr([""], ["no"]).value == 0


def test_normal_forms_and_spaces_make_no_difference() -> None:
    assert wrr(["Cafe\u0301 Noir", "ﷺ"], ["Café\u00a0Noir", "صلى الله عليه وسلم"]).value == 1
    assert wrr(["cafe noir"], ["Café Noir"]).value == 0


def test_joiners_count_unless_they_are_dropped() -> None:
    prediction, reference = "क\u094d\u200dष", "क\u094dष"
    assert wrr([prediction], [reference]).value == 0
    assert crr([prediction], [reference]).value == pytest.approx(2 / 3)
    for metric in (wrr, crr, crr_per_word):
        assert metric([prediction], [reference], keep="").value == 1


def test_case_insensitive_rate_folds_case_and_keeps_punctuation() -> None:
    score = wrr_case_insensitive(["STRASSE", "cafe", "no-1", "क"], ["Straße", "CAFÉ", "NO1", "क"])
    assert score.parts.tolist() == [1, 0, 0, 1]


def test_alphanumeric_rate_ignores_case_punctuation_and_accents() -> None:
    assert wrr_alphanumeric(["CAFE'S", "no-1", "No2"], ["Cafés!", "No. 1", "No. 3"]).value == pytest.approx(
        2 / 3
    )


def test_alphanumeric_rate_compares_words_without_any_whole() -> None:
    assert wrr_alphanumeric(["&", "", "x"], ["&", "&", "&"]).parts.tolist() == [1, 0, 0]


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("Shop", "Latn"),
        ("दुकान", "Deva"),
        ("দোকান", "Beng"),
        ("கடை", "Taml"),
        ("దుకాణం", "Telu"),
        ("متجر", "Arab"),
        ("ಅಂಗಡಿ", "Knda"),
        ("ਦੁਕਾਨ", "Guru"),
        ("상점", "Hang"),
        ("店", "Hani"),
        ("ꯗꯨꯀꯥꯟ", "Mtei"),
        ("ᏣᎳᎩ", "Zzzz"),
        ("24/7", "Zyyy"),
        ("१२", "Zyyy"),
        ("", "Zyyy"),
        ("A1 दुकान", "Deva"),
        ("aक", "Latn"),
        ("कa", "Deva"),
    ],
)
def test_script(text: str, code: str) -> None:
    assert script(text) == code


def test_script_accuracy_is_over_words_with_a_letter() -> None:
    score = script_accuracy(["Shop", "42", "দোকান", "x"], ["Stop", "दुकान", "दुकान", "24"])
    assert score.totals.tolist() == [1, 1, 1, 0]
    assert score.value == pytest.approx(1 / 3)
    assert np.isnan(script_accuracy(["x"], ["24"]).value)


def test_unequal_lists_and_empty_references_are_refused() -> None:
    with pytest.raises(ValueError, match="1 predictions for 2 references; give one for each"):
        wrr(["a"], ["a", "b"])
    with pytest.raises(ValueError, match=r"reference 1, ' ', is empty once normalised; leave it out"):
        crr(["a", "b"], ["a", " "])
    assert np.isnan(wrr([], []).value)


def score(parts: ArrayLike) -> Score:
    values = np.asarray(parts, dtype=float)
    return Score(values, np.ones_like(values))


def test_interval_resamples_photographs() -> None:
    # 40 photographs of 10 words that are all read or all missed: as uncertain as 40 words, not as 400.
    parts = np.repeat([1.0, 0.0], 200)
    photos = [f"p{index // 10}" for index in range(400)]
    low, high = score(parts).interval(photos)
    by_hand = 1.96 * np.sqrt(0.25 / 40)
    assert low == pytest.approx(0.5 - by_hand, abs=0.04)
    assert high == pytest.approx(0.5 + by_hand, abs=0.04)
    narrow_low, narrow_high = score(parts).interval([None] * 400)
    assert high - low > 2.5 * (narrow_high - narrow_low)
    assert score(parts).interval(photos) == (low, high)


def test_a_single_photograph_has_no_interval() -> None:
    assert np.isnan(score([1, 0]).interval(["p", "p"])).all()
    assert np.isnan(score([]).interval([])).all()
    # The second photograph has no word with a letter.
    assert np.isnan(script_accuracy(["a", "x"], ["b", "24"]).interval(["p", "q"])).all()
    assert script_accuracy(["a", "x", "c"], ["b", "24", "d"]).interval(["p", "q", "r"]) == (1.0, 1.0)


def test_interval_needs_a_photograph_for_each_word() -> None:
    with pytest.raises(ValueError, match="1 photographs for 2 words; give one for each, or None"):
        score([1, 0]).interval(["p"])


def test_interval_of_many_photographs_is_drawn_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = np.tile([1.0, 0.0, 0.0], 20)
    whole = score(parts).interval([None] * 60)
    monkeypatch.setattr("mstr_hf.evaluation.metrics._CHUNK", 700)
    pieces = score(parts).interval([None] * 60)
    assert pieces == pytest.approx(whole, abs=0.05)
    assert whole == pytest.approx((1 / 3 - 0.12, 1 / 3 + 0.12), abs=0.03)


def test_calibration_by_hand() -> None:
    # Bins of a quarter: 0.25 belongs to the first, 0.3 and 0.5 to the second, 0.9 and 1 to the last.
    result = calibration([0.25, 0.0, 0.3, 0.5, 0.9, 1.0], [1, 0, 0, 1, 1, 1], num_bins=4)
    assert result.bins.tolist() == [0, 0, 1, 1, 3, 3]
    assert result.value == pytest.approx((abs(0.25 - 1) + abs(0.8 - 1) + abs(1.9 - 2)) / 6)
    assert [point[0] for point in result.curve] == [2, 2, 0, 2]
    assert result.curve[1][1:] == (pytest.approx(0.4), 0.5)
    assert np.isnan(result.curve[2][1:]).all()
    assert np.isnan(calibration([], []).value)


def test_interval_of_calibration_holds_its_value() -> None:
    generator = np.random.default_rng(0)
    confidences = generator.random(600)
    correct = generator.random(600) < confidences / 2  # twice as sure as it should be
    result = calibration(confidences, correct)
    assert result.value == pytest.approx(0.25, abs=0.04)
    low, high = result.interval([str(index // 3) for index in range(600)])
    assert low < result.value < high < 0.35


def test_interval_of_calibration_does_not_count_chance_twice() -> None:
    generator = np.random.default_rng(0)
    held = 0
    for _ in range(20):
        confidences = generator.uniform(0.5, 1.0, 1200)
        correct = generator.random(1200) < confidences - 0.05
        low, high = calibration(confidences, correct).interval([None] * 1200)
        held += low <= 0.05 <= high
    assert held >= 17


@pytest.mark.parametrize(
    ("confidences", "correct", "num_bins", "message"),
    [
        ([0.5], [1, 0], 15, "1 confidences for 2 readings; give one for each"),
        ([1.5], [1], 15, r"confidence 1\.5: give fractions from 0 to 1"),
        ([float("nan")], [1], 15, "confidence nan: give fractions"),
        ([0.5], [2], 15, "give 1 for each right reading and 0 for each wrong one"),
        ([0.5], [1], 0, "0 bins: give 1 or more"),
    ],
)
def test_calibration_refuses(confidences: list, correct: list, num_bins: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        calibration(confidences, correct, num_bins)


def test_measure_names_fractions_like_metrics() -> None:
    assert measure("wrr", ["a", "B"], ["a", "b"]) == {
        "wrr": 0.5,
        "wrr_case_insensitive": 1,
        "wrr_alphanumeric": 1,
        "wrr_without_joiners": 0.5,
    }
    figures = measure("ned", ["a", "B", "c"], ["a", "b", "c"], ["p", "p", None])
    assert list(figures) == ["ned", "ned_low", "ned_high", "one_minus_ned", "one_minus_ned_low", "one_minus_ned_high"]
    assert figures["ned"] == pytest.approx(1 / 3) and 0 == figures["ned_low"] < figures["ned_high"] == 0.5
    assert fractions("x", score([1, 0]), None) == {"x": 0.5}
    assert set(METRICS) == {"wrr", "crr", "ned", "script_accuracy"}
