"""Contact sheets of synthetic images, to see what training will see."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from mstr_hf.charsets import load_charsets
from mstr_hf.models.text import display
from mstr_hf.vocabulary import build_vocabulary

from .characters import CharacterSynthesiser
from .dataset import part_seed
from .fonts import Face, FontIndex, covers, discover_fonts, hb_font
from .rendering import DOTTED_CIRCLE, render_line
from .synthetic_words import WordSynthesiser
from .words import load_words

COLUMNS, ROWS = 8, 14
CELL_WIDTH, IMAGE_HEIGHT, CAPTION_HEIGHT = 200, 52, 34
CAPTION_SIZE = 15


class Sample(NamedTuple):
    """An image uint8 `[H, W]` or RGB `[H, W, 3]`, its label, and a remark in Latin letters, such as the family."""

    image: np.ndarray
    label: str
    remark: str


def preview(
    output: str | Path,
    languages: Sequence[str],
    characters: bool = False,
    fonts: Sequence[str | Path] = (),
    seed: int = 0,
) -> list[Path]:
    """Draws two contact sheets a language: one in the font families for training, one in held-out families.

    Args:
        output: Folder for the sheets, made if needed.
        languages: Language codes.
        characters: Draw single characters instead of words.
        fonts: Folders with fonts beside the system's.
        seed: Seed of the images.

    Returns:
        The files, such as `words-hi-train.png`.

    Raises:
        ValueError: If a language has no charset or no fonts.
        FileNotFoundError: If a font folder does not exist.
        WordsError: If a language has no word list.
    """
    index = discover_fonts(languages, fonts)
    Path(output).mkdir(parents=True, exist_ok=True)
    files = []
    for lang in languages:
        for split in ("train", "heldout"):
            own_seed = part_seed(seed, split, lang)
            drawn = (_characters if characters else _words)(index, lang, split, own_seed)
            path = Path(output) / f"{'characters' if characters else 'words'}-{lang}-{split}.png"
            contact_sheet([next(drawn) for _ in range(COLUMNS * ROWS)], index.faces(lang)).save(path)
            files.append(path)
    return files


def contact_sheet(samples: Sequence[Sample], faces: Sequence[Face]) -> Image.Image:
    """Lays images out in rows, with their labels beneath.

    Args:
        samples: What to show.
        faces: Faces to write the labels in; the first that has all of a label is taken.
    """
    cell_height = IMAGE_HEIGHT + CAPTION_HEIGHT
    rows = -(-len(samples) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * CELL_WIDTH, rows * cell_height), "white")
    canvas = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(10)
    plain = sorted(faces, key=lambda face: not face.family.startswith(("Noto Sans", "DejaVu Sans", "Lohit")))
    for number, sample in enumerate(samples):
        row, column = divmod(number, COLUMNS)
        x, y = column * CELL_WIDTH + 4, row * cell_height + 2
        image = Image.fromarray(sample.image).convert("RGB")
        sheet.paste(ImageOps.contain(image, (CELL_WIDTH - 8, IMAGE_HEIGHT - 4)), (x, y))
        caption = _caption(sample.label, plain)
        if caption:
            caption = caption.crop((0, 0, min(caption.width, CELL_WIDTH - 8), min(caption.height, 22)))
            sheet.paste("navy", (x, y + IMAGE_HEIGHT - 2), caption)
        canvas.text((x, y + IMAGE_HEIGHT + 20), sample.remark[:34], "gray", font)
    return sheet


def _caption(label: str, faces: Sequence[Face]) -> Image.Image | None:
    """The label as a mask, in the first face that has it; None where none has."""
    for text in (display(label), DOTTED_CIRCLE + label):
        face = next((face for face in faces if covers(face, text)), None)
        if face:
            try:
                return Image.fromarray(render_line(hb_font(face), text, CAPTION_SIZE).mask)
            except ValueError:  # joiners have no ink
                return None
    return None


def _words(fonts: FontIndex, lang: str, split: str, seed: int) -> Iterator[Sample]:
    joiners = build_vocabulary(load_charsets([lang])).joiners
    words = WordSynthesiser(fonts, {lang: load_words(lang)}, split=split, joiners=joiners)
    for word in words.stream(seed):
        yield Sample(word.image, word.text, word.family)


def _characters(fonts: FontIndex, lang: str, split: str, seed: int) -> Iterator[Sample]:
    charsets = load_charsets([lang])
    rows = build_vocabulary(charsets).rows
    characters = CharacterSynthesiser(fonts, rows, {lang: charsets[0].letters}, split)
    for index in itertools.count():
        crop = characters.character(seed, index)
        row = rows[crop.row]
        yield Sample(crop.image, row.character, f"U+{ord(row.character):04X} type {row.subtype}")
