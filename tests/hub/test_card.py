import re
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from mstr_hf.charsets import load_charset
from mstr_hf.hub.card import comparison, eval_results, fill_card, plain_card, results_table

TEMPLATES = sorted((Path(__file__).parents[2] / "model_cards").glob("[!_]*.md"))


def figures(wrr: float, low: float | None = None, high: float | None = None) -> dict:
    return {
        "wrr": {"value": wrr, "low": low, "high": high},
        "crr": {"value": 0.875, "low": None, "high": None},
        "script_accuracy": {"value": None, "low": None, "high": None},
    }


def row(split: str, words: str, n: int, refiner: dict) -> dict:
    readers = {"Spotter": figures(0.25), "Refiner": refiner, "Tesseract": figures(0.125)}
    return {"split": split, "words": words, "n": n, "readers": readers}


REPORT = {
    "rows": [
        row("dev", "hi", 3, figures(0.1)),
        row("together", "hi", 12, figures(0.5, 0.404, 0.598)),
        row("together", "all", 12, figures(0.5)),
    ]
}


def test_table_has_all_manifests_together():
    assert results_table(REPORT).splitlines() == [
        "|  | words | WRR | CRR | script | WRR of Spotter | WRR of Tesseract |",
        "| --- | --: | --: | --: | --: | --: | --: |",
        "| Hindi | 12 | 50.0 (40-60) | 87.5 | - | 25.0 | 12.5 |",
        "| all | 12 | 50.0 | 87.5 | - | 25.0 | 12.5 |",
    ]


def test_one_manifest_is_a_table_too():
    assert "| Hindi | 3 | 10.0 |" in results_table({"rows": REPORT["rows"][:1]})


def test_report_of_a_spotter_is_refused():
    report = {"rows": [{"split": "dev", "words": "hi", "n": 3, "readers": {"Spotter": figures(0.1)}}]}
    with pytest.raises(ValueError, match="no figures of a Refiner"):
        results_table(report)


def test_table_of_another_reader():
    assert "| Hindi | 12 | 25.0 | 87.5 | - | 50.0 | 12.5 |" in results_table(REPORT, "Spotter")


def test_comparison_says_who_is_behind():
    assert comparison(REPORT, "Spotter").splitlines() == [
        "It reads fewer words than Refiner in Hindi (25.0 against 50.0).",
        "It reads more words than Tesseract in Hindi (25.0 against 12.5).",
    ]


def test_metadata_have_what_was_measured_and_no_more():
    results = eval_results(REPORT, "Refiner")
    assert [(r.dataset_config, r.metric_type, r.metric_value) for r in results] == [
        ("hi", "wrr", 50.0),
        ("hi", "crr", 87.5),
        ("all", "wrr", 50.0),
        ("all", "crr", 87.5),
    ]
    unknown = {name: {"value": None} for name in ("wrr", "crr")}
    rows = [{"split": "dev", "words": "hi", "n": 1, "readers": {"Refiner": unknown}}]
    assert eval_results({"rows": rows}, "Refiner") == []


def test_place_without_a_figure_is_an_error():
    with pytest.raises(ValueError, match=r"nothing to fill \{\{parameters\}\}"):
        fill_card("---\nlicense: mit\n---\n{{parameters}}", "mstr/x")


def test_plain_card_is_valid():
    card = ModelCard(plain_card("me/mine", "mstr_spotter", 1_500_000, ["en", "bn"]))
    assert card.data.language == ["en", "bn"] and card.data.pipeline_tag == "image-to-text"
    assert "1.5 million" in card.text and "English, Bengali" in card.text
    assert ModelCard(plain_card("me/mine", "mclip", 1, ["en"])).data.pipeline_tag is None
    # A language that was added where the model comes from has no charset here.
    assert "English, qaa" in plain_card("me/mine", "mstr_spotter", 1, ["en", "qaa"])


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: path.stem)
def test_cards_are_valid_for_the_hub(template):
    shared = {path.stem[1:]: path.read_text(encoding="utf-8") for path in template.parent.glob("_*.md")}
    text = template.read_text(encoding="utf-8")
    names = set(re.findall(r"{{(\w+)}}", text)) - shared.keys() - {"repo_id", "results", "comparison"}
    report = REPORT if "{{results}}" in text else None
    reader = "Spotter" if template.stem.startswith("spotter") else "Refiner"
    samples = [("bn", "samples/bn_1.jpg")] if report else []
    filled = fill_card(text, "mstr/name", {**shared, **dict.fromkeys(names, "17")}, report, reader, samples)
    card = ModelCard(filled, ignore_metadata_errors=False)
    assert card.data.license == "apache-2.0" and "mstr" in card.data.tags
    for heading in ("## Use", "## Intended use", "## Limits", "## Citation", "lunia2026mstr"):
        assert heading in card.text
    if template.stem not in ("demo", "metrics"):
        assert "### Fonts" in card.text and "CC-BY-SA-4.0" in card.text
        assert all(load_charset(lang).name in card.text for lang in card.data.language)
    if report:
        assert results_table(report, reader) in card.text and comparison(report, reader) in card.text
        assert card.data.eval_results == eval_results(report, reader)
        source = "https://huggingface.co/mstr/name/resolve/main/samples/bn_1.jpg"
        assert card.data.widget == [{"src": source, "example_title": "Bengali"}]


def test_there_is_a_card_for_each_repository():
    expected = ["demo", "mclip-6lang", "metrics", "prototype-bank-6lang", "refiner-6lang", "spotter-6lang"]
    assert [template.stem for template in TEMPLATES] == expected
