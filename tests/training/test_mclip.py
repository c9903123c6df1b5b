import json
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mstr_hf.charsets import load_charsets
from mstr_hf.models.configuration_mclip import MCLIPConfig
from mstr_hf.models.modeling_mclip import MCLIPModel
from mstr_hf.synthesis.characters import CharacterSynthesiser
from mstr_hf.training.lookalikes import CONFUSABLES, look_alike
from mstr_hf.training.mclip import (
    CharacterMixture,
    Retrieval,
    character_batches,
    retrieval_figures,
    retrieval_samples,
    text_rows,
)
from mstr_hf.training.sources import RealWords
from mstr_hf.vocabulary import OFFSET, Vocabulary


@pytest.fixture(scope="module")
def characters(fonts, vocabulary) -> CharacterSynthesiser:
    letters = {charset.lang: charset.letters for charset in load_charsets(vocabulary.languages)}
    return CharacterSynthesiser(fonts, vocabulary.rows, letters)


@pytest.fixture(scope="module")
def model(vocabulary) -> MCLIPModel:
    torch.manual_seed(0)
    rows = len(vocabulary.rows)
    config = MCLIPConfig(vocab_size=OFFSET + rows, num_rows=rows, projection_dim=16, arcface_margins={"ar": 0.4})
    return MCLIPModel(config).eval()


def test_batches_are_a_function_of_seed_and_number(characters, vocabulary, model):
    def stream(workers: int, first: int, process: int, processes: int, count: int) -> list[dict]:
        batches = character_batches(characters, vocabulary, model, 4, 5, workers, first, process, processes)
        return list(islice(batches, count))

    alone = stream(0, 0, 0, 1, 4)
    for other, expected in (
        (stream(2, 0, 0, 1, 4), alone),
        (stream(0, 2, 0, 1, 2), alone[2:]),
        (stream(0, 0, 1, 2, 2), alone[1::2]),
    ):
        for one, two in zip(other, expected, strict=True):
            assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    batch = alone[0]
    assert batch["pixel_values"].shape == (4, 1, 40, 48) and batch["pixel_values"].dtype == torch.uint8
    assert batch["input_ids"][:, -1].tolist() == (batch["rows"] + OFFSET).tolist()
    margins = torch.cat([other["margins"] for other in alone])
    assert sorted({round(value, 6) for value in margins.tolist()}) == [0.2, 0.4]
    assert batch["subtypes"].tolist() == [vocabulary.rows[row].subtype for row in batch["rows"]]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """Manifest of pictures of single characters, of three sizes; two have labels that are none."""
    folder = tmp_path_factory.mktemp("characters")
    entries = [("A", "en"), ("ب", "ar"), ("5", "en"), ("ج", "en"), ("AB", "en"), ("क", "en")]
    with open(folder / "labels.jsonl", "w", encoding="utf-8") as file:
        for number, (text, lang) in enumerate(entries):
            name = f"{number}.png"
            size = ((40, 48), (80, 40), (10, 30))[number % 3]
            image = np.full(size, 50, np.uint8)
            image[size[0] // 4 : -size[0] // 4, size[1] // 4 : -size[1] // 4] = 20 * number + 60
            Image.fromarray(image).save(folder / name)
            entry = {"id": name, "path_rel": name, "filename": name, "gt_text": text, "lang": lang, "dataset": "test"}
            file.write(json.dumps(entry) + "\n")
    return folder / "labels.jsonl"


def test_labelled_pictures_are_mixed_with_drawn_characters(characters, vocabulary, model, pictures):
    labelled = RealWords([pictures], vocabulary, longest=1)
    assert {reason: len(rows) for reason, rows in labelled.rejected.items()} == {
        "more than 1 character": 1,
        "characters outside the bank": 1,
    }
    mixture = CharacterMixture(characters, labelled, vocabulary, 0.4)
    crops = [mixture.character(0, index) for index in range(1000)]
    assert all(crop.image.shape == (40, 48) and crop.image.dtype == np.uint8 for crop in crops)
    alone = CharacterMixture(characters, labelled, vocabulary, 1)
    found = {}
    for index in range(8):
        crop = alone.character(0, index)
        found[vocabulary.rows[crop.row].character] = crop
    # Each comes under a language that uses it.
    assert {char: crop.lang for char, crop in found.items()} == {"A": "en", "ب": "ar", "5": "en", "ج": "ar"}
    pixels = {crop.image.tobytes() for crop in found.values()}
    assert sum(crop.image.tobytes() in pixels for crop in crops) == 400
    # A high picture stands in the middle, and its rim goes on.
    high = found["ب"].image
    assert high[20, 24] == 80 and (high[:, [0, 47]] == 50).all() and (high[[0, 39]] == 50).all()
    batch = next(character_batches(mixture, vocabulary, model, 8, 0, 0, 0, 0, 1))
    assert batch["pixel_values"].shape == (8, 1, 40, 48)


def test_a_row_is_the_mean_over_languages(vocabulary, model):
    with torch.no_grad():
        rows = text_rows(model, vocabulary)
        seven = next(number for number, row in enumerate(vocabulary.rows) if row.character == "7")
        prompts = [prompt for row, _, prompt in vocabulary.prompts() if row == seven]
        embeds = model.get_text_features(torch.tensor(vocabulary.tokenizer()(prompts)["input_ids"]))
    assert len(prompts) == 2
    assert torch.allclose(rows[seven], torch.nn.functional.normalize(embeds.sum(0), dim=-1), atol=1e-6)


def retrieval_of(vocabulary: Vocabulary, cases: list[tuple[str, str, str, str]]) -> Retrieval:
    row = {entry.character: number for number, entry in enumerate(vocabulary.rows)}
    columns = list(zip(*cases, strict=True))
    truth, found, own = (np.array([row[character] for character in column]) for column in columns[1:])
    return Retrieval(columns[0], truth, found, own, vocabulary)


def test_look_alikes_are_counted_apart(vocabulary):
    found = retrieval_of(
        vocabulary,
        [
            ("en", "O", "0", "O"),  # a look-alike among all rows
            ("en", "o", "O", "O"),  # the other case
            ("en", "x", "\u0628", "x"),
            ("en", "7", "7", "7"),
            ("ar", "7", "1", "7"),
            ("ar", "\u064e", "\u064f", "\u064f"),
        ],
    )
    assert found.top1(within=False) == pytest.approx(1 / 6) and found.top1(within=True) == pytest.approx(4 / 6)
    assert found.top1(within=False, lookalikes=True) == pytest.approx(3 / 6)
    assert found.top1(within=True, kind=0, lang="en") == pytest.approx(2 / 3)
    assert found.top1(within=True, kind=0, lang="en", lookalikes=True) == 1
    assert found.top1(within=True, kind=0, lang="ar") is None
    figures = found.figures()
    assert figures["top1_digits"] == 0.5 and figures["top1_diacritics_in_language"] == 0
    assert "top1_punctuation" not in figures
    table = found.table().splitlines()
    assert table[2].startswith("| en | 4 | 66.7 (100.0) | 0.0 (66.7) | - | - | 100.0 (100.0) |")
    assert table[4].startswith("| all | 6 | ")


def test_the_list_of_look_alikes_is_of_distinct_characters_each_way():
    assert len(set(CONFUSABLES)) == len(CONFUSABLES) and all(len(set(pair)) == 2 for pair in CONFUSABLES)
    assert look_alike("0", "O") and look_alike("O", "0") and look_alike("c", "C")
    assert not look_alike("a", "b") and not look_alike("7", "7") and not look_alike("\u0628", "\u062a")


def test_evaluation_of_an_untrained_model(characters, vocabulary, model):
    crops = [characters.character(0, index) for index in range(40)]
    with torch.no_grad():
        figures = retrieval_figures(model, vocabulary, crops)
        samples = retrieval_samples(model, vocabulary, crops)
    assert 0 <= figures["top1"] <= figures["top1_in_language"] <= 1
    assert figures["logit_scale"] == pytest.approx(14.3, abs=1e-3) and -1 <= figures["nearest_row_max"] <= 1
    assert [sample.truth for sample in samples] == [vocabulary.rows[crop.row].character for crop in crops[:32]]
