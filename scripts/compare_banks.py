"""Is mCLIP's bank worth having? Trains the Spotter on it, on random rows, and on rows that learn, with equal words.

    python scripts/compare_banks.py --bank runs/bank --output_dir runs/banks --max_steps 2000

All three start from the same weights and see the same words in the same order; they differ in the rows that they
retrieve from. `table.md` in the output folder compares WRR on held-out words and the loss at the end. With `--resume` a
run that was stopped goes on.
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate.utils import set_seed
from torch import nn
from torch.nn import functional as F

from mstr_hf.models.configuration_spotter import SpotterConfig
from mstr_hf.models.layers import cosines
from mstr_hf.models.modeling_spotter import RetrievalHead, SpotterModel, random_unit_rows
from mstr_hf.models.prototype_bank import PrototypeBank
from mstr_hf.training.arguments import TrainingArguments, WordArguments, mapping, parse_arguments
from mstr_hf.training.trainer import Trainer
from mstr_hf.training.words import image_height, reading_accuracy, word_data

ARMS = {
    "mclip": "mCLIP's rows, frozen",
    "random": "random unit rows, frozen",
    "learned": "mCLIP's rows at first, then trained with the rest",
}


@dataclass
class BankArguments:
    """The bank in question, and the Spotter."""

    bank: str = field(metadata={"help": "Prototype bank of an mCLIP."})
    architecture: str = field(default="", metadata={"help": "Fields of SpotterConfig, such as num_hidden_layers=4."})
    arms: list[str] = field(default_factory=lambda: list(ARMS), metadata={"help": f"Some of {', '.join(ARMS)}."})

    def __post_init__(self) -> None:
        if unknown := set(self.arms) - set(ARMS):
            raise ValueError(f"arms: unknown {', '.join(sorted(unknown))}: there are {', '.join(ARMS)}")


class LearnedRowsHead(RetrievalHead):
    """A head whose rows are trained: an ordinary output layer with unit rows."""

    def retrieve(self, embeddings: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """As that of RetrievalHead."""
        return cosines(embeddings, F.normalize(self.prototypes, dim=-1)), cosines(
            embeddings, F.normalize(self.blank.float(), dim=-1)
        )


def make_model(arm: str, bank: PrototypeBank, shape: dict) -> SpotterModel:
    """An untrained Spotter that retrieves from an arm's rows."""
    model = SpotterModel(SpotterConfig(projection_dim=bank.prototypes.shape[1], num_prototypes=len(bank), **shape))
    if arm == "random":
        bank = dataclasses.replace(bank, prototypes=random_unit_rows(*bank.prototypes.shape), mclip_revision="random")
    model.set_bank(bank, base=True)
    if arm == "learned":
        rows = model.head.prototypes
        model.head.__class__ = LearnedRowsHead  # the weights stay those that the other arms start from
        del model.head.prototypes
        model.head.prototypes = nn.Parameter(rows.clone())
    return model


def main() -> None:
    """Runs the command line."""
    args, data, options = parse_arguments("spotter", [TrainingArguments, WordArguments, BankArguments], __doc__)
    bank = PrototypeBank.from_pretrained(options.bank)
    shape = mapping(options.architecture, "architecture", list(SpotterConfig.__annotations__))
    words = word_data(data, bank, image_height(SpotterModel(SpotterConfig(**shape))))
    output = Path(args.output_dir)
    figures: dict[str, dict[str, float]] = {}
    for arm in options.arms:
        set_seed(args.seed)
        settings = dataclasses.replace(args, output_dir=str(output / arm))
        trainer = Trainer(
            settings,
            make_model(arm, bank, shape),
            words.batches(args),
            lambda model: reading_accuracy(model, words.heldout, words.vocabulary),
        )
        trainer.train()
        if trainer.accelerator.is_main_process:
            lines = (output / arm / "log.jsonl").read_text(encoding="utf-8").splitlines()
            losses = [math.nan, *(entry["loss"] for entry in map(json.loads, lines) if "loss" in entry)]
            figures[arm] = {"loss": losses[-1], **trainer.history[-1][1]}
            (output / "table.md").write_text(table(args, figures), encoding="utf-8")
    if figures:  # in the main process
        print((output / "table.md").read_text(encoding="utf-8"))


def table(args: TrainingArguments, figures: dict[str, dict[str, float]]) -> str:
    """WRR in per cent, over all languages and for each, and the last loss."""
    names = [name for name in next(iter(figures.values())) if name.startswith("wrr")]
    names = ["wrr", *(name for name in names if name != "wrr")]
    lines = [
        f"{args.max_steps} steps of {args.batch_size} words each, seed {args.seed}",
        "",
        f"| rows | loss | {' | '.join(name.replace('wrr_', '').replace('wrr', 'WRR') for name in names)} |",
        "| --- |" + " --: |" * (1 + len(names)),
    ]
    for arm, found in figures.items():
        cells = [f"{found['loss']:.3f}", *(f"{100 * found[name]:.1f}" for name in names)]
        lines.append(f"| {ARMS[arm]} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
