"""Trains mCLIP on synthetic characters: `accelerate launch scripts/train_mclip.py --output_dir runs/mclip`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from accelerate.utils import set_seed

from mstr_hf.charsets import load_charsets
from mstr_hf.models.configuration_mclip import MCLIPConfig
from mstr_hf.models.modeling_mclip import MCLIPModel
from mstr_hf.synthesis.characters import CharacterSynthesiser
from mstr_hf.synthesis.fonts import discover_fonts
from mstr_hf.training.arguments import TrainingArguments, mapping, parse_arguments
from mstr_hf.training.finish import finish
from mstr_hf.training.mclip import character_batches, retrieval_figures, retrieval_samples
from mstr_hf.training.trainer import Batch, Trainer
from mstr_hf.vocabulary import OFFSET, build_vocabulary


@dataclass
class MCLIPArguments:
    """What to train mCLIP on."""

    languages: str = field(default="en,hi,bn,ta,te,ar", metadata={"help": "Languages, with commas between."})
    fonts: list[str] = field(default_factory=list, metadata={"help": "Folders with fonts beside the system's."})
    architecture: str = field(
        default="", metadata={"help": "Fields of MCLIPConfig, such as projection_dim=64,num_hidden_layers=1."}
    )
    arcface_weight: float = field(default=0.0, metadata={"help": "Weight of the ArcFace loss."})
    subtype_weight: float = field(default=0.0, metadata={"help": "Weight of the subtype loss."})
    text_rate: float = field(default=0.05, metadata={"help": "Learning rate of the text tower, relative to the rest."})
    eval_samples: int = field(default=3000, metadata={"help": "Held-out crops of an evaluation."})


def main() -> None:
    """Runs the command line."""
    args, data = parse_arguments("mclip", [TrainingArguments, MCLIPArguments], __doc__)
    set_seed(args.seed)
    languages = data.languages.split(",")
    charsets = load_charsets(languages)
    vocabulary = build_vocabulary(charsets)
    letters = {charset.lang: charset.letters for charset in charsets}
    fonts = discover_fonts(languages, data.fonts)
    train = CharacterSynthesiser(fonts, vocabulary.rows, letters)
    heldout = CharacterSynthesiser(fonts, vocabulary.rows, letters, split="heldout", severity=0.3)
    model = MCLIPModel(
        MCLIPConfig(
            vocab_size=OFFSET + len(vocabulary.rows),
            num_rows=len(vocabulary.rows),
            arcface_weight=data.arcface_weight,
            subtype_weight=data.subtype_weight,
            **mapping(data.architecture, "architecture", list(MCLIPConfig.__annotations__)),
        )
    )

    def batches(first: int, process: int, processes: int) -> Iterator[Batch]:
        return character_batches(
            train, vocabulary, model, args.batch_size, args.seed, args.num_workers, first, process, processes
        )

    crops = [heldout.character(1, index) for index in range(data.eval_samples)]
    trainer = Trainer(
        args,
        model,
        batches,
        lambda model: retrieval_figures(model, vocabulary, crops),
        metric="top1",
        # Random text rows are far apart already. At the full rate they first run together, since to the untrained image
        # tower all characters look alike, and most of the training goes into spreading them again.
        rates={"text_tower.": data.text_rate},
        samples=lambda model: retrieval_samples(model, vocabulary, crops),
    )
    drawable = {index for index, _ in train.drawable}
    if missing := [row.character for index, row in enumerate(vocabulary.rows) if index not in drawable]:
        trainer.log.say(f"no font draws these, which are left to their prompts: {' '.join(missing)}")
    trainer.train()
    finish(trainer, vocabulary, f"synthetic characters of {data.languages}", [args, data])


if __name__ == "__main__":
    main()
