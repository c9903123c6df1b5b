"""Options of the training scripts: dataclasses, filled from YAML files and the command line."""

from __future__ import annotations

import difflib
import json
import sys
from argparse import ArgumentParser
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml
from transformers import HfArgumentParser


@dataclass
class TrainingArguments:
    """How to train; every field is an option of the scripts and a key of their config files."""

    output_dir: str = field(metadata={"help": "Folder for checkpoints, the log and the final model."})
    config: list[str] = field(
        default_factory=list, metadata={"help": "YAML files of options; later ones win, the command line over all."}
    )
    max_steps: int = field(default=10_000, metadata={"help": "Optimiser steps."})
    batch_size: int = field(default=64, metadata={"help": "Samples a process and backward pass."})
    gradient_accumulation_steps: int = field(default=1, metadata={"help": "Backward passes a step."})
    learning_rate: float = field(default=1e-3, metadata={"help": "Peak learning rate."})
    warmup_steps: int = field(default=300, metadata={"help": "Steps of linear warm-up; cosine decay to 0 follows."})
    weight_decay: float = field(default=0.02, metadata={"help": "Decay of matrices; vectors have none."})
    optimizer: str = field(
        default="muon",
        metadata={"help": "muon (for matrices and convolutions, with adamw for the rest) or adamw (for everything)."},
    )
    max_grad_norm: float = field(default=5.0, metadata={"help": "Gradients are clipped to this norm."})
    bf16: bool = field(default=False, metadata={"help": "Train in bfloat16 autocast; weights stay in float32."})
    seed: int = field(default=0, metadata={"help": "Seed of weights, words and order."})
    num_workers: int = field(
        default=1, metadata={"help": "Processes that prepare batches, for each training process; one a CPU core."}
    )
    num_threads: int = field(default=1, metadata={"help": "CPU threads of each training process."})
    log_steps: int = field(default=50, metadata={"help": "Steps between log lines."})
    eval_steps: int = field(default=1000, metadata={"help": "Steps between evaluations."})
    save_steps: int = field(default=500, metadata={"help": "Steps between checkpoints."})
    save_total_limit: int = field(default=2, metadata={"help": "Checkpoints that are kept, beside the best model."})
    resume: bool = field(
        default=False, metadata={"help": "Go on from the newest checkpoint in output_dir, if there is one."}
    )
    time_limit: float | None = field(
        default=None, metadata={"help": "Minutes after which the run saves a checkpoint and exits with 0."}
    )
    push_to_hub: str | None = field(
        default=None, metadata={"help": "Hub repository, such as me/my-model, that the final model is uploaded to."}
    )

    def __post_init__(self) -> None:
        counts = ("batch_size", "gradient_accumulation_steps", "num_threads", "log_steps", "eval_steps", "save_steps")
        for least, names in (
            (1, counts),
            (0, ("max_steps", "warmup_steps", "weight_decay", "seed", "num_workers")),
        ):
            for name in names:
                if not getattr(self, name) >= least:  # which a NaN is not, either
                    raise ValueError(f"{name} is {getattr(self, name)}: give {least} or more")
        for name in ("learning_rate", "max_grad_norm", "time_limit"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} is {value}: give more than 0")
        if self.optimizer not in ("muon", "adamw"):
            raise ValueError(f"optimizer is {self.optimizer!r}: give muon or adamw")
        if self.save_total_limit < 1:
            raise ValueError("save_total_limit is below 1: a run that keeps no checkpoint cannot be resumed")


@dataclass
class WordArguments:
    """Which words to train on: synthetic ones, drawn as training runs, labelled pictures, or both."""

    fonts: list[str] = field(default_factory=list, metadata={"help": "Folders with fonts beside the system's."})
    data: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Labelled pictures: Arrow folders (`mstr convert`, `mstr synthesise`) and manifests (.json, "
            ".jsonl). As they are, or each with its weight, such as photographs=3 drawn=1."
        },
    )
    val_data: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Labelled pictures to validate with: such folders and manifests, without weights. Left out: the "
            "validation split of data, else every tenth word of it; without data, synthetic words in fonts that "
            "training never sees."
        },
    )
    synthetic_share: float | None = field(
        default=None, metadata={"help": "Share of synthetic words; 0 where there are data, else 1, if left out."}
    )
    language_weights: str = field(
        default="", metadata={"help": "Relative amounts of synthetic words, such as en=4,hi=3; 1 where not named."}
    )
    language_temperature: float = field(
        default=1.0,
        metadata={"help": "A language's share goes with amount ** (1 / temperature): above 1 lifts small languages."},
    )
    severity: float = field(
        default=0.9, metadata={"help": "Upper end of the degradation budget of synthetic words, 0 to 1."}
    )
    max_width: int = field(
        default=192,
        metadata={"help": "Words that are wider, in pixels at height 32, do not train: they cost as much as several."},
    )
    eval_words: int = field(default=100, metadata={"help": "Words a language in an evaluation."})
    overfit_images: int = field(
        default=0,
        metadata={"help": "Trains and validates on this many words alone: a self-check that should reach a WRR of 1."},
    )


@dataclass
class MCLIPArguments:
    """What to train mCLIP on."""

    languages: str = field(default="en,hi,bn,ta,te,ar", metadata={"help": "Languages, with commas between."})
    fonts: list[str] = field(default_factory=list, metadata={"help": "Folders with fonts beside the system's."})
    character_data: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Labelled pictures of single characters beside drawn ones: Arrow folders (`mstr synthesise "
            "--characters`, or your own) and manifests (.json, .jsonl)."
        },
    )
    labelled_share: float = field(default=0.5, metadata={"help": "Share of character_data; the rest is drawn."})
    architecture: str = field(
        default="", metadata={"help": "Fields of MCLIPConfig, such as projection_dim=64,num_hidden_layers=1."}
    )
    init_from: str | None = field(default=None, metadata={"help": "Trained mCLIP to start from instead of nothing."})
    bank: str | None = field(
        default=None, metadata={"help": "Prototype bank, or a model that has it, whose space to learn."}
    )
    arcface_weight: float = field(default=0.0, metadata={"help": "Weight of the ArcFace loss."})
    subtype_weight: float = field(default=0.0, metadata={"help": "Weight of the subtype loss."})
    text_rate: float | None = field(
        default=None,
        metadata={"help": "Learning rate of the text tower, relative to the rest; 0.05 if left out, 1 with a bank."},
    )
    eval_samples: int = field(default=3000, metadata={"help": "Held-out crops of an evaluation."})

    def __post_init__(self) -> None:
        if self.eval_samples < 1:
            raise ValueError(f"eval_samples is {self.eval_samples}: give 1 or more")
        if not 0 < self.labelled_share <= 1:
            raise ValueError(f"labelled_share is {self.labelled_share}: give more than 0, and 1 at most")


@dataclass
class SpotterArguments:
    """Which model to train."""

    bank: str | None = field(default=None, metadata={"help": "Prototype bank; that of init_from if left out."})
    init_from: str | None = field(default=None, metadata={"help": "Spotter to start from instead of nothing."})
    architecture: str = field(
        default="", metadata={"help": "Fields of SpotterConfig, such as num_hidden_layers=4,stage_blocks=[2,4]."}
    )


@dataclass
class RefinerArguments:
    """Which model to train."""

    spotter: str | None = field(
        default=None,
        metadata={"help": "Trained Spotter, which stays as it is unless joint; that of init_from if left out."},
    )
    init_from: str | None = field(default=None, metadata={"help": "Refiner to start from instead of nothing."})
    bank: str | None = field(
        default=None, metadata={"help": "Prototype bank: trains a new Spotter as well, with --joint."}
    )
    joint: bool = field(
        default=False, metadata={"help": "Train the Spotter as well: both losses, one pass over the words."}
    )
    simulator: str | None = field(default=None, metadata={"help": "Fitted simulator of the Spotter's errors."})
    architecture: str = field(
        default="", metadata={"help": "Fields of RefinerDecoderConfig, such as num_hidden_layers=4."}
    )
    spotter_architecture: str = field(
        default="", metadata={"help": "Fields of the new Spotter's SpotterConfig, such as num_hidden_layers=4."}
    )


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


SECTIONS: dict[str, tuple[type, ...]] = {
    "mclip": (TrainingArguments, MCLIPArguments),
    "spotter": (TrainingArguments, WordArguments, SpotterArguments),
    "refiner": (TrainingArguments, WordArguments, RefinerArguments),
    "finetune": (FinetuneArguments, WordArguments, CheckpointArguments),
}
"""Parts of a config file that only the trainer of that name reads, and its options."""


def parse_arguments(
    section: str, types: Sequence[type], description: str | None = None, argv: Sequence[str] | None = None
) -> tuple[Any, ...]:
    """Reads options from the files named by `--config` and from the command line, which wins.

    A config file holds options at its top level, for all trainers, and under `mclip:`, `spotter:`, `refiner:` and
    `finetune:`, for one of them; it names only what differs from the defaults. `null` and `[]` take back what a file
    before has said.

    Args:
        section: The part of the config files that is this trainer's; empty if it has none.
        types: Dataclasses of options, `TrainingArguments` or a subclass among them.
        description: What `--help` says first.
        argv: The command line; that of the process by default.

    Returns:
        One filled object for each type. A wrong option exits with code 2 and one line that names it.
    """
    # The type that the parser is annotated with is one that no class has.
    parser = HfArgumentParser(types, description=description, allow_abbrev=False)  # type: ignore[arg-type]
    argv = list(sys.argv[1:] if argv is None else argv)
    configs = ArgumentParser(add_help=False, allow_abbrev=False)
    configs.add_argument("--config", nargs="+", action="extend", default=[])
    known = {item.name for kind in types for item in fields(kind)}
    try:
        values: dict[str, Any] = {}
        for path in configs.parse_known_args(argv)[0].config:
            values |= _config_values(Path(path), section, known)
        return parser.parse_args_into_dataclasses(args=[*_options(values), *argv], look_for_args_file=False)
    except ValueError as error:
        parser.error(str(error))


def _config_values(path: Path, section: str, known: set[str]) -> dict[str, Any]:
    """What the file says to one trainer; only options that are known pass, in the parts of other trainers too."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise ValueError(f"--config {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: write options as 'name: value', one a line")
    values = {name: value for name, value in content.items() if name not in SECTIONS}
    for name in SECTIONS:
        options = content.get(name)
        if not isinstance(options, dict | None):
            raise ValueError(
                f"{path}: '{name}: {options}' is no section: write options of the trainer of {name} below '{name}:' as "
                "'name: value', one a line, with spaces before them"
            )
        if name == section:
            values |= options or {}
        else:
            _check_names(path, options or {}, {item.name for kind in SECTIONS[name] for item in fields(kind)}, name)
    if "config" in values:
        raise ValueError(f"{path}: a config names no other: give all of them to --config, those that win last")
    _check_names(path, values, known, section)
    return values


def _check_names(path: Path, options: dict[str, Any], known: Collection[str], section: str) -> None:
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(str(name), [*known, *SECTIONS], 1)
            hint = f": did you mean {near[0]}?" if near else f": it is no option of the trainer of {section or 'this'}"
            raise ValueError(f"{path}: unknown option '{name}'{hint}")


def _options(values: dict[str, Any]) -> list[str]:
    """Values as a command line."""
    options: list[str] = []
    for name, value in values.items():
        if isinstance(value, list):
            options += [f"--{name}", *map(str, value)] if value else []
        elif isinstance(value, dict):
            options.append(f"--{name}={','.join(f'{key}={json.dumps(entry)}' for key, entry in value.items())}")
        elif value is not None:
            options.append(f"--{name}={str(value).lower() if isinstance(value, bool) else value}")
    return options


def mapping(option: str, name: str, known: Collection[str]) -> dict[str, Any]:
    """Reads an option such as `en=4,hi=3` or `num_hidden_layers=4,stage_channels=[48,96,192]`.

    Args:
        option: The text; empty for nothing.
        name: What errors call it.
        known: Keys that may come.

    Raises:
        ValueError: If it has another form, or an unknown key.
    """
    try:
        values = yaml.safe_load("{" + option.replace("=", ": ") + "}")
    except yaml.YAMLError:
        values = {"": None}
    if not all(isinstance(key, str) and value is not None for key, value in values.items()):
        raise ValueError(f"{name}: '{option}' is not like a=1,b=2")
    for key in values:
        if key not in known:
            raise ValueError(f"{name}: unknown '{key}': use {', '.join(known)}")
    return values
