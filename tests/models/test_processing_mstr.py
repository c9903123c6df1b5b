import json
import os
import subprocess
import sys
import unicodedata
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoTokenizer

from mstr_hf.charsets import load_charsets
from mstr_hf.models.image_processing_mstr import MSTRImageProcessor
from mstr_hf.models.processing_mstr import IGNORED, MSTRProcessor
from mstr_hf.vocabulary import build_vocabulary

VOCABULARY = build_vocabulary(load_charsets(["en", "hi", "bn", "ta", "te", "ar"]))
PROCESSOR = MSTRProcessor(MSTRImageProcessor(), VOCABULARY.tokenizer())
IMAGE = np.arange(32 * 96, dtype=np.float32).reshape(32, 96) / 3072
TEXTS = ["Word", "\u00e9cole", "\u0939\u093f\u0928\u094d\u0926\u0940", "\u0643\u062a\u0627\u0628"]


def ids(labels):
    return [[index for index in row if index != IGNORED] for row in labels.tolist()]


def test_images_and_texts():
    inputs = PROCESSOR(images=[IMAGE] * 4, text=TEXTS, return_tensors="pt")
    assert list(inputs) == PROCESSOR.model_input_names == ["pixel_values", "pixel_mask", "labels"]
    assert inputs["pixel_values"].shape == (4, 1, 32, 96) and inputs["pixel_mask"].dtype == torch.bool
    assert inputs["labels"].dtype == torch.int64
    assert ids(inputs["labels"]) == [VOCABULARY.encode(VOCABULARY.validate(text)) for text in TEXTS]
    assert (inputs["labels"][0, 4:] == IGNORED).all() and inputs["labels"].shape == (4, 6)


def test_images_or_texts_alone():
    images = PROCESSOR(IMAGE)
    assert list(images) == ["pixel_values", "pixel_mask"] and isinstance(images["pixel_values"], np.ndarray)
    texts = PROCESSOR(text="Word")
    assert list(texts) == ["labels"] and texts["labels"].tolist() == [VOCABULARY.encode("Word")]


@given(st.text(alphabet=st.sampled_from([row.character for row in VOCABULARY.rows]), min_size=1, max_size=12))
def test_labels_decode_to_the_text_as_shown(text):
    label = ids(PROCESSOR(text=[text, "a"])["labels"])[0]
    assert PROCESSOR.decode(label) == unicodedata.normalize("NFC", text)
    assert PROCESSOR.batch_decode([label, []]) == [unicodedata.normalize("NFC", text), ""]


def test_decoding_can_skip_special_tokens():
    start, end = PROCESSOR.tokenizer.bos_token_id, PROCESSOR.tokenizer.eos_token_id
    sequence = torch.tensor([[start, *VOCABULARY.encode("e\u0301"), end]])
    assert PROCESSOR.batch_decode(sequence, skip_special_tokens=True) == ["\u00e9"]


def test_many_rows_decode_at_once():
    rows = [VOCABULARY.encode(text) for text in ("Word", "ab")]
    assert PROCESSOR.decode(rows) == PROCESSOR.batch_decode(rows) == ["Word", "ab"]


def test_ids_of_a_larger_bank_are_refused():
    size = len(PROCESSOR.tokenizer)
    outputs = SimpleNamespace(sequences=torch.tensor([[size]]), sequences_scores=torch.ones(1))
    with pytest.raises(ValueError, match="a larger bank needs a new tokenizer"):
        PROCESSOR.post_process_text_recognition(outputs)


def test_joiners_are_kept_where_the_alphabet_has_them():
    word = "\u0915\u094d\u200d\u0937"
    assert ids(PROCESSOR(text=word)["labels"])[0] == VOCABULARY.encode(word)
    english = MSTRProcessor(MSTRImageProcessor(), build_vocabulary(load_charsets(["en"])).tokenizer())
    assert english.decode(ids(english(text="a\u200db")["labels"])[0]) == "ab"


@pytest.mark.parametrize("text", ["<s>", "<unk>", "<lang=hi>"])
def test_text_that_looks_like_a_token_is_read_as_characters(text):
    assert ids(PROCESSOR(text=text)["labels"])[0] == VOCABULARY.encode(text)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "nothing to process"),
        ({"images": IMAGE, "text": ["a", "b"]}, "1 images but 2 texts"),
        ({"text": ["a", " \u200b"]}, "label ' \\\\u200b': no characters"),
        (
            {"text": ["a", "b\u6f22c\u5b57"]},
            r"label 'b\u6f22c\u5b57': no token for '\u6f22' \(U\+6F22\), '\u5b57'",
        ),
        ({"images": [IMAGE, b""]}, "image 2 of the batch: cannot be read"),
    ],
)
def test_wrong_inputs_are_named(inputs, message):
    with pytest.raises(ValueError, match=message):
        PROCESSOR(**inputs)


def test_unknown_keyword_is_refused():
    with pytest.raises(TypeError, match="texts"):
        PROCESSOR(images=IMAGE, texts="a")


def same(first, second):
    return list(first) == list(second) and all(np.array_equal(first[name], second[name]) for name in first)


def test_saved_and_loaded(tmp_path):
    processor = MSTRProcessor(MSTRImageProcessor(size={"height": 48, "width": 960}), PROCESSOR.tokenizer)
    processor.save_pretrained(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [
        "processor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    loaded = MSTRProcessor(
        MSTRImageProcessor.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    )
    assert loaded.to_dict() == processor.to_dict()
    assert same(loaded(images=[IMAGE] * 4, text=TEXTS), processor(images=[IMAGE] * 4, text=TEXTS))


def test_loads_as_remote_code_where_the_package_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(MSTRProcessor, "_auto_class", "AutoProcessor")
    monkeypatch.setattr(MSTRImageProcessor, "_auto_class", "AutoImageProcessor")
    folder = tmp_path / "model"
    PROCESSOR.save_pretrained(folder)
    assert "AutoTokenizer" not in json.loads((folder / "tokenizer_config.json").read_text()).get(
        "auto_map", {}
    )
    Image.fromarray(np.uint8(IMAGE * 255)).save(tmp_path / "word.png")
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\n"
        "sys.modules['mstr_hf'] = None\n"
        "import numpy as np\n"
        "from transformers import AutoProcessor\n"
        "processor = AutoProcessor.from_pretrained('model', trust_remote_code=True)\n"
        "inputs = processor(images=['word.png'], text=['\u00e9cole'])\n"
        "assert processor.batch_decode(inputs['labels']) == ['\u00e9cole']\n"
        "np.savez('inputs.npz', **inputs)\n",
        encoding="utf-8",
    )
    result = subprocess.run(
        [sys.executable, script],
        cwd=tmp_path,
        env={**os.environ, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    expected = PROCESSOR(images=[tmp_path / "word.png"], text=["\u00e9cole"])
    assert same(dict(np.load(tmp_path / "inputs.npz")), expected)
