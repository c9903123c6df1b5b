"""Trains mCLIP on drawn characters: `accelerate launch scripts/train_mclip.py --output_dir runs/mclip`.

`--character_data` adds labelled pictures of characters.

With `--bank` it learns the space of a prototype bank that models use already: the bank's rows are what images are
trained against, and the text side learns to give them. Languages that the bank lacks, named after its own, get their
rows in that space, which `scripts/add_language.py --mclip` takes. With `--init_from` it goes on with a trained mCLIP,
whose languages come first too: it is evaluated first, and the run says so if it ends worse than it began.
"""

from __future__ import annotations

from collections.abc import Iterator

from accelerate.utils import set_seed

from mstr_hf.charsets import load_charsets
from mstr_hf.models.configuration_mclip import MCLIPConfig
from mstr_hf.models.modeling_mclip import MCLIPModel
from mstr_hf.models.prototype_bank import PrototypeBank, rows_digest
from mstr_hf.synthesis.characters import CharacterSynthesiser
from mstr_hf.synthesis.fonts import discover_fonts
from mstr_hf.training.arguments import SECTIONS, MCLIPArguments, mapping, parse_arguments
from mstr_hf.training.finish import finish
from mstr_hf.training.mclip import (
    CharacterMixture,
    character_batches,
    check_places,
    grown,
    retrieval_figures,
    retrieval_samples,
)
from mstr_hf.training.sources import REAL_SEVERITY, RealWords
from mstr_hf.training.trainer import Batch, Trainer
from mstr_hf.training.words import say_rejects
from mstr_hf.vocabulary import OFFSET, Vocabulary, build_vocabulary

# Fields of the config that other options or the charsets decide.
DECIDED = ("vocab_size", "num_rows", "arcface_weight", "subtype_weight")

# What helps where labels have characters that are none of the charsets'.
OTHER_LANGUAGES = "name a language that has them in --languages"


def main() -> None:
    """Runs the command line."""
    args, data = parse_arguments("mclip", SECTIONS["mclip"], __doc__)
    set_seed(args.seed)
    languages = data.languages.split(",")
    charsets = load_charsets(languages)
    vocabulary = build_vocabulary(charsets)
    letters = {charset.lang: charset.letters for charset in charsets}
    fonts = discover_fonts(languages, data.fonts)
    drawn = CharacterSynthesiser(fonts, vocabulary.rows, letters)
    train, labelled, summary = training_characters(data, drawn, vocabulary)
    heldout = CharacterSynthesiser(fonts, vocabulary.rows, letters, split="heldout", severity=0.3)
    bank = None if data.bank is None else known_bank(data.bank, vocabulary)
    # Random text rows are far apart already. At the full rate they first run together, since to the untrained image
    # tower all characters look alike, and most of the training goes into spreading them again. A bank's rows stay.
    text_rate = data.text_rate if data.text_rate is not None else (0.05 if bank is None else 1.0)
    model = start_model(data, vocabulary, bank)

    def batches(first: int, process: int, processes: int) -> Iterator[Batch]:
        return character_batches(
            train,
            vocabulary,
            model,
            args.batch_size,
            args.seed,
            args.num_workers,
            first,
            process,
            processes,
            bank,
        )

    crops = [heldout.character(1, index) for index in range(data.eval_samples)]
    trainer = Trainer(
        args,
        model,
        batches,
        lambda model: retrieval_figures(model, vocabulary, crops),
        metric="top1",
        rates={"text_tower.": text_rate},
        samples=lambda model: retrieval_samples(model, vocabulary, crops),
        evaluate_first=data.init_from is not None,
        options=[data],
    )
    if labelled is not None:
        trainer.log.say(f"trains on {summary}", event="data", data=summary)
        say_rejects(trainer.log, trainer.output_dir, labelled.complaint(OTHER_LANGUAGES), labelled.rejects())
    drawable = {index for index, _ in drawn.drawable}
    if missing := [row.character for index, row in enumerate(vocabulary.rows) if index not in drawable]:
        trainer.log.say(f"no font draws these: {' '.join(missing)}")
    trainer.train()
    finish(trainer, vocabulary, summary)


def training_characters(
    data: MCLIPArguments, drawn: CharacterSynthesiser, vocabulary: Vocabulary
) -> tuple[CharacterSynthesiser | CharacterMixture, RealWords | None, str]:
    """What mCLIP trains on, the labelled pictures among it, and what it is in a line.

    Raises:
        ValueError: If there are such pictures, but none of their labels is a character of the languages.
    """
    if not data.character_data:
        return drawn, None, f"synthetic characters of {data.languages}"
    labelled = RealWords(data.character_data, vocabulary, REAL_SEVERITY, longest=1)
    if not len(labelled):
        paths = ", ".join(data.character_data)
        raise ValueError(f"{paths}: no label can be used: {labelled.complaint(OTHER_LANGUAGES)}")
    counts = ", ".join(f"{lang} {len(rows)}" for lang, rows in labelled.rows.items())
    summary = f"{data.labelled_share:.0%} of {len(labelled)} labelled pictures of characters ({counts})"
    if data.labelled_share < 1:
        summary += f"; {1 - data.labelled_share:.0%} synthetic characters of {data.languages}"
    return CharacterMixture(drawn, labelled, vocabulary, data.labelled_share), labelled, summary


def known_bank(name: str, vocabulary: Vocabulary) -> PrototypeBank:
    """The bank at a place, if its rows are the first of the vocabulary.

    Raises:
        ValueError: If they are not.
    """
    bank = PrototypeBank.from_pretrained(name)
    first = vocabulary.rows[: len(bank)]
    if rows_digest((row.character, row.subtype) for row in first) != bank.charset_digest:
        raise ValueError(
            f"--bank {name} has other rows than the charsets of --languages {','.join(vocabulary.languages)}: begin "
            f"with the bank's languages, {','.join(bank.all_languages)}, and restore the charsets that it was made from"
        )
    return bank


def start_model(data: MCLIPArguments, vocabulary: Vocabulary, bank: PrototypeBank | None) -> MCLIPModel:
    """A new mCLIP, or a trained one with room for more characters.

    Raises:
        ValueError: If options contradict each other.
    """
    known = [name for name in MCLIPConfig.__annotations__ if name not in DECIDED]
    shape = mapping(data.architecture, "architecture", known)
    if bank is not None:
        size = bank.prototypes.shape[1]
        if shape.setdefault("projection_dim", size) != size:
            raise ValueError(f"architecture: projection_dim {shape['projection_dim']}, but the bank has {size}")
    if data.init_from is None:
        return MCLIPModel(
            MCLIPConfig(
                vocab_size=OFFSET + len(vocabulary.rows),
                num_rows=len(vocabulary.rows),
                arcface_weight=data.arcface_weight,
                subtype_weight=data.subtype_weight,
                **shape,
            )
        )
    if data.architecture or data.arcface_weight or data.subtype_weight:
        raise ValueError(
            "architecture and weights of losses: an mCLIP that is trained has them; leave them (--architecture '', "
            "--arcface_weight 0 and --subtype_weight 0 where a config has them) or init_from out"
        )
    model = MCLIPModel.from_pretrained(data.init_from)
    check_places(data.init_from, vocabulary)
    if bank is not None and model.config.projection_dim != bank.prototypes.shape[1]:
        raise ValueError(f"--init_from {data.init_from} has another number of dimensions than the bank")
    return grown(model, vocabulary)


if __name__ == "__main__":
    main()
