"""Where training words come from: synthesis, labelled pictures, or both mixed by weight.

A mixture is an endless sequence in which every word is a function of the seed and its position alone, so that any
number of processes can share it and a run can go on anywhere.
"""

from __future__ import annotations

import functools
import random
import sys
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeAlias

import numpy as np

from mstr_hf.data.manifest import read_manifest
from mstr_hf.models.image_processing_mstr import load_image
from mstr_hf.models.text import normalise
from mstr_hf.synthesis.augmentation import degrade
from mstr_hf.synthesis.synthetic_words import SyntheticWord
from mstr_hf.vocabulary import Vocabulary

if TYPE_CHECKING:
    import datasets  # slow to import, and only needed for labelled pictures

# Positions over which the shares of a mixture are kept exactly.
LAP = 1000
# Every so many-th labelled word validates where no other validation data are named.
HELD_OUT = 10
# Photographs are degraded already; a little more makes few of them last longer.
REAL_SEVERITY = 0.25

# Longest label in code points, as in the models' `max_length`.
MAX_LENGTH = 64

SPLITS = ("train", "validation", "test")
COLUMNS = ("id", "image", "label", "lang")
# What words have that were drawn beforehand (`mstr_hf.synthesis.dataset.WordRow`).
CENTRES = "centres"


@dataclass(frozen=True)
class RealWord:
    """A labelled picture.

    Attributes:
        image: Grey, uint8 `[H, W]`.
        text: Normalised label in logical order.
        lang: Language.
        centres: As those of `SyntheticWord`; known of words that were drawn.
    """

    image: np.ndarray
    text: str
    lang: str
    centres: np.ndarray | None = None


Word: TypeAlias = SyntheticWord | RealWord


class WordSource(Protocol):
    """Endless words of each of some languages."""

    def word(self, seed: int, index: int, lang: str) -> Word:
        """The word of a language at a position of its endless sequence."""


class WordMixture:
    """Words of several sources and languages.

    Args:
        parts: Source, language and share of each part; shares need not add up to 1.
    """

    def __init__(self, parts: Sequence[tuple[WordSource, str, float]]):
        self.parts = parts
        total = sum(share for *_, share in parts)
        exact = [LAP * share / total for *_, share in parts]
        # Largest remainders; the smallest part has a place in each lap.
        self.counts = [max(1, int(count)) for count in exact]
        order = sorted(range(len(parts)), key=lambda part: exact[part] - int(exact[part]), reverse=True)
        for part in order[: max(0, LAP - sum(self.counts))]:
            self.counts[part] += 1
        self._slots = [(part, place) for part, count in enumerate(self.counts) for place in range(count)]

    def word(self, seed: int, index: int) -> Word:
        """The word at a position of the endless sequence."""
        lap, position = divmod(index, len(self._slots))
        part, place = self._slots[shuffled(position, len(self._slots), f"{seed}/{lap}")]
        source, lang, _ = self.parts[part]
        return source.word(seed, lap * self.counts[part] + place, lang)


class RealWords:
    """Labelled pictures of words, from Arrow folders and manifests.

    Labels that are empty or have characters outside the vocabulary are left out; `rejected` says which and why.

    Args:
        paths: Folders of Arrow files (columns `id`, `image`, `label`, `lang`, and `centres` of drawn words) and
            manifests (`.json`, `.jsonl`).
        vocabulary: What can be read.
        severity: Upper end of the degradation budget; 0 leaves the pictures as they are. Words whose `centres` are
            known were drawn by `mstr synthesise`, worn already, and stay as they are.
        split: Which split of an Arrow folder that has splits.
        longest: Longest label to take, in code points.

    Attributes:
        table: The records; its pictures and labels stay on disk until they are asked for.
        rows: Rows of the usable words of each language.
        rejected: Reason to the rows of the words that are left out.
        outside: How often each character outside the vocabulary occurs in labels, by language.

    Raises:
        ValueError: If a path holds no words.
    """

    def __init__(
        self,
        paths: Sequence[str | Path],
        vocabulary: Vocabulary,
        severity: float = 0.0,
        split: str = "train",
        longest: int = MAX_LENGTH,
    ):
        import datasets

        self.severity = severity
        self.table = datasets.concatenate_datasets([_read(Path(path), split) for path in paths])
        self.rejected: dict[str, list[int]] = {}
        self.outside: dict[str, Counter[str]] = {}
        self._joiners = vocabulary.joiners
        known = {row.character for row in vocabulary.rows}
        rows: dict[str, list[int]] = {}
        for row, (label, lang) in enumerate(zip(self.table["label"], self.table["lang"], strict=True)):
            text = normalise(label, self._joiners)
            missing = set(text) - known
            if missing:
                self.outside.setdefault(lang, Counter()).update(missing)
                reason = "characters outside the bank"
            elif not text:
                reason = "empty label"
            elif len(text) > longest:
                reason = f"more than {longest} character{'s' * (longest > 1)}"
            else:
                rows.setdefault(lang, []).append(row)
                continue
            self.rejected.setdefault(reason, []).append(row)
        self.rows = {lang: np.array(found) for lang, found in sorted(rows.items())}

    def __len__(self) -> int:
        return sum(map(len, self.rows.values()))

    def rejects(self) -> list[dict[str, str]]:
        """Each word that is left out: `id`, `label`, `lang` and `reason`."""
        columns = self.table.select_columns(["id", "label", "lang"])
        return [
            record | {"reason": reason} for reason, rows in self.rejected.items() for record in columns.select(rows)
        ]

    def complaint(self, remedy: str = "scripts/extend_prototype_bank.py adds them to a bank") -> str:
        """What is left out and why, in one line; empty if nothing is. `remedy` helps where characters are missing."""
        parts = [
            f"{len(rows)} words left out ({reason}), such as {self.table[rows[0]]['id']}"
            for reason, rows in self.rejected.items()
        ]
        for lang, counts in self.outside.items():
            named = ", ".join(f"{char!r} U+{ord(char):04X} x{count}" for char, count in counts.most_common(10))
            more = f" and {len(counts) - 10} more" if len(counts) > 10 else ""
            parts.append(f"{lang} needs {named}{more}: {remedy}")
        return "; ".join(parts)

    def split(self) -> tuple[RealWords, RealWords]:
        """A part to train on and one in `HELD_OUT` to validate with, by the hash of each id."""
        parts = []
        for heldout in (False, True):
            part = object.__new__(RealWords)
            part.__dict__.update(self.__dict__)
            part.rows = {}
            for lang, rows in self.rows.items():
                ranked = self._by_hash(rows)
                cut = -(-len(ranked) // HELD_OUT) if len(ranked) > 1 else 0
                if chosen := sorted(ranked[:cut] if heldout else ranked[cut:]):
                    part.rows[lang] = np.array(chosen)
            parts.append(part)
        return parts[0], parts[1]

    def word(self, seed: int, index: int, lang: str) -> RealWord:
        """The word at a position of a language's endless sequence, in which all come round, newly shuffled each time.

        A picture that cannot be read is named on stderr, and the next one takes its place.
        """
        rows = self.rows[lang]
        for place in range(index, index + len(rows)):
            lap, position = divmod(place, len(rows))
            row = int(rows[shuffled(position, len(rows), f"{seed}/{lang}/{lap}")])
            try:
                word = self.read(row)
            except ValueError as error:
                complain_once(str(error))
                continue
            if not self.severity or word.centres is not None:
                return word
            noise = np.random.default_rng([zlib.crc32(lang.encode()), seed, place])
            worn = degrade(noise, word.image.astype(np.float32), self.severity * noise.random())
            return RealWord(worn, word.text, lang)
        raise ValueError(f"no picture of language {lang} can be read: correct the data")

    def read(self, row: int) -> RealWord:
        """The word of a row.

        Raises:
            ValueError: If the picture cannot be read.
        """
        record = self.table[row]
        image = record["image"]
        source = image["bytes"] if image["bytes"] is not None else image["path"]
        text = normalise(record["label"], self._joiners)
        grey = np.asarray(load_image(source, f"image {record['id']}"))
        centres = record.get(CENTRES)
        # Charsets with other joiners have other labels.
        known = centres is not None and len(centres) == len(text)
        return RealWord(grey, text, record["lang"], np.array(centres) if known else None)

    def some(self, count: int) -> list[RealWord]:
        """At most `count` words a language, the same ones each time."""
        words = []
        for rows in self.rows.values():
            found = 0
            for row in self._by_hash(rows):
                if found == count:
                    break
                try:
                    words.append(self.read(row))
                except ValueError as error:
                    complain_once(str(error))
                    continue
                found += 1
        return words

    def _by_hash(self, rows: np.ndarray) -> list[int]:
        """The rows in an order that nothing but their ids decides."""
        ids = self.table.select_columns("id").select(rows)["id"]
        hashes = np.array([zlib.crc32(name.encode()) for name in ids])
        return rows[hashes.argsort(kind="stable")].tolist()


def language_shares(amounts: dict[str, float], temperature: float) -> dict[str, float]:
    """Shares of languages in joint training, proportional to `amount ** (1 / temperature)`.

    A temperature of 1 keeps the proportions of the data, a higher one lifts the small languages (as in Conneau et al.,
    2020, where its inverse is called alpha).
    """
    powers = {lang: amount ** (1 / temperature) for lang, amount in amounts.items()}
    return {lang: power / sum(powers.values()) for lang, power in powers.items()}


def shuffled(position: int, count: int, key: str) -> int:
    """Where a position goes in a permutation of `range(count)` that the key chooses.

    A Feistel network over the next power of four, walked until it lands inside (Black and Rogaway, 2002): a shuffle of
    any number of records without a list of them.
    """
    half = max(1, (count - 1).bit_length() + 1 >> 1)
    mask = (1 << half) - 1
    rounds = _round_keys(key)
    while True:
        left, right = position >> half, position & mask
        for multiplier, offset in rounds:
            mixed = (right + offset) * multiplier & 0xFFFFFFFF
            left, right = right, left ^ ((mixed ^ mixed >> 15) * 0x2C1B3C6D >> 12 & mask)
        position = left << half | right
        if position < count:
            return position


@functools.lru_cache(maxsize=4096)
def _round_keys(key: str) -> list[tuple[int, int]]:
    rng = random.Random(key)
    return [(rng.getrandbits(32) | 1, rng.getrandbits(32)) for _ in range(4)]


@functools.lru_cache(maxsize=1000)
def complain_once(message: str) -> None:
    """Says on stderr what is left out, the first time."""
    print(f"left out: {message}", file=sys.stderr, flush=True)


def _read(path: Path, split: str) -> datasets.Dataset:
    """Columns `COLUMNS` of an Arrow folder, memory-mapped, or of a manifest, and `CENTRES` where they are known."""
    import datasets

    features = datasets.Features(
        {name: datasets.Image(decode=False) if name == "image" else datasets.Value("string") for name in COLUMNS}
    )
    if not path.exists():
        hint = ": weights are for the paths of --data of words" if "=" in path.name else ""
        raise ValueError(f"{path}: there is no such file or folder{hint}")
    if path.is_dir():
        folder = path / split
        if not folder.is_dir():
            if there := [name for name in SPLITS if (path / name).is_dir()]:
                raise ValueError(f"{path}: no split {split}: name the folder to take for it, such as {path / there[0]}")
            folder = path
        # Beside the shards, the library `datasets` keeps what its own functions made of them.
        files = sorted(file for file in folder.rglob("*.arrow") if not file.name.startswith(("cache-", "tmp")))
        if not files:
            raise ValueError(f"{folder}: no .arrow files in it: convert your data with `mstr convert`")
        table = datasets.concatenate_datasets([datasets.Dataset.from_file(str(file)) for file in files])
        if missing := [name for name in COLUMNS if name not in table.column_names]:
            raise ValueError(f"{path}: no column {', '.join(missing)}: convert your data with `mstr convert`")
        wanted = [name for name in (*COLUMNS, CENTRES) if name in table.column_names]
        return table.select_columns(wanted).cast_column("image", features["image"])
    records = read_manifest(path)
    return datasets.Dataset.from_dict(
        {
            "id": [record.id for record in records],
            "image": [{"bytes": None, "path": str(record.path)} for record in records],
            "label": [record.text for record in records],
            "lang": [record.lang for record in records],
        },
        features=features,
    )
