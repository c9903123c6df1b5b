"""Fine-tunes a published checkpoint on pictures of your own, in one command.

    python scripts/finetune.py --checkpoint mstr/refiner-6lang --data my-words/labels.jsonl --output_dir runs/mine

The data are manifests (one JSON object a line: id, path_rel, filename, gt_text, lang, dataset) or Arrow folders. The
checkpoint is evaluated first; then its Spotter is trained, and its Refiner on that. `final` holds the best of each, and
the run says what became of the accuracy, in the languages of the data and in the checkpoint's others: these are read in
bundled samples and, where there are fonts and a word list, in synthetic words. `--overfit_images 10` is a self-check:
ten pictures that any checkpoint must be able to learn by heart. Where labels have characters that the checkpoint lacks,
`scripts/extend_prototype_bank.py` makes a bank that has them, for `--bank`.
"""

from __future__ import annotations

import dataclasses
import shlex
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import set_seed

from mstr_hf.hub import publish
from mstr_hf.models.modeling_refiner import RefinerModel
from mstr_hf.models.modeling_spotter import SpotterModel
from mstr_hf.models.prototype_bank import PrototypeBank
from mstr_hf.training.arguments import SECTIONS, FinetuneArguments, parse_arguments
from mstr_hf.training.finish import checkpoint_name, finish
from mstr_hf.training.sources import Word
from mstr_hf.training.trainer import WAIT, Batch, Trainer
from mstr_hf.training.words import (
    WordData,
    image_height,
    reading_accuracy,
    reading_samples,
    recognised_accuracy,
    refined_accuracy,
    refiner_readings,
    spotter_readings,
    word_data,
    words_to_keep,
)

# What a self-check has to reach.
LEARNT = 0.9
# The figure for the languages that are not tuned on: the mean of their WRR.
OTHERS = "wrr_others"
# What one of them may lose before the run says so, and all of them, in the mean, before the model counts as worse.
# The WRR of a hundred words has a standard error of about three points.
TOLERATED_LOSS, COLLAPSE = 0.05, 0.1


def main() -> None:
    """Runs the command line."""
    args, data, checkpoint = parse_arguments("finetune", SECTIONS["finetune"], __doc__)
    if data.overfit_images and args.push_to_hub:
        raise SystemExit("overfit_images is a self-check, after which a model knows little else: leave push_to_hub out")
    set_seed(args.seed)
    try:
        model = RefinerModel.from_pretrained(checkpoint.checkpoint)
        if checkpoint.bank is not None:
            model.set_bank(PrototypeBank.from_pretrained(checkpoint.bank))
        words = word_data(data, model.get_bank(), image_height(model))
        judged = {word.lang for word in words.heldout}
        # A self-check's model may forget all else.
        untuned = [] if data.overfit_images else [lang for lang in words.vocabulary.languages if lang not in judged]
        others, unread = words_to_keep(data, untuned, words.vocabulary)
    except (OSError, ValueError) as error:
        raise SystemExit(f"finetune.py: {error}") from error
    batches = words.batches(args)

    def without_frames(first: int, process: int, processes: int) -> Iterator[Batch]:
        for batch in batches(first, process, processes):
            batch.pop("frame_labels")
            yield batch

    say = PartialState(timeout=WAIT).print
    if args.push_to_hub and PartialState().is_main_process:
        publish.check_push(args.push_to_hub)  # before minutes of reading, not after them
    for lang, reason in unread.items():
        say(f"no synthetic words of {lang} will tell whether it is forgotten: {reason}")
    start = accuracy(model.eval(), words, others)
    say("the checkpoint, read as by default:", "  ".join(f"{name} {value:.4f}" for name, value in start.items()))
    options = [data, checkpoint]
    model.config.freeze_spotter = True  # while the Refiner is trained, after it
    model.spotter.requires_grad_(True)
    spotter = stage(args, "spotter", model.spotter, batches, reading_accuracy, spotter_readings, words, options)
    model.spotter.load_state_dict(SpotterModel.from_pretrained(spotter.output_dir / "best").state_dict())
    trainer = stage(args, "refiner", model.train(), without_frames, refined_accuracy, refiner_readings, words, options)
    best = RefinerModel.from_pretrained(trainer.output_dir / "best").eval()
    end = accuracy(best, words, others)
    if not trainer.accelerator.is_main_process:
        return
    trainer.output_dir = Path(args.output_dir)
    trainer.bare = best.requires_grad_(True)  # as one stage or the other has trained all of it
    trainer.history, trainer.worse = [(0, start), (trainer.step, end)], is_worse(start, end)
    say_what_became(trainer, start, end, Counter(word.lang for word in others))
    if not data.overfit_images:
        fonts = ["--fonts", *data.fonts] if data.fonts else []
        command = shlex.join(["python", "scripts/calibrate.py", "--model", str(trainer.output_dir / "final"), *fonts])
        trainer.log.say(f"its confidences and its gate are still the checkpoint's: `{command}` fits them to it")
    finish(trainer, words.vocabulary, f"{checkpoint_name(checkpoint.checkpoint)}, then {words.summary}", [spotter])
    if data.overfit_images:
        known = f"{end['wrr']:.0%} of {data.overfit_images} words by heart"
        if end["wrr"] < LEARNT:
            raise SystemExit(f"self-check FAILED: {known}; give it more max_steps, and look at the labels")
        trainer.log.say(f"self-check passed: {known}")


def accuracy(model: RefinerModel, words: WordData, others: Sequence[Word]) -> dict[str, float]:
    """WRR of what `recognise` reads by default: of the validation words, and of those of other languages.

    Returns:
        By language; `wrr` is the mean over the languages of the validation words, `wrr_others` that over the others.
    """
    with torch.no_grad():
        figures = recognised_accuracy(model, words.heldout, words.vocabulary)
        if not others:
            return figures
        kept = recognised_accuracy(model, others, words.vocabulary)
    kept[OTHERS] = kept.pop("wrr")
    return figures | kept


def is_worse(start: dict[str, float], end: dict[str, float]) -> bool:
    """Whether the model reads what it was tuned on worse than before, or has forgotten the other languages."""
    return end["wrr"] < start["wrr"] or (OTHERS in start and start[OTHERS] - end[OTHERS] > COLLAPSE)


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
    words.introduce(trainer.log, Path(args.output_dir))
    trainer.train()
    return trainer


def say_what_became(trainer: Trainer, start: dict[str, float], end: dict[str, float], others: Counter[str]) -> None:
    """Prints the accuracy before and after, and a warning if it has fallen.

    Args:
        trainer: Whose log says it.
        start: What :func:`accuracy` found before.
        end: And after.
        others: How many words of each language that was not tuned on were read.
    """
    kept = {f"wrr_{lang}": count for lang, count in others.items()}
    for name, value in start.items():
        of = f" ({kept[name]} words that are not of the data)" if name in kept else ""
        trainer.log.say(f"{name}: {value:.4f} -> {end[name]:.4f}{of}")
    worse = [name for name, value in start.items() if name not in {*kept, OTHERS} and end[name] < value]
    if worse:
        trainer.log.say(
            f"WARNING: worse than the checkpoint in {', '.join(worse)}: keep the checkpoint, or train with more data, "
            "a higher synthetic_share or a lower learning_rate"
        )
    forgotten = [lang for lang in others if start[f"wrr_{lang}"] - end[f"wrr_{lang}"] > TOLERATED_LOSS]
    if forgotten:
        trainer.log.say(
            f"WARNING: {', '.join(forgotten)} forgotten in part: train with --synthetic_share 0.2 or more, which mixes "
            "in synthetic words of every language"
        )


if __name__ == "__main__":
    main()
