"""Train the Refiner on a finished Spotter.

    accelerate launch scripts/train_refiner.py --spotter S --output_dir runs/refiner
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from accelerate.utils import set_seed
from transformers import HfArgumentParser

from mstr_hf.models.modeling_refiner import RefinerModel
from mstr_hf.models.modeling_spotter import SpotterModel
from mstr_hf.training.trainer import Batch, Trainer, TrainingArguments
from mstr_hf.training.words import WordArguments, refined_accuracy, word_batches, word_synthesisers


@dataclass
class RefinerArguments:
    """Which model to train."""

    spotter: str = field(metadata={"help": "Folder of the trained Spotter; it stays as it is."})
    init_from: str | None = field(default=None, metadata={"help": "Refiner folder to start from instead of nothing."})


def main() -> None:
    # The type that the parser is annotated with is one that no class has.
    parser = HfArgumentParser([TrainingArguments, WordArguments, RefinerArguments])  # type: ignore[list-item]
    args, data, refiner = parser.parse_args_into_dataclasses()
    set_seed(args.seed)
    spotter = SpotterModel.from_pretrained(refiner.spotter)
    vocabulary, train, heldout = word_synthesisers(data, spotter.get_bank())
    if refiner.init_from is None:
        model = RefinerModel.from_spotter(spotter)
    else:
        model = RefinerModel.from_pretrained(refiner.init_from)
        model.spotter.load_state_dict(spotter.state_dict())

    def batches(first: int, process: int, processes: int) -> Iterator[Batch]:
        for batch in word_batches(
            train, vocabulary, args.batch_size, args.seed, args.num_workers, first, process, processes
        ):
            # Where characters stand is for the Spotter's frames only.
            yield {name: tensor for name, tensor in batch.items() if name != "frame_labels"}

    def evaluate(model: RefinerModel) -> dict[str, float]:
        return refined_accuracy(model, heldout, vocabulary)

    Trainer(args, model, batches, evaluate).train()


if __name__ == "__main__":
    main()
