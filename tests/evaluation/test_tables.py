from dataclasses import replace

import pytest

from mstr_hf.evaluation.tables import Word, interval, language_rows, length_rows, markdown, percent, script_rows, table


def word(reference: str, reading: str, spotter: str = "", lang: str = "hi", photo: str | None = None, **other) -> Word:
    defaults = {"split": "dev", "id": reference, "image": "", "dataset": "d", "confidence": 0.5, "script": "Deva"}
    lists = {"characters": [], "alternatives": [], "peers": {}}
    texts = {"reference": reference, "reading": reading, "spotter": spotter or reading}
    return Word(**{**defaults, **lists, **texts, "lang": lang, "photo": photo, **other})


def test_a_word_is_right_as_wrr_counts_it():
    assert word("Café", "Cafe\u0301").correct
    assert not word("क\u094d\u200dष", "क\u094dष").correct
    mended = word("abc", "abc", "abd")
    assert mended.correct and not mended.spotter_correct


def test_lines_for_english_and_for_joiners():
    words = [word("Shop", "shop", lang="en", photo="p"), word("क\u094d\u200dष", "क\u094dष", photo="q")]
    cells = table(language_rows(words, ["en", "hi"]), "language")
    assert cells[0][:5] == ["language", "n", "Spotter WRR", "Spotter CRR", "Spotter script"]
    assert {len(line) for line in cells} == {9}
    lines = {line[0]: line[5:] for line in cells[1:]}
    assert lines["en"] == ["0.0", "75.0", "100.0", "0 / 0"]
    assert lines["en, only a-z and 0-9"] == ["100.0", "", "", ""]
    assert lines["hi, joiners dropped"] == ["100.0", "100.0", "", ""]
    assert lines["all"][0] == "0.0 (0-0)" and lines["all, joiners dropped"][0] == "50.0 (0-100)"


def test_one_manifest_has_no_rows_for_all_together():
    rows = language_rows([word("a", "a")], ["hi"])
    assert [(row["split"], row["words"]) for row in rows] == [("dev", "hi"), ("dev", "all")]
    both = language_rows([word("a", "a"), replace(word("a", "b"), split="report")], ["hi"])
    assert [row["split"] for row in both] == ["dev", "dev", "report", "report", "together", "together"]
    assert both[-1]["readers"]["Refiner"]["wrr"]["value"] == 0.5


@pytest.mark.parametrize(
    ("reference", "length"),
    [("abc", "1-3"), ("Café", "4-6"), ("a" * 9, "7-9"), ("a" * 10, "10-14"), ("a" * 15, "15 or more")],
)
def test_lengths_are_in_code_points_after_nfkd(reference, length):
    assert [row["words"] for row in length_rows([word(reference, "")])] == [length]


def test_scripts_are_those_of_the_references():
    rows = script_rows([word("24", "x"), word("दूध", "x"), word("शाम", "शाम")])
    assert [(row["words"], row["n"]) for row in rows] == [("Deva", 2), ("Zyyy", 1)]
    assert rows[1]["readers"]["Refiner"]["script_accuracy"]["value"] is None


def test_photographs_are_counted():
    words = [word("a", "a", photo="p"), word("b", "b", photo="p"), word("c", "c")]
    assert language_rows(words, ["hi"])[-1]["photos"] == 2
    # Other collections may call other photographs the same.
    words.append(word("d", "d", photo="p", dataset="other"))
    assert language_rows(words, ["hi"])[-1]["photos"] == 3


def test_figures_are_per_cent():
    assert interval({"value": 0.5, "low": 0.404, "high": 0.598}) == "50.0 (40-60)"
    assert interval({"value": 0.5, "low": None, "high": None}) == percent({"value": 0.5, "low": 0, "high": 1}) == "50.0"
    assert percent({"value": None, "low": None, "high": None}) == "-" and percent(None) == ""


def test_markdown_has_every_table_and_note():
    words = [word("a", "a", lang="en", photo="p"), word("bb", "b", photo="q")]
    rows = language_rows(words, ["en", "hi"])
    text = markdown(
        {
            "model": "m",
            "rows": rows,
            "datasets": rows[-1:],
            "scripts": script_rows(words),
            "lengths": length_rows(words),
            "calibration": {"error": {"value": 0.25, "low": 0.2, "high": 0.3}, "bins": []},
            "peers": [{"name": "Fake", "version": "2", "variants": {"en": "seeing"}}],
            "missing_peers": ["tesseract skipped: no program tesseract"],
            "skipped": {"kn": 3},
            "unreadable": [{"split": "dev", "id": "x1", "reason": "not an image"}],
        }
    )
    headings = [line for line in text.splitlines() if line.startswith("#")]
    assert headings == [
        "# Evaluation of m",
        "## By language: dev",
        "## By dataset",
        "## By script",
        "## By length",
        "## Notes",
    ]
    assert "Expected calibration error of the model's confidences: 25.0 (20-30)." in text
    assert "Fake 2 is told the language; for each, the best of its settings: en seeing." in text
    assert "tesseract skipped: no program tesseract." in text
    assert "Left out, no language of this model: kn 3 words." in text and "not readable: x1." in text
