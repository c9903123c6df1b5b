"""Guards the bundled checkpoint and samples: scripts/build_checkpoint.py and scripts/make_samples.py write them."""

import hashlib
import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoModel, AutoProcessor

import mstr_hf
from mstr_hf.data.manifest import read_manifest
from mstr_hf.hub.cache import CHECKPOINT, MCLIP
from mstr_hf.synthesis.characters import CharacterSynthesiser
from mstr_hf.synthesis.fonts import discover_fonts
from mstr_hf.training.bank_rows import check_space
from mstr_hf.training.mclip import retrieve, vocabulary_of

LANGUAGES = ["en", "hi", "bn", "ta", "te", "ar"]
RECORDS = read_manifest(CHECKPOINT.parent / "samples" / "labels.jsonl")
GOLDEN = Path(__file__).parent / "golden" / "refiner-6lang.json"
SOURCES = Path(mstr_hf.__file__).parent / "models"


@pytest.fixture(scope="module")
def model():
    return AutoModel.from_pretrained(CHECKPOINT).eval()


@pytest.fixture(scope="module")
def inputs():
    processor = AutoProcessor.from_pretrained(CHECKPOINT)
    return processor(images=[record.path for record in RECORDS], return_tensors="pt")


def test_readings_of_the_samples_stay_as_they_are(model, inputs):
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    assert list(golden) == [record.path.name for record in RECORDS]
    for expected, reading in zip(golden.values(), model.recognise(**inputs), strict=True):
        assert reading["text"] == expected["text"]
        assert reading["score"] == pytest.approx(expected["score"], abs=1e-3)


def test_bfloat16_reads_the_same(inputs):
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    model = AutoModel.from_pretrained(CHECKPOINT, dtype=torch.bfloat16).eval()
    assert [reading["text"] for reading in model.recognise(**inputs)] == [word["text"] for word in golden.values()]


def test_checkpoint_knows_the_charsets(model):
    vocabulary = mstr_hf.build_vocabulary(mstr_hf.load_charsets(LANGUAGES))
    bank = mstr_hf.PrototypeBank.from_pretrained(CHECKPOINT)
    assert bank.charset_digest == vocabulary.digest and bank.joiners == vocabulary.joiners
    assert bank.digest() == model.get_bank().digest()
    # The bank beside the weights goes in, so that an extension of it does too.
    assert bank.digest(model.config.spotter_config.num_base_prototypes) == model.config.spotter_config.base_digest
    model.set_bank(bank)
    tokenizer = mstr_hf.MSTRTokenizer.from_pretrained(CHECKPOINT)
    assert tokenizer.get_vocab() == vocabulary.tokenizer().get_vocab()


def test_code_beside_the_weights_is_that_of_the_package():
    copies = sorted([*CHECKPOINT.glob("*.py"), *MCLIP.glob("*.py")])
    assert {"modeling_refiner.py", "modeling_mclip.py", "handler.py"} <= {copy.name for copy in copies}
    for copy in copies:
        source = SOURCES.parent / "hub" if copy.name == "handler.py" else SOURCES
        assert copy.read_bytes() == (source / copy.name).read_bytes(), f"{copy.name}: build the checkpoint again"


@pytest.mark.parametrize(
    ("folder", "headings"),
    [
        (CHECKPOINT, ("## Use", "## Results", "### Fonts", "### Words", "## Limits", "## Citation")),
        (MCLIP, ("## Use", "## Results", "### Fonts", "## Limits", "## Citation")),
    ],
)
def test_card_names_what_it_must(folder, headings):
    card = ModelCard.load(folder / "README.md")
    assert (card.data.license, card.data.language) == ("apache-2.0", LANGUAGES)
    for heading in headings:
        assert heading in card.text
    assert "{{" not in card.text


def test_mclip_knows_characters_and_the_space_of_the_bank():
    model = AutoModel.from_pretrained(MCLIP).eval()
    vocabulary = vocabulary_of(str(MCLIP))
    assert list(vocabulary.languages) == LANGUAGES
    with torch.no_grad():
        check_space(model, vocabulary, mstr_hf.PrototypeBank.from_pretrained(CHECKPOINT))
        letters = {charset.lang: charset.letters for charset in mstr_hf.load_charsets(LANGUAGES)}
        fonts = discover_fonts(LANGUAGES)
        characters = CharacterSynthesiser(fonts, vocabulary.rows, letters, split="heldout", severity=0.0)
        figures = retrieve(model, vocabulary, [characters.character(3, index) for index in range(300)]).figures()
    assert figures["top1_letters_in_language"] > 0.85 and figures["top1_diacritics_in_language"] > 0.7


def test_samples_are_four_words_a_language():
    vocabulary = mstr_hf.build_vocabulary(mstr_hf.load_charsets(LANGUAGES))
    assert Counter(record.lang for record in RECORDS) == dict.fromkeys(LANGUAGES, 4)
    for record in RECORDS:
        content = record.path.read_bytes()
        assert record.id == hashlib.sha1(content).hexdigest() and len(content) < 12_000
        assert mstr_hf.display(vocabulary.validate(record.text)) == record.text
