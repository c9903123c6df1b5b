"""Shape text with HarfBuzz and rasterise it: ink and, for every character, where it stands.

HarfBuzz's own rasteriser (uharfbuzz ``RasterDraw``) is about ten times as fast as Pillow with raqm. It does no
bidirectional layout, so right-to-left text is split into directional runs here.
"""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import uharfbuzz as hb

from mstr_hf.models.text import normalise, visual_order

DOTTED_CIRCLE = "\u25cc"


@dataclass(frozen=True)
class FontStyle:
    """How a face is drawn: variation axes, emboldening and slant in em, extra letter spacing in em."""

    variations: tuple[tuple[str, float], ...] = ()
    bold: float = 0.0
    slant: float = 0.0
    spacing: float = 0.0

    def apply(self, font: hb.Font) -> None:
        """Set this style on a HarfBuzz font (replaces whatever style it had)."""
        font.set_variations(dict(self.variations))
        font.synthetic_bold = (self.bold, self.bold, False)
        font.synthetic_slant = self.slant


def random_style(rng: random.Random, axes: dict[str, tuple[float, float, float]], connected: bool) -> FontStyle:
    """Draw a style: any point of the variation axes, sometimes synthetic bold or slant, sometimes loose letters.

    Args:
        rng: Source of randomness.
        axes: Variation axes of the face, tag -> (minimum, default, maximum).
        connected: True for scripts whose letters join; those are never spaced out.
    """
    variations = tuple((tag, rng.uniform(low, high)) for tag, (low, _, high) in sorted(axes.items()))
    return FontStyle(
        variations=variations,
        bold=rng.uniform(0.01, 0.07) if rng.random() < 0.45 else 0.0,
        slant=rng.uniform(-0.1, 0.3) if rng.random() < 0.12 else 0.0,
        spacing=rng.uniform(-0.03, rng.choice([0.3, 0.3, 0.8])) if not connected and rng.random() < 0.2 else 0.0,
    )


@dataclass(frozen=True)
class Ink:
    """A rasterised line of text.

    Attributes:
        mask: Coverage, uint8 `[H, W]`, tightly cropped.
        baseline: Row of the baseline (may lie outside the mask).
        origin: Column of the pen's start.
        text: The normalised text, in logical order.
        spans: Horizontal extent of each character of ``text`` in pixels, float32 `[len(text), 2]`, or None where
            the shaped clusters cannot be split into the normalised characters.
    """

    mask: np.ndarray
    baseline: float
    origin: float
    text: str
    spans: np.ndarray | None


def _latin(text: str) -> list[bool]:
    """Whether each character is Latin; what belongs to no script goes with the letter before it, or else after it."""
    strong = [c.isalpha() for c in text]
    latin = [unicodedata.name(c, "").startswith("LATIN") for c in text]
    current = latin[strong.index(True)] if True in strong else False
    return [current := latin[i] if strong[i] else current for i in range(len(text))]


def _directional_runs(text: str) -> list[tuple[list[int], bool]]:
    """Splits text into runs in visual order: (logical indices in logical order, right-to-left).

    Latin letters and others are apart: HarfBuzz shapes a run by the rules of the first script in it.
    """
    runs: list[tuple[list[int], bool]] = []
    latin = _latin(text)
    previous, step = None, 0
    for index in visual_order(text):
        if previous is not None and latin[index] != latin[previous]:
            runs.append(([index], False))
            step = 0
        elif previous is not None and index - previous == step and abs(step) == 1:
            runs[-1][0].append(index)
        elif previous is not None and step == 0 and abs(index - previous) == 1:
            step = index - previous
            runs[-1][0].append(index)
        else:
            runs.append(([index], False))
            step = 0
        previous = index
    rtl_text = any(unicodedata.bidirectional(c) in ("R", "AL") for c in text)
    resolved = []
    for indices, _ in runs:
        descending = len(indices) > 1 and indices[0] > indices[-1]
        kind = unicodedata.bidirectional(text[indices[0]])
        lone_rtl = len(indices) == 1 and rtl_text and kind not in ("L", "EN", "AN")
        resolved.append((sorted(indices), descending or lone_rtl))
    return resolved


def render_line(font: hb.Font, text: str, size: float, style: FontStyle = FontStyle(), keep: str = "") -> Ink:
    """Rasterise one line of text.

    Args:
        font: HarfBuzz font of the face.
        text: The text as it is to be drawn (NFC, logical order; spaces are kept as gaps).
        size: Pixels per em.
        style: Style of the face.
        keep: Joiners that stay in the normalised text.

    Returns:
        The ink and the character spans.

    Raises:
        ValueError: If nothing visible was drawn.
    """
    style.apply(font)
    scale = size / font.face.upem
    raster = hb.RasterDraw()
    pen = 0.0
    clusters: list[tuple[list[int], float, float, bool]] = []
    for indices, rtl in _directional_runs(text):
        buffer = hb.Buffer()
        buffer.add_str("".join(text[i] for i in indices))
        buffer.guess_segment_properties()
        buffer.direction = "rtl" if rtl else "ltr"
        hb.shape(font, buffer)
        starts = sorted({glyph.cluster for glyph in buffer.glyph_infos})
        ends = dict(zip(starts, [*starts[1:], len(indices)], strict=True))
        current = None
        for glyph, position in zip(buffer.glyph_infos, buffer.glyph_positions, strict=True):
            if glyph.cluster != current:
                if current is not None:
                    pen += style.spacing * size
                current = glyph.cluster
                clusters.append((indices[current : ends[current]], pen, pen, rtl))
            raster.transform = (scale, 0, 0, scale, pen + position.x_offset * scale, position.y_offset * scale)
            raster.draw_glyph(font, glyph.codepoint)
            pen += position.x_advance * scale
            clusters[-1] = (clusters[-1][0], clusters[-1][1], pen, rtl)
        pen += style.spacing * size
    image = raster.render()
    extents = image.extents
    if extents.width == 0 or extents.height == 0:
        raise ValueError(f"nothing visible was drawn for {text!r}: choose another face")
    mask = np.frombuffer(image.buffer, np.uint8).reshape(extents.height, extents.stride)[::-1, : extents.width]
    baseline = extents.height + extents.y_origin
    return Ink(mask, baseline, -extents.x_origin, normalise(text, keep), _spans(text, clusters, extents.x_origin, keep))


def _spans(
    text: str, clusters: list[tuple[list[int], float, float, bool]], left: float, keep: str
) -> np.ndarray | None:
    """Divides each cluster's advance evenly among the normalised characters that it draws."""
    spans: list[tuple[float, float]] = []
    label = ""
    for indices, start, end, rtl in sorted(clusters, key=lambda cluster: cluster[0][0]):
        piece = normalise("".join(text[i] for i in indices), keep)
        width = (end - start) / max(1, len(piece))
        for step in range(len(piece)):
            x = end - (step + 1) * width if rtl else start + step * width
            spans.append((x - left, x + width - left))
        label += piece
    # Normalisation may reorder marks across clusters; such rare words train without alignment.
    return np.asarray(spans, np.float32) if label == normalise(text, keep) else None


def letter_extent(font: hb.Font, letters: Iterable[str]) -> tuple[float, float] | None:
    """Top and bottom of the ink of some letters in font units; None if the font draws none of them.

    A face's own ascender and descender stand one to two of these heights apart.
    """
    FontStyle().apply(font)  # fonts are shared, and keep the style they were last drawn in
    glyphs = [font.get_nominal_glyph(ord(char)) for char in letters]
    inks = [font.get_glyph_extents(glyph) for glyph in glyphs if glyph is not None]
    drawn = [ink for ink in inks if ink is not None and ink.height]  # heights are negative
    if not drawn:
        return None
    return max(ink.y_bearing for ink in drawn), min(ink.y_bearing + ink.height for ink in drawn)


def render_character(
    font: hb.Font,
    char: str,
    height: int,
    width: int,
    style: FontStyle = FontStyle(),
    base: str = "",
    shift: float = 0.0,
    line: tuple[float, float] | None = None,
) -> np.ndarray:
    """Rasterise one character in a fixed line frame, so that '.', a dot above and a dot below stay different.

    The frame's height is that of a line, or more where the ink leaves the line; wide characters are narrowed to fit. A
    combining mark is shaped on a dotted circle whose own glyph is then left out (works wherever the face has the
    circle), or alone.

    Args:
        font: HarfBuzz font of the face.
        char: One character.
        height: Frame height in pixels.
        width: Frame width in pixels.
        style: Style of the face.
        base: Letter that carries a combining mark; empty leaves the mark alone.
        shift: Horizontal shift as a fraction of the free width, -1 to 1.
        line: Top and bottom of the line in font units, the face's ascender and descender if left out.

    Returns:
        Coverage, uint8 `[height, width]`.

    Raises:
        ValueError: If nothing visible was drawn.
    """
    style.apply(font)
    mark = unicodedata.category(char) in ("Mn", "Mc", "Me")
    has_circle = font.get_nominal_glyph(ord(DOTTED_CIRCLE)) is not None
    buffer = hb.Buffer()
    if mark and not base and not has_circle:
        buffer.flags = hb.BufferFlags.DO_NOT_INSERT_DOTTED_CIRCLE
    carrier = base or (DOTTED_CIRCLE if has_circle else "")
    buffer.add_str(carrier + char if mark else char)
    buffer.guess_segment_properties()
    hb.shape(font, buffer)
    skipped = font.get_nominal_glyph(ord(DOTTED_CIRCLE)) if mark and not base else None

    glyphs = list(zip(buffer.glyph_infos, buffer.glyph_positions, strict=True))
    extents = font.get_font_extents("ltr")
    top, bottom = line or (extents.ascender, extents.descender)
    for glyph, position in glyphs:
        ink = font.get_glyph_extents(glyph.codepoint)
        if glyph.codepoint != skipped and ink is not None and ink.height:
            top = max(top, position.y_offset + ink.y_bearing)
            bottom = min(bottom, position.y_offset + ink.y_bearing + ink.height)
    advance = sum(position.x_advance for _, position in glyphs)
    scale_y = height / max(1, top - bottom)
    scale_x = min(scale_y, width / max(1, advance))
    free = width - advance * scale_x
    raster = hb.RasterDraw()
    pen = free / 2 * (1 + shift)
    for glyph, position in glyphs:
        if glyph.codepoint != skipped:
            y = (position.y_offset - bottom) * scale_y
            raster.transform = (scale_x, 0, 0, scale_y, pen + position.x_offset * scale_x, y)
            raster.draw_glyph(font, glyph.codepoint)
        pen += position.x_advance * scale_x
    image = raster.render()
    box = image.extents
    if box.width == 0 or box.height == 0:
        raise ValueError(f"nothing visible was drawn for U+{ord(char):04X}: choose another face")
    drawn = np.frombuffer(image.buffer, np.uint8).reshape(box.height, box.stride)[:, : box.width]
    frame = np.zeros((height, width), np.uint8)
    top, left = max(0, box.y_origin), max(0, box.x_origin)
    bottom, right = min(height, box.y_origin + box.height), min(width, box.x_origin + box.width)
    if bottom > top and right > left:
        frame[top:bottom, left:right] = drawn[
            top - box.y_origin : bottom - box.y_origin, left - box.x_origin : right - box.x_origin
        ]
    return frame[::-1]
