import importlib.metadata
import shutil
import sys

import pytest
from PIL import Image, ImageDraw, ImageFont

from mstr_hf.evaluation.peers import RapidOCR, Tesseract, load_peers


@pytest.fixture
def image(tmp_path):
    picture = Image.new("RGB", (220, 70), "white")
    ImageDraw.Draw(picture).text((20, 10), "Harbour", "black", ImageFont.load_default(40))
    picture.save(tmp_path / "word.png")
    return tmp_path / "word.png"


@pytest.mark.skipif(not shutil.which("tesseract"), reason="missing: tesseract")
def test_tesseract_reads(image):
    peer = Tesseract()
    readings = [peer.read([image, image], "en", variant) for variant in peer.variants]
    assert ["Harbour", "Harbour"] in readings and {len(texts) for texts in readings} == {2}
    assert {"en", "hi", "ar"} <= peer.languages and peer.version[0].isdigit()


@pytest.mark.skipif(not shutil.which("tesseract"), reason="missing: tesseract")
def test_tesseract_names_the_image_that_it_fails_on(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(RuntimeError, match=r"broken\.png: tesseract failed \(.*\); try `tesseract .*broken\.png"):
        Tesseract().read([tmp_path / "broken.png"], "en", "8")


@pytest.mark.skipif(not shutil.which("tesseract"), reason="missing: tesseract")
def test_tesseract_reads_formats_that_only_pillow_knows(image):
    picture = Image.open(image)
    picture.save(image.with_suffix(".tga"))
    assert any(Tesseract().read([image.with_suffix(".tga")], "en", variant) == ["Harbour"] for variant in "78")


def test_peers_lie_in_the_folder_that_the_program_is_called_from(tmp_path, monkeypatch):
    (tmp_path / "readers_here.py").write_text("class Mine:\n    name = 'Mine'\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    assert [peer.name for peer in load_peers(["readers_here:Mine"])[0]] == ["Mine"]


def test_rapidocr_reads(image):
    for package in ("rapidocr", "onnxruntime"):
        pytest.importorskip(package, reason=f"missing: {package}")
    peer = RapidOCR()
    assert peer.read([image, image], "en", "recogniser") == ["Harbour", "Harbour"]
    assert peer.version == importlib.metadata.version("rapidocr")


def test_missing_peers_are_skipped_by_name(monkeypatch, fake_peer):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setitem(sys.modules, "rapidocr", None)
    peers, missing = load_peers(["tesseract", "rapidocr", "my_readers:Fake", "my_readers:Fake"])
    assert [peer.name for peer in peers] == ["Fake"]
    assert missing[0] == "tesseract skipped: no program tesseract; install tesseract-ocr and its languages"
    assert missing[1].startswith("rapidocr skipped: no package ") and "mstr_hf[detect]" in missing[1]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("easyocr", "no peer 'easyocr'; use tesseract, rapidocr or MODULE:CLASS"),
        ("no_such_module:Reader", "no peer 'no_such_module:Reader': No module named"),
        ("my_readers:Other", "no peer 'my_readers:Other': .*no attribute 'Other'"),
    ],
)
def test_unknown_peers_are_refused(fake_peer, name, message):
    with pytest.raises(ValueError, match=message):
        load_peers([name])
