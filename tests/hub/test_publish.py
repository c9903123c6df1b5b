import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoProcessor

import mstr_hf
from mstr_hf.hub import publish
from mstr_hf.hub.cache import CHECKPOINT, repository_files
from mstr_hf.hub.publish import PublishError, assemble, check_push
from mstr_hf.models import modeling_refiner
from mstr_hf.models.prototype_bank import BankError

CODE = [
    "beam_search",
    "configuration_base",
    "configuration_refiner",
    "configuration_spotter",
    "image_processing_mstr",
    "language_model",
    "layers",
    "modeling_refiner",
    "modeling_spotter",
    "pipeline_mstr",
    "processing_mstr",
    "prototype_bank",
    "text",
    "views",
]
SAMPLES = sorted(f"samples/{path.name}" for path in (CHECKPOINT.parent / "samples").iterdir())
FILES = [
    "LICENSE",
    "README.md",
    "config.json",
    "generation_config.json",
    "handler.py",
    "model.safetensors",
    "processor_config.json",
    "prototype_bank.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    *(f"{module}.py" for module in CODE),
    *SAMPLES,
]
IMAGES = [np.random.default_rng(width).integers(0, 256, (32, width), np.uint8) for width in (60, 130)]

# Loads and reads with names of transformers alone.
SCRIPT = """
import json, sys
import numpy as np
sys.modules["mstr_hf"] = None
from transformers import AutoConfig, AutoModel, AutoProcessor, AutoTokenizer
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from transformers.utils import logging
logging.disable_progress_bar()
load = {"pretrained_model_name_or_path": "model", "trust_remote_code": True}
model = AutoModel.from_pretrained(**load).eval()
processor = AutoProcessor.from_pretrained(**load)
images = [np.random.default_rng(width).integers(0, 256, (32, width), np.uint8) for width in (60, 130)]
inputs = processor(images=images, text=["a", "b"], return_tensors="pt")
labels = inputs.pop("labels")
assert processor.batch_decode(model.generate(**inputs), skip_special_tokens=True)
assert AutoConfig.from_pretrained(**load).architectures == ["RefinerModel"]
assert AutoImageProcessor.from_pretrained(**load).to_dict() == processor.image_processor.to_dict()
assert AutoTokenizer.from_pretrained(**load)("a")["input_ids"] == labels[0].tolist()
print(json.dumps([model.recognise(**inputs, gate_threshold=gate) for gate in (0.0, 2.0)]))
"""


@pytest.fixture
def folder(tiny_refiner, tmp_path):
    assemble(tiny_refiner, tmp_path / "model")
    return tmp_path / "model"


def read(model, processor) -> list:
    inputs = processor(images=IMAGES, return_tensors="pt")
    return [model.recognise(**inputs, gate_threshold=gate) for gate in (0.0, 2.0)]


def test_folder_is_complete(folder):
    assert sorted(repository_files(folder)) == sorted(FILES)
    models = Path(modeling_refiner.__file__).parent
    for module in CODE:
        assert (folder / f"{module}.py").read_bytes() == (models / f"{module}.py").read_bytes()


def test_auto_classes_load_it_where_the_package_is(folder, tiny_refiner):
    model = AutoModel.from_pretrained(folder).eval()
    processor = AutoProcessor.from_pretrained(folder)
    assert type(model) is mstr_hf.RefinerModel and type(processor) is mstr_hf.MSTRProcessor
    assert type(processor.tokenizer) is mstr_hf.MSTRTokenizer
    for name, tensor in tiny_refiner.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    assert read(model, processor) == read(tiny_refiner, processor)
    bank = mstr_hf.PrototypeBank.from_pretrained(folder)
    model.set_bank(bank)
    assert bank.digest() == tiny_refiner.get_bank().digest()


def test_auto_classes_load_it_without_the_package_and_without_warnings(folder, tiny_refiner, tmp_path):
    # As many threads as here: sums in another order end in other digits.
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        cwd=tmp_path,
        env=os.environ | threads | {"HF_HOME": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert json.loads(done.stdout) == read(tiny_refiner, AutoProcessor.from_pretrained(folder))


def test_calibration_is_kept_and_is_no_sampling_temperature(folder):
    config = AutoConfig.from_pretrained(folder)
    assert (config.score_temperature, config.spotter_config.score_temperature) == (1.7, 1.3)
    generation = json.loads((folder / "generation_config.json").read_text())
    assert "temperature" not in generation
    expected = {"decoder_start_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "max_new_tokens": 65}
    assert generation.items() >= expected.items()


def test_tokens_are_those_of_the_charsets(folder):
    vocabulary = mstr_hf.build_vocabulary(mstr_hf.load_charsets(["en", "hi"]))
    tokenizer = mstr_hf.MSTRTokenizer.from_pretrained(folder)
    assert tokenizer.get_vocab() == vocabulary.tokenizer().get_vocab()


def test_images_are_as_high_as_the_model_wants(tiny_refiner, tmp_path):
    tiny_refiner.config.spotter_config.image_height = 48
    assemble(tiny_refiner, tmp_path)
    size = mstr_hf.MSTRImageProcessor.from_pretrained(tmp_path).size
    assert size == {"height": 48, "width": 960}


def test_model_without_a_bank_is_refused(tmp_path):
    with pytest.raises(BankError, match="set_bank"):
        assemble(mstr_hf.RefinerModel(mstr_hf.RefinerConfig()), tmp_path)
    assert not list(tmp_path.iterdir())


def test_mclip_without_its_characters_is_refused(tmp_path):
    with pytest.raises(ValueError, match="give its vocabulary"):
        assemble(mstr_hf.MCLIPModel(mstr_hf.MCLIPConfig()), tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_would_keep_a_push_from_the_start_is_found_without_a_network(monkeypatch):
    monkeypatch.setattr(publish, "get_token", lambda: None)
    with pytest.raises(PublishError, match="HF_HUB_OFFLINE is set: unset it to publish"):
        check_push("me/mine")
    monkeypatch.setattr(publish, "is_offline_mode", lambda: False)
    with pytest.raises(PublishError, match="wants a token: make one that may write"):
        check_push("me/mine")
    monkeypatch.setattr(publish, "get_token", lambda: "hf_token")
    check_push("me/mine")
    with pytest.raises(PublishError, match="runs/me/mine"):
        check_push("runs/me/mine")
