"""Synthetic words and characters as data sets: Arrow shards that depend on the settings alone.

Every image is a function of its part's seed and its index, so that neither the number of processes nor a restart
shows in the result.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL import Image

from mstr_hf.charsets import load_charsets
from mstr_hf.data.arrow import FEATURES, RECORDS_PER_SHARD, Part, Source, Totals, write_dataset
from mstr_hf.models import text as model_text
from mstr_hf.models.text import display
from mstr_hf.vocabulary import SUBTYPES, Vocabulary, build_vocabulary

from .characters import CharacterSynthesiser
from .fonts import FontIndex, discover_fonts
from .synthetic_words import WordSynthesiser
from .words import WordSource, load_words

SPLITS = {"train": "train", "validation": "heldout"}
"""Split of the data set -> split of the font families."""

BYSTANDERS = ("cache.py", "preview.py", "stream.py")
"""Files beside this one that do not decide what an image looks like."""

WORD_FEATURES: dict[str, dict[str, Any]] = FEATURES | {
    "centres": {"feature": {"dtype": "float32", "_type": "Value"}, "_type": "List"},
}
"""The columns of words (see `mstr_hf.data.arrow.FEATURES`)."""

CHARACTER_FEATURES: dict[str, dict[str, Any]] = FEATURES | {
    "prompt": {"dtype": "string", "_type": "Value"},
    "subtype": {"names": list(SUBTYPES), "_type": "ClassLabel"},
}
"""The columns of characters (see `mstr_hf.data.arrow.FEATURES`)."""


class WordRow(NamedTuple):
    """A synthetic word of a data set; like `mstr_hf.data.arrow.Row`, and what the Spotter's alignment loss needs.

    Attributes:
        id: Name of the record, unique in its data set.
        image: The PNG file's bytes.
        text: The word as people type it.
        label: The normalised word.
        lang: Language code.
        dataset: The collection.
        centres: Column of each character's centre as a fraction of the width, in visual order; empty where unknown.
    """

    id: str
    image: bytes
    text: str
    label: str
    lang: str
    dataset: str
    centres: Sequence[float]


class CharacterRow(NamedTuple):
    """A synthetic character of a data set; like `mstr_hf.data.arrow.Row`, and what mCLIP needs.

    Attributes:
        id: Name of the record, unique in its data set.
        image: The PNG file's bytes.
        text: The character as people type it.
        label: The character.
        lang: Language code.
        dataset: The collection.
        prompt: Its mCLIP prompt, such as `<lang=hi> <type=1> <char=ा>`.
        subtype: 0 letter, 1 diacritic, 2 digit, 3 punctuation or symbol.
    """

    id: str
    image: bytes
    text: str
    label: str
    lang: str
    dataset: str
    prompt: str
    subtype: int


def synthesise(
    output: str | os.PathLike[str],
    languages: Sequence[str],
    train: int,
    validation: int = 0,
    characters: bool = False,
    fonts: Sequence[str | Path] = (),
    seed: int = 0,
    num_proc: int | None = None,
    records_per_shard: int = RECORDS_PER_SHARD,
) -> dict[str, Totals]:
    """Writes a data set of synthetic images, or what is missing of it after an earlier call was killed.

    Words have the columns of `WordRow`, characters those of `CharacterRow`.

    Args:
        output: Folder of the data set: new, empty, or left by a call with the same settings.
        languages: Language codes.
        train: Images a language in font families for training.
        validation: Images a language in held-out families.
        characters: Draw single characters instead of words.
        fonts: Folders with fonts beside the system's.
        seed: Seed of all randomness.
        num_proc: Number of processes; as many as there are cores for this one, if left out.
        records_per_shard: Shards are finished, and killed, one by one.

    Returns:
        The totals by part, such as `"train/hi"`.

    Raises:
        ValueError: If a language has no charset or no fonts, or `output` holds anything else.
        FileNotFoundError: If a font folder does not exist.
        WordsError: If a language has no word list.
    """
    index = discover_fonts(languages, fonts)
    vocabulary = build_vocabulary(load_charsets(languages))
    sources = {} if characters else {lang: load_words(lang) for lang in languages}
    parts = []
    for split, total in (("train", train), ("validation", validation)):
        if total:
            drawn = _character_sources if characters else _word_sources
            for lang, source in drawn(index, vocabulary, sources, split, seed).items():
                parts.append(Part(split, lang, total, source))
    settings = {"kind": "characters" if characters else "words", "seed": seed, **_ingredients(index, sources)}
    features = CHARACTER_FEATURES if characters else WORD_FEATURES
    return write_dataset(output, parts, settings, num_proc, records_per_shard, features)


def encode_image(image: np.ndarray) -> bytes:
    """The PNG file of an image, uint8 `[H, W]` or RGB `[H, W, 3]`: lossless, since damage is part of the picture."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG", compress_level=1)
    return file.getvalue()


@dataclass(frozen=True)
class _Words:
    """Gives words of one language as rows."""

    synthesiser: WordSynthesiser
    lang: str
    seed: int

    def __call__(self, start: int, stop: int) -> Iterator[WordRow]:
        cv2.setNumThreads(1)  # there is a process for each core
        for index in range(start, stop):
            word = self.synthesiser.word(self.seed, index, self.lang)
            name = f"{self.lang}-{self.seed:016x}-{index}"
            image = encode_image(word.image)
            centres = () if word.centres is None else word.centres.tolist()
            yield WordRow(name, image, display(word.text), word.text, self.lang, "synthetic words", centres)


@dataclass(frozen=True)
class _Characters:
    """Gives characters of one language as rows."""

    synthesiser: CharacterSynthesiser
    prompts: dict[int, str]
    lang: str
    seed: int

    def __call__(self, start: int, stop: int) -> Iterator[CharacterRow]:
        cv2.setNumThreads(1)
        for index in range(start, stop):
            crop = self.synthesiser.character(self.seed, index)
            name = f"{self.lang}-{self.seed:016x}-{index}"
            row = self.synthesiser.rows[crop.row]
            yield CharacterRow(
                name,
                encode_image(crop.image),
                display(row.character),
                row.character,
                self.lang,
                "synthetic characters",
                self.prompts[crop.row],
                row.subtype,
            )


def _word_sources(
    fonts: FontIndex, vocabulary: Vocabulary, sources: dict[str, WordSource], split: str, seed: int
) -> dict[str, Source]:
    words = WordSynthesiser(fonts, sources, split=SPLITS[split], joiners=vocabulary.joiners)
    return {lang: _Words(words, lang, part_seed(seed, split, lang)) for lang in sources}


def _character_sources(
    fonts: FontIndex, vocabulary: Vocabulary, _: dict[str, WordSource], split: str, seed: int
) -> dict[str, Source]:
    found: dict[str, Source] = {}
    for charset in load_charsets(vocabulary.languages):
        letters = {charset.lang: charset.letters}
        characters = CharacterSynthesiser(fonts, vocabulary.rows, letters, SPLITS[split])
        prompts = {row: prompt for row, lang, prompt in vocabulary.prompts() if lang == charset.lang}
        found[charset.lang] = _Characters(characters, prompts, charset.lang, part_seed(seed, split, charset.lang))
    return found


def part_seed(seed: int, split: str, lang: str) -> int:
    """A seed of its own for each part, so that no two parts draw the same numbers."""
    return int(hashlib.sha256(f"{seed}/{split}/{lang}".encode()).hexdigest()[:16], 16)


def _ingredients(fonts: FontIndex, sources: dict[str, WordSource]) -> dict[str, Any]:
    """What decides the images beside the seed: a data set is not gone on with after any of it has changed."""
    files = sorted(set(Path(__file__).parent.glob("*.py")) - {Path(__file__).with_name(name) for name in BYSTANDERS})
    code = b"".join(path.read_bytes() for path in [*files, Path(model_text.__file__)])
    faces = [
        (lang, face.family, face.style, face.index, os.path.getsize(face.path), face.group in fonts.heldout[lang])
        for lang, faces in fonts.by_language.items()
        for face in faces
    ]
    words = [
        (lang, source.charset, source.words, source.cumulative, source.syllables, source.conjuncts, source.latin)
        for lang, source in sources.items()
    ]
    libraries = ("uharfbuzz", "opencv-python-headless", "numpy", "pillow")
    return {
        "languages": list(fonts.by_language),
        "fonts": hashlib.sha256(repr(faces).encode()).hexdigest(),
        "words": hashlib.sha256(repr(words).encode()).hexdigest(),
        "code": hashlib.sha256(code).hexdigest(),
        "libraries": {name: importlib.metadata.version(name) for name in libraries},
    }
