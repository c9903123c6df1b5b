"""What Spotter and Refiner train on and are judged by: batches of words, and reading accuracy."""

from __future__ import annotations

import functools
import itertools
import json
import math
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate import PartialState
from PIL import Image
from torch.utils.data import DataLoader

from mstr_hf.charsets import load_charsets
from mstr_hf.hub.publish import SAMPLES as BUNDLED_SAMPLES
from mstr_hf.models.image_processing_mstr import MAX_RATIO, resize, resized_width
from mstr_hf.models.modeling_refiner import RefinerModel
from mstr_hf.models.modeling_spotter import IGNORED, SpotterModel
from mstr_hf.models.prototype_bank import PrototypeBank
from mstr_hf.models.text import display, normalise, visual_order
from mstr_hf.synthesis.fonts import discover_fonts
from mstr_hf.synthesis.stream import SyntheticStream
from mstr_hf.synthesis.synthetic_words import WordSynthesiser
from mstr_hf.synthesis.words import WordsError, load_words
from mstr_hf.vocabulary import Vocabulary

from .arguments import TrainingArguments, WordArguments, mapping
from .log import RunLog
from .sources import REAL_SEVERITY, RealWord, RealWords, Word, WordMixture, WordSource, complain_once, language_shares
from .trainer import Batch, Sample, begin_worker, to_device

if TYPE_CHECKING:
    from .simulator import Simulator  # which measures a Spotter on batches of words

# Height at which `max_width` counts pixels.
HEIGHT = 32
# Pixels a frame, at any height, where characters are placed: columns of four pixels have two, columns of eight four.
FRAME_WIDTH = 2
# Words are drawn in chunks of this many batches and sorted by width within a chunk, so that little is padding.
CHUNK = 8
# Other words that are tried in the place of one that is too wide.
ATTEMPTS = 100
# Pictures a language in TensorBoard.
SAMPLES = 4


@dataclass(frozen=True)
class WordData:
    """What a trainer of words needs.

    Attributes:
        vocabulary: Characters of the bank.
        train: Words to train on.
        heldout: Words to validate with.
        height: The model's image height.
        max_width: Widest word to train on, in pixels at height 32.
        summary: What `train` is, in a line for people.
        warning: Labels that are left out, and why; empty if none are.
        rejects: Each of them (see `RealWords.rejects`).
    """

    vocabulary: Vocabulary
    train: WordMixture
    heldout: Sequence[Word]
    height: int
    max_width: int
    summary: str
    warning: str = ""
    rejects: Sequence[dict[str, str]] = ()

    def batches(
        self, args: TrainingArguments, simulator: Simulator | None = None
    ) -> Callable[[int, int, int], Iterator[Batch]]:
        """What `Trainer` draws its batches from."""
        return functools.partial(
            word_batches,
            self.train,
            self.vocabulary,
            args.batch_size,
            args.seed,
            args.num_workers,
            height=self.height,
            max_width=self.max_width,
            simulator=simulator,
        )

    def introduce(self, log: RunLog, folder: Path) -> None:
        """Says what is trained on, what is left out of it, and what validates; `rejects.jsonl` has what is left out.

        Args:
            log: Where to say it.
            folder: The run's folder, which gets the file.
        """
        log.say(f"trains on {self.summary}; validates with {len(self.heldout)} words", event="data", data=self.summary)
        say_rejects(log, folder, self.warning, self.rejects)


def say_rejects(log: RunLog, folder: Path, warning: str, rejects: Sequence[dict[str, str]]) -> None:
    """Warns of what is left out of labelled pictures, and names each in `rejects.jsonl`; nothing where nothing is.

    Args:
        log: Where to warn.
        folder: The run's folder, which gets the file.
        warning: What is left out, in a line.
        rejects: Each of them (see `RealWords.rejects`).
    """
    if not rejects:
        return
    file = folder / "rejects.jsonl"
    if PartialState().is_main_process:
        lines = [json.dumps(reject, ensure_ascii=False) + "\n" for reject in rejects]
        file.write_text("".join(lines), encoding="utf-8")
    log.say(f"WARNING: {warning}; all are named in {file}", event="left out", reason=warning)


class FixedWords:
    """The same few words over and over."""

    def __init__(self, words: Sequence[Word]):
        self.words = words

    def word(self, seed: int, index: int, lang: str) -> Word:
        """The word at a position of the endless sequence."""
        return self.words[index % len(self.words)]


def word_data(args: WordArguments, bank: PrototypeBank, height: int) -> WordData:
    """Gathers the words to train on and those to validate with.

    Args:
        args: Which words.
        bank: The model's bank.
        height: The model's image height.

    Raises:
        ValueError: If an option does not fit the bank, or the data hold nothing to read.
    """
    vocabulary = Vocabulary.from_bank(bank)
    share = args.synthetic_share if args.synthetic_share is not None else float(not args.data)
    if not 0 <= share <= 1 or (share < 1 and not args.data):
        raise ValueError(f"synthetic_share {share}: give 0 to 1, and 1 (or nothing) without data")
    if args.language_temperature <= 0:
        raise ValueError(f"language_temperature {args.language_temperature}: give a number above 0")
    parts: list[tuple[WordSource, str, float]] = []
    heldout: Sequence[Word] = ()
    summary: list[str] = []
    warnings: list[str] = []
    rejects: list[dict[str, str]] = []
    if args.data:
        sources = weighted(args.data)
        named = [args.val_data] if args.val_data else []  # groups of paths that validate
        validations = []
        weights = math.fsum(weight for _, weight in sources)
        for group, weight in sources:
            real = RealWords(group, vocabulary, 0 if args.overfit_images else REAL_SEVERITY)
            warnings.append(real.complaint())
            rejects += real.rejects()
            if not len(real):
                raise ValueError(f"{', '.join(group)}: no label can be used: {real.complaint()}")
            if not args.val_data:
                own = [path for path in group if (Path(path) / "validation").is_dir()]
                if own:
                    named.append(own)
                else:
                    real, validation = real.split()
                    validations.append(validation)
            part = (1 - share) * weight / weights
            amounts = {lang: float(len(rows)) for lang, rows in real.rows.items()}
            shares = language_shares(amounts, args.language_temperature)
            parts += [(real, lang, part * lang_share) for lang, lang_share in shares.items() if share < 1]
            counts = ", ".join(f"{lang} {len(rows)}" for lang, rows in real.rows.items())
            where = f" of {_source_name(Path(group[0]))}" if len(sources) > 1 else ""
            summary.append(f"{part:.0%} of {len(real)} labelled pictures{where} ({counts})")
        for group in named:
            validation = RealWords(group, vocabulary, split="validation")
            warnings.append(validation.complaint())
            rejects += validation.rejects()
            validations.append(validation)
        heldout = _in_turns([validation.some(args.eval_words) for validation in validations], args.eval_words)
    if share > 0:
        train, drawn = synthesisers(args, bank, vocabulary)
        languages = bank.all_languages
        amounts = dict.fromkeys(languages, 1.0) | mapping(args.language_weights, "language_weights", languages)
        shares = language_shares(amounts, args.language_temperature)
        parts += [(train, lang, share * part) for lang, part in shares.items() if part > 0]
        summary.append(f"{share:.0%} synthetic words ({', '.join(f'{k} {v:.0%}' for k, v in shares.items())})")
        if not heldout:
            heldout = [drawn.word(1, index, lang) for lang in languages for index in range(args.eval_words)]
    if not heldout:
        raise ValueError(
            "no words to validate with: give eval_words of 1 or more, and name --val_data whose labels can be used "
            f"where there are fewer than two pictures of each language{'; '.join(['', *filter(None, warnings)])}"
        )
    mixture = WordMixture(parts)
    if args.overfit_images:
        candidates = (mixture.word(0, index) for index in range(ATTEMPTS * args.overfit_images))
        fitting = (word for word in candidates if fits(word.text, model_pixels(word.image, height), args.max_width))
        different: dict[tuple[str, bytes], Word] = {}
        for word in fitting:
            different.setdefault((word.text, word.image.tobytes()), word)
            if len(different) == args.overfit_images:
                break
        heldout = list(different.values())
        if len(heldout) < args.overfit_images:
            raise ValueError(f"overfit_images {args.overfit_images}: only {len(heldout)} different words fit")
        mixture = WordMixture([(FixedWords(heldout), "", 1.0)])
        summary = [f"{len(heldout)} words over and over"]
    complaints = "; ".join(filter(None, warnings))
    return WordData(vocabulary, mixture, heldout, height, args.max_width, "; ".join(summary), complaints, rejects)


def _in_turns(sets: Sequence[Sequence[Word]], count: int) -> list[Word]:
    """At most `count` words a language, from each of the sets in turn."""
    turns = [word for turn in itertools.zip_longest(*sets) for word in turn if word is not None]
    taken: Counter[str] = Counter()
    chosen = []
    for word in turns:
        taken[word.lang] += 1
        if taken[word.lang] <= count:
            chosen.append(word)
    return sorted(chosen, key=lambda word: word.lang)


def _source_name(path: Path) -> str:
    """What tells a source from others, without the place on the machine: manifests are often called alike."""
    return path.name if path.is_dir() else f"{path.resolve().parent.name}/{path.name}"


def weighted(data: Sequence[str]) -> list[tuple[list[str], float]]:
    """Sources among paths of labelled pictures, and the weight of each.

    Without weights all paths are one source, whose pictures come as often as each other; `PATH=WEIGHT` makes each path
    a source of its own.

    Raises:
        ValueError: If some have weights and some have not, or a weight is none.
    """
    sources: list[tuple[list[str], float]] = []
    for text in data:
        path, sign, weight = text.rpartition("=")
        if not sign or Path(text).exists():
            continue
        try:
            value = float(weight)
        except ValueError:
            value = math.nan
        if not 0 < value < math.inf:
            raise ValueError(f"data: '{text}' is no path, and '{weight}' no weight: give a number above 0")
        sources.append(([path], value))
    if not sources:
        return [(list(data), 1.0)]
    if len(sources) < len(data):
        raise ValueError(f"data: {', '.join(data)}: give each path a weight, as in photographs=3, or none")
    return sources


def words_to_keep(
    args: WordArguments, languages: Sequence[str], vocabulary: Vocabulary
) -> tuple[list[Word], dict[str, str]]:
    """Words that tell whether a model still reads languages that it is not judged by while it trains.

    Args:
        args: Says how many words a language, and how worn; `fonts` are searched beside the system's.
        languages: The languages.
        vocabulary: Characters of the bank.

    Returns:
        The bundled samples, and synthetic words in fonts that training never sees; why a language has none of these.
    """
    if not languages:
        return [], {}
    samples = RealWords([BUNDLED_SAMPLES / "labels.jsonl"], vocabulary).some(args.eval_words)
    words: list[Word] = [word for word in samples if word.lang in languages]
    known = {row.character for row in vocabulary.rows}
    missing = {}
    for lang in languages:
        try:
            source, fonts = {lang: load_words(lang)}, discover_fonts([lang], args.fonts)
            drawn = WordSynthesiser(fonts, source, None, "heldout", 0.6 * args.severity, vocabulary.joiners, known)
        except (ValueError, WordsError) as error:
            missing[lang] = str(error)
        else:
            words += [drawn.word(1, index, lang) for index in range(args.eval_words)]
    return words, missing


def synthesisers(
    args: WordArguments, bank: PrototypeBank, vocabulary: Vocabulary
) -> tuple[WordSynthesiser, WordSynthesiser]:
    """Draws words in the fonts of training, and milder ones in fonts that training never sees."""
    languages = bank.all_languages
    known = set(bank.characters)
    for charset in load_charsets(languages):
        if missing := sorted(charset.characters - known):
            raise ValueError(
                f"the charset of {charset.lang} has characters that the bank lacks, such as {missing[0]!r}: "
                "build the bank again, or extend it"
            )
    fonts = discover_fonts(languages, args.fonts)
    sources = {lang: load_words(lang) for lang in languages}
    train, heldout = (
        WordSynthesiser(fonts, sources, None, split, severity, vocabulary.joiners, known)
        for split, severity in (("train", args.severity), ("heldout", 0.6 * args.severity))
    )
    return train, heldout


class WordBatches:
    """Batches in chunks; chunk n is a function of the seed and n alone.

    Args:
        words: Draws the words: has a method `word(seed, index)`.
        vocabulary: Encodes their labels.
        batch_size: Words a batch.
        processes: Training processes, which take turns.
        height: The model's image height.
        max_width: Widest word, in pixels at height 32.
        simulator: Gives each batch simulated readings of the Spotter.
    """

    def __init__(
        self,
        words: WordMixture | WordSynthesiser,
        vocabulary: Vocabulary,
        batch_size: int,
        processes: int,
        height: int,
        max_width: int = 192,
        simulator: Simulator | None = None,
    ):
        self.words, self.vocabulary = words, vocabulary
        self.batch_size, self.processes = batch_size, processes
        self.height, self.max_width = height, max_width
        self.simulator = simulator
        self._complained: set[str] = set()

    def chunk(self, seed: int, number: int) -> list[Batch]:
        """The batches of one chunk."""
        size = CHUNK * self.batch_size
        words = [self._fitting(seed, index) for index in range(number * size, (number + 1) * size)]
        words.sort(key=lambda item: item[0].shape[1])
        groups = [words[start : start + self.batch_size] for start in range(0, size, self.batch_size)]
        # The same order of widths in every process: each step waits for the slowest.
        random.Random(f"{seed}/chunk/{number // self.processes}").shuffle(groups)
        batches = [collate(group, self.vocabulary) for group in groups]
        if self.simulator is None:
            return batches
        turn, process = divmod(number, self.processes)
        return [
            self.simulator.with_prefixes(batch, (seed, place, process))
            for place, batch in enumerate(batches, CHUNK * turn)
        ]

    def _fitting(self, seed: int, index: int) -> tuple[np.ndarray, Word]:
        """The word at a position, or another one in its place if it is too wide or too dense."""
        for attempt in range(ATTEMPTS):
            word = self.words.word(seed + 1_000_003 * attempt, index)
            pixels = model_pixels(word.image, self.height)
            if fits(word.text, pixels, self.max_width):
                return pixels, word
            if isinstance(word, RealWord) and word.lang not in self._complained:
                self._complained.add(word.lang)
                complain_once(
                    f"pictures of language {word.lang} that are wider than max_width {self.max_width} at height "
                    f"{HEIGHT}, or too narrow for their text, such as {display(word.text)!r}"
                )
        width = f"{self.max_width} pixels wide at height {HEIGHT}"
        raise ValueError(f"none of {ATTEMPTS} words is at most {width}: raise max_width")


def word_batches(
    words: WordMixture | WordSynthesiser,
    vocabulary: Vocabulary,
    batch_size: int,
    seed: int,
    num_workers: int,
    first: int,
    process: int,
    processes: int,
    height: int,
    max_width: int = 192,
    simulator: Simulator | None = None,
) -> Iterator[Batch]:
    """Endless batches of one training process from a given one on (see `Trainer`)."""
    draw = WordBatches(words, vocabulary, batch_size, processes, height, max_width, simulator).chunk
    chunks = SyntheticStream(draw, seed, first // CHUNK * processes, process, processes)
    skip = first % CHUNK
    prefetch = 2 if num_workers else None
    # Arrays go through pipes; tensors would go through shared memory, of which containers may have little.
    loader = DataLoader(
        chunks,
        batch_size=None,
        num_workers=num_workers,
        prefetch_factor=prefetch,
        collate_fn=_to_arrays,
        worker_init_fn=begin_worker,
    )
    for chunk in loader:
        for batch in chunk[skip:]:
            yield _each(torch.from_numpy, batch)
        skip = 0


def _to_arrays(chunk: list[Batch]) -> list[Batch]:
    return [_each(torch.Tensor.numpy, batch) for batch in chunk]


def _each(change: Callable[[Any], Any], batch: Batch) -> Batch:
    """A batch with each tensor changed."""
    return {name: _each(change, item) if isinstance(item, dict) else change(item) for name, item in batch.items()}


def model_pixels(image: np.ndarray, height: int) -> np.ndarray:
    """uint8 `[H, W]` to what a model sees: its height, a width that keeps the ratio, the contrast stretched."""
    width = resized_width(image.shape[1], image.shape[0], height, MAX_RATIO * height)
    return np.asarray(resize(Image.fromarray(image), width, height))


def image_height(model: SpotterModel | RefinerModel) -> int:
    """Height of the images that a model reads.

    Raises:
        ValueError: If its frames are not those of the batches.
    """
    config = getattr(model, "spotter", model).config
    if config.column_width != FRAME_WIDTH * config.frames_per_column:
        raise ValueError(
            f"frames_per_column {config.frames_per_column}, column_width {config.column_width}: training places "
            f"characters in frames of {FRAME_WIDTH} pixels: give {config.column_width // FRAME_WIDTH} frames a column"
        )
    return config.image_height


def readable(text: str, width: int) -> bool:
    """Whether CTC has frames enough for the text: one a character, and one between equal neighbours."""
    repeats = sum(a == b for a, b in itertools.pairwise(text))
    return len(text) + repeats <= width // FRAME_WIDTH


def fits(text: str, pixels: np.ndarray, max_width: int) -> bool:
    """Whether a picture `[H, W]` can train; `max_width` is in pixels at height 32."""
    height, width = pixels.shape
    return width * HEIGHT <= max_width * height and readable(text, width)


def collate(words: Sequence[tuple[np.ndarray, Word]], vocabulary: Vocabulary) -> Batch:
    """Pads resized images and labels.

    Returns:
        `pixel_values` uint8 `[B, 1, H, W]` (see `to_device`), `pixel_mask` `[B, W]`, `labels` `[B, S]`,
        `frame_labels` `[B, W/2]` (see `SpotterModel.forward`).
    """
    height = words[0][0].shape[0]
    width = max(pixels.shape[1] for pixels, _ in words)
    longest = max(len(word.text) for _, word in words)
    images = np.zeros((len(words), 1, height, width), np.uint8)
    mask = np.zeros((len(words), width), bool)
    labels = np.full((len(words), longest), IGNORED, np.int64)
    frames = np.full((len(words), width // FRAME_WIDTH), IGNORED, np.int64)
    for i, (pixels, word) in enumerate(words):
        images[i, 0, :, : pixels.shape[1]] = pixels
        mask[i, : pixels.shape[1]] = True
        ids = vocabulary.encode(word.text)
        labels[i, : len(ids)] = ids
        if word.centres is not None:
            count = pixels.shape[1] // FRAME_WIDTH
            frames[i, :count] = frame_labels([ids[j] for j in visual_order(word.text)], word.centres * count, count)
    return {
        "pixel_values": torch.from_numpy(images),
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


def reading_accuracy(model: SpotterModel, words: Sequence[Word], vocabulary: Vocabulary) -> dict[str, float]:
    """WRR of the Spotter, by language and as the mean over languages.

    Args:
        model: The model, in eval mode.
        words: Words that it was not trained on.
        vocabulary: Encodes labels and decodes readings.
    """
    return _accuracy(spotter_readings(model, words, vocabulary), words)


def refined_accuracy(model: RefinerModel, words: Sequence[Word], vocabulary: Vocabulary) -> dict[str, float]:
    """As :func:`reading_accuracy`, for the Refiner on every word."""
    return _accuracy(refiner_readings(model, words, vocabulary), words)


def recognised_accuracy(model: RefinerModel, words: Sequence[Word], vocabulary: Vocabulary) -> dict[str, float]:
    """As :func:`reading_accuracy`, for what `recognise` reads by default, with the gate and the views of the config."""
    return _accuracy(_recognised(model, words, vocabulary), words)


def reading_samples(
    readings: Callable[..., list[str]],
    model: SpotterModel | RefinerModel,
    words: Sequence[Word],
    vocabulary: Vocabulary,
) -> list[Sample]:
    """A few words of each language with what `readings` makes of them."""
    chosen: dict[str, list[Word]] = {}
    for word in words:
        chosen.setdefault(word.lang, []).append(word)
    shown = [word for found in chosen.values() for word in found[:SAMPLES]]
    texts = readings(model, shown, vocabulary)
    return [
        Sample(model_pixels(word.image, image_height(model)), display(word.text), display(text))
        for word, text in zip(shown, texts, strict=True)
    ]


def spotter_readings(model: SpotterModel, words: Sequence[Word], vocabulary: Vocabulary) -> list[str]:
    """What the Spotter reads in each word, normalised."""

    def read(batch: Batch) -> list[str]:
        ids = model(batch["pixel_values"], batch["pixel_mask"]).top_k_ids[..., 0]
        return [vocabulary.decode(row) for row in ids.tolist()]

    return _readings(read, model, words, vocabulary)


def refiner_readings(model: RefinerModel, words: Sequence[Word], vocabulary: Vocabulary) -> list[str]:
    """What the Refiner reads in each word, sure or not, in one view, normalised."""
    return _recognised(model, words, vocabulary, gate_threshold=2.0, num_views=1)


def _recognised(model: RefinerModel, words: Sequence[Word], vocabulary: Vocabulary, **options: Any) -> list[str]:
    """What `recognise` reads in each word with some options, normalised."""

    def read(batch: Batch) -> list[str]:
        readings = model.recognise(batch["pixel_values"], batch["pixel_mask"], **options)
        return [normalise(reading["text"], vocabulary.joiners) for reading in readings]

    return _readings(read, model, words, vocabulary)


def _readings(
    read: Callable[[Batch], list[str]],
    model: SpotterModel | RefinerModel,
    words: Sequence[Word],
    vocabulary: Vocabulary,
) -> list[str]:
    """Reads words in batches of like width."""
    height = image_height(model)
    pixels = [model_pixels(word.image, height) for word in words]
    order = sorted(range(len(words)), key=lambda place: pixels[place].shape[1])
    texts = [""] * len(words)
    for start in range(0, len(order), 32):
        places = order[start : start + 32]
        batch = to_device(collate([(pixels[place], words[place]) for place in places], vocabulary), model.device)
        for place, text in zip(places, read(batch), strict=True):
            texts[place] = text
    return texts


def _accuracy(texts: Sequence[str], words: Sequence[Word]) -> dict[str, float]:
    hits: dict[str, list[bool]] = {}
    for text, word in zip(texts, words, strict=True):
        hits.setdefault(word.lang, []).append(text == word.text)
    figures = {f"wrr_{lang}": np.mean(right) for lang, right in sorted(hits.items())}
    figures["wrr"] = np.mean(list(figures.values()))
    return {name: round(float(value), 4) for name, value in figures.items()}
