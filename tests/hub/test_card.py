from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from mstr_hf.charsets import load_charset
from mstr_hf.hub.card import fill_card, results_table

TEMPLATES = sorted((Path(__file__).parents[2] / "model_cards").glob("*.md"))


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


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: path.stem)
def test_cards_are_valid_for_the_hub(template):
    text = fill_card(template.read_text(encoding="utf-8"), 2_910_000, REPORT)
    assert "{{" not in text and "2.9 million parameters" in text and results_table(REPORT) in text
    data = ModelCard(text).data
    assert (data.license, data.library_name, data.pipeline_tag) == (
        "apache-2.0",
        "transformers",
        "image-to-text",
    )
    for lang in data.language:
        assert load_charset(lang).name in text
