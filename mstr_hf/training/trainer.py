"""One training loop for mCLIP, Spotter and Refiner: readable in one sitting, under `accelerate launch`."""

from __future__ import annotations

import ctypes
import dataclasses
import json
import math
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
import torch
import yaml
from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.commands.config.config_args import default_config_file
from accelerate.utils import DistributedType, send_to_device, set_seed
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import logging

from mstr_hf.hub import publish

from .arguments import TrainingArguments
from .log import RunLog
from .optimizer import Muon, parameter_groups

Batch = dict[str, Any]
"""Tensors by name, `pixel_values` among them; or dictionaries of tensors."""

# Processes agree on whether to stop every so many steps: agreeing costs a wait for the slowest of them. Where so many
# steps take longer than this, in seconds, they agree after each: launchers kill soon after they ask.
AGREEMENT_STEPS = 8
AGREEMENT_SECONDS = 4.0
# Evaluation runs in one process while the others wait.
WAIT = timedelta(hours=3)
# Optimisers and models are cut into files of at most this many bytes, which any transport takes.
MAX_FILE_SIZE = 15_000_000
# A language that ends further below its start than this is named, whatever became of the mean.
LANGUAGE_LOSS = 0.02


@dataclass(frozen=True)
class Sample:
    """A picture that the model was asked about, for the eye.

    Attributes:
        image: Grey, uint8 `[H, W]`.
        truth: What it shows.
        reading: What the model says.
    """

    image: np.ndarray
    truth: str
    reading: str


def learning_rate_factor(step: int, warmup_steps: int, max_steps: int) -> float:
    """Linear warm-up, then cosine to 0; a factor of the peak learning rate."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, max_steps - warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def own_loss(model: Any, batch: Batch) -> torch.Tensor:
    """The loss that a model gives for a batch."""
    return model(**batch).loss


def to_device(batch: Batch, device: torch.device | str) -> Batch:
    """Moves a batch; pictures travel as bytes, a quarter of the size, and become -1 to 1 there, 0 in the padding."""
    batch = send_to_device(batch, device, non_blocking=True)
    pixels = batch["pixel_values"]
    if pixels.dtype == torch.uint8:
        pixels = pixels.float() / 127.5 - 1
        if "pixel_mask" in batch:
            pixels = pixels * batch["pixel_mask"][:, None, None]
        batch["pixel_values"] = pixels
    return batch


def begin_worker(number: int = 0) -> None:
    """What a process that prepares batches does first.

    It keeps to one thread, since it is one of many. It leaves SIGTERM to the trainer: schedulers send it to all
    processes of a job, and without batches the trainer would not get to its checkpoint. It ends with the trainer; by
    itself it would wait for ever for a killed one to take its batches.

    Args:
        number: Which worker it is: loaders say so.
    """
    cv2.setNumThreads(0)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _on_death_of_parent(signal.SIGKILL)


def check_launch(processes: int) -> None:
    """Refuses a launch that started fewer processes than `accelerate launch` was asked for.

    `accelerate launch --cpu --num_processes 2`, for one, silently starts a single process; so does a config file with
    `num_processes: 2` and `distributed_type: NO`. A process that is the launcher's child is told when that dies.

    Raises:
        RuntimeError: If there are fewer.
    """
    for place, parent in enumerate(psutil.Process().parents()):
        try:
            command = parent.cmdline()
        except psutil.Error:
            continue
        if "launch" not in command[:4] and not any(part.endswith("accelerate-launch") for part in command[:2]):
            continue
        if place == 0:
            _on_death_of_parent(signal.SIGTERM)  # which hands none on to a single process
        wanted = _asked_for([word for part in command for word in part.split("=", 1)])
        if wanted > processes:
            raise RuntimeError(
                f"{processes} process started, but the launcher was asked for {wanted}: add --multi_gpu (on a machine "
                "without a GPU too, with ACCELERATE_USE_CPU=true before the command)"
            )


def _asked_for(words: Sequence[str]) -> int:
    """How many processes a launcher's command line or its config file asks for; 0 if neither does."""

    def option(name: str) -> str | None:
        places = [words.index(form) for form in (f"--{name}", f"--{name.replace('_', '-')}") if form in words[:-1]]
        return words[places[0] + 1] if places else None

    if (number := option("num_processes")) is not None:
        return int(number)
    try:
        config = yaml.safe_load(Path(option("config_file") or default_config_file).read_text(encoding="utf-8"))
        return int(config["num_processes"])
    except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError):
        return 0


def _on_death_of_parent(signum: signal.Signals) -> None:
    """Has a signal sent to this process when its parent dies; on Linux."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signum)  # PR_SET_PDEATHSIG


def replace_folder(folder: Path, save: Callable[[Path], Any]) -> None:
    """Saves to a new folder and puts it in the place of an old one, so that one of them is always whole.

    Args:
        folder: What to replace; it need not be there.
        save: Called with the folder to write to.
    """
    fresh, old = (folder.with_name(f"{folder.name}.{word}") for word in ("new", "old"))
    for path in (fresh, old):
        shutil.rmtree(path, ignore_errors=True)
    save(fresh)
    if folder.exists():
        folder.rename(old)
    fresh.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


class Trainer:
    """Runs the steps, logs them, evaluates, and checkpoints so that a killed run goes on where it was.

    Args:
        args: How to train.
        model: The model; its forward takes a batch and returns an output with `loss`.
        batches: Called with (first batch, process index, process count), gives that process's endless batches from
            that one on, `gradient_accumulation_steps` a step. Must depend on nothing but its arguments and the seed.
        evaluate: Called with the bare model in eval mode; its metrics are logged, and `metric` chooses the best.
        metric: Key of the figure to maximise in what `evaluate` returns.
        rates: Factors of the learning rate (see `optimizer.parameter_groups`).
        samples: Called like `evaluate`, gives pictures with their readings for TensorBoard.
        evaluate_first: Evaluates before the first step, and says at the end whether the model is worse than it was.
        options: Further dataclasses of options that decide what is trained: a run that goes on says if they differ.
        freeze_statistics: Normalises batches with the statistics that the model has, and leaves these as they are:
            those of a short training, of few words of like widths at a time, are poorer than those of a long one.
        loss: What a batch costs: called with the model, or what wraps it for several processes, and the batch. By
            default the model's own.

    Attributes:
        history: What evaluations found: a list of `(step, metrics)`.
        changes: Options that differ from those of a checkpoint that the run went on from, at this resumption or one
            before: a list of `(step, name, before, after)`.
        worse: Whether the model ended worse than it began.

    Raises:
        FileExistsError: If `output_dir` holds another run's checkpoints and `resume` was not asked for.
        PublishError: If `push_to_hub` was asked for, and there is no token or the repository's name is none.
        RuntimeError: If fewer processes run than the launcher was asked for, or they do not share `output_dir`.
    """

    def __init__(
        self,
        args: TrainingArguments,
        model: PreTrainedModel,
        batches: Callable[[int, int, int], Iterator[Batch]],
        evaluate: Callable[[Any], dict[str, float]] | None = None,
        metric: str = "wrr",
        rates: dict[str, float] | None = None,
        samples: Callable[[Any], Sequence[Sample]] | None = None,
        evaluate_first: bool = False,
        options: Sequence[Any] = (),
        freeze_statistics: bool = False,
        loss: Callable[[Any, Batch], torch.Tensor] = own_loss,
    ):
        torch.set_num_threads(args.num_threads)
        logging.disable_progress_bar()  # of files saved and loaded: it would lie across the log
        self.args = args
        self.accelerator = Accelerator(
            mixed_precision="bf16" if args.bf16 else None, kwargs_handlers=[InitProcessGroupKwargs(timeout=WAIT)]
        )
        self.processes = self.accelerator.num_processes
        self.device = self.accelerator.device
        check_launch(self.processes)
        if args.push_to_hub and self.accelerator.is_main_process:
            publish.check_push(args.push_to_hub)  # before a long run, not after it
        if self.accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED):
            raise RuntimeError("these models fit on any GPU whole: launch with --multi_gpu, without FSDP or DeepSpeed")
        # On the CPU, sdpa's backward over sequences as short as these costs more than attention written out.
        model.set_attn_implementation("eager" if self.device.type == "cpu" else "sdpa")
        if self.processes > 1 and self.device.type == "cuda":
            # Else batch norm, and with it a contrastive batch, would differ from that of one process.
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        # Convolutions are faster with channels last, on CPU and GPU alike.
        model.to(memory_format=torch.channels_last)  # type: ignore[call-arg]  # transformers' wrapper hides self
        groups = parameter_groups(model, args.weight_decay, rates)
        optimizer: torch.optim.Optimizer
        if args.optimizer == "muon":
            optimizer = Muon(groups, args.learning_rate, dtype=torch.bfloat16 if args.bf16 else torch.float32)
        else:
            optimizer = torch.optim.AdamW(groups, args.learning_rate, betas=(0.9, 0.98))
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        self.bare = self.accelerator.unwrap_model(self.model)
        self.batches, self.evaluate, self.samples = batches, evaluate, samples
        self.metric = metric
        self.evaluate_first = evaluate_first
        # Whether the evaluation of this step is still to come.
        self._due = evaluate_first
        self.freeze_statistics, self.loss = freeze_statistics, loss
        self.output_dir = Path(args.output_dir)
        self.options = (args, *options)
        self.worse = False
        self.step = 0
        self.best = -math.inf
        self.history: list[tuple[int, dict[str, float]]] = []
        # Since the last log line, which a run that goes on has to end as well.
        self.loss_sum, self.loss_count = 0.0, 0
        self._seconds_before = 0.0
        self._begun: float | None = time.monotonic()  # None after the end
        self.changes: list[tuple[int, str, Any, Any]] = []
        self._new_changes = self.changes
        self._terminated = False
        self._agreement, self._agreed = AGREEMENT_STEPS, time.monotonic()
        self._check_sharing()
        set_seed(args.seed, device_specific=True)
        checkpoints = sorted(self.output_dir.glob("checkpoint-*"))
        if checkpoints and not args.resume:
            raise FileExistsError(
                f"{self.output_dir} holds {checkpoints[-1].name}: add --resume to go on, or name another output_dir"
            )
        if checkpoints:
            self._load(checkpoints[-1])
        self.log = RunLog(self.output_dir, self.accelerator.is_main_process, self.step, args.max_steps)

    # -------------------- the loop

    def train(self) -> PreTrainedModel:
        """Trains up to `max_steps` and saves the final model in `output_dir`; returns it.

        Raises:
            SystemExit: After a checkpoint was saved, with 143 on SIGTERM, with 0 at the time limit.
            FloatingPointError: If the loss is no longer a number; the newest checkpoint is from before.
        """
        before = signal.signal(signal.SIGTERM, self._terminate)
        first = self.step * self.args.gradient_accumulation_steps
        batches = self.batches(first, self.accelerator.process_index, self.processes)
        try:
            self._introduce()
            if self._due:
                self._evaluate()
            self._train(batches)
        finally:
            self._seconds_before, self._begun = self.seconds, None
            if isinstance(batches, Generator):
                batches.close()  # and with it the workers, which do not listen to signals
            signal.signal(signal.SIGTERM, before)
            self.log.close()
        return self.bare

    def _train(self, batches: Iterator[Batch]) -> None:
        args = self.args
        self._train_mode()
        losses = torch.zeros((), dtype=torch.float64, device=self.device)  # added up without waiting for the device
        images, steps, waited, begun = 0, 0, 0.0, time.monotonic()
        while self.step < args.max_steps:
            factor = learning_rate_factor(self.step, args.warmup_steps, args.max_steps)
            for group in self.optimizer.param_groups:
                group["lr"] = args.learning_rate * factor * group["rate"]
            for passes in reversed(range(args.gradient_accumulation_steps)):
                asked = time.monotonic()
                batch = next(batches)
                waited += time.monotonic() - asked
                batch = to_device(batch, self.device)
                with self.accelerator.no_sync(self.model) if passes else nullcontext():
                    with self.accelerator.autocast():
                        loss = self.loss(self.model, batch) / args.gradient_accumulation_steps
                    self.accelerator.backward(loss)
                losses += loss.detach()
                images += len(batch["pixel_values"]) * self.processes
            norm = self.accelerator.clip_grad_norm_(self.model.parameters(), args.max_grad_norm)
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.step += 1
            self.log.progress(self.step)
            self.loss_count += 1
            steps += 1
            logs, evaluates, saves = (
                self.step % every == 0 for every in (args.log_steps, args.eval_steps, args.save_steps)
            )
            last = self.step == args.max_steps
            self._due = self.evaluate is not None and (evaluates or last)
            stops = None if last else self._agreed_stop()
            if logs or saves or last or self._due or stops is not None:
                self._add_losses(losses, norm)
            if logs:
                spent = time.monotonic() - begun
                self.log.step(
                    self.step,
                    loss=self.loss_sum / self.loss_count,
                    learning_rate=args.learning_rate * factor,
                    grad_norm=float(norm),
                    images_per_s=images / spent,
                    data_wait=waited / spent,
                    eta_s=(args.max_steps - self.step) * spent / steps,
                )
                self.loss_sum, self.loss_count = 0.0, 0
                images, steps, waited, begun = 0, 0, 0.0, time.monotonic()
            # Before an evaluation, which may take minutes: who goes on from the checkpoint makes it then.
            saved = saves or last or stops is not None
            if saved:
                self._save()
            if self._due and stops is None:
                pause = time.monotonic()
                self._evaluate()
                begun += time.monotonic() - pause
                stops = None if last else self._agreed_stop()
                if stops is not None and not saved:
                    self._save()
            if stops is not None:
                self.log.say(
                    f"{'told to stop' if stops else 'time is up'}: saved at step {self.step}; go on with --resume",
                    event="stop",
                    step=self.step,
                )
                raise SystemExit(stops)
        if self.accelerator.is_main_process:
            replace_folder(self.output_dir / "final", self.bare.save_pretrained)
        self._warn_if_worse()
        self.accelerator.wait_for_everyone()

    def _train_mode(self) -> None:
        self.model.train()
        if self.freeze_statistics:
            for module in self.model.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()

    def _introduce(self) -> None:
        """Says what runs on what."""
        args = self.args
        trained = sum(parameter.numel() for parameter in self.bare.parameters() if parameter.requires_grad)
        where = self.device_name
        batch = args.batch_size * self.processes * args.gradient_accumulation_steps
        self.log.say(
            f"{self.processes} process{'es' if self.processes > 1 else ''} on {where}, each with {args.num_threads} "
            f"thread(s) and {args.num_workers} worker(s), {self.precision}; {trained / 1e6:.2f}M trained parameters; "
            f"{batch} samples a step; steps {self.step} to {args.max_steps}",
            event="start",
            step=self.step,
            processes=self.processes,
            device=where,
            precision=self.precision,
            parameters=trained,
            batch=batch,
        )
        if self._new_changes:
            changes = ", ".join(f"{name} {before} -> {after}" for _, name, before, after in self._new_changes)
            self.log.say(f"not the run that the checkpoint is from: {changes}")
        elif args.resume and self.step == 0:
            self.log.say(f"no checkpoint in {self.output_dir}: this run starts at the beginning")

    @property
    def seconds(self) -> float:
        """Seconds of training, those before a resumption included."""
        return self._seconds_before + (0.0 if self._begun is None else time.monotonic() - self._begun)

    @property
    def device_name(self) -> str:
        """Such as `cpu` or `NVIDIA H100 80GB HBM3`."""
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else str(self.device)

    @property
    def precision(self) -> str:
        """`bf16`, or `fp32` where there is no autocast."""
        return {"no": "fp32"}.get(self.accelerator.mixed_precision, self.accelerator.mixed_precision)

    def _add_losses(self, losses: torch.Tensor, norm: torch.Tensor) -> None:
        """Moves the device's losses, averaged over processes, to the sum of this log line."""
        total = losses.clone() if self.processes == 1 else self.accelerator.reduce(losses, "mean")
        losses.zero_()
        # A gradient that is none has spoilt the weights already; the loss will say so at the next step only. (With
        # fp16 such a step is left out.)
        spoilt = self.accelerator.scaler is None and not math.isfinite(float(norm))
        if spoilt or not math.isfinite(total.item()):
            raise FloatingPointError(
                f"the loss or its gradient is no number any more at step {self.step}: go on from the newest checkpoint "
                f"in {self.output_dir} with a lower learning_rate or max_grad_norm"
            )
        self.loss_sum += total.item()

    def _terminate(self, signum: int, frame: object) -> None:
        self._terminated = True

    def _agreed_stop(self) -> int | None:
        """The exit code if a process was told to stop or its time is up, else None; the same in every process."""
        wish = 0
        if self.args.time_limit is not None:
            wish = int(time.time() - psutil.Process().create_time() > 60 * self.args.time_limit)
        wish = 2 if self._terminated else wish
        if self.processes > 1:
            if self.step % self._agreement:
                return None
            spent, self._agreed = time.monotonic() - self._agreed, time.monotonic()
            slow = spent > AGREEMENT_SECONDS * self._agreement / AGREEMENT_STEPS
            wishes = self.accelerator.gather(torch.tensor([[wish, slow]], device=self.device))
            wish, slow = int(wishes[:, 0].max()), bool(wishes[:, 1].max())
            self._agreement = 1 if slow else AGREEMENT_STEPS
        return {0: None, 1: 0, 2: 128 + signal.SIGTERM}[wish]

    # -------------------- evaluation

    def _evaluate(self) -> None:
        assert self.evaluate is not None
        if self.accelerator.is_main_process:
            self.bare.eval()
            with torch.no_grad():
                metrics = self.evaluate(self.bare)
                samples = self.samples(self.bare) if self.samples else ()
            self._train_mode()
            self.log.evaluation(self.step, metrics)
            self.log.samples(self.step, samples)
            self.history.append((self.step, metrics))
            if metrics[self.metric] > self.best:
                self.best = metrics[self.metric]
                replace_folder(self.output_dir / "best", self.bare.save_pretrained)
        self.accelerator.wait_for_everyone()
        self._due = False
        self._agreement = 1  # much time has passed: the next question whether to stop is not put off

    def _warn_if_worse(self) -> None:
        if not (self.evaluate_first and self.history):
            return
        (_, first), (_, last) = self.history[0], self.history[-1]
        start, end = first[self.metric], last[self.metric]
        self.worse = end < start
        if self.worse:
            self.log.say(
                f"WARNING: {self.metric} ended at {end:.4f}, worse than the {start:.4f} it started with: do not use "
                f"'final'; the best model is in {self.output_dir / 'best'}",
                event="worse",
                start=start,
                end=end,
            )
        fallen = [
            name
            for name, value in first.items()
            if name.startswith(f"{self.metric}_") and round(value - last.get(name, value), 4) > LANGUAGE_LOSS
        ]
        if fallen:
            figures = ", ".join(f"{name} {first[name]:.4f} -> {last[name]:.4f}" for name in fallen)
            self.log.say(
                f"WARNING: more than {100 * LANGUAGE_LOSS:.0f} points below the start: {figures}",
                event="languages worse",
                fallen=fallen,
            )

    # -------------------- checkpoints

    def _save(self) -> None:
        """Writes a checkpoint beside its final name and moves it there whole, so that a kill leaves none half done."""
        target, partial = self.output_dir / f"checkpoint-{self.step:08d}", self.output_dir / "partial"
        main = self.accelerator.is_main_process
        if main:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        self.accelerator.wait_for_everyone()
        torch.save(_random_state(), partial / f"rng_{self.accelerator.process_index}.pt")
        if main:
            self.bare.save_pretrained(partial, max_shard_size=MAX_FILE_SIZE)
            self._save_optimizer(partial)
            state = {name: getattr(self, name) for name in _STATE}
            state |= {"seconds": self.seconds, "args": self._settings(), "changes": self.changes, "due": self._due}
            if self.accelerator.scaler is not None:
                state["scaler"] = self.accelerator.scaler.state_dict()
            (partial / "training_state.json").write_text(json.dumps(state))
        self.accelerator.wait_for_everyone()
        if main:
            shutil.rmtree(target, ignore_errors=True)
            partial.rename(target)
            for old in sorted(self.output_dir.glob("checkpoint-*"))[: -self.args.save_total_limit]:
                shutil.rmtree(old)

    def _load(self, checkpoint: Path) -> None:
        state = json.loads((checkpoint / "training_state.json").read_text())
        for name in _STATE:
            setattr(self, name, state[name])
        self.history = [(step, metrics) for step, metrics in self.history]
        self.bare.load_state_dict(type(self.bare).from_pretrained(checkpoint).state_dict())
        self._load_optimizer(checkpoint)
        self._seconds_before = state["seconds"]
        random_state = checkpoint / f"rng_{self.accelerator.process_index}.pt"
        if random_state.exists():
            _set_random_state(torch.load(random_state, weights_only=True))
        if self.accelerator.scaler is not None and "scaler" in state:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self._due = self.evaluate is not None and state.get("due", False)
        before = state["args"]
        self._new_changes = [
            (self.step, name, before[name], value)
            for name, value in self._settings().items()
            if name in before and before[name] != value and name not in _MAY_CHANGE
        ]
        self.changes = [*map(tuple, state.get("changes", [])), *self._new_changes]
        best, old = self.output_dir / "best", self.output_dir / "best.old"
        if self.accelerator.is_main_process and old.exists() and not best.exists():
            old.rename(best)  # killed between the two renames of replace_folder

    def _settings(self) -> dict[str, Any]:
        """All that decides what is trained, by the name of the option."""
        settings = {name: value for kind in self.options for name, value in dataclasses.asdict(kind).items()}
        return settings | {"processes": self.processes, "precision": self.precision}

    def _check_sharing(self) -> None:
        """Refuses processes that do not see each other's files: the first one writes what the others go on from."""
        mark = self.output_dir / "shared"
        if self.accelerator.is_main_process and self.processes > 1:
            mark.mkdir(parents=True, exist_ok=True)
        self.accelerator.wait_for_everyone()
        if self.processes > 1 and not mark.is_dir():
            raise RuntimeError(f"{self.output_dir} is not shared by all machines: name a folder that is")
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process and self.processes > 1:
            mark.rmdir()

    def _save_optimizer(self, folder: Path) -> None:
        """Moments by parameter, as `NAME/exp_avg`, in files that are not too large."""
        tensors = {
            f"{name}/{key}": value.contiguous()
            for name, parameter in self.bare.named_parameters()
            for key, value in self.optimizer.state.get(parameter, {}).items()
        }
        files: list[dict[str, torch.Tensor]] = [{}]
        size = 0
        for name, tensor in tensors.items():
            size += tensor.nbytes
            if size > MAX_FILE_SIZE:
                files.append({})
                size = tensor.nbytes
            files[-1][name] = tensor
        for number, part in enumerate(files):
            save_file(part, folder / f"optimizer-{number:05d}.safetensors")

    def _load_optimizer(self, folder: Path) -> None:
        tensors: dict[str, torch.Tensor] = {}
        for path in sorted(folder.glob("optimizer-*.safetensors")):
            tensors |= load_file(path)
        names = {parameter: name for name, parameter in self.bare.named_parameters()}
        moments: dict[str, dict[str, torch.Tensor]] = {}
        for name, tensor in tensors.items():
            owner, _, key = name.rpartition("/")
            moments.setdefault(owner, {})[key] = tensor
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        state = {place: moments[names[item]] for place, item in enumerate(parameters) if names[item] in moments}
        if self.args.optimizer == "adamw" and any("momentum" in kept for kept in state.values()):
            raise ValueError(f"{folder} is of a run with optimizer muon: go on with that, or name another output_dir")
        self.optimizer.load_state_dict({"state": state, "param_groups": self.optimizer.state_dict()["param_groups"]})


# What a checkpoint keeps of the trainer itself.
_STATE = ("step", "best", "history", "loss_sum", "loss_count")
# Options that change nothing in what is trained.
_MAY_CHANGE = (
    *("output_dir", "config", "resume", "time_limit", "push_to_hub"),
    *("log_steps", "save_steps", "save_total_limit", "num_workers"),
)


def _random_state() -> dict[str, Any]:
    """State of all random generators of this process."""
    kind, keys, *rest = np.random.get_state(legacy=True)
    state = {"python": random.getstate(), "numpy": (kind, list(map(int, keys)), *rest), "torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _set_random_state(state: dict[str, Any]) -> None:
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
