"""Adds a language to a trained checkpoint: new rows in its bank, if wanted some tuning; the weights keep their size.

    python scripts/add_language.py --checkpoint mstr_hf/pretrained/refiner-6lang --lang kn --output_dir runs/kn \
        --steps 2300 --bf16 true

The language needs a charset (mstr_hf/charsets), fonts and a word list: see "Add a language" in the README. The stages:

    fonts        which fonts draw the language, and what none of them draws
    rows         a row for each new character; old rows stay as they are
    before       reading of all languages with the rows only, and of the old ones without them
    tune         trains Spotter and Refiner together on words of the new language and, in part, of the old ones, in
                 which the checkpoint is their teacher
    after        reading of all languages after tuning
    checkpoint   the new checkpoint with its card, ready for the Hub

Each leaves its result in OUTPUT_DIR/STAGE.json. A run that was stopped goes on when it is started again; `--stage` runs
one stage alone. Without steps of tuning, tune and after are left out.
"""

from __future__ import annotations

import argparse
import copy
import functools
import hashlib
import json
import math
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from huggingface_hub import ModelCardData
from transformers import AutoConfig, AutoProcessor, HfArgumentParser

import mstr_hf  # noqa: F401  (registers the Auto classes)
from mstr_hf.charsets import Charset, load_charset
from mstr_hf.data.manifest import read_manifest
from mstr_hf.evaluation.metrics import Score, crr, script_accuracy, wrr
from mstr_hf.evaluation.run import model_digest
from mstr_hf.hub.publish import assemble
from mstr_hf.models.configuration_refiner import RefinerConfig
from mstr_hf.models.image_processing_mstr import MAX_RATIO, load_image
from mstr_hf.models.language_model import LanguageModel
from mstr_hf.models.modeling_mclip import MCLIPModel
from mstr_hf.models.modeling_refiner import RefinerModel
from mstr_hf.models.prototype_bank import PrototypeBank
from mstr_hf.synthesis.cache import read_json, write_json
from mstr_hf.synthesis.characters import CharacterSynthesiser
from mstr_hf.synthesis.fonts import FontIndex, discover_fonts, hb_font
from mstr_hf.synthesis.synthetic_words import SyntheticWord, WordSynthesiser
from mstr_hf.synthesis.words import WordsError, load_words
from mstr_hf.training.bank_rows import (
    check_space,
    extend_bank,
    extended_vocabulary,
    image_rows,
    prompt_rows,
    spotter_rows,
)
from mstr_hf.training.distillation import Distillation
from mstr_hf.training.finish import checkpoint_name
from mstr_hf.training.language_model import build_language_model
from mstr_hf.training.mclip import check_places, vocabulary_of
from mstr_hf.training.trainer import Batch, Trainer, TrainingArguments
from mstr_hf.training.words import image_height, word_batches
from mstr_hf.vocabulary import Vocabulary

# Rows, tuning and evaluation draw other pictures, of the same word lists.
ROW_SEED, EVALUATION_SEED = 5, 6
HELDOUT_SEVERITY = 0.6
READ_AT_ONCE = 32
# What the words drawn for evaluation are called, beside manifests by their names.
SYNTHETIC = "synthetic"
# A row is fitted to at least so many sights of its character.
RARE = 8
# Where a row may come from.
WAYS = {
    "text": "mCLIP's text side",
    "image": "mCLIP's image side, the mean over renderings",
    "spotter": "the Spotter, fitted to its frames where the character stands in rendered words",
    "random": "chance, as no word with them could be drawn",
}
METRICS: dict[str, Callable[..., Score]] = {"wrr": wrr, "crr": crr, "script": script_accuracy}
# An old language that loses so many points of WRR to the new rows is drawn twice as often in tuning as one that loses
# none, and at most so many times as often: the letters of both look alike, and telling them apart is what there is to
# learn.
POINTS_A_SHARE, MOST_SHARES = 5.0, 3.0
# Per cent that an old language may lose before the run says so.
TOLERATED_LOSS = 1.0

Figures = dict[str, dict[str, Any]]
"""Figures by language: `n`, and for `spotter` and `refiner` WRR, CRR and script accuracy in per cent."""


@dataclass
class LanguageArguments:
    """What to add to which checkpoint, and how."""

    checkpoint: str = field(metadata={"help": "Folder or Hub repository of the Refiner that gains the language."})
    lang: str = field(metadata={"help": "Language to add: one with a charset in mstr_hf/charsets."})
    output_dir: str = field(metadata={"help": "Folder for all results; the new checkpoint is its 'checkpoint'."})
    stage: str | None = field(default=None, metadata={"help": "Run this stage alone."})
    fonts: list[str] = field(default_factory=list, metadata={"help": "Folders with fonts beside the system's."})
    rows: str = field(
        default="spotter",
        metadata={
            "help": "Where new rows come from: spotter (its frames where the character stands in words), or with "
            "--mclip image (mean embedding of renderings) or text (its prompt, if mCLIP was tuned on the character)."
        },
    )
    mclip: str | None = field(default=None, metadata={"help": "Folder of an mCLIP in the bank's space."})
    row_words: int = field(
        default=3000,
        metadata={"help": "Rendered words that the Spotter makes rows of, and half as many of each old language."},
    )
    row_crops: int = field(default=64, metadata={"help": "Renderings a character that mCLIP makes rows of."})
    steps: int = field(default=0, metadata={"help": "Steps of tuning of Spotter and Refiner."})
    replay: float = field(default=0.8, metadata={"help": "Share of old languages in tuning, so as not to forget them."})
    batch_size: int = field(default=64, metadata={"help": "Words a step."})
    learning_rate: float = field(default=4e-4, metadata={"help": "Peak learning rate of tuning."})
    warmup_steps: int = field(default=50, metadata={"help": "Steps of linear warm-up; cosine decay to 0 follows."})
    severity: float = field(default=0.9, metadata={"help": "Upper end of the degradation budget, 0 to 1."})
    bf16: bool = field(default=False, metadata={"help": "Tune in bfloat16 autocast; weights stay in float32."})
    num_workers: int = field(default=1, metadata={"help": "Processes that synthesise words for tuning."})
    save_steps: int = field(default=100, metadata={"help": "Steps between the tuning's checkpoints."})
    eval_words: int = field(default=100, metadata={"help": "Synthetic words a language, in fonts kept for evaluation."})
    manifests: list[str] = field(
        default_factory=list, metadata={"help": "Manifests of photographed words to evaluate on too."}
    )
    seed: int = field(default=0, metadata={"help": "Seed of the tuning's words."})

    def __post_init__(self) -> None:
        if self.rows not in ("spotter", "image", "text"):
            raise ValueError(f"--rows {self.rows}: use spotter, image or text")
        if self.rows != "spotter" and self.mclip is None:
            raise ValueError(f"--rows {self.rows} comes from an mCLIP: name its folder with --mclip")
        if self.rows == "spotter" and self.mclip is not None:
            raise ValueError("--mclip is for rows of mCLIP: add --rows image or --rows text, or leave it out")
        if not 0 <= self.replay < 1:
            raise ValueError(f"--replay {self.replay}: give a number from 0 to below 1")
        if self.lang.endswith(".json"):
            raise ValueError(f"--lang {self.lang}: put the file into mstr_hf/charsets and give its code")
        if self.steps < 0:
            raise ValueError(f"--steps {self.steps}: give 0, for rows alone, or more")
        if self.stage is not None and self.stage not in STAGES:
            raise ValueError(f"--stage {self.stage}: use one of {', '.join(STAGES)}")
        if self.stage in ("tune", "after") and not self.steps:
            raise ValueError(f"--stage {self.stage}: without --steps nothing is tuned")


class Run:
    """One language being added: where the results are, and the parts that several stages need.

    Args:
        args: The options.
    """

    def __init__(self, args: LanguageArguments):
        self.args = args
        self.folder = Path(args.output_dir)
        if not args.steps and (trained := [*self.folder.glob("tune/checkpoint-*"), *self.folder.glob("tune.json")]):
            raise ValueError(
                f"{trained[0]} is there, but no --steps: give those of the tuning, or name another --output_dir"
            )
        self.training = TrainingArguments(
            output_dir=str(self.folder / "tune"),
            max_steps=args.steps,
            batch_size=args.batch_size,
            learning_rate=args.learning_rate,
            warmup_steps=args.warmup_steps,
            bf16=args.bf16,
            seed=args.seed,
            num_workers=args.num_workers,
            log_steps=10,
            save_steps=args.save_steps,
        )
        self.charset: Charset = load_charset(args.lang)
        names = [Path(manifest).stem for manifest in args.manifests]
        for name, count in Counter([*names, SYNTHETIC]).items():
            if count > 1:
                other = "the synthetic words have that name" if name == SYNTHETIC else "two manifests have it"
                raise ValueError(f"a manifest is called {name}, but {other}: rename the file")
        self.manifests = dict(zip(names, map(read_manifest, args.manifests), strict=True))
        try:
            kind = AutoConfig.from_pretrained(args.checkpoint).model_type
        except (OSError, ValueError) as error:
            raise ValueError(f"--checkpoint {args.checkpoint}: no model there: {error}") from error
        if kind != RefinerConfig.model_type:
            raise ValueError(f"--checkpoint {args.checkpoint} is of the type {kind}: give a Refiner")
        self.model = RefinerModel.from_pretrained(args.checkpoint, dtype=torch.float32).eval()
        self.processor = AutoProcessor.from_pretrained(args.checkpoint)
        self.old_bank = self.model.get_bank()
        self.vocabulary: Vocabulary = extended_vocabulary(self.old_bank, self.charset)

    def result(self, stage: str) -> dict[str, Any] | None:
        """What a stage has left, if it was run with the options of now and is still there.

        Raises:
            ValueError: If a training was begun with other options: it is not thrown away.
        """
        kept = read_json(self.folder / f"{stage}.json")
        if kept is None or (stage in _FOLDERS and not (self.folder / _FOLDERS[stage]).is_dir()):
            return None
        changed = self.changed(stage, kept["options"])
        if changed and stage == "tune":
            raise ValueError(
                f"{self.folder / stage} was trained with other {', '.join(changed)}: name another --output_dir, or "
                f"remove {self.folder / stage} and {self.folder / stage}.json"
            )
        return None if changed else kept

    def changed(self, stage: str, before: dict[str, Any]) -> list[str]:
        """Options of a stage that are others now."""
        return [name for name, value in self.options(stage).items() if before.get(name) != value]

    def keep(self, stage: str, result: dict[str, Any]) -> None:
        """Writes a stage's result, in one step."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / f"{stage}.json", {"options": self.options(stage), **result})

    def needed(self, stage: str) -> dict[str, Any]:
        """The result of a stage that another one builds on.

        Raises:
            ValueError: If it was not run.
        """
        result = self.result(stage)
        if result is None:
            kept = read_json(self.folder / f"{stage}.json")
            changed = self.changed(stage, kept["options"]) if kept else []
            why = f"was run with other {', '.join(changed)}" if changed else "is missing"
            raise ValueError(f"stage {stage} in {self.folder} {why}: run it first, or leave --stage out")
        return result

    @functools.cached_property
    def fonts(self) -> FontIndex:
        """The fonts of all languages."""
        return discover_fonts(self.vocabulary.languages, self.args.fonts)

    def bank(self) -> PrototypeBank:
        """The extended bank.

        Raises:
            ValueError: If it is another than the stage's result says: one that a stopped run left.
        """
        digest = self.needed("rows")["digest"]
        bank = PrototypeBank.from_pretrained(self.folder / "rows")
        if bank.digest() != digest:
            raise ValueError(f"{self.folder}: rows and rows.json do not belong together: remove both, and start again")
        return bank

    @functools.cached_property
    def language_model(self) -> LanguageModel:
        """The language model of all languages."""
        return build_language_model(self.bank(), [load_words(lang) for lang in self.vocabulary.languages])

    def extend(self, model: RefinerModel) -> None:
        """Gives a Refiner the extended bank, and a language model that knows the new language if it has one."""
        model.set_bank(self.bank())
        if model.language_model is not None:
            model.set_language_model(self.language_model)

    def words(self, split: str, severity: float, weights: dict[str, float]) -> WordSynthesiser:
        """Draws words of the languages that have a weight."""
        sources = {lang: load_words(lang) for lang in weights}
        known = {row.character for row in self.vocabulary.rows}
        return WordSynthesiser(self.fonts, sources, weights, split, severity, self.vocabulary.joiners, known)

    def tuned(self) -> RefinerModel:
        """The checkpoint after tuning; with the new rows only if there was none."""
        source = self.args.checkpoint
        if self.args.steps:
            self.needed("tune")
            source = str(self.folder / "tune/final")
        model = RefinerModel.from_pretrained(source, dtype=torch.float32)
        self.extend(model)
        model.config.freeze_spotter = self.model.config.freeze_spotter
        return model.eval()

    def options(self, stage: str) -> dict[str, Any]:
        """The options that make a stage's result what it is, and digests of what they name."""
        given = asdict(self.args) | self.contents
        return {name: given.get(name) for name in _OPTIONS[stage]}

    @functools.cached_property
    def contents(self) -> dict[str, str]:
        """Digests of fonts, words, characters, weights and photographs: any of them may be others tomorrow."""
        by_language = self.fonts.by_language.items()
        faces = {lang: sorted((face.path, face.index) for face in found) for lang, found in by_language}
        photographs = [Path(manifest).read_text(encoding="utf-8") for manifest in self.args.manifests]
        digests = {
            name: hashlib.sha256(json.dumps(content).encode()).hexdigest()
            for name, content in (
                ("faces", faces),
                ("words", [load_words(lang).words for lang in self.vocabulary.languages]),
                ("photographs", photographs),
            )
        }
        if self.args.mclip is not None:
            weights = (Path(self.args.mclip) / "model.safetensors").read_bytes()
            digests["mclip_weights"] = hashlib.sha256(weights).hexdigest()
        return digests | {"characters": self.vocabulary.digest, "weights": model_digest(self.model)}


def fonts_stage(run: Run) -> dict[str, Any]:
    """Says which fonts draw the language.

    Raises:
        ValueError: If there are too few, for it or for one of the others, which are read too.
    """
    print(discover_fonts([run.args.lang], run.args.fonts).report())
    for lang in run.vocabulary.languages:
        faces = {split: run.fonts.faces(lang, split) for split in ("train", "heldout")}  # the last one's stay
        if not all(faces.values()):
            raise ValueError(
                f"too few font designs draw {lang} for one to be kept for evaluation: install more (README.md, Fonts)"
            )
    every = [hb_font(face) for split in faces.values() for face in split]
    missing = [
        character
        for character in sorted(run.charset.characters - set(run.charset.joiners))
        if not any(font.get_nominal_glyph(ord(character)) for font in every)
    ]
    if missing:
        print(f"in no font: {', '.join(f'{c} U+{ord(c):04X}' for c in missing)}")
    families = {split: sorted({face.family for face in part}) for split, part in faces.items()}
    return {"families": families, "missing": missing}


def rows_stage(run: Run) -> dict[str, Any]:
    """Makes the extended bank in `rows`."""
    args, vocabulary, bank = run.args, run.vocabulary, run.old_bank
    first = len(bank)
    new = vocabulary.rows[first:]
    source = [""] * len(new)
    rows = torch.zeros(len(new), bank.prototypes.shape[1])

    def take(way: str, found: torch.Tensor, usable: Sequence[bool]) -> None:
        for index, prototype in enumerate(found):
            if usable[index] and not source[index]:
                rows[index], source[index] = prototype, way

    revision = "Spotter"
    if args.mclip is not None:
        mclip = MCLIPModel.from_pretrained(args.mclip).eval()
        check_space(mclip, vocabulary_of(args.mclip), bank)
        revision = f"mCLIP {Path(args.mclip).name}"
        if args.rows == "text":
            check_places(args.mclip, vocabulary)
            take("text", prompt_rows(mclip, vocabulary, first), [True] * len(new))
        else:
            letters = {args.lang: run.charset.letters}
            renderings = CharacterSynthesiser(run.fonts, vocabulary.rows, letters, severity=0.3)
            found, counts = image_rows(mclip, vocabulary, first, renderings, args.row_crops, ROW_SEED)
            take("image", found, list(map(bool, counts)))
    words: list[SyntheticWord] = []
    if "" in source:
        # Beside its own choice, for what mCLIP cannot be shown: joiners have no ink of their own.
        synthesiser = run.words("train", 0.5 * args.severity, {args.lang: 1.0})
        words = draw(synthesiser, ROW_SEED, args.lang, args.row_words)
        words += draw_rare(synthesiser, args.lang, [row.character for row in new], words)
        olds = run.old_bank.all_languages
        others = run.words("train", 0.5 * args.severity, dict.fromkeys(olds, 1.0))
        # As many words of each old language as keep its characters what they are, whatever their number.
        for lang in olds:
            words += draw(others, ROW_SEED, lang, args.row_words // 2)
        found, counts = spotter_rows(run.model.spotter, run.processor, vocabulary, words)
        take("spotter", found, list(map(bool, counts)))
    random_rows = torch.randn(rows.shape, generator=torch.Generator().manual_seed(ROW_SEED))
    # What no font draws is not read either: these rows only keep ids and charset in step.
    take("random", torch.nn.functional.normalize(random_rows, dim=-1), [True] * len(new))

    extended = extend_bank(bank, vocabulary, rows, f"{revision}, {args.rows}")
    extended.save_pretrained(run.folder / "rows")
    sources: dict[str, str] = dict.fromkeys(WAYS, "")
    for row, way in zip(new, source, strict=True):
        sources[way] += row.character
    for way, characters in sources.items():
        if characters:
            print(f"{len(characters)} rows, {way}: {' '.join(characters)}")
    nearest = nearest_rows(extended, first)
    print("closest: " + ", ".join(f"{pair} {cosine:.2f}" for pair, cosine in nearest[:10]))
    if torch.equal(extended.prototypes[:first], bank.prototypes):
        print(f"{len(extended)} rows, the first {first} bit for bit as they were")
    drawn = dict(Counter(word.lang for word in words))
    digests = {"digest": extended.digest(), "old_digest": bank.digest()}
    return {"sources": sources, "words": drawn, "nearest": nearest, **digests}


def nearest_rows(bank: PrototypeBank, first: int) -> list[tuple[str, float]]:
    """New rows with the row that is nearest to each, closest pairs first."""
    similarity = bank.prototypes[first:] @ bank.prototypes.t()
    similarity[torch.arange(len(similarity)), torch.arange(first, len(bank))] = -1
    values, rows = similarity.max(1)
    pairs = [
        (f"{bank.characters[first + index]}~{bank.characters[row]}", round(value, 4))
        for index, (value, row) in enumerate(zip(values.tolist(), rows.tolist(), strict=True))
    ]
    return sorted(pairs, key=lambda pair: -pair[1])


def before_stage(run: Run) -> dict[str, Any]:
    """Reads the old languages with the old bank, and all with the new one."""
    run.needed("rows")
    old = evaluate(run, run.model, run.old_bank.all_languages)
    model = copy.deepcopy(run.model)
    run.extend(model)
    with_rows = evaluate(run, model, run.vocabulary.languages)
    print(table(run, {"before": old, "rows only": with_rows}))
    return {"original": old, "rows": with_rows, "parameters": run.model.num_parameters()}


def tune_stage(run: Run) -> dict[str, Any]:
    """Trains Spotter and Refiner together in `tune`, from its newest checkpoint if there is one."""
    args, folder = run.args, run.folder / "tune"
    begun, shares = any(folder.glob("checkpoint-*")), read_json(folder / "shares.json")
    if begun and (shares is None or read_json(folder / "options.json") != run.options("tune")):
        raise ValueError(f"{folder} was begun with other options: name another --output_dir, or remove {folder}")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "options.json", run.options("tune"))
    set_seed(args.seed)
    model = RefinerModel.from_pretrained(args.checkpoint, dtype=torch.float32)
    # From now on these are rows that the weights are trained with.
    model.set_bank(run.bank(), base=True)
    model.config.freeze_spotter = False
    # A run that goes on draws the words that it began with, whatever `before` has read since.
    if not begun:
        shares = word_shares(run.needed("before"), run.old_bank.all_languages, args.lang, args.replay)
        write_json(folder / "shares.json", shares)
    print("words: " + ", ".join(f"{lang} {share:.0%}" for lang, share in shares.items()))
    train = run.words("train", args.severity, {lang: share for lang, share in shares.items() if share})

    def batches(first: int, process: int, processes: int) -> Iterator[Batch]:
        return word_batches(
            train,
            run.vocabulary,
            args.batch_size,
            args.seed,
            args.num_workers,
            first,
            process,
            processes,
            image_height(model),
        )

    training = replace(run.training, resume=begun)
    model = model.requires_grad_(True).train()
    trainer = Trainer(training, model, batches, freeze_statistics=True, loss=Distillation(model, run.model))
    try:
        trainer.train()
    except SystemExit:
        print("start the same command again to go on: it needs no --resume")
        raise
    return {"shares": shares}


def word_shares(before: dict[str, Any], old: Sequence[str], new: str, replay: float) -> dict[str, float]:
    """What share of the tuning's words each language gets: an old one the more, the more the new rows disturb it.

    Args:
        before: What that stage has found.
        old: The old languages.
        new: The new one.
        replay: Share of all the old ones.
    """
    weights = {}
    for lang in old:
        original, rows = (before[state][SYNTHETIC].get(lang) for state in ("original", "rows"))
        # Without synthetic words to evaluate on, all are alike.
        lost = original["refiner"]["wrr"] - rows["refiner"]["wrr"] if original else 0.0
        weights[lang] = min(MOST_SHARES, 1 + max(0.0, lost) / POINTS_A_SHARE)
    total = sum(weights.values())
    return {lang: replay * weight / total for lang, weight in weights.items()} | {new: 1 - replay}


def after_stage(run: Run) -> dict[str, Any]:
    """Reads all languages after tuning."""
    before = run.needed("before")
    model = run.tuned()
    tuned = evaluate(run, model, run.vocabulary.languages)
    states = {"before": before["original"], "rows only": before["rows"], "tuned": tuned}
    print(table(run, states))
    return {"tuned": tuned, "parameters": model.num_parameters()}


def checkpoint_stage(run: Run) -> dict[str, Any]:
    """Writes the new checkpoint with its card."""
    before = run.needed("before")
    states = {"before": before["original"], "rows only": before["rows"]}
    if run.args.steps:
        states["tuned"] = run.needed("after")["tuned"]
    model = run.tuned()
    parameters = before["parameters"], model.num_parameters()
    folder = run.folder / "checkpoint"
    assemble(model, folder)
    (folder / "README.md").write_text(card(run, states, parameters), encoding="utf-8")
    print(f"parameters before and after: {parameters[0]:,} and {parameters[1]:,}")
    remedy = "raise --replay" if run.args.steps else "tune, with --steps"
    for split, languages in states["before"].items():
        last = states["tuned" if run.args.steps else "rows only"][split]
        for lang, figures in languages.items():
            loss = figures["refiner"]["wrr"] - last[lang]["refiner"]["wrr"]
            if loss > TOLERATED_LOSS:
                print(f"WARNING: {lang} lost {loss:.1f} points on {split} words: {remedy}")
    fonts = " ".join(["", "--fonts", *run.args.fonts]) if run.args.fonts else ""
    print(f"{folder} is ready: fit its confidences with scripts/calibrate.py --model {folder}{fonts}")
    return {"parameters": parameters}


# -------------------- evaluation


def draw(synthesiser: WordSynthesiser, seed: int, lang: str, count: int) -> list[SyntheticWord]:
    """The first words of a sequence that are no wider than the image processor takes them."""
    words: list[SyntheticWord] = []
    index = 0
    while len(words) < count:
        word = synthesiser.word(seed, index, lang)
        if _fits(word):
            words.append(word)
        index += 1
    return words


def draw_rare(
    synthesiser: WordSynthesiser, lang: str, characters: Sequence[str], words: Sequence[SyntheticWord]
) -> list[SyntheticWord]:
    """Syllables with those characters that hardly any of the words has; none for what cannot be drawn."""
    counts = Counter(character for word in words for character in word.text)
    syllables = load_words(lang).syllables
    drawn = []
    for character in characters:
        rng = random.Random(f"{ROW_SEED}/{character}")
        for number in range(RARE - counts[character]):
            try:
                drawn.append(synthesiser.draw(number, rng.choice(syllables.get(character) or [character]), lang))
            except ValueError:
                break
    return list(filter(_fits, drawn))


def _fits(word: SyntheticWord) -> bool:
    return word.image.shape[1] <= MAX_RATIO * word.image.shape[0]


def evaluate(run: Run, model: RefinerModel, languages: Sequence[str]) -> dict[str, Figures]:
    """Reads synthetic words in fonts that training never sees, and the photographed words of the manifests.

    Args:
        run: The run.
        model: The model, in eval mode.
        languages: Languages to read words of. The model is not told which.

    Returns:
        Figures by language, for `synthetic` and for each manifest by its name.
    """
    args = run.args
    heldout = run.words("heldout", HELDOUT_SEVERITY * args.severity, dict.fromkeys(run.vocabulary.languages, 1.0))
    sets: dict[str, list[tuple[str, Any, str]]] = {
        SYNTHETIC: [
            (lang, word.image, word.text)
            for lang in languages
            for word in draw(heldout, EVALUATION_SEED, lang, args.eval_words)
        ]
    }
    for name, records in run.manifests.items():
        sets[name] = [(record.lang, record.path, record.text) for record in records if record.lang in languages]
    report = {}
    for name, words in sets.items():
        readings = read(run, model, [image for _, image, _ in words])
        report[name] = {
            lang: figures([(r, text) for r, (own, _, text) in zip(readings, words, strict=True) if own == lang])
            for lang in dict.fromkeys(lang for lang, *_ in words)
        }
    return report


def read(run: Run, model: RefinerModel, images: Sequence[Any]) -> list[dict[str, Any]]:
    """Readings of images, each batch of like widths."""
    loaded = [load_image(image) for image in images]
    order = sorted(range(len(loaded)), key=lambda index: loaded[index].width / loaded[index].height)
    readings: dict[int, dict[str, Any]] = {}
    for start in range(0, len(order), READ_AT_ONCE):
        batch = order[start : start + READ_AT_ONCE]
        inputs = run.processor(images=[loaded[index] for index in batch], return_tensors="pt")
        readings.update(zip(batch, model.recognise(**inputs), strict=True))
    return [readings[index] for index in range(len(images))]


def figures(pairs: Sequence[tuple[dict[str, Any], str]]) -> dict[str, Any]:
    """Scores readings of one language, in per cent."""
    texts = [text for _, text in pairs]
    found: dict[str, Any] = {"n": len(pairs)}
    for reader, key in (("spotter", "spotter_text"), ("refiner", "text")):
        read_texts = [reading[key] for reading, _ in pairs]
        values = {name: metric(read_texts, texts).value for name, metric in METRICS.items()}
        found[reader] = {name: None if math.isnan(value) else round(100 * value, 1) for name, value in values.items()}
    return found


def table(run: Run, states: dict[str, dict[str, Figures]]) -> str:
    """WRR, and CRR in brackets, of each language in each state, the new language first."""
    last = list(states.values())[-1]
    lines = []
    for split, languages in last.items():
        lines += [f"| {split} | words | {' | '.join(states)} |", "| --- | --: |" + " --: |" * len(states)]
        for lang in sorted(languages, key=lambda lang: lang != run.args.lang):
            cells = [_cell(state.get(split, {}).get(lang)) for state in states.values()]
            lines.append(f"| {load_charset(lang).name} | {languages[lang]['n']} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def _cell(found: dict[str, Any] | None) -> str:
    return f"{found['refiner']['wrr']} ({found['refiner']['crr']})" if found else "-"


# -------------------- the card


def card(run: Run, states: dict[str, dict[str, Figures]], parameters: tuple[int, int]) -> str:
    """The card of the new checkpoint: what was done to which, and what came of it."""
    args, charset = run.args, run.charset
    rows = run.needed("rows")
    families = run.needed("fonts")["families"]
    data = ModelCardData(
        language=list(run.vocabulary.languages),
        library_name="transformers",
        pipeline_tag="image-to-text",
        tags=["ocr", "scene-text-recognition", "multilingual", "mstr"],
    )
    base = checkpoint_name(args.checkpoint)
    made = [f"- {len(own)} from {WAYS[way]}: {' '.join(own)}" for way, own in rows["sources"].items() if own]
    tuning = "No weight was changed."
    if args.steps:
        shares = ", ".join(f"{lang} {share:.0%}" for lang, share in run.needed("tune")["shares"].items())
        tuning = (
            f"Then came {args.steps:,} steps of training with {args.batch_size} synthetic words each: {shares}. An old "
            "language got the more, the more of its synthetic words in the table below are lost with new rows alone. "
            f"In words of the old languages {base} was the teacher; the statistics of its batch norms have stayed."
        )
    return f"""---
{data.to_yaml()}
---

# {base} and {charset.name}

{base} with {len(run.vocabulary.rows) - len(run.old_bank)} characters more, for {charset.name} ({charset.script}).
It has {parameters[1]:,} parameters, {base} has {parameters[0]:,}. Made by `scripts/add_language.py` of mstr_hf.

```python
import mstr_hf  # or leave this out and pass trust_remote_code=True to both calls
from transformers import AutoModel, AutoProcessor

model = AutoModel.from_pretrained("FOLDER").eval()
processor = AutoProcessor.from_pretrained("FOLDER")
print(model.recognise(**processor(images=["word.jpg"], return_tensors="pt")))
```

## New rows

The {len(run.old_bank)} old rows of the prototype bank are bit for bit those of {base}. New ones come from:

{chr(10).join(made)}

{tuning}

Fonts of {charset.name} for rows and tuning: {", ".join(families["train"])}. Kept for evaluation:
{", ".join(families["heldout"])}.

## Results

Words read right, and characters in brackets, in per cent, by default settings; the model is not told the language.
`synthetic` words are in fonts that rows and tuning draw no word of that language in; the word lists are those of the
tuning and, where there is one, of the language model.

{table(run, states)}
## Limits

Confidences and the Refiner's gate are those of {base} unless `scripts/calibrate.py` was run. What {base}'s card says of
its training data and their licences holds here too.
"""


STAGES: dict[str, Callable[[Run], dict[str, Any]]] = {
    "fonts": fonts_stage,
    "rows": rows_stage,
    "before": before_stage,
    "tune": tune_stage,
    "after": after_stage,
    "checkpoint": checkpoint_stage,
}

# What a stage leaves beside its result.
_FOLDERS = {"rows": "rows", "tune": "tune/final", "checkpoint": "checkpoint"}
# The options that make a stage's result what it is.
_FONTS = ("lang", "fonts", "faces", "words", "characters")
_ROWS = (*_FONTS, "checkpoint", "weights", "rows", "mclip", "mclip_weights", "row_words", "row_crops", "severity")
_TUNING = (*_ROWS, "batch_size", "learning_rate", "warmup_steps", "replay", "seed", "bf16", "steps")
_EVALUATION = ("eval_words", "manifests", "photographs")
_OPTIONS: dict[str, tuple[str, ...]] = {
    "fonts": _FONTS,
    "rows": _ROWS,
    "before": (*_ROWS, *_EVALUATION),
    "tune": _TUNING,
    "after": (*_TUNING, *_EVALUATION),
    "checkpoint": (*_TUNING, *_EVALUATION),
}


def main() -> None:
    """Runs the command line."""
    # The type that the parser is annotated with is one that no class has.
    parser = HfArgumentParser(
        [LanguageArguments],  # type: ignore[list-item]
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    try:
        (args,) = parser.parse_args_into_dataclasses()
        run = Run(args)
        if args.steps:
            run.result("tune")  # before others are made anew
        for stage in [args.stage] if args.stage else STAGES:
            if stage in ("tune", "after") and not args.steps:
                continue
            if run.result(stage) is not None:
                print(f"-- {stage}: done before, in {run.folder / stage}.json")
                continue
            print(f"-- {stage}", flush=True)
            run.keep(stage, STAGES[stage](run))
    except (ValueError, WordsError, OSError, FloatingPointError) as error:
        parser.error(str(error).splitlines()[0])


if __name__ == "__main__":
    main()
