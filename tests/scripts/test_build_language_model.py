"""Gives a real, tiny Refiner a language model of real word lists."""

import runpy
import sys
from pathlib import Path

import pytest
import torch

from mstr_hf import RefinerModel
from mstr_hf.models.language_model import character_classes
from mstr_hf.synthesis.words import WordsError, load_words

SCRIPT = Path(__file__).parents[2] / "scripts" / "build_language_model.py"


@pytest.fixture(scope="module")
def reader(tiny_checkpoint, tmp_path_factory) -> Path:
    try:
        for lang in RefinerModel.from_pretrained(tiny_checkpoint).get_bank().all_languages:
            load_words(lang)
    except WordsError as error:
        pytest.skip(f"missing: {error}")
    folder = tmp_path_factory.mktemp("language") / "reader"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["x", "--refiner", str(tiny_checkpoint), "--output", str(folder), "--beams", "3"])
        runpy.run_path(str(SCRIPT), run_name="__main__")
    return folder


def log_prob(model: RefinerModel, word: str) -> float:
    """Of the word and its end."""
    bank = model.get_bank()
    classes = torch.tensor(character_classes(bank.characters, bank.subtypes, bank.joiners))
    contexts, total = model.language_model.contexts(1), 0.0
    for index in [*(1 + bank.row(character) for character in word), 0]:
        total += model.language_model(contexts, classes[[index]][None]).item()
        contexts = model.language_model.append(contexts, classes[[index]])
    return total


def test_words_are_likelier_than_what_is_none(reader):
    model = RefinerModel.from_pretrained(reader)
    assert model.config.beam_width == 3
    assert model.language_model.keys.any() and len(model.language_model.keys) > 100_000
    for word, other in (("hospital", "hospltal"), ("STREET", "STREEI"), ("अस्पताल", "अस्पतान")):
        assert log_prob(model, word) > log_prob(model, other) + 3


def test_the_rest_of_the_model_is_as_it_was(reader, tiny_checkpoint):
    before, after = (RefinerModel.from_pretrained(folder) for folder in (tiny_checkpoint, reader))
    for name, tensor in before.state_dict().items():
        assert torch.equal(tensor, after.state_dict()[name])
    assert after.num_parameters() == before.num_parameters()
    assert (reader / "README.md").exists() and (reader / "language_model.py").exists()


def test_it_is_read_with(reader, tmp_path):
    model = RefinerModel.from_pretrained(reader).eval()
    images = {"pixel_values": torch.randn(3, 1, 32, 64, generator=torch.Generator().manual_seed(1))}
    read = model.recognise(**images, gate_threshold=2.0, num_alternatives=2)
    for reading in read:
        scores = [reading["score"], *(other["score"] for other in reading["alternatives"])]
        assert scores == sorted(scores, reverse=True) and 0 <= scores[0] <= 1
    model.save_pretrained(tmp_path)
    assert (
        RefinerModel.from_pretrained(tmp_path).eval().recognise(**images, gate_threshold=2.0, num_alternatives=2)
        == read
    )
    model.config.language_weight = 0.0
    assert [reading["text"] for reading in model.recognise(**images, gate_threshold=2.0)]
    half = RefinerModel.from_pretrained(reader, dtype=torch.bfloat16).eval()
    assert torch.equal(half.language_model.log_probs, model.language_model.log_probs)
    assert len(half.recognise(images["pixel_values"].bfloat16(), gate_threshold=2.0)) == 3
