"""What a prototype bank is like: how near its rows are, which pairs are nearest, and a map of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from mstr_hf.models.prototype_bank import PrototypeBank
from mstr_hf.synthesis.fonts import Face, FontIndex, hb_font
from mstr_hf.synthesis.rendering import letter_extent, render_character
from mstr_hf.vocabulary import SUBTYPES

from .lookalikes import look_alike

# Rows that are nearer than this are easily taken for each other.
CONFUSABLE = 0.5

# Colours that people with colour-blindness can tell apart (Okabe and Ito, 2008), then some more.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#7F3C8D", "#8C564B")
_GLYPH = 24


def bank_statistics(bank: PrototypeBank) -> dict[str, float]:
    """How the rows lie, in cosines: 1 is the same direction.

    Returns:
        `nearest` row of each row (mean and greatest), `nearest within scripts` and `across scripts` (means), and how
        many pairs are above `CONFUSABLE`, `confusable pairs`, `of these look-alikes` (see `lookalikes`).
    """
    cosines = _cosines(bank)
    same = torch.tensor([[a == b for b in bank.scripts] for a in bank.scripts])
    within, across = (cosines.masked_fill(~part, -1).max(1).values for part in (same, ~same))
    pairs = closest_pairs(bank, len(bank) ** 2)
    near = [(first, second) for first, second, cosine in pairs if cosine > CONFUSABLE]
    return {
        "nearest, mean": cosines.max(1).values.mean().item(),
        "nearest, greatest": cosines.max().item(),
        "nearest within scripts, mean": within[within > -1].mean().item(),
        "nearest across scripts, mean": across[across > -1].mean().item() if (~same).any() else float("nan"),
        f"confusable pairs, above {CONFUSABLE}": len(near),
        "of these look-alikes": sum(look_alike(first, second) for first, second in near),
    }


def closest_pairs(bank: PrototypeBank, count: int) -> list[tuple[str, str, float]]:
    """The pairs of characters with the greatest cosines, nearest first."""
    cosines = _cosines(bank)
    first, second = torch.triu_indices(len(bank), len(bank), 1)
    values, order = cosines[first, second].sort(descending=True)
    return [
        (bank.characters[first[place]], bank.characters[second[place]], value)
        for place, value in zip(order[:count].tolist(), values[:count].tolist(), strict=True)
    ]


def bank_report(bank: PrototypeBank, count: int = 50) -> str:
    """Statistics and the closest pairs as Markdown."""
    lines = [f"# {len(bank)} rows of {bank.prototypes.shape[1]}", "", f"Digest {bank.digest()}", ""]
    lines += ["| | |", "| --- | --: |"]
    for name, value in bank_statistics(bank).items():
        lines.append(f"| {name} | {value if isinstance(value, int) else f'{value:.3f}'} |")
    lines += ["", f"The {count} closest pairs:", ""]
    lines += ["| | | | cosine | look-alikes |", "| --- | --- | --- | --: | --- |"]
    for first, second, cosine in closest_pairs(bank, count):
        places = f"U+{ord(first):04X} U+{ord(second):04X}"
        # A mark stands on a dotted circle, else it would stand on what comes before it.
        shown = [f"\u25cc{char}" if bank.subtypes[bank.row(char)] == 1 else char for char in (first, second)]
        cells = ["\\|" if char == "|" else char for char in shown]
        lines.append(f"| {cells[0]} | {cells[1]} | {places} | {cosine:.3f} | {'yes' * look_alike(first, second)} |")
    return "\n".join(lines) + "\n"


def draw_map(bank: PrototypeBank, fonts: FontIndex, size: int = 1600) -> Image.Image:
    """A map on which near characters are near: each is drawn itself, in the colour of its script.

    Letters stand alone, diacritics in a circle, digits in a square and punctuation in a diamond.

    Args:
        bank: The bank.
        fonts: Faces to draw in; what no face draws is a dot.
        size: Width and height in pixels.
    """
    places = tsne(bank.prototypes).numpy()
    places = (places - places.min(0)) / np.ptp(places, axis=0)
    picture = Image.new("RGB", (size, size), "white")
    draw = ImageDraw.Draw(picture)
    scripts = sorted(set(bank.scripts))
    colours = {script: _COLOURS[number % len(_COLOURS)] for number, script in enumerate(scripts)}
    # Upright faces of plain design first.
    faces = {
        lang: sorted(found, key=lambda face: (face.style != "Regular", not face.family.startswith("Noto Sans")))
        for lang, found in fonts.by_language.items()
    }
    letters = {
        lang: [
            char for row, char in enumerate(bank.characters) if lang in bank.languages[row] and not bank.subtypes[row]
        ]
        for lang in fonts.by_language
    }
    for row, (x, y) in enumerate(places * (size - 5 * _GLYPH) + 2.5 * _GLYPH):
        _outline(draw, x, y, bank.subtypes[row])
        colour = colours[bank.scripts[row]]
        masks = (
            _glyph(bank.characters[row], faces[lang], letters[lang]) for lang in bank.languages[row] if lang in faces
        )
        mask = next((mask for mask in masks if mask is not None), None)
        if mask is None:
            draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=colour)
        else:
            picture.paste(colour, (round(x) - mask.width // 2, round(y) - mask.height // 2), mask)
    font = ImageFont.load_default(18)
    for number, script in enumerate(scripts):
        draw.text((10, 10 + 24 * number), script, colours[script], font)
    for kind, name in enumerate(SUBTYPES[1:], 1):
        x, y = 100, 20 + 34 * (kind - 1)
        _outline(draw, x, y, kind)
        draw.text((x + 24, y - 10), name, "black", font)
    return picture


def tsne(rows: torch.Tensor, perplexity: float = 15.0, steps: int = 500) -> torch.Tensor:
    """Places `[N, 2]` for unit rows `[N, D]`, near ones near each other (van der Maaten and Hinton, 2008); exact."""
    count = len(rows)
    distances = (2 - 2 * rows @ rows.t()).clamp_min(0).double()
    wanted = np.log(min(perplexity, max(1.5, (count - 1) / 3)))
    low, high = torch.full((count, 1), 1e-3).double(), torch.full((count, 1), 1e4).double()
    itself = torch.eye(count, dtype=torch.bool)
    for _ in range(50):  # bisection for the width of each row's neighbourhood
        width = (low * high).sqrt()
        logits = (-distances * width).masked_fill(itself, -torch.inf)
        near = logits.softmax(1)
        entropy = -(near * logits.log_softmax(1).masked_fill(itself, 0)).sum(1, keepdim=True)
        low, high = torch.where(entropy > wanted, width, low), torch.where(entropy > wanted, high, width)
    near = (near + near.t()).clamp_min(1e-12) / (2 * count)
    centred = (rows - rows.mean(0)).double()
    places = centred @ torch.linalg.svd(centred, full_matrices=False).Vh[:2].t()
    places *= 1e-2 / places.std()
    speed = torch.zeros_like(places)
    for step in range(steps):
        kernel = 1 / (1 + torch.cdist(places, places) ** 2)
        kernel = kernel.masked_fill(itself, 0)
        pull = ((12 if step < 100 else 1) * near - kernel / kernel.sum()) * kernel
        gradient = 4 * (pull.sum(1, keepdim=True) * places - pull @ places)
        speed = (0.5 if step < 100 else 0.8) * speed - max(count / 48, 5.0) * gradient
        places = places + speed
        places = places - places.mean(0)
    return places.float()


def _cosines(bank: PrototypeBank) -> torch.Tensor:
    """`[N, N]`, -1 on the diagonal."""
    return (bank.prototypes @ bank.prototypes.t()).fill_diagonal_(-1)


def _glyph(character: str, faces: Sequence[Face], letters: Sequence[str]) -> Image.Image | None:
    for face in faces[:40]:
        font = hb_font(face)
        if font.get_nominal_glyph(ord(character)) is None:
            continue
        try:
            # In a line as high as the letters are, all scripts are of one size.
            mask = render_character(font, character, _GLYPH, 2 * _GLYPH, line=letter_extent(font, letters))
        except ValueError:
            continue
        return Image.fromarray(np.ascontiguousarray(mask))
    return None


def _outline(draw: ImageDraw.ImageDraw, x: float, y: float, kind: int) -> None:
    half = 0.75 * _GLYPH
    if kind == 1:
        draw.ellipse((x - half, y - half, x + half, y + half), outline="#BBBBBB")
    elif kind == 2:
        draw.rectangle((x - half, y - half, x + half, y + half), outline="#BBBBBB")
    elif kind == 3:
        draw.polygon([(x, y - half), (x + half, y), (x, y + half), (x - half, y)], outline="#BBBBBB")
