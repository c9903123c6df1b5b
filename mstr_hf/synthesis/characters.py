"""Synthetic character crops for mCLIP: every character of every charset in a fixed line frame."""

from __future__ import annotations

import functools
import random
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from mstr_hf.charsets import DIACRITIC, DIGIT
from mstr_hf.vocabulary import Row

from .augmentation import compose, degrade, legible
from .fonts import Face, FontIndex, covers, hb_font
from .rendering import letter_extent, random_style, render_character
from .words import BRAHMIC_CONSONANTS, BRAHMIC_SCRIPTS

FRAME_HEIGHT, FRAME_WIDTH = 40, 48
# Room for marks above and below what the letters of a language need, in heights of that.
ROOM_ABOVE, ROOM_BELOW = 0.12, 0.16
# How much of a character may leave the frame, as a share of its ink.
MAX_LOSS = 0.03


@dataclass(frozen=True)
class SyntheticCharacter:
    """One crop: image uint8 `[40, 48]`, its bank row, and the language whose fonts drew it."""

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
        # Those of Brahmic scripts are consonants: a vowel letter with a vowel sign looks like another vowel letter.
        brahmic = {row.character for row in rows if row.script in BRAHMIC_SCRIPTS}
        self.carriers = {
            lang: [char for char in own if char not in brahmic or ord(char) % 128 in BRAHMIC_CONSONANTS]
            for lang, own in letters.items()
        }
        self.letters = letters
        self.severity = severity
        self._lines: dict[tuple[Face, str], tuple[float, float] | None] = {}
        self.families = {lang: fonts.families(lang, split) for lang in letters}
        self.drawable = [
            (index, lang)
            for index, row in enumerate(rows)
            for lang in row.languages
            if lang in letters
            and any(_drawable(face, row.character) for family in self.families[lang] for face in family)
        ]
        self.languages: dict[int, list[str]] = {}
        for index, lang in self.drawable:
            self.languages.setdefault(index, []).append(lang)
        # How often a row comes round is for training alone: in an evaluation all count the same.
        self.turns = [index for index in self.languages for _ in range(_turns(rows[index]) if split == "train" else 1)]

    def character(self, seed: int, index: int) -> SyntheticCharacter:
        """The crop at a position of the endless sequence: rows come round in a shuffled order, hard ones more often.

        Each comes in the fonts of one of its languages, so that what all of them write, punctuation above all, does not
        crowd out their letters.
        """
        lap, position = divmod(index, len(self.turns))
        row = self.turns[_order(f"{seed}/lap/{lap}", len(self.turns))[position]]
        lang = random.Random(f"{seed}/{index}/language").choice(self.languages[row])
        return self.crop(row, lang, seed, index)

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
            if self.rows[row].subtype == DIACRITIC and rng.random() < 0.4:
                base = rng.choice(self.carriers[lang])
                if not covers(face, base + char):
                    base = ""
            try:
                mask = render_character(
                    hb_font(face),
                    char,
                    FRAME_HEIGHT,
                    FRAME_WIDTH,
                    style,
                    base,
                    rng.uniform(-0.7, 0.7),
                    self._line(face, lang),
                )
            except ValueError:
                continue
            zoom = rng.uniform(0.85, 1.1)
            move = np.array(
                [
                    [zoom, rng.gauss(0, 0.04), (1 - zoom) * FRAME_WIDTH / 2 + rng.gauss(0, FRAME_HEIGHT / 32)],
                    [0, zoom, (1 - zoom) * FRAME_HEIGHT / 2 + rng.gauss(0, FRAME_HEIGHT / 40)],
                ],
                np.float32,
            )
            ink = float(mask.sum())
            mask = cv2.warpAffine(mask, move, (FRAME_WIDTH, FRAME_HEIGHT))
            if mask.sum() < (1 - MAX_LOSS) * zoom**2 * ink:
                continue
            image = degrade(noise, compose(noise, mask), self.severity * rng.betavariate(1.2, 2.5))
            if not legible(image, mask):  # damage that hides the character costs another draw
                continue
            image = cv2.resize(image, (FRAME_WIDTH, FRAME_HEIGHT), interpolation=cv2.INTER_AREA)
            return SyntheticCharacter(image, row, lang)

    def _line(self, face: Face, lang: str) -> tuple[float, float] | None:
        """Top and bottom of a line in font units: those of the letters, and some room."""
        if (face, lang) not in self._lines:
            extent = letter_extent(hb_font(face), self.letters[lang])
            if extent is not None:
                top, bottom = extent
                extent = (top + ROOM_ABOVE * (top - bottom), bottom - ROOM_BELOW * (top - bottom))
            self._lines[face, lang] = extent
        return self._lines[face, lang]


def _turns(row: Row) -> int:
    """How often a row comes round in a lap of training.

    Marks are hard to tell apart, and stand alone as well as on letters; digits have look-alikes in other scripts; the
    dots and marks of Arabic are the smallest of all.
    """
    return (2 if row.subtype in (DIACRITIC, DIGIT) else 1) * (2 if row.script == "Arab" else 1)


@functools.lru_cache(maxsize=16)
def _order(seed: str, count: int) -> list[int]:
    return random.Random(seed).sample(range(count), count)


@functools.lru_cache(maxsize=200_000)
def _drawable(face: Face, char: str) -> bool:
    """Whether the face has ink of its own for the character, and not that of another."""
    font = hb_font(face)
    if font.get_nominal_glyph(ord(char)) is None:
        return False
    # Not so of lone marks, under which shaping puts a circle.
    if unicodedata.category(char)[0] != "M" and not covers(face, char):
        return False
    try:
        mask = render_character(font, char, FRAME_HEIGHT, FRAME_WIDTH)
    except ValueError:
        return False
    return bool(mask.max() > 60)
