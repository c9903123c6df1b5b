import runpy
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageColor

from mstr_hf.data.manifest import Record
from mstr_hf.synthesis.fonts import Face

SHEET = runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "make_sample_sheet.py"))
FONT = Path("/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf")

pytestmark = pytest.mark.skipif(not FONT.is_file(), reason="missing: fonts-dejavu-core")


@pytest.fixture
def records(tmp_path):
    Image.new("RGB", (200, 50), "green").save(tmp_path / "word.png")
    return [
        Record(str(n), tmp_path / "word.png", text, "en", "test")
        for n, text in enumerate(["caf\u00e9", "word"])
    ]


def _draw(records, *texts):
    face = Face(str(FONT), 0, "DejaVu Sans", "Book", {}, "", "dejavu")
    readings = [{"text": text, "script": "Latn", "score": 0.5} for text in texts]
    sheet = np.asarray(SHEET["draw_sheet"](records, readings, [face]))
    return sheet[:, : SHEET["CELL_WIDTH"]], sheet[:, SHEET["CELL_WIDTH"] : 2 * SHEET["CELL_WIDTH"]]


def _has(cell, colour):
    return (cell == ImageColor.getrgb(colour)).all(-1).any()


def test_wrong_readings_are_red(records):
    right, wrong = _draw(records, "cafe\u0301", "ward")
    for cell in (right, wrong):
        assert _has(cell, "green") and _has(cell, SHEET["GREY"])
    assert _has(right, SHEET["BLACK"]) and not _has(right, SHEET["RED"])
    assert _has(wrong, SHEET["RED"]) and not _has(wrong, SHEET["BLACK"])


def test_text_that_no_font_draws_is_an_error(records):
    with pytest.raises(ValueError, match="no installed font draws 'क'"):
        _draw(records, "caf\u00e9", "क")
