"""What a training run says: lines for people, log.jsonl for programs, TensorBoard for pictures, a live bar."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

if TYPE_CHECKING:
    from .trainer import Sample


class RunLog:
    """Writes a run's log; silent in all processes but the main one.

    Args:
        folder: The run's folder.
        main: Whether this is the main process.
        step: Steps done before.
        max_steps: Steps in all.
    """

    def __init__(self, folder: Path, main: bool, step: int, max_steps: int):
        self._main = main
        self._file = folder / "log.jsonl"
        self._bar: tqdm | None = None
        self._board = None
        if not main:
            return
        folder.mkdir(parents=True, exist_ok=True)
        if sys.stderr.isatty():
            self._bar = tqdm(total=max_steps, initial=step, unit="step", dynamic_ncols=True)
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            self.say("no TensorBoard log: pip install 'mstr_hf[train]' for one")
        else:
            # What a killed run wrote after its last checkpoint is written again.
            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def say(self, text: str, **entry: Any) -> None:
        """Prints a line and, where there are values, logs them."""
        if self._main:
            tqdm.write(text, file=sys.stdout)
            sys.stdout.flush()
            if entry:
                with open(self._file, "a", encoding="utf-8") as file:
                    file.write(json.dumps(entry) + "\n")

    def progress(self, step: int) -> None:
        """Moves the live bar, on a terminal."""
        if self._bar is not None:
            self._bar.update(step - self._bar.n)

    def step(
        self,
        step: int,
        loss: float,
        learning_rate: float,
        grad_norm: float,
        images_per_s: float,
        data_wait: float,
        eta_s: float,
    ) -> None:
        """Logs a stretch of training: means since the last log; the ETA in seconds."""
        eta = f"{int(eta_s) // 3600}:{int(eta_s) // 60 % 60:02}:{int(eta_s) % 60:02}"
        text = f"loss {loss:.4f}  {images_per_s:.0f} images/s  data wait {data_wait:.1%}  ETA {eta}"
        values = {
            "loss": round(loss, 4),
            "learning_rate": float(f"{learning_rate:.4g}"),
            "grad_norm": round(grad_norm, 4),
            "images_per_s": round(images_per_s, 1),
            "data_wait": round(data_wait, 4),
            "eta_min": round(eta_s / 60, 1),
        }
        self.say(f"step {step}  {text}", step=step, **values)
        if self._bar is not None:
            self._bar.set_postfix_str(text)
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(f"train/{name}", value, step)

    def evaluation(self, step: int, metrics: dict[str, float]) -> None:
        """Logs what an evaluation found."""
        shown = "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        self.say(f"step {step}  {shown}", step=step, **metrics)
        if self._board is not None:
            for name, value in metrics.items():
                self._board.add_scalar(f"validation/{name}", value, step)

    def samples(self, step: int, samples: Sequence[Sample]) -> None:
        """Shows pictures with their readings: one below the other, and what they say in a table of the same order."""
        if self._board is None or not samples:
            return
        width = max(sample.image.shape[1] for sample in samples)
        padded = [
            np.pad(sample.image, ((1, 1), (0, width - sample.image.shape[1])), constant_values=255)
            for sample in samples
        ]
        self._board.add_image("samples", np.concatenate(padded), step, dataformats="HW")
        rows = ["| | truth | reading |", "| --: | --- | --- |"]
        for number, sample in enumerate(samples, 1):
            truth, reading = (text.replace("|", "&#124;") for text in (sample.truth, sample.reading))
            rows.append(f"| {number} | {truth} | {reading if reading == truth else f'**{reading}**'} |")
        self._board.add_text("samples", "\n".join(rows), step)

    def close(self) -> None:
        """Writes out what is left."""
        if self._bar is not None:
            self._bar.close()
        if self._board is not None:
            self._board.close()
