"""Synthetic word images, deterministic by seed and index, for streaming into training."""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
import unicodedata
from collections.abc import Iterator, Set
from dataclasses import dataclass

import cv2
import numpy as np

from mstr_hf.models.image_processing_mstr import MAX_RATIO
from mstr_hf.models.text import visual_order

from .augmentation import bend, compose, degrade, legible, random_homography, repaint, reproportion, ripple
from .fonts import Face, FontIndex, covers, hb_font
from .rendering import FontStyle, Ink, random_style, render_line
from .words import FINAL_LETTERS, KASHIDA, WordSource

# Where a crop shows a piece of other text, and how often.
SIDES = ("", "above", "below", "left", "right")
SIDE_WEIGHTS = (0.66, 0.1, 0.1, 0.07, 0.07)
# With fewer families than this, faces that no font has are drawn more often.
FEW_FAMILIES = 60
# Letters of these scripts touch their neighbours, so extra spacing would tear them apart.
CONNECTED_SCRIPTS = frozenset({"Deva", "Beng", "Guru", "Arab"})
# Languages whose words are widened by kashidas: drawn, but no part of the label.
KASHIDA_LANGUAGES = frozenset({"ar", "fa"})


@dataclass(frozen=True)
class SyntheticWord:
    """One rendered word.

    Attributes:
        image: Grey, uint8 `[H, W]`, before the image processor's resize.
        text: Normalised text in logical order.
        lang: Language that the word was drawn from.
        family: Font family.
        centres: Column of each character's centre as a fraction of the width, in *visual* order,
            `[len(text)]`; None where unknown.
    """

    image: np.ndarray
    text: str
    lang: str
    family: str
    centres: np.ndarray | None


class WordSynthesiser:
    """Draws word images of several languages.

    Args:
        fonts: Faces to draw in.
        sources: Words, by language.
        weights: Share of each language; equal when left out.
        split: "train" or "heldout" font families.
        severity: Upper end of the degradation budget, 0 to 1.
        joiners: Joiners that are kept in labels.
        characters: What labels may hold; anything that is drawn if left out. Words of one language hold Latin codes,
            which a bank without a Latin language cannot spell.
    """

    def __init__(
        self,
        fonts: FontIndex,
        sources: dict[str, WordSource],
        weights: dict[str, float] | None = None,
        split: str = "train",
        severity: float = 1.0,
        joiners: str = "",
        characters: Set[str] | None = None,
    ):
        self.sources = sources
        self.languages = sorted(sources)
        self.weights = [1.0 if weights is None else weights[lang] for lang in self.languages]
        self.severity = severity
        self.joiners = joiners
        self.characters = characters
        self.families = {lang: fonts.families(lang, split) for lang in self.languages}

    def word(self, seed: int, index: int, lang: str | None = None) -> SyntheticWord:
        """The word at a position of the endless sequence; the same for the same seed, index and settings."""
        rng = random.Random(f"{seed}/{index}")
        noise = np.random.default_rng(rng.getrandbits(64))
        if lang is None:
            lang = rng.choices(self.languages, self.weights)[0]
        while True:
            # A face that lacks a character, or damage that hides the word, costs another draw, never a wrong label.
            text = self.sources[lang].sample(rng)
            face = self._face(rng, lang, text)
            if face is None:
                continue
            word = self._draw(rng, noise, lang, face, text)
            if word is not None:
                return word

    def draw(self, seed: int, text: str, lang: str) -> SyntheticWord:
        """Draws a given text; the same picture for the same seed and settings.

        Raises:
            ValueError: If no face draws it legibly.
        """
        rng = random.Random(f"{seed}/{text}")
        noise = np.random.default_rng(rng.getrandbits(64))
        for _ in range(100):
            face = self._face(rng, lang, text)
            word = face and self._draw(rng, noise, lang, face, text)
            if word:
                return word
        raise ValueError(f"no face draws {text!r} legibly: install more fonts for {lang}")

    def stream(self, seed: int, start: int = 0, step: int = 1) -> Iterator[SyntheticWord]:
        """Endless words at indices start, start + step, ... (a worker's share)."""
        index = start
        while True:
            yield self.word(seed, index)
            index += step

    def _face(self, rng: random.Random, lang: str, text: str) -> Face | None:
        families = self.families[lang]
        for _ in range(6):
            face = rng.choice(families[rng.randrange(len(families))])
            if covers(face, text):
                return face
        return None

    def _draw(
        self, rng: random.Random, noise: np.random.Generator, lang: str, face: Face, text: str
    ) -> SyntheticWord | None:
        size = rng.uniform(28, 62)
        style = random_style(rng, face.axes, self.sources[lang].charset.script in CONNECTED_SCRIPTS)
        if lang in KASHIDA_LANGUAGES and rng.random() < 0.15:
            widened = _with_kashidas(rng, text)
            text = widened if covers(face, widened) else text
        try:
            ink = _without_kashidas(render_line(hb_font(face), text, size, style, self.joiners))
        except ValueError:
            return None
        if not ink.text or (self.characters is not None and not self.characters >= set(ink.text)):
            return None
        if ink.mask.shape[1] > 1400 or ink.mask.shape[0] > 160 or min(ink.mask.shape) < 3:
            return None
        severity = self.severity * rng.betavariate(1.2, 2.4)
        mask, neighbours, centres = self._layout(rng, noise, lang, face, style, ink, size, severity)
        if mask.shape[1] > MAX_RATIO * mask.shape[0]:  # no reader takes it
            return None
        image = degrade(noise, compose(noise, mask, neighbours), severity)
        if not legible(image, mask):
            return None
        return SyntheticWord(image, ink.text, lang, face.family, centres)

    def _layout(
        self,
        rng: random.Random,
        noise: np.random.Generator,
        lang: str,
        face: Face,
        style: FontStyle,
        ink: Ink,
        size: float,
        severity: float,
    ) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
        """Places the ink in its crop: geometry, margins and neighbouring text."""
        height, width = ink.mask.shape
        # People crop by the line as often as by the ink: 'a' alone keeps some of its line's height.
        line = max(height, int(ink.baseline if ink.baseline < height else height) + 1)
        border = int(0.6 * line) + 4
        canvas = cv2.copyMakeBorder(ink.mask, border, border, border, border, cv2.BORDER_CONSTANT)
        columns = None if ink.spans is None else ink.spans.mean(1)[visual_order(ink.text)] + border
        few = len(self.families[lang]) < FEW_FAMILIES
        if rng.random() < (0.45 if few else 0.35):
            canvas = repaint(noise, canvas, size)
        if rng.random() < (0.35 if few else 0.22):
            canvas = reproportion(noise, canvas)
        if rng.random() < (0.4 if few else 0.28):
            canvas = ripple(noise, canvas, size)
        if rng.random() < 0.12 and width > 1.5 * height:
            canvas = bend(noise, canvas, rng.uniform(-0.35, 0.35) * height)
        slope = 2.5 if rng.random() < 0.15 else 1.0  # most signs are photographed nearly upright
        matrix = random_homography(noise, canvas.shape[0], canvas.shape[1], slope * (0.4 + severity))
        if rng.random() < 0.4:  # squeezed and stretched lettering, and signs seen from the side
            matrix = np.diag([math.exp(rng.uniform(math.log(0.45), math.log(1.9))), 1, 1]) @ matrix
        stretched = max(8, int(canvas.shape[1] * max(1.0, matrix[0, 0] / matrix[2, 2])) + 8)
        canvas = cv2.warpPerspective(canvas, matrix, (stretched, canvas.shape[0]), flags=cv2.INTER_LINEAR)
        rows, cols = np.flatnonzero(canvas.max(1) > 40), np.flatnonzero(canvas.max(0) > 40)
        if len(rows) == 0:
            return canvas, None, None
        top, bottom, left, right = rows[0], rows[-1] + 1, cols[0], cols[-1] + 1
        tall = bottom - top
        loose = rng.random() < 0.25
        margins = [int(tall * (rng.uniform(-0.03, 0.15) if not loose else rng.uniform(0.05, 0.4))) for _ in range(4)]
        if tall < 0.6 * size and rng.random() < 0.7:  # low letters and lone marks keep their line
            margins[0] += int(rng.uniform(0, 0.6) * (size - tall))
            margins[1] += int(rng.uniform(0, 0.4) * (size - tall))
        if rng.random() < 0.2:  # many boxes cut the first or the last character, which is labelled all the same
            margins[rng.choice((2, 3, 3))] = -int(0.1 * min(tall, right - left) * rng.random())
        top, bottom = top - margins[0], bottom + margins[1]
        left, right = left - margins[2], right + margins[3]
        side = rng.choices(SIDES, SIDE_WEIGHTS)[0]
        shown = int(tall * rng.uniform(0.03, 0.16 if side in ("above", "below") else 0.3))
        # Other lines come as near as they like; words beside keep a space, which the crop then shows, and by which a
        # piece of them is told from a sign at the end of the word.
        space = shown + int(tall * rng.uniform(0.1, 0.3))
        left, right = left - space * (side == "left"), right + space * (side == "right")
        panel, before, after = None, False, False
        if not side and rng.random() < 0.06:
            panel = _ornament(rng, bottom - top, tall, lang not in KASHIDA_LANGUAGES)
            before, after = rng.choice([(True, True), (True, True), (True, False), (False, True)])
            left, right = left - panel.shape[1] * before, right + panel.shape[1] * after
        crop = _window(canvas, top, bottom, left, right)
        if columns is not None:
            points = np.stack([columns, np.full_like(columns, border + height / 2)], -1)[None].astype(np.float32)
            columns = (cv2.perspectiveTransform(points, matrix)[0, :, 0] - left) / max(1, right - left)
        neighbours = self._neighbours(rng, lang, face, style, crop.shape, tall, side, shown) if side else None
        if panel is not None:
            neighbours = np.zeros_like(crop)
            if before:
                neighbours[:, : panel.shape[1]] = panel
            if after:
                neighbours[:, -panel.shape[1] :] = panel[:, ::-1]
        return crop, neighbours, columns

    def _neighbours(
        self,
        rng: random.Random,
        lang: str,
        face: Face,
        style: FontStyle,
        shape: tuple[int, ...],
        tall: int,
        side: str,
        shown: int,
    ) -> np.ndarray | None:
        """A piece, `shown` pixels of it, of the line above or below, or of the word beside, that a crop often shows."""
        text = self.sources[lang].sample(rng)
        if not covers(face, text):
            return None
        try:
            other = render_line(hb_font(face), text, rng.uniform(0.7, 1.1) * tall, style).mask
        except ValueError:
            return None
        height, width = shape
        y, x = (height - other.shape[0]) // 2, rng.randint(-other.shape[1] // 2, width // 2)
        if side == "above":
            y = shown - other.shape[0]
        elif side == "below":
            y = height - shown
        elif side == "left":
            x = shown - other.shape[1]
        else:
            x = width - shown
        return _window(other, -y, height - y, -x, width - x)


def _ornament(rng: random.Random, height: int, tall: int, dots: bool) -> np.ndarray:
    """A dot or a dash beside a word, to its left, as signs have them and labels do not.

    A space tells it from a sign that belongs to the word.

    Args:
        rng: Source of randomness.
        height: Of the crop.
        tall: Height of the word's ink.
        dots: Whether it may be a dot, which is a zero in Arabic.

    Returns:
        Coverage, uint8 `[height, W]`, with the space at its right.
    """
    space, middle = round(tall * rng.uniform(0.2, 0.6)), round(height / 2 + tall * rng.uniform(-0.08, 0.08))
    dot = dots and rng.random() < 0.5
    half = max(1, round(tall * (rng.uniform(0.05, 0.14) if dot else rng.uniform(0.02, 0.06))))
    length = 2 * half + 1 if dot else round(tall * rng.uniform(0.25, 1.2))
    # Crops show them whole, with some margin, or cut them.
    edge = round(rng.uniform(-0.7, 0.3) * length)
    panel = np.zeros((height, max(1, edge + length + space)), np.uint8)
    if dot:
        return cv2.circle(panel, (edge + half, middle), half, 255, -1, cv2.LINE_AA)
    return cv2.rectangle(panel, (edge, middle - half), (edge + length - 1, middle + half), 255, -1)


def _with_kashidas(rng: random.Random, text: str) -> str:
    """Widens one or two joints of an Arabic word."""
    joints = [
        place
        for place, (letter, following) in enumerate(itertools.pairwise(text), 1)
        if letter not in FINAL_LETTERS
        and all(c.isalpha() and unicodedata.bidirectional(c) == "AL" for c in letter + following)
    ]
    for place in sorted(rng.sample(joints, min(len(joints), rng.randint(1, 2))), reverse=True):
        text = text[:place] + KASHIDA * rng.randint(1, 4) + text[place:]
    return text


def _without_kashidas(ink: Ink) -> Ink:
    """Takes kashidas out of the label, which has the word as one would type it."""
    kept = [place for place, character in enumerate(ink.text) if character != KASHIDA]
    if len(kept) == len(ink.text):
        return ink
    spans = None if ink.spans is None else ink.spans[kept]
    return dataclasses.replace(ink, text="".join(ink.text[place] for place in kept), spans=spans)


def _window(image: np.ndarray, top: int, bottom: int, left: int, right: int) -> np.ndarray:
    """Cuts a window that may reach beyond the image; what lies outside is 0."""
    height, width = image.shape
    out = np.zeros((max(1, bottom - top), max(1, right - left)), image.dtype)
    y0, y1, x0, x1 = max(0, top), min(height, bottom), max(0, left), min(width, right)
    if y1 > y0 and x1 > x0:
        out[y0 - top : y1 - top, x0 - left : x1 - left] = image[y0:y1, x0:x1]
    return out
