"""What a model looks at, character by character: attention on the image, and the best hypotheses with their scores."""

import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch.nn import functional as F

from mstr_hf.models.image_processing_mstr import load_image
from mstr_hf.models.modeling_refiner import MEMORY_COLUMN, RefinerModel
from mstr_hf.models.modeling_spotter import TOKEN_OFFSET
from mstr_hf.models.processing_mstr import MSTRProcessor
from mstr_hf.synthesis.fonts import Face, covers, discover_fonts, hb_font
from mstr_hf.synthesis.rendering import DOTTED_CIRCLE, render_line

MARGIN, GAP = 24, 16
PICTURE_HEIGHT, MIN_WIDTH, MAX_WIDTH = 72, 120, 420
LINE = 30
BLACK, GREY, BAR = "#1c2024", "#667079", "#c9d9f2"
HEAT = np.array([255, 72, 0], np.float32)

JOINER_NAMES = {"\u200c": "ZWNJ", "\u200d": "ZWJ"}

_ALWAYS = 2.0  # a gate that every word is below


def explain(model: RefinerModel, processor: MSTRProcessor, image: Path, top_k: int = 5) -> Image.Image:
    """Draws the Refiner's reading of an image: for each character where it looks, and its best hypotheses.

    The Refiner reads whatever the Spotter's confidence is, with beams if hypotheses are asked for.

    Args:
        model: The model.
        processor: Its processor.
        image: An image file.
        top_k: Hypotheses of each character.

    Returns:
        The picture, RGB: the image with its reading, then a panel for each character, in logical order.

    Raises:
        ValueError: If the image cannot be read, or no installed font draws a character.
    """
    original = load_image(image)
    inputs = processor(images=[original], return_tensors="pt").to(model.device)
    reading = model.recognise(**inputs, num_alternatives=top_k - 1, gate_threshold=_ALWAYS, num_views=1)[0]
    characters = reading["characters"]
    bank = model.get_bank()
    ids = [bank.row(character["char"]) + TOKEN_OFFSET for character in characters]
    maps = attention_maps(model, inputs["pixel_values"], inputs["pixel_mask"], ids).numpy()
    shown = [one["char"] for character in characters for one in (character, *character["alternatives"])]
    used = {lang for character in shown for lang in bank.languages[bank.row(character)]}
    return _draw(original, reading, maps, _Pen(sorted(used)), top_k)


def attention_maps(
    model: RefinerModel, pixel_values: torch.Tensor, pixel_mask: torch.Tensor, ids: Sequence[int]
) -> torch.Tensor:
    """Where on the image the Refiner's decoder looks as it reads a word.

    Args:
        model: The model.
        pixel_values: One image, `[1, 1, H, W]`.
        pixel_mask: `[1, W]`.
        ids: Token ids of the reading.

    Returns:
        float32 `[len(ids), H/8, width/8]`, where width is that of the image without padding: attention on
        each cell, averaged over layers and heads. A map adds up to the share that is spent on the image; what is
        missing to 1 is spent on the Spotter's hypotheses.
    """
    spotter = model.config.spotter_config
    seen = int(pixel_mask.sum()) // MEMORY_COLUMN
    if not ids:
        return torch.zeros(0, spotter.image_height // 8, seen)
    with _cross_attentions(model) as weights, torch.no_grad():
        model(pixel_values, pixel_mask, labels=torch.tensor([list(ids)], device=pixel_values.device), use_cache=False)
    attention = torch.stack(weights).float().cpu().mean((0, 2))[0, : len(ids), spotter.max_length :]
    # The visual memory: the last level, then the one at H/8, row by row.
    rows, height, width = spotter.num_rows, spotter.image_height // 8, pixel_values.shape[-1] // MEMORY_COLUMN
    coarse, fine = attention.split([rows * width, height * width], -1)
    # Each cell of the last level covers several of the finer one.
    coarse = F.interpolate(coarse.reshape(-1, 1, rows, width), (height, width), mode="nearest")[:, 0] * rows / height
    return (coarse + fine.reshape(-1, height, width))[..., :seen]


@contextmanager
def _cross_attentions(model: RefinerModel) -> Iterator[list[torch.Tensor]]:
    """Collects the decoder's cross attention `[B, heads, T, S]` of each layer; only eager attention has any."""
    found: list[torch.Tensor] = []
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    hooks = [
        layer.get_submodule("cross_attn").register_forward_hook(lambda module, inputs, output: found.append(output[1]))
        for layer in model.layers
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
        model.set_attn_implementation(before)


class _Pen:
    """Writes text of any script: HarfBuzz shapes what is not ASCII, in faces of the system."""

    def __init__(self, languages: Sequence[str]):
        index = discover_fonts(languages)
        faces = {face.path: face for lang_faces in index.by_language.values() for face in lang_faces}
        self._faces: list[Face] = sorted(
            faces.values(), key=lambda face: (not face.family.startswith("Noto Sans"), face.style != "Regular")
        )

    def write(self, sheet: Image.Image, text: str, start: tuple[int, int], size: int, colour: str) -> int:
        """Writes text from a point on its baseline; returns the end's column."""
        column, baseline = start
        if text.isascii():
            font = ImageFont.load_default(size)
            ImageDraw.Draw(sheet).text(start, text, colour, font, anchor="ls")
            return column + round(font.getlength(text))
        for face, run in self._runs(text):
            try:
                ink = render_line(hb_font(face), run, size)
            except ValueError:  # no ink, as of a joiner alone
                continue
            sheet.paste(colour, (column, baseline - round(ink.baseline)), Image.fromarray(ink.mask))
            column += ink.mask.shape[1]
        return column

    def _runs(self, text: str) -> list[tuple[Face, str]]:
        """Splits a text by the faces that draw it, as few as can be."""
        face = next((face for face in self._faces if covers(face, text)), None)
        if face is not None:
            return [(face, text)]
        # Readings may mix scripts and break their rules; each face then takes what it has a glyph for.
        runs: list[tuple[Face, str]] = []
        for character in text:
            if runs and _has(runs[-1][0], character):
                runs[-1] = (runs[-1][0], runs[-1][1] + character)
                continue
            face = next((face for face in self._faces if _has(face, character)), None)
            if face is None:
                raise ValueError(f"no installed font draws {character!r}: install a Noto Sans font of its script")
            runs.append((face, character))
        return runs


def _has(face: Face, character: str) -> bool:
    return hb_font(face).get_nominal_glyph(ord(character)) is not None


def _draw(original: Image.Image, reading: dict[str, Any], maps: np.ndarray, pen: _Pen, top_k: int) -> Image.Image:
    width = min(max(round(original.width * PICTURE_HEIGHT / original.height), MIN_WIDTH), MAX_WIDTH)
    picture = original.resize((width, PICTURE_HEIGHT)).convert("RGB")
    panel = (max(width, 200), PICTURE_HEIGHT + LINE * top_k + 40)
    columns = max(1, min(len(maps), 1200 // (panel[0] + GAP)))
    rows = -(-len(maps) // columns)
    top = MARGIN + PICTURE_HEIGHT + 60
    size = (2 * MARGIN + columns * (panel[0] + GAP) - GAP, top + rows * (panel[1] + GAP) + MARGIN)
    sheet = Image.new("RGB", (max(size[0], 420), size[1]), "white")
    sheet.paste(picture, (MARGIN, MARGIN))
    baseline = MARGIN + PICTURE_HEIGHT + 34
    column = pen.write(sheet, reading["text"], (MARGIN, baseline), 26, BLACK) if reading["text"] else MARGIN
    note = f"{reading['script']} {reading['score']:.2f}"
    pen.write(sheet, note, (column + 20, baseline), 16, GREY)

    for place, (values, character) in enumerate(zip(maps, reading["characters"], strict=True)):
        left = MARGIN + place % columns * (panel[0] + GAP)
        line = top + place // columns * (panel[1] + GAP)
        sheet.paste(_heat(picture, values / values.max()), (left, line))
        share = f"{values.sum():.0%} on the image"
        pen.write(sheet, share, (left, line + PICTURE_HEIGHT + 16), 13, GREY)
        for number, hypothesis in enumerate([character, *character["alternatives"]][:top_k], start=1):
            baseline = line + PICTURE_HEIGHT + 16 + LINE * number
            bar = (left + 40, baseline - 16, left + 40 + round(90 * hypothesis["score"]), baseline + 4)
            ImageDraw.Draw(sheet).rectangle(bar, BAR)
            pen.write(sheet, _shown(hypothesis["char"]), (left + 4, baseline), 20, BLACK if number == 1 else GREY)
            pen.write(sheet, f"{100 * hypothesis['score']:.1f}", (left + 140, baseline), 14, GREY)
    return sheet


def _heat(picture: Image.Image, values: np.ndarray) -> Image.Image:
    """Lays attention, 0 to 1, over a greyed picture."""
    mask = Image.fromarray((255 * values.clip(0, 1)).astype(np.uint8)).resize(picture.size, Image.Resampling.BICUBIC)
    alpha = np.asarray(mask, np.float32)[..., None] / 255
    pale = 128 + 0.5 * np.asarray(picture, np.float32)
    return Image.fromarray(((1 - 0.8 * alpha) * pale + 0.8 * alpha * HEAT).astype(np.uint8))


def _shown(character: str) -> str:
    """A character as it can stand alone: marks sit on a dotted circle, joiners go by their names."""
    if character in JOINER_NAMES:
        return JOINER_NAMES[character]
    mark = unicodedata.category(character) in ("Mn", "Mc", "Me")
    return DOTTED_CIRCLE + character if mark else character
