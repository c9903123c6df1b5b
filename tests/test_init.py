import json
import subprocess
import sys

import pytest
from transformers import AutoConfig, AutoModel, AutoTokenizer

import mstr_hf


@pytest.mark.parametrize(
    ("model_type", "config", "model"),
    [
        ("mclip", mstr_hf.MCLIPConfig, mstr_hf.MCLIPModel),
        ("mstr_spotter", mstr_hf.SpotterConfig, mstr_hf.SpotterModel),
        ("mstr_refiner", mstr_hf.RefinerConfig, mstr_hf.RefinerModel),
    ],
)
def test_auto_classes_know_the_models(tmp_path, model_type, config, model):
    assert type(AutoConfig.for_model(model_type)) is config
    AutoModel.from_config(config()).save_pretrained(tmp_path)
    assert type(AutoModel.from_pretrained(tmp_path)) is model
    mstr_hf.build_vocabulary(mstr_hf.load_charsets(["en"])).tokenizer().save_pretrained(tmp_path)
    assert type(AutoTokenizer.from_pretrained(tmp_path)) is mstr_hf.MSTRTokenizer


def test_every_public_name_is_there():
    for name in mstr_hf.__all__:
        assert getattr(mstr_hf, name).__module__.startswith("mstr_hf.")


def test_import_leaves_the_garbage_collector_as_it_was():
    code = "import gc; gc.{}(); import mstr_hf; print(gc.isenabled())"
    for state, enabled in (("enable", "True"), ("disable", "False")):
        done = subprocess.run([sys.executable, "-c", code.format(state)], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == enabled


def test_import_loads_neither_training_nor_what_the_extras_install():
    code = "import json, sys, mstr_hf; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(json.loads(done.stdout))
    assert not loaded & {"cv2", "uharfbuzz", "fontTools", "wordfreq", "lmdb"}
    package = {name.split(".")[1] for name in loaded if name.startswith("mstr_hf.")}
    assert package == {"charsets", "models", "vocabulary"}
