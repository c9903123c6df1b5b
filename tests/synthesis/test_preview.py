from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mstr_hf.synthesis import preview
from mstr_hf.synthesis.preview import CELL_WIDTH, COLUMNS, Sample, contact_sheet
from mstr_hf.synthesis.words import WordsError, load_words


def test_sheet_shows_images_with_their_labels(fonts):
    image = np.full((20, 60), 90, np.uint8)
    labels = ["क्षत्रिय", "ि", "\u200d"]
    sheet = contact_sheet([Sample(image, label, "") for label in labels] * 3, fonts.faces("hi"))
    assert sheet.size == (COLUMNS * CELL_WIDTH, 2 * (preview.IMAGE_HEIGHT + preview.CAPTION_HEIGHT))
    pixels = np.asarray(sheet)
    for number in range(3):
        cell = pixels[: sheet.height // 2, number * CELL_WIDTH : (number + 1) * CELL_WIDTH].astype(int)
        assert (cell == 90).all(-1).any()
        blue = (cell[preview.IMAGE_HEIGHT - 2 :, :, 2] - cell[preview.IMAGE_HEIGHT - 2 :, :, 0] > 60).sum()
        # a joiner has no ink to write
        assert (blue > 20) == (labels[number] != "\u200d")


@pytest.mark.parametrize("characters", [False, True])
def test_a_sheet_a_language_and_split(fonts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, characters: bool):
    try:
        load_words("en")
    except WordsError as error:
        pytest.skip(f"missing: {error}")
    monkeypatch.setattr(preview, "discover_fonts", lambda languages, folders: fonts)
    monkeypatch.setattr(preview, "ROWS", 2)
    files = preview.preview(tmp_path / "sheets", ["en"], characters)
    kind = "characters" if characters else "words"
    assert [path.name for path in files] == [f"{kind}-en-train.png", f"{kind}-en-heldout.png"]
    first, second = (np.asarray(Image.open(path)) for path in files)
    assert first.shape == second.shape and not np.array_equal(first, second)
