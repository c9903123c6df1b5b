"""Synthetic character crops for mCLIP: every character of every charset in a fixed line frame."""

from __future__ import annotations

import functools
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from mstr_hf.vocabulary import Row

from .augmentation import compose, degrade, legible
from .fonts import Face, FontIndex, covers, hb_font
from .rendering import random_style, render_character

FRAME_HEIGHT, FRAME_WIDTH = 32, 48


@dataclass(frozen=True)
class SyntheticCharacter:
    """One crop: image uint8 `[32, 48]`, its bank row, and the language whose fonts drew it."""

    image: np.ndarray
    row: int
    lang: str


class CharacterSynthesiser:
    """Draws character crops; marks stand alone or on a random letter, always at their place in the line.

    Args:
        fonts: Faces to draw in.
        rows: Bank rows.
        letters: Letters that may carry a mark, by language.
        split: "train" or "heldout" font families.
        severity: Upper end of the degradation budget, 0 to 1.
    """

    def __init__(
        self,
        fonts: FontIndex,
        rows: Sequence[Row],
        letters: Mapping[str, Sequence[str]],
        split: str = "train",
        severity: float = 0.6,
    ):
        self.rows = rows
        self.letters = letters
        self.severity = severity
        self.families = {lang: fonts.families(lang, split) for lang in letters}
        self.drawable = [
            (index, lang)
            for index, row in enumerate(rows)
            for lang in row.languages
            if lang in letters
            and any(_drawable(face, row.character) for family in self.families[lang] for face in family)
        ]

    def character(self, seed: int, index: int) -> SyntheticCharacter:
        """The crop at a position of the endless sequence; (row, language) pairs come round in a shuffled order."""
        lap, position = divmod(index, len(self.drawable))
        order = _order(f"{seed}/lap/{lap}", len(self.drawable))
        return self.crop(*self.drawable[order[position]], seed, index)

    def crop(self, row: int, lang: str, seed: int, index: int) -> SyntheticCharacter:
        """A crop of the given row in a face of the given language."""
        rng = random.Random(f"{seed}/{index}")
        noise = np.random.default_rng(rng.getrandbits(64))
        char = self.rows[row].character
        while True:
            face = rng.choice(rng.choice(self.families[lang]))
            if not _drawable(face, char):
                continue
            style = random_style(rng, face.axes, connected=True)
            base = ""
            if self.rows[row].subtype == 1 and rng.random() < 0.4:
                base = rng.choice(self.letters[lang])
                if not covers(face, base + char):
                    base = ""
            try:
                mask = render_character(
                    hb_font(face), char, FRAME_HEIGHT, FRAME_WIDTH, style, base, rng.uniform(-0.7, 0.7)
                )
            except ValueError:
                continue
            zoom = rng.uniform(0.85, 1.1)
            move = np.array(
                [
                    [zoom, rng.gauss(0, 0.04), (1 - zoom) * FRAME_WIDTH / 2 + rng.gauss(0, 1)],
                    [0, zoom, (1 - zoom) * FRAME_HEIGHT / 2 + rng.gauss(0, 0.8)],
                ],
                np.float32,
            )
            mask = cv2.warpAffine(mask, move, (FRAME_WIDTH, FRAME_HEIGHT))
            image = degrade(noise, compose(noise, mask), self.severity * rng.betavariate(1.2, 2.5))
            if not legible(image, mask):  # damage that hides the character costs another draw
                continue
            image = cv2.resize(image, (FRAME_WIDTH, FRAME_HEIGHT), interpolation=cv2.INTER_AREA)
            return SyntheticCharacter(image, row, lang)


@functools.lru_cache(maxsize=16)
def _order(seed: str, count: int) -> list[int]:
    return random.Random(seed).sample(range(count), count)


@functools.lru_cache(maxsize=200_000)
def _drawable(face: Face, char: str) -> bool:
    """Whether the face has ink of its own for the character."""
    font = hb_font(face)
    if font.get_nominal_glyph(ord(char)) is None:
        return False
    try:
        mask = render_character(font, char, FRAME_HEIGHT, FRAME_WIDTH)
    except ValueError:
        return False
    return bool(mask.max() > 60)
