"""Trains the Refiner on a Spotter: `accelerate launch scripts/train_refiner.py --spotter S --output_dir runs/refiner`.

It refines what the Spotter reads, or with `--simulator` what a simulator (scripts/fit_simulator.py) says that the
Spotter might have read.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from accelerate.utils import set_seed

from mstr_hf.models.configuration_refiner import RefinerDecoderConfig
from mstr_hf.models.modeling_refiner import RefinerModel
from mstr_hf.models.modeling_spotter import SpotterModel
from mstr_hf.training.arguments import TrainingArguments, mapping, parse_arguments
from mstr_hf.training.finish import finish
from mstr_hf.training.simulator import Simulator
from mstr_hf.training.trainer import Batch, Trainer
from mstr_hf.training.words import (
    WordArguments,
    image_height,
    reading_samples,
    refined_accuracy,
    refiner_readings,
    word_batches,
    word_data,
)


@dataclass
class RefinerArguments:
    """Which model to train."""

    spotter: str | None = field(
        default=None, metadata={"help": "Trained Spotter, which stays as it is; that of init_from if left out."}
    )
    init_from: str | None = field(default=None, metadata={"help": "Refiner to start from instead of nothing."})
    joint: bool = field(
        default=False, metadata={"help": "Train the Spotter as well: both losses, one pass over the words."}
    )
    simulator: str | None = field(default=None, metadata={"help": "Fitted simulator of the Spotter's errors."})
    architecture: str = field(
        default="", metadata={"help": "Fields of RefinerDecoderConfig, such as num_hidden_layers=4."}
    )


def main() -> None:
    """Runs the command line."""
    args, data, refiner = parse_arguments("refiner", [TrainingArguments, WordArguments, RefinerArguments], __doc__)
    set_seed(args.seed)
    model = make_model(refiner)
    height = image_height(model)
    words = word_data(data, model.get_bank(), height)
    simulator = Simulator.from_file(refiner.simulator, model.get_bank()) if refiner.simulator else None

    def batches(first: int, process: int, processes: int) -> Iterator[Batch]:
        stream = word_batches(
            words.train,
            words.vocabulary,
            args.batch_size,
            args.seed,
            args.num_workers,
            first,
            process,
            processes,
            height,
            data.max_width,
            simulator,
        )
        for batch in stream:
            if not refiner.joint:
                batch.pop("frame_labels")  # where characters stand is for the Spotter's frames only
            yield batch

    trainer = Trainer(
        args,
        model,
        batches,
        lambda model: refined_accuracy(model, words.heldout, words.vocabulary),
        samples=lambda model: reading_samples(refiner_readings, model, words.heldout, words.vocabulary),
        evaluate_first=refiner.init_from is not None,
        options=[data, refiner],
    )
    words.introduce(trainer.log)
    trainer.train()
    finish(trainer, words.vocabulary, words.summary)


def make_model(refiner: RefinerArguments) -> RefinerModel:
    """A new Refiner around a Spotter, or a trained one.

    Raises:
        ValueError: If neither is named, or options contradict each other.
    """
    spotter = SpotterModel.from_pretrained(refiner.spotter) if refiner.spotter is not None else None
    if refiner.init_from is not None:
        if refiner.architecture:
            raise ValueError(
                "architecture: a Refiner that is trained has one; leave it (--architecture '' where a config has "
                "it) or init_from out"
            )
        model = RefinerModel.from_pretrained(refiner.init_from)
        if spotter is not None:
            model.set_bank(spotter.get_bank())  # which may have more characters
            model.spotter.load_state_dict(spotter.state_dict())
    else:
        if spotter is None:
            raise ValueError("name a --spotter to refine, or a Refiner to go on with (--init_from)")
        shape = mapping(refiner.architecture, "architecture", list(RefinerDecoderConfig.__annotations__))
        model = RefinerModel.from_spotter(spotter, shape)
    model.config.freeze_spotter = not refiner.joint
    return model.requires_grad_(True).train()


if __name__ == "__main__":
    main()
