import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModel, AutoModelForTextRecognition, AutoProcessor, pipeline

from mstr_hf import SceneTextRecognitionPipeline

GREYS = [np.random.default_rng(width).integers(0, 256, (32, width), np.uint8) for width in (60, 130, 30)]


@pytest.fixture(scope="module")
def reader(tiny_checkpoint):
    return pipeline("scene-text-recognition", model=str(tiny_checkpoint), device="cpu")


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("words")
    for number, grey in enumerate(GREYS):
        Image.fromarray(grey).save(folder / f"{number}.png")
    return [str(folder / f"{number}.png") for number in range(len(GREYS))]


@pytest.fixture(scope="module")
def expected(tiny_checkpoint, paths):
    model, processor = AutoModel.from_pretrained(tiny_checkpoint), AutoProcessor.from_pretrained(tiny_checkpoint)
    return [model.recognise(**processor(images=path, return_tensors="pt"))[0] for path in paths]


def same(readings, expected):
    assert [reading["text"] for reading in readings] == [reading["text"] for reading in expected]
    scores = [reading["score"] for reading in readings]
    assert scores == pytest.approx([reading["score"] for reading in expected], rel=1e-3)


def test_readings_are_those_of_the_model(reader, paths, expected):
    assert type(reader) is SceneTextRecognitionPipeline
    assert reader(paths[0]).keys() == expected[0].keys()
    same([reader(path) for path in paths], expected)


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_batches_of_mixed_sizes(reader, paths, expected, batch_size):
    same(reader(paths, batch_size=batch_size), expected)
    same(list(reader((path for path in paths), batch_size=batch_size)), expected)


def test_kinds_of_images(reader, paths, expected):
    with open(paths[1], "rb") as file:
        kinds = [paths[0], file.read(), Image.open(paths[2]), GREYS[0], torch.tensor(GREYS[1])]
    same(reader(kinds, batch_size=4), [expected[index] for index in (0, 1, 2, 0, 1)])


def test_options(reader, tiny_checkpoint, paths):
    [reading] = reader([paths[1]], languages=["hi"], num_alternatives=2, gate_threshold=2.0)
    assert len(reading["alternatives"]) == 2
    assert all(ord(c) > 127 or not c.isalpha() for c in reading["text"])
    always = pipeline("scene-text-recognition", model=str(tiny_checkpoint), languages=["hi"], num_alternatives=2)
    assert always(paths[1], gate_threshold=2.0) == reading
    with pytest.raises(TypeError, match="has no option beams: its options are gate_threshold, languages, num_alter"):
        reader(paths[0], beams=3)
    with pytest.raises(ValueError, match="unknown language xx: this bank has en, hi"):
        reader(paths[0], languages=["xx"])


def test_what_cannot_be_read_is_named(reader, paths, tmp_path):
    (tmp_path / "word.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"word\.png: cannot be read \(not in an image format\)"):
        reader([paths[0], str(tmp_path / "word.png")], batch_size=2)


def test_saved_and_loaded(reader, paths, expected, tmp_path):
    reader.save_pretrained(tmp_path)
    same([pipeline("scene-text-recognition", model=str(tmp_path))(paths[0])], expected[:1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(tiny_checkpoint, paths, dtype):
    reader = pipeline("scene-text-recognition", model=str(tiny_checkpoint), dtype=dtype)
    assert reader.model.dtype == dtype
    assert len(reader(paths, batch_size=3, gate_threshold=2.0)) == len(paths)


def test_text_recogniser_of_transformers_habit(tiny_checkpoint, paths, expected):
    model = AutoModelForTextRecognition.from_pretrained(tiny_checkpoint)
    processor = AutoProcessor.from_pretrained(tiny_checkpoint)
    outputs = model(**processor(images=paths, return_tensors="pt"))
    results = processor.post_process_text_recognition(outputs)
    assert all(result.keys() == {"text", "score"} for result in results)
    same(results, expected)
    with pytest.raises(ValueError, match="call the Refiner with images alone"):
        processor.post_process_text_recognition(model.spotter(**processor(images=paths, return_tensors="pt")))


REMOTE = """
import json, sys
sys.modules["mstr_hf"] = None
from transformers import AutoModelForTextRecognition, AutoProcessor, pipeline
folder, *paths = sys.argv[1:]
for task in ("image-to-text", None):
    reader = pipeline(task, model=folder, trust_remote_code=True)
    readings = reader(paths, batch_size=2, languages=["hi", "en"], num_alternatives=1)
model = AutoModelForTextRecognition.from_pretrained(folder, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
texts = processor.post_process_text_recognition(model(**processor(images=paths, return_tensors="pt")))
print(json.dumps([readings, texts]))
"""


def test_checkpoint_alone_makes_a_pipeline(tiny_checkpoint, reader, paths, expected, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", REMOTE, str(tiny_checkpoint), *paths],
        cwd=tmp_path,
        env=os.environ | {"HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    readings, texts = json.loads(done.stdout)
    same(readings, reader(paths, batch_size=2, languages=["hi", "en"], num_alternatives=1))
    same(texts, expected)
