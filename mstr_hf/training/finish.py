"""What lies beside the weights of a finished run: processor and bank, or tokenizer, and a card of what was done."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCardData

from mstr_hf.hub import publish
from mstr_hf.vocabulary import Vocabulary

from .trainer import Trainer

PURPOSE = {
    "mclip": "mCLIP: character pictures and prompts in one space. Its text side makes a prototype bank.",
    "mstr_spotter": "Spotter: a word picture to characters of a prototype bank.",
    "mstr_refiner": "Spotter and Refiner: reads a cropped photograph of a word.",
}
# Options that say nothing about the model.
UNSAID = ("output_dir", "config", "resume", "time_limit", "push_to_hub", "num_threads")


def finish(trainer: Trainer, vocabulary: Vocabulary, data: str, earlier: Sequence[Trainer] = ()) -> None:
    """Completes the folders `final` and `best` of a run; only in the main process.

    `final` gets a card, and is uploaded if that was asked for, unless the model has become worse.

    Args:
        trainer: The trainer, at its end.
        vocabulary: Characters of the model.
        data: What was trained on, in a line.
        earlier: Trainers of stages before.
    """
    if not trainer.accelerator.is_main_process:
        return
    folder, best, model = trainer.output_dir / "final", trainer.output_dir / "best", trainer.bare
    publish.assemble(model, folder, vocabulary)
    (folder / "README.md").write_text(training_card(trainer, vocabulary, data, earlier), encoding="utf-8")
    if best.exists():
        publish.assemble(type(model).from_pretrained(best), best, vocabulary)
    if trainer.args.push_to_hub and trainer.worse:
        command = f"python scripts/push_to_hub.py {folder} {trainer.args.push_to_hub}"
        trainer.log.say(f"not uploaded: worse than what it began with (`{command}` uploads it all the same)")
    elif repo_id := trainer.args.push_to_hub:
        trainer.log.say(f"uploaded to {publish.push(folder, repo_id)}")


def training_card(trainer: Trainer, vocabulary: Vocabulary, data: str, earlier: Sequence[Trainer] = ()) -> str:
    """A model card with what was really trained: data, steps, hardware, figures and options."""
    args, model = trainer.args, trainer.bare
    kind = model.config.model_type
    header = ModelCardData(
        language=list(vocabulary.languages),
        license="apache-2.0",
        library_name="transformers",
        pipeline_tag="feature-extraction" if kind == "mclip" else "image-to-text",
        tags=["ocr", "scene-text-recognition", "multilingual", "mstr"],
    )
    batch = args.batch_size * args.gradient_accumulation_steps * trainer.processes
    stages = [*earlier, trainer]
    steps = [f"{stage.step} of {stage.args.max_steps}" for stage in stages]
    count, hours = sum(stage.step for stage in stages), sum(stage.seconds for stage in stages) / 3600
    device = trainer.device_name if trainer.device.type != "cpu" else f"CPU ({platform.machine()})"
    facts = {
        "parameters": f"{model.num_parameters() / 1e6:.2f} million, "
        f"{sum(p.numel() for p in model.parameters() if p.requires_grad) / 1e6:.2f} trained",
        "data": data,
        "steps": f"{', then '.join(steps)}, {batch} samples each: {count * batch:,} samples",
        "hardware": f"{trainer.processes} process(es) on {device}, {trainer.precision}, {hours:.2f} h",
    }
    lines = ["---", header.to_yaml(), "---", "", f"# {args.push_to_hub or trainer.output_dir.name}", ""]
    lines += [PURPOSE[kind], "", "## Training", "", "| | |", "| --- | --- |"]
    lines += [f"| {name} | {value} |" for name, value in facts.items()]
    if trainer.history:
        _, metrics = trainer.history[-1]
        best_step, best = max(trainer.history, key=lambda item: item[1][trainer.metric])
        lines += ["", "## Validation", "", f"| | at the end (these weights) | at step {best_step} (best) |"]
        lines += ["| --- | --: | --: |"]
        lines += [f"| {name} | {value:.4f} | {best[name]:.4f} |" for name, value in metrics.items()]
    said = {
        name: _shortened(value)
        for option in trainer.options
        for name, value in dataclasses.asdict(option).items()
        if name not in UNSAID and value not in (None, "", [])
    }
    options_text = yaml.safe_dump(said, sort_keys=False, allow_unicode=True).rstrip()
    lines += ["", "## Options", "", "```yaml", options_text, "```"]
    return "\n".join(lines) + "\n"


def _shortened(value: Any) -> Any:
    """Paths of the machine that trained are nobody else's business: their last part says enough."""
    if isinstance(value, list):
        return [_shortened(item) for item in value]
    return Path(value).name if isinstance(value, str) and "/" in value else value


def checkpoint_name(checkpoint: str) -> str:
    """What a card calls a checkpoint: the Hub's name, or that of the folder or the run whose result it is."""
    if not Path(checkpoint).is_dir():
        return checkpoint
    folder = Path(checkpoint).resolve()
    return folder.parent.name if folder.name in ("checkpoint", "final", "best") else folder.name
