import hashlib
import importlib.util
import random
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from mstr_hf.charsets import load_charset
from mstr_hf.data.manifest import read_manifest
from mstr_hf.synthesis.fonts import Face, FontIndex

SCRIPT = Path(__file__).parents[2] / "scripts" / "make_samples.py"
FONT = Path("/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf")

pytestmark = pytest.mark.skipif(not FONT.is_file(), reason="missing: fonts-dejavu-core")


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_samples", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    face = Face(str(FONT), 0, "DejaVu Sans", "Book", {}, "", "heldout group")
    index = FontIndex({"en": [face]}, {"en": frozenset({"heldout group"})}, {})
    monkeypatch.setattr(module, "discover_fonts", lambda languages, folders: index)
    words = SimpleNamespace(sample=lambda rng: "beside", charset=load_charset("en"))
    monkeypatch.setattr(module, "load_words", lambda lang: words)
    return module


def run(script: ModuleType, samples: list, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script, "SAMPLES", {"en": samples})
    monkeypatch.setattr("sys.argv", ["make_samples.py", str(folder)])
    script.main()


def test_pictures_and_manifest(script, tmp_path, monkeypatch):
    samples = [("Cafe\u0301", 1), ("24/7", 1), ("24/7", 2)]
    run(script, samples, tmp_path / "new" / "folder", monkeypatch)
    records = read_manifest(tmp_path / "new" / "folder" / "labels.jsonl")
    assert [(record.path.name, record.text) for record in records] == [
        ("en_1.jpg", "Caf\u00e9"),
        ("en_2.jpg", "24/7"),
        ("en_3.jpg", "24/7"),
    ]
    for record in records:
        content = record.path.read_bytes()
        assert record.id == hashlib.sha1(content).hexdigest()
        with Image.open(record.path) as image:
            assert image.mode == "RGB"

    run(script, samples, tmp_path / "again", monkeypatch)
    again = read_manifest(tmp_path / "again" / "labels.jsonl")
    assert [record.id for record in again] == [record.id for record in records]


def test_text_that_no_face_draws_is_an_error(script, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="no face draws 'क'"):
        run(script, [("क", 1)], tmp_path, monkeypatch)


def test_tint_leaves_the_brightness(script):
    grey = np.tile(np.arange(256, dtype=np.uint8), (4, 1))
    for seed in range(20):
        coloured = script.tint(grey, random.Random(seed))
        assert coloured.shape == (4, 256, 3)
        assert np.ptp(coloured[:, 60:200], axis=-1).max() > 5
        brightness = np.asarray(Image.fromarray(coloured).convert("L"), int)
        # Where a channel is full, some is lost.
        assert abs(brightness - grey).max() <= 12 and abs(brightness - grey).mean() < 2
