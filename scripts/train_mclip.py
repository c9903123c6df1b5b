"""Train mCLIP on synthetic characters: `accelerate launch scripts/train_mclip.py --output_dir runs/mclip`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field

from accelerate.utils import set_seed
from torch.utils.data import DataLoader
from transformers import HfArgumentParser

from mstr_hf.charsets import load_charsets
from mstr_hf.models.configuration_mclip import MCLIPConfig
from mstr_hf.models.modeling_mclip import MCLIPModel
from mstr_hf.synthesis.characters import CharacterSynthesiser
from mstr_hf.synthesis.fonts import discover_fonts
from mstr_hf.training.mclip import CharacterBatches, retrieval
from mstr_hf.training.trainer import Batch, Trainer, TrainingArguments
from mstr_hf.vocabulary import OFFSET, build_vocabulary


@dataclass
class MCLIPArguments:
    """What to train mCLIP on."""

    languages: str = field(default="en,hi,bn,ta,te,ar", metadata={"help": "Languages, separated by commas."})
    fonts: list[str] = field(default_factory=list, metadata={"help": "Folders with fonts beside the system's."})
    projection_dim: int = field(default=192, metadata={"help": "Size of the embedding space."})
    arcface_weight: float = field(default=0.0, metadata={"help": "Weight of the ArcFace loss."})
    subtype_weight: float = field(default=0.0, metadata={"help": "Weight of the subtype loss."})
    text_rate: float = field(default=0.05, metadata={"help": "Learning rate of the text tower, relative to the rest."})
    eval_samples: int = field(default=3000, metadata={"help": "Held-out crops of an evaluation."})


def main() -> None:
    # The type that the parser is annotated with is one that no class has.
    parser = HfArgumentParser([TrainingArguments, MCLIPArguments])  # type: ignore[list-item]
    args, data = parser.parse_args_into_dataclasses()
    set_seed(args.seed)
    languages = data.languages.split(",")
    charsets = load_charsets(languages)
    vocabulary = build_vocabulary(charsets)
    letters = {charset.lang: charset.letters for charset in charsets}
    fonts = discover_fonts(languages, data.fonts)
    train = CharacterSynthesiser(fonts, vocabulary.rows, letters)
    heldout = CharacterSynthesiser(fonts, vocabulary.rows, letters, split="heldout", severity=0.3)
    drawable = {index for index, _ in train.drawable}
    missing = [row.character for index, row in enumerate(vocabulary.rows) if index not in drawable]
    print(f"characters without ink in any font, left to their prompts: {missing}", file=sys.stderr)
    model = MCLIPModel(
        MCLIPConfig(
            vocab_size=OFFSET + len(vocabulary.rows),
            num_rows=len(vocabulary.rows),
            projection_dim=data.projection_dim,
            arcface_weight=data.arcface_weight,
            subtype_weight=data.subtype_weight,
        )
    )

    def batches(first: int, process: int, processes: int) -> Iterator[Batch]:
        dataset = CharacterBatches(
            train, vocabulary, model, args.batch_size, args.seed, first * processes + process, processes
        )
        return iter(DataLoader(dataset, batch_size=None, num_workers=args.num_workers))

    crops = [heldout.character(1, index) for index in range(data.eval_samples)]

    def evaluate(model: MCLIPModel) -> dict[str, float]:
        return retrieval(model, vocabulary, crops)

    # Random text rows are far apart already. At the full rate they first run together, since to the untrained image
    # tower all characters look alike, and most of the training goes into spreading them again.
    Trainer(args, model, batches, evaluate, metric="top1", rates={"text_tower.": data.text_rate}).train()


if __name__ == "__main__":
    main()
