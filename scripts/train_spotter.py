"""Trains the Spotter: `accelerate launch scripts/train_spotter.py --bank runs/bank --output_dir runs/spotter`.

With `--init_from` it goes on with a trained Spotter, on `--data` of your own for instance: the Spotter is evaluated
first, and the run says so if it ends worse than it began.
"""

from __future__ import annotations

from accelerate.utils import set_seed

from mstr_hf.models.modeling_spotter import SpotterModel
from mstr_hf.models.prototype_bank import PrototypeBank
from mstr_hf.training.arguments import SECTIONS, SpotterArguments, parse_arguments
from mstr_hf.training.finish import finish
from mstr_hf.training.spotter import new_spotter
from mstr_hf.training.trainer import Trainer
from mstr_hf.training.words import (
    image_height,
    reading_accuracy,
    reading_samples,
    spotter_readings,
    word_data,
)


def main() -> None:
    """Runs the command line."""
    args, data, spotter = parse_arguments("spotter", SECTIONS["spotter"], __doc__)
    set_seed(args.seed)
    model = make_model(spotter)
    words = word_data(data, model.get_bank(), image_height(model))
    trainer = Trainer(
        args,
        model,
        words.batches(args),
        lambda model: reading_accuracy(model, words.heldout, words.vocabulary),
        samples=lambda model: reading_samples(spotter_readings, model, words.heldout, words.vocabulary),
        evaluate_first=spotter.init_from is not None,
        options=[data, spotter],
    )
    words.introduce(trainer.log, trainer.output_dir)
    trainer.train()
    finish(trainer, words.vocabulary, words.summary)


def make_model(spotter: SpotterArguments) -> SpotterModel:
    """A new Spotter on a bank, or a trained one.

    Raises:
        ValueError: If neither is named, or options contradict each other.
    """
    if spotter.init_from is not None:
        if spotter.architecture:
            raise ValueError(
                "architecture: a Spotter that is trained has one; leave it (--architecture '' where a config has "
                "it) or init_from out"
            )
        model = SpotterModel.from_pretrained(spotter.init_from)
        if spotter.bank is not None:
            model.set_bank(PrototypeBank.from_pretrained(spotter.bank))
        return model
    if spotter.bank is None:
        raise ValueError("name a --bank to start with, or a Spotter to go on with (--init_from)")
    return new_spotter(spotter.bank, spotter.architecture)


if __name__ == "__main__":
    main()
