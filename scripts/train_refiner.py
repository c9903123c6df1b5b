"""Trains the Refiner on a Spotter: `accelerate launch scripts/train_refiner.py --spotter S --output_dir runs/refiner`.

With `--joint` it trains the Spotter as well: a given one, or with `--bank` a new one; the Spotter's WRR is logged too.
A Refiner on a finished Spotter refines what the Spotter reads, or with `--simulator` what a simulator
(scripts/fit_simulator.py) says that the Spotter might have read.
"""

from __future__ import annotations

from collections.abc import Iterator

from accelerate.utils import set_seed

from mstr_hf.models.configuration_refiner import RefinerDecoderConfig
from mstr_hf.models.modeling_refiner import RefinerModel
from mstr_hf.models.modeling_spotter import SpotterModel
from mstr_hf.training.arguments import SECTIONS, RefinerArguments, mapping, parse_arguments
from mstr_hf.training.finish import finish
from mstr_hf.training.simulator import Simulator
from mstr_hf.training.spotter import new_spotter
from mstr_hf.training.trainer import Batch, Trainer
from mstr_hf.training.words import (
    image_height,
    reading_accuracy,
    reading_samples,
    refined_accuracy,
    refiner_readings,
    word_data,
)


def main() -> None:
    """Runs the command line."""
    args, data, refiner = parse_arguments("refiner", SECTIONS["refiner"], __doc__)
    set_seed(args.seed)
    model = make_model(refiner)
    words = word_data(data, model.get_bank(), image_height(model))
    simulator = Simulator.from_file(refiner.simulator, model.get_bank()) if refiner.simulator else None

    def batches(first: int, process: int, processes: int) -> Iterator[Batch]:
        for batch in words.batches(args, simulator)(first, process, processes):
            if not refiner.joint:
                batch.pop("frame_labels")  # where characters stand is for the Spotter's frames only
            yield batch

    def accuracy(model: RefinerModel) -> dict[str, float]:
        figures = refined_accuracy(model, words.heldout, words.vocabulary)
        if refiner.joint:
            # The Refiner learns to make up for a Spotter that gets worse, so that its own figures would hide it.
            figures["wrr_spotter"] = reading_accuracy(model.spotter, words.heldout, words.vocabulary)["wrr"]
        return figures

    trainer = Trainer(
        args,
        model,
        batches,
        accuracy,
        samples=lambda model: reading_samples(refiner_readings, model, words.heldout, words.vocabulary),
        evaluate_first=refiner.init_from is not None or (refiner.joint and refiner.spotter is not None),
        options=[data, refiner],
    )
    words.introduce(trainer.log, trainer.output_dir)
    trainer.train()
    finish(trainer, words.vocabulary, words.summary)


def make_model(refiner: RefinerArguments) -> RefinerModel:
    """A new Refiner around a Spotter, trained or new, or a trained one.

    Raises:
        ValueError: If nothing is named to start with, or options contradict each other.
    """
    sources = [name for name in ("spotter", "init_from", "bank") if getattr(refiner, name) is not None]
    if refiner.bank is not None and (len(sources) > 1 or not refiner.joint):
        raise ValueError(
            "--bank is for a new Spotter, which --joint trains: add that, and leave --spotter and --init_from out"
        )
    if refiner.spotter_architecture and refiner.bank is None:
        raise ValueError(
            "spotter_architecture: a Spotter that is trained has one; leave it (--spotter_architecture '' where a "
            "config has it) out, or name a --bank for a new one"
        )
    spotter = SpotterModel.from_pretrained(refiner.spotter) if refiner.spotter is not None else None
    if refiner.bank is not None:
        spotter = new_spotter(refiner.bank, refiner.spotter_architecture, "spotter_architecture")
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
            raise ValueError(
                "name a --spotter to refine, a Refiner to go on with (--init_from), or a --bank to start with (--joint)"
            )
        shape = mapping(refiner.architecture, "architecture", list(RefinerDecoderConfig.__annotations__))
        model = RefinerModel.from_spotter(spotter, shape)
    model.config.freeze_spotter = not refiner.joint
    return model.requires_grad_(True).train()


if __name__ == "__main__":
    main()
