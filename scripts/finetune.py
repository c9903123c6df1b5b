"""Fine-tunes a published checkpoint on pictures of your own, in one command.

    python scripts/finetune.py --checkpoint mstr/refiner-6lang --data my-words/labels.jsonl --output_dir runs/mine

The data are manifests (one JSON object a line: id, path_rel, filename, gt_text, lang, dataset) or Arrow folders. The
checkpoint is evaluated first; then its Spotter is trained, and its Refiner on that. `final` holds the best of each, and
the run says what became of the accuracy. `--overfit_images 10` is a self-check: ten pictures that any checkpoint must
be able to learn by heart. Where labels have characters that the checkpoint lacks, `scripts/extend_prototype_bank.py`
makes a bank that has them, for `--bank`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import set_seed

from mstr_hf.models.modeling_refiner import RefinerModel
from mstr_hf.models.modeling_spotter import SpotterModel
from mstr_hf.models.prototype_bank import PrototypeBank
from mstr_hf.training.arguments import TrainingArguments, parse_arguments
from mstr_hf.training.finish import checkpoint_name, finish
from mstr_hf.training.trainer import WAIT, Batch, Trainer
from mstr_hf.training.words import (
    WordArguments,
    WordData,
    image_height,
    reading_accuracy,
    reading_samples,
    refined_accuracy,
    refiner_readings,
    spotter_readings,
    word_data,
)

# What a self-check has to reach.
LEARNT = 0.9


@dataclass
class FinetuneArguments(TrainingArguments):
    """As TrainingArguments, for each of the two stages, with gentler defaults."""

    max_steps: int = field(default=1000, metadata={"help": "Optimiser steps of each stage."})
    learning_rate: float = field(default=2e-4, metadata={"help": "Peak learning rate."})
    warmup_steps: int = field(default=100, metadata={"help": "Steps of linear warm-up; cosine decay to 0 follows."})
    eval_steps: int = field(default=200, metadata={"help": "Steps between evaluations."})
    save_steps: int = field(default=200, metadata={"help": "Steps between checkpoints."})


@dataclass
class CheckpointArguments:
    """What to fine-tune."""

    checkpoint: str = field(metadata={"help": "Folder or Hub repository of a Refiner."})
    bank: str | None = field(default=None, metadata={"help": "Its bank with further rows, to read more characters."})


def main() -> None:
    """Runs the command line."""
    types = [FinetuneArguments, WordArguments, CheckpointArguments]
    args, data, checkpoint = parse_arguments("finetune", types, __doc__)
    if data.overfit_images and args.push_to_hub:
        raise SystemExit("overfit_images is a self-check, after which a model knows little else: leave push_to_hub out")
    set_seed(args.seed)
    try:
        model = RefinerModel.from_pretrained(checkpoint.checkpoint)
        if checkpoint.bank is not None:
            model.set_bank(PrototypeBank.from_pretrained(checkpoint.bank))
        words = word_data(data, model.get_bank(), image_height(model))
    except (OSError, ValueError) as error:
        raise SystemExit(f"finetune.py: {error}") from error
    batches = words.batches(args)

    def without_frames(first: int, process: int, processes: int) -> Iterator[Batch]:
        for batch in batches(first, process, processes):
            batch.pop("frame_labels")
            yield batch

    with torch.no_grad():
        start = refined_accuracy(model.eval(), words.heldout, words.vocabulary)
    figures = "  ".join(f"{name} {value:.4f}" for name, value in start.items())
    PartialState(timeout=WAIT).print("the checkpoint:", figures)
    options = [data, checkpoint]
    model.config.freeze_spotter = True  # while the Refiner is trained, after it
    model.spotter.requires_grad_(True)
    spotter = stage(args, "spotter", model.spotter, batches, reading_accuracy, spotter_readings, words, options)
    model.spotter.load_state_dict(SpotterModel.from_pretrained(spotter.output_dir / "best").state_dict())
    trainer = stage(args, "refiner", model.train(), without_frames, refined_accuracy, refiner_readings, words, options)
    best = RefinerModel.from_pretrained(trainer.output_dir / "best").eval()
    with torch.no_grad():
        end = refined_accuracy(best, words.heldout, words.vocabulary)
    if not trainer.accelerator.is_main_process:
        return
    trainer.output_dir = Path(args.output_dir)
    trainer.bare = best.requires_grad_(True)  # as one stage or the other has trained all of it
    trainer.history, trainer.worse = [(0, start), (trainer.step, end)], end["wrr"] < start["wrr"]
    say_what_became(trainer, start, end)
    finish(trainer, words.vocabulary, f"{checkpoint_name(checkpoint.checkpoint)}, then {words.summary}", [spotter])
    if data.overfit_images:
        known = f"{end['wrr']:.0%} of {data.overfit_images} words by heart"
        if end["wrr"] < LEARNT:
            raise SystemExit(f"self-check FAILED: {known}; give it more max_steps, and look at the labels")
        trainer.log.say(f"self-check passed: {known}")


def stage(
    args: FinetuneArguments,
    name: str,
    model: Any,
    batches: Callable[[int, int, int], Iterator[Batch]],
    accuracy: Callable[..., dict[str, float]],
    readings: Callable[..., list[str]],
    words: WordData,
    options: Sequence[Any],
) -> Trainer:
    """Trains one of the two parts in a folder of its own; its `best` is no worse than what came in."""
    trainer = Trainer(
        dataclasses.replace(args, output_dir=str(Path(args.output_dir) / name)),
        model,
        batches,
        lambda model: accuracy(model, words.heldout, words.vocabulary),
        samples=lambda model: reading_samples(readings, model, words.heldout, words.vocabulary),
        evaluate_first=True,
        options=options,
    )
    trainer.log.say(f"-- {name}")
    words.introduce(trainer.log)
    trainer.train()
    return trainer


def say_what_became(trainer: Trainer, start: dict[str, float], end: dict[str, float]) -> None:
    """Prints the accuracy before and after, and a warning if it has fallen."""
    for name, value in start.items():
        trainer.log.say(f"{name}: {value:.4f} -> {end[name]:.4f}")
    worse = [name for name, value in start.items() if end[name] < value]
    if worse:
        trainer.log.say(
            f"WARNING: worse than the checkpoint in {', '.join(worse)}: keep the checkpoint, or train with more data, "
            "a higher synthetic_share or a lower learning_rate"
        )


if __name__ == "__main__":
    main()
