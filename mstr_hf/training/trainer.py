"""One training loop for mCLIP, Spotter and Refiner: readable in one sitting, under `accelerate launch`."""

from __future__ import annotations

import json
import math
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from transformers import PreTrainedModel

Batch = dict[str, torch.Tensor]


@dataclass
class TrainingArguments:
    """How to train; every field is an option of the scripts."""

    output_dir: str = field(metadata={"help": "Folder for checkpoints, the log and the final model."})
    max_steps: int = field(default=10_000, metadata={"help": "Optimiser steps."})
    batch_size: int = field(default=64, metadata={"help": "Samples a step and process."})
    learning_rate: float = field(default=1e-3, metadata={"help": "Peak learning rate."})
    warmup_steps: int = field(default=300, metadata={"help": "Steps of linear warm-up; cosine decay to 0 follows."})
    weight_decay: float = field(default=0.02, metadata={"help": "AdamW decay on matrices; vectors have none."})
    max_grad_norm: float = field(default=5.0, metadata={"help": "Gradients are clipped to this norm."})
    seed: int = field(default=0, metadata={"help": "Seed of weights, words and order."})
    num_workers: int = field(default=1, metadata={"help": "Processes that synthesise, for each training process."})
    num_threads: int = field(default=1, metadata={"help": "CPU threads of each training process."})
    log_steps: int = field(default=50, metadata={"help": "Steps between log lines."})
    eval_steps: int = field(default=1000, metadata={"help": "Steps between evaluations."})
    save_steps: int = field(default=500, metadata={"help": "Steps between checkpoints."})
    save_total_limit: int = field(default=2, metadata={"help": "Checkpoints that are kept."})
    resume: bool = field(default=False, metadata={"help": "Go on from the newest checkpoint in output_dir."})


def learning_rate_factor(step: int, warmup_steps: int, max_steps: int) -> float:
    """Linear warm-up, then cosine to 0; a factor of the peak learning rate."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, max_steps - warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def parameter_groups(model: nn.Module, weight_decay: float, rates: dict[str, float] | None = None) -> list[dict]:
    """Groups of trained parameters for AdamW.

    Weight decay is for matrices and convolutions only; biases, norms and special rows have none.

    Args:
        model: The model.
        weight_decay: Decay of matrices.
        rates: Factors of the learning rate by prefix of the parameter's name; 1 for all others.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            rate = next((factor for prefix, factor in (rates or {}).items() if name.startswith(prefix)), 1.0)
            groups.setdefault((rate, weight_decay if parameter.ndim >= 2 else 0.0), []).append(parameter)
    return [{"params": group, "weight_decay": decay, "rate": rate} for (rate, decay), group in groups.items()]


class Trainer:
    """Runs the steps, logs them, evaluates, and checkpoints so that a killed run goes on where it was.

    Args:
        args: How to train.
        model: The model; its forward takes a batch and returns an output with `loss`.
        batches: Called with (first step, process index, process count), gives that process's endless batches from
            that step on. Must depend on nothing but its arguments and the seed.
        evaluate: Called with the bare model in eval mode; its metrics are logged, and `metric` chooses the best.
        metric: Key of the figure to maximise in what `evaluate` returns.
        rates: Factors of the learning rate (see `parameter_groups`).

    Raises:
        FileNotFoundError: If `resume` is asked for and there is no checkpoint.
    """

    def __init__(
        self,
        args: TrainingArguments,
        model: PreTrainedModel,
        batches: Callable[[int, int, int], Iterator[Batch]],
        evaluate: Callable[[Any], dict[str, float]] | None = None,
        metric: str = "wrr",
        rates: dict[str, float] | None = None,
    ):
        torch.set_num_threads(args.num_threads)
        self.args = args
        self.accelerator = Accelerator()
        self.output_dir = Path(args.output_dir)
        self.optimizer = torch.optim.AdamW(
            parameter_groups(model, args.weight_decay, rates), lr=args.learning_rate, betas=(0.9, 0.98)
        )
        # Convolutions are faster with channels last, on CPU and GPU alike.
        model.to(memory_format=torch.channels_last)  # type: ignore[call-arg]  # transformers' wrapper hides self
        self.model, self.optimizer = self.accelerator.prepare(model, self.optimizer)
        self.batches = batches
        self.evaluate = evaluate
        self.metric = metric
        self.step = 0
        self.best = -math.inf
        self.stopping = False
        if args.resume:
            self._load()

    def train(self) -> PreTrainedModel:
        """Trains up to `max_steps` and saves the final model in `output_dir`; returns it."""
        signal.signal(signal.SIGTERM, self._stop)
        args, bare = self.args, self.accelerator.unwrap_model(self.model)
        processes = self.accelerator.num_processes
        count = sum(parameter.numel() for parameter in bare.parameters() if parameter.requires_grad)
        self._log({"event": "start", "step": self.step, "processes": processes, "parameters": count})
        batches = self.batches(self.step, self.accelerator.process_index, processes)
        self.model.train()
        losses: list[torch.Tensor] = []
        images, waited, begun = 0, 0.0, time.monotonic()
        while self.step < args.max_steps and not self.stopping:
            asked = time.monotonic()
            batch = {name: tensor.to(self.accelerator.device) for name, tensor in next(batches).items()}
            waited += time.monotonic() - asked
            factor = learning_rate_factor(self.step, args.warmup_steps, args.max_steps)
            for group in self.optimizer.param_groups:
                group["lr"] = args.learning_rate * factor * group["rate"]
            with self.accelerator.autocast():
                loss = self.model(**batch).loss
            self.accelerator.backward(loss)
            self.accelerator.clip_grad_norm_(self.model.parameters(), args.max_grad_norm)
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.step += 1
            losses.append(loss.detach())
            images += len(batch["pixel_values"]) * processes
            if self.step % args.log_steps == 0:
                spent = time.monotonic() - begun
                self._log(
                    {
                        "step": self.step,
                        "loss": round(torch.stack(losses).mean().item(), 4),
                        "images_per_s": round(images / spent, 1),
                        "data_wait": round(waited / spent, 3),
                        "eta_min": round((args.max_steps - self.step) * spent / max(1, len(losses)) / 60, 1),
                    }
                )
                losses, images, waited, begun = [], 0, 0.0, time.monotonic()
            if self.evaluate is not None and (self.step % args.eval_steps == 0 or self.step == args.max_steps):
                self._evaluate(bare)
                begun = time.monotonic()
            if self.step % args.save_steps == 0 or self.step == args.max_steps or self.stopping:
                self._save()
        if self.accelerator.is_main_process and not self.stopping:
            bare.save_pretrained(self.output_dir / "final")
        return bare

    def _stop(self, signum: int, frame: object) -> None:
        self.stopping = True

    def _evaluate(self, bare: PreTrainedModel) -> None:
        assert self.evaluate is not None
        if self.accelerator.is_main_process:
            bare.eval()
            with torch.no_grad():
                metrics = self.evaluate(bare)
            bare.train()
            self._log({"step": self.step, **metrics})
            if metrics[self.metric] > self.best:
                self.best = metrics[self.metric]
                bare.save_pretrained(self.output_dir / "best")
        self.accelerator.wait_for_everyone()

    def _log(self, entry: dict) -> None:
        if self.accelerator.is_main_process:
            self.output_dir.mkdir(parents=True, exist_ok=True)
            line = json.dumps(entry)
            print(line, flush=True)
            with open(self.output_dir / "log.jsonl", "a") as file:
                file.write(line + "\n")

    def _save(self) -> None:
        """Writes a checkpoint beside its final name and moves it there whole, so that a kill leaves none half done."""
        self.accelerator.wait_for_everyone()
        if not self.accelerator.is_main_process:
            return
        target = self.output_dir / f"checkpoint-{self.step:08d}"
        partial = self.output_dir / "partial"
        shutil.rmtree(partial, ignore_errors=True)
        self.accelerator.unwrap_model(self.model).save_pretrained(partial)
        state = {"step": self.step, "best": self.best, "optimizer": self.optimizer.state_dict()}
        torch.save({**state, "rng": torch.get_rng_state(), "args": asdict(self.args)}, partial / "training_state.pt")
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
        for old in sorted(self.output_dir.glob("checkpoint-*"))[: -self.args.save_total_limit]:
            shutil.rmtree(old)

    def _load(self) -> None:
        checkpoints = sorted(self.output_dir.glob("checkpoint-*"))
        if not checkpoints:
            raise FileNotFoundError(f"no checkpoint in {self.output_dir}: leave --resume out to start afresh")
        bare = self.accelerator.unwrap_model(self.model)
        weights = type(bare).from_pretrained(checkpoints[-1]).state_dict()
        bare.load_state_dict(weights)
        state = torch.load(checkpoints[-1] / "training_state.pt", weights_only=True)
        self.optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["rng"])
        self.step, self.best = state["step"], state["best"]
