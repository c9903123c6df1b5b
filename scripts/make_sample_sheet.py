"""Draws the bundled samples with the bundled checkpoint's readings: the picture in README.md.

    python scripts/make_sample_sheet.py model_cards/samples.png

A wrong reading is red, with what stands on the image under it.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from transformers import AutoModel, AutoProcessor

import mstr_hf  # noqa: F401  (registers the Auto classes)
from mstr_hf.data.manifest import Record, read_manifest
from mstr_hf.hub.cache import CHECKPOINT
from mstr_hf.models.text import display, normalise
from mstr_hf.synthesis.fonts import Face, covers, discover_fonts, hb_font
from mstr_hf.synthesis.rendering import render_line

MANIFEST = CHECKPOINT.parent / "samples" / "labels.jsonl"

COLUMNS = 4
CELL_WIDTH, CELL_HEIGHT = 300, 140
PICTURE_WIDTH, PICTURE_HEIGHT = 280, 56
TEXT_SIZE, NOTE_SIZE = 26, 15
BLACK, RED, GREY = "#1a1a1a", "#c0281c", "#6b6b6b"

JOINERS = "\u200c\u200d"


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", type=Path, help="picture to write")
    output = parser.parse_args().output

    records = read_manifest(MANIFEST)
    model = AutoModel.from_pretrained(CHECKPOINT).eval()
    processor = AutoProcessor.from_pretrained(CHECKPOINT)
    inputs = processor(images=[record.path for record in records], return_tensors="pt")
    index = discover_fonts(sorted({record.lang for record in records} | {"en"}))
    faces = [face for lang_faces in index.by_language.values() for face in lang_faces]
    draw_sheet(records, model.recognise(**inputs), faces).save(output, optimize=True)


def draw_sheet(
    records: Sequence[Record], readings: Sequence[dict[str, Any]], faces: Sequence[Face]
) -> Image.Image:
    """Draws samples in a grid, each with its reading, script and confidence under it.

    Args:
        records: The samples.
        readings: A reading of each, as `RefinerModel.recognise` gives them.
        faces: Faces for the text; plain ones are preferred.

    Raises:
        ValueError: If no face has the characters of a text.
    """
    faces = sorted(faces, key=lambda face: (not face.family.startswith("Noto Sans"), face.style != "Regular"))
    rows = -(-len(records) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * CELL_WIDTH, rows * CELL_HEIGHT), "white")
    for place, (record, reading) in enumerate(zip(records, readings, strict=True)):
        left = place % COLUMNS * CELL_WIDTH + (CELL_WIDTH - PICTURE_WIDTH) // 2
        top = place // COLUMNS * CELL_HEIGHT + 8
        with Image.open(record.path) as picture:
            scale = min(PICTURE_HEIGHT / picture.height, PICTURE_WIDTH / picture.width)
            sheet.paste(
                picture.resize((round(picture.width * scale), round(picture.height * scale))), (left, top)
            )
        right = normalise(reading["text"], JOINERS) == normalise(record.text, JOINERS)
        note = f"{reading['script']} {reading['score']:.2f}"
        _write(sheet, faces, reading["text"], (left, top + 86), TEXT_SIZE, BLACK if right else RED)
        column = _write(sheet, faces, note, (left, top + 118), NOTE_SIZE, GREY)
        if not right:
            _write(sheet, faces, display(record.text), (column + 16, top + 118), NOTE_SIZE, GREY)
    return sheet


def _write(
    sheet: Image.Image, faces: Sequence[Face], text: str, start: tuple[int, int], size: int, colour: str
) -> int:
    """Writes text from a point on its baseline in the first face that has it; returns the end's column."""
    face = next((face for face in faces if covers(face, text)), None)
    if face is None:
        raise ValueError(f"no installed font draws {text!r}: install a Noto Sans font of its script")
    ink = render_line(hb_font(face), text, size)
    column, baseline = start
    sheet.paste(colour, (column, baseline - round(ink.baseline)), Image.fromarray(ink.mask))
    return column + ink.mask.shape[1]


if __name__ == "__main__":
    main()
