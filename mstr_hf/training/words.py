"""What Spotter and Refiner train on and are judged by: batches of synthetic words, and reading accuracy."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from mstr_hf.charsets import load_charsets
from mstr_hf.models.image_processing_mstr import resized_width
from mstr_hf.models.modeling_refiner import RefinerModel
from mstr_hf.models.modeling_spotter import IGNORED, SpotterModel
from mstr_hf.models.prototype_bank import PrototypeBank
from mstr_hf.models.text import normalise, visual_order
from mstr_hf.synthesis.fonts import discover_fonts
from mstr_hf.synthesis.synthetic_words import SyntheticWord, WordSynthesiser
from mstr_hf.synthesis.words import load_words
from mstr_hf.vocabulary import Vocabulary, build_vocabulary

from .trainer import Batch

HEIGHT = 32
# Pixels a frame: two frames for each column of four pixels.
FRAME_WIDTH = 2
# Wider words are left out of training batches: one of them would cost as much as four others.
MAX_WIDTH = 192
# Words are drawn in chunks of this many batches and sorted by width within a chunk, so that little is padding.
CHUNK = 8


@dataclass
class WordArguments:
    """Which words to train on."""

    fonts: list[str] = field(default_factory=list, metadata={"help": "Folders with fonts beside the system's."})
    language_weights: str = field(
        default="en=4,hi=3,bn=3,ta=2.5,te=2.5,ar=2.5", metadata={"help": "Share of each language in training."}
    )
    severity: float = field(default=0.9, metadata={"help": "Upper end of the degradation budget, 0 to 1."})
    eval_words: int = field(default=100, metadata={"help": "Held-out words a language in an evaluation."})


def word_synthesisers(
    args: WordArguments, bank: PrototypeBank
) -> tuple[Vocabulary, WordSynthesiser, list[SyntheticWord]]:
    """The vocabulary of a bank, the training words, and a fixed set of words in fonts that training never sees.

    Raises:
        ValueError: If the charsets are not those that the bank was made from, or a language has no weight.
    """
    languages = bank.all_languages
    vocabulary = build_vocabulary(load_charsets(languages))
    if vocabulary.digest != bank.charset_digest:
        raise ValueError("the charsets differ from those of the bank: build the bank again")
    weights = {lang: float(weight) for lang, weight in (part.split("=") for part in args.language_weights.split(","))}
    if missing := [lang for lang in languages if lang not in weights]:
        raise ValueError(f"no weight for {', '.join(missing)}: name every language of the bank in language_weights")
    fonts = discover_fonts(languages, args.fonts)
    sources = {lang: load_words(lang) for lang in languages}
    joiners = vocabulary.joiners
    train = WordSynthesiser(fonts, sources, weights, "train", args.severity, joiners)
    heldout = WordSynthesiser(fonts, sources, None, "heldout", 0.6 * args.severity, joiners)
    fixed = [heldout.word(1, index, lang) for lang in languages for index in range(args.eval_words)]
    characters = {row.character for row in vocabulary.rows}
    return vocabulary, train, [word for word in fixed if characters.issuperset(word.text)]


class WordBatches(IterableDataset):
    """Endless chunks of batches; chunk n is a function of the seed and n alone, whatever the number of workers.

    Args:
        words: Draws the words.
        vocabulary: Encodes their labels.
        batch_size: Words a batch.
        seed: Seed of the endless sequence.
        first: First chunk.
        step: Chunks from one to the next of this process (the number of processes).
    """

    def __init__(
        self, words: WordSynthesiser, vocabulary: Vocabulary, batch_size: int, seed: int, first: int, step: int
    ):
        self.words, self.vocabulary = words, vocabulary
        self.characters = {row.character for row in vocabulary.rows}
        self.batch_size, self.seed, self.first, self.step = batch_size, seed, first, step

    def __iter__(self) -> Iterator[list[Batch]]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        number = self.first + worker * self.step
        while True:
            yield self.chunk(number)
            number += workers * self.step

    def chunk(self, number: int) -> list[Batch]:
        """The batches of one chunk."""
        size = CHUNK * self.batch_size
        words: list[tuple[np.ndarray, SyntheticWord]] = []
        # Each chunk owns twice the indices it needs, so that words left out do not shift the next chunk's.
        for index in range(number * size * 2, (number + 1) * size * 2):
            word = self.words.word(self.seed, index)
            pixels = resize(word.image)
            fits = pixels.shape[1] <= MAX_WIDTH and readable(word.text, pixels.shape[1])
            # A language's words may hold Latin codes, which a bank without a Latin language cannot spell.
            if fits and self.characters.issuperset(word.text):
                words.append((pixels, word))
            if len(words) == size:
                break
        words.sort(key=lambda item: item[0].shape[1])
        groups = [words[start : start + self.batch_size] for start in range(0, size, self.batch_size)]
        # The same order of widths in every process: each step waits for the slowest.
        random.Random(f"{self.seed}/chunk/{number // self.step}").shuffle(groups)
        return [collate(group, self.vocabulary) for group in groups]


def word_batches(
    words: WordSynthesiser,
    vocabulary: Vocabulary,
    batch_size: int,
    seed: int,
    num_workers: int,
    first: int,
    process: int,
    processes: int,
) -> Iterator[Batch]:
    """Endless batches of one training process from a given step on (see `Trainer`)."""
    start = first // CHUNK * processes + process
    chunks = WordBatches(words, vocabulary, batch_size, seed, start, processes)
    skip = first % CHUNK
    prefetch = 2 if num_workers else None
    for chunk in DataLoader(chunks, batch_size=None, num_workers=num_workers, prefetch_factor=prefetch):
        yield from chunk[skip:]
        skip = 0


def resize(image: np.ndarray) -> np.ndarray:
    """uint8 `[H, W]` to the models' height and a width that keeps the ratio, as the image processor does it."""
    width = resized_width(image.shape[1], image.shape[0])
    return np.asarray(Image.fromarray(image).resize((width, HEIGHT), Image.Resampling.BICUBIC, reducing_gap=3.0))


def readable(text: str, width: int) -> bool:
    """Whether CTC has frames enough for the text: one a character, and one between equal neighbours."""
    repeats = sum(a == b for a, b in itertools.pairwise(text))
    return len(text) + repeats <= width // FRAME_WIDTH


def collate(words: Sequence[tuple[np.ndarray, SyntheticWord]], vocabulary: Vocabulary) -> Batch:
    """Pads resized images and labels.

    Returns:
        `pixel_values` `[B, 1, 32, W]`, `pixel_mask` `[B, W]`, `labels` `[B, S]`, `frame_labels` `[B, W/2]` (see
        `SpotterModel.forward`).
    """
    width = max(pixels.shape[1] for pixels, _ in words)
    longest = max(len(word.text) for _, word in words)
    images = np.full((len(words), HEIGHT, width), 127.5, np.float32)
    mask = np.zeros((len(words), width), bool)
    labels = np.full((len(words), longest), IGNORED, np.int64)
    frames = np.full((len(words), width // FRAME_WIDTH), IGNORED, np.int64)
    for i, (pixels, word) in enumerate(words):
        images[i, :, : pixels.shape[1]] = pixels
        mask[i, : pixels.shape[1]] = True
        ids = vocabulary.encode(word.text)
        labels[i, : len(ids)] = ids
        if word.centres is not None:
            count = pixels.shape[1] // FRAME_WIDTH
            frames[i, :count] = frame_labels([ids[j] for j in visual_order(word.text)], word.centres * count, count)
    return {
        "pixel_values": torch.from_numpy(images[:, None] / 127.5 - 1),
        "pixel_mask": torch.from_numpy(mask),
        "labels": torch.from_numpy(labels),
        "frame_labels": torch.from_numpy(frames),
    }


def frame_labels(ids: Sequence[int], centres: np.ndarray, count: int) -> np.ndarray:
    """Puts each character on its nearest frame, keeping order; the frames beside it may say what they like.

    Args:
        ids: Token ids in visual order.
        centres: Their centres in frames, ascending or nearly so.
        count: Frames.

    Returns:
        int64 `[count]`: token id, 0 for blank, -100 beside a character.
    """
    frames = np.zeros(count, np.int64)
    placed = []
    last = -1
    for position, (token, centre) in enumerate(zip(ids, centres, strict=True)):
        gap = 2 if position and ids[position - 1] == token else 1
        frame = max(int(centre), last + gap)
        if frame > count - (len(ids) - position):
            return np.full(count, IGNORED, np.int64)  # too crowded at the end to say
        placed.append((frame, token))
        last = frame
    for frame, _ in placed:
        frames[max(0, frame - 1) : frame + 2] = IGNORED
    for frame, token in placed:
        frames[frame] = token
    return frames


def reading_accuracy(model: SpotterModel, words: Sequence[SyntheticWord], vocabulary: Vocabulary) -> dict[str, float]:
    """WRR of the Spotter on synthetic words: overall and by language.

    Args:
        model: The model, in eval mode.
        words: Words that it was not trained on.
        vocabulary: Encodes labels and decodes readings.
    """

    def read(batch: Batch) -> list[str]:
        ids = model(batch["pixel_values"], batch["pixel_mask"]).top_k_ids[..., 0]
        return [vocabulary.decode(row) for row in ids.tolist()]

    return _accuracy(read, words, vocabulary)


def refined_accuracy(model: RefinerModel, words: Sequence[SyntheticWord], vocabulary: Vocabulary) -> dict[str, float]:
    """As :func:`reading_accuracy`, for the Refiner on every word."""

    def read(batch: Batch) -> list[str]:
        readings = model.recognise(batch["pixel_values"], batch["pixel_mask"], gate_threshold=2.0)
        return [normalise(reading["text"], vocabulary.joiners) for reading in readings]

    return _accuracy(read, words, vocabulary)


def _accuracy(
    read: Callable[[Batch], list[str]], words: Sequence[SyntheticWord], vocabulary: Vocabulary
) -> dict[str, float]:
    items = sorted(((resize(word.image), word) for word in words), key=lambda item: item[0].shape[1])
    hits: dict[str, list[bool]] = {}
    for start in range(0, len(items), 32):
        part = items[start : start + 32]
        for text, (_, word) in zip(read(collate(part, vocabulary)), part, strict=True):
            hits.setdefault(word.lang, []).append(text == word.text)
    figures = {f"wrr_{lang}": np.mean(right) for lang, right in sorted(hits.items())}
    figures["wrr"] = np.mean(list(figures.values()))
    return {name: round(float(value), 4) for name, value in figures.items()}
