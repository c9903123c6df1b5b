"""Train the Spotter on synthetic words.

    accelerate launch scripts/train_spotter.py --bank B --output_dir runs/spotter
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from accelerate.utils import set_seed
from transformers import HfArgumentParser

from mstr_hf.models.configuration_spotter import SpotterConfig
from mstr_hf.models.modeling_spotter import SpotterModel
from mstr_hf.models.prototype_bank import PrototypeBank
from mstr_hf.training.trainer import Batch, Trainer, TrainingArguments
from mstr_hf.training.words import WordArguments, reading_accuracy, word_batches, word_synthesisers


@dataclass
class SpotterArguments:
    """Which model to train."""

    bank: str = field(metadata={"help": "Folder of the prototype bank."})
    init_from: str | None = field(default=None, metadata={"help": "Spotter folder to start from instead of nothing."})


def main() -> None:
    # The type that the parser is annotated with is one that no class has.
    parser = HfArgumentParser([TrainingArguments, WordArguments, SpotterArguments])  # type: ignore[list-item]
    args, data, spotter = parser.parse_args_into_dataclasses()
    set_seed(args.seed)
    bank = PrototypeBank.from_pretrained(spotter.bank)
    vocabulary, train, heldout = word_synthesisers(data, bank)
    if spotter.init_from is None:
        model = SpotterModel(SpotterConfig(projection_dim=bank.prototypes.shape[1], num_prototypes=len(bank)))
        model.set_bank(bank, base=True)
    else:
        model = SpotterModel.from_pretrained(spotter.init_from)
        model.set_bank(bank)

    def batches(first: int, process: int, processes: int) -> Iterator[Batch]:
        return word_batches(
            train, vocabulary, args.batch_size, args.seed, args.num_workers, first, process, processes
        )

    def evaluate(model: SpotterModel) -> dict[str, float]:
        return reading_accuracy(model, heldout, vocabulary)

    Trainer(args, model, batches, evaluate).train()


if __name__ == "__main__":
    main()
