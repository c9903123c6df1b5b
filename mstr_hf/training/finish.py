"""What lies beside the weights of a finished run: processor and bank, or tokenizer, and a card of what was done."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
import yaml
from huggingface_hub import ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from mstr_hf.hub import publish
from mstr_hf.vocabulary import Vocabulary

from .trainer import Trainer, replace_folder

PURPOSE = {
    "mclip": "mCLIP: character pictures and prompts in one space. Its text side makes a prototype bank.",
    "mstr_spotter": "Spotter: a word picture to characters of a prototype bank.",
    "mstr_refiner": "Spotter and Refiner: reads a cropped photograph of a word.",
}
# Options that say nothing about the model.
UNSAID = ("output_dir", "config", "resume", "time_limit", "push_to_hub", "num_threads")


def finish(trainer: Trainer, vocabulary: Vocabulary, data: str, earlier: Sequence[Trainer] = ()) -> None:
    """Completes the folders `final` and `best` of a run; only in the main process.

    Both get a card; `final` is uploaded if that was asked for, unless the model has become worse.

    Args:
        trainer: The trainer, at its end.
        vocabulary: Characters of the model.
        data: What was trained on, in a line.
        earlier: Trainers of stages before.

    Raises:
        SystemExit: If the upload fails; the folders are complete then.
    """
    if not trainer.accelerator.is_main_process:
        return
    folder, best, model = trainer.output_dir / "final", trainer.output_dir / "best", trainer.bare
    publish.assemble(model, folder, vocabulary)
    card = training_card(trainer, vocabulary, data, earlier)
    (folder / "README.md").write_text(card, encoding="utf-8")
    if best.exists():

        def complete(fresh: Path) -> None:
            publish.assemble(type(model).from_pretrained(best), fresh, vocabulary)
            card = training_card(trainer, vocabulary, data, earlier, of_best=True)
            (fresh / "README.md").write_text(card, encoding="utf-8")

        replace_folder(best, complete)
    if repo_id := trainer.args.push_to_hub:
        command = f"python scripts/push_to_hub.py {folder} {repo_id}"
        if trainer.worse:
            trainer.log.say(f"not uploaded: worse than what it began with (`{command}` uploads it all the same)")
            return
        try:
            trainer.log.say(f"uploaded to {publish.push(folder, repo_id)}")
        except publish.PublishError as error:
            raise SystemExit(
                f"not uploaded: {error}; the run is complete in {folder}, `{command}` uploads it later"
            ) from error


def training_card(
    trainer: Trainer, vocabulary: Vocabulary, data: str, earlier: Sequence[Trainer] = (), of_best: bool = False
) -> str:
    """A model card with what was really trained: data, steps, hardware, software, figures and options.

    Args:
        trainer: The trainer, at its end.
        vocabulary: Characters of the model.
        data: What was trained on, in a line.
        earlier: Trainers of stages before.
        of_best: Whether the card's weights are those of the best evaluation instead of the last step.
    """
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
        "software": f"mstr_hf {_version()}, torch {torch.__version__}, transformers {transformers.__version__}",
    }
    if kind != "mclip":
        facts["bank"] = f"{len(model.get_bank())} rows, digest {model.get_bank().digest()}"
    # Of two stages in one run, both may tell the same.
    if changes := dict.fromkeys(_change(*change) for stage in stages for change in stage.changes):
        facts["options changed on resuming"] = ", ".join(changes)
    lines = ["---", header.to_yaml(), "---", "", f"# {args.push_to_hub or trainer.output_dir.name}", ""]
    lines += [PURPOSE[kind], "", "## Training", "", "| | |", "| --- | --- |"]
    lines += [f"| {name} | {value} |" for name, value in facts.items()]
    if trainer.history:
        _, metrics = trainer.history[-1]
        best_step, best = max(trainer.history, key=lambda item: item[1][trainer.metric])
        end, top = ("", ", these weights") if of_best else (" (these weights)", "")
        lines += ["", "## Validation", "", f"| | at the end{end} | at step {best_step} (best{top}) |"]
        lines += ["| --- | --: | --: |"]
        # An earlier version may have measured less.
        tops = {name: f"{best[name]:.4f}" if name in best else "-" for name in metrics}
        lines += [f"| {name} | {value:.4f} | {tops[name]} |" for name, value in metrics.items()]
    said = {
        name: _shortened(value)
        for option in trainer.options
        for name, value in dataclasses.asdict(option).items()
        if name not in UNSAID and value not in (None, "", [])
    }
    options_text = yaml.safe_dump(said, sort_keys=False, allow_unicode=True).rstrip()
    lines += ["", "## Options", "", "```yaml", options_text, "```"]
    return "\n".join(lines) + "\n"


def _version() -> str:
    """That of this package; a checkout that is only imported has none."""
    try:
        return importlib.metadata.version("mstr_hf")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


def _change(step: int, name: str, before: Any, after: Any) -> str:
    return f"{name} {_shortened(before)} -> {_shortened(after)} (step {step})"


def _shortened(value: Any) -> Any:
    """Paths of the machine that trained are nobody else's business: their last part or their run's says enough."""
    if isinstance(value, list):
        return [_shortened(item) for item in value]
    if not isinstance(value, str) or "/" not in value:
        return value
    if Path(value).is_dir():
        return checkpoint_name(value)
    return value if _is_repository(value) and not Path(value).exists() else Path(value).name


def _is_repository(name: str) -> bool:
    """Whether a name with a slash may be the Hub's, such as `mstr/refiner-6lang`."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def checkpoint_name(checkpoint: str) -> str:
    """What a card calls a checkpoint: the Hub's name, or that of the folder or the run whose result it is."""
    if not Path(checkpoint).is_dir():
        return checkpoint
    folder = Path(checkpoint).resolve()
    return folder.parent.name if folder.name in ("checkpoint", "final", "best") else folder.name
