"""What a model learns, without forgetting what it could read (Li and Hoiem, 2016, Learning without Forgetting)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from mstr_hf.models.modeling_refiner import BOS, PAD, RefinerModel
from mstr_hf.models.modeling_spotter import IGNORED, TOKEN_OFFSET

from .trainer import Batch


class Distillation:
    """A Refiner's loss, and beside it how far it has gone from another one in words that the other can read.

    The distance is the Kullback-Leibler divergence of what both say, at the Spotter's frames and at the Refiner's
    steps: characters that only the student knows have no part in what the teacher says. It tells more of a word than
    its label does, so that few words are enough to keep what was known.

    Args:
        student: The Refiner that is trained, with its Spotter; its bank begins with the teacher's.
        teacher: The Refiner as it was.
    """

    def __init__(self, student: RefinerModel, teacher: RefinerModel):
        self.teacher = teacher.requires_grad_(False).eval()
        self.teacher.to(memory_format=torch.channels_last)  # as the trainer's
        self.rows = len(teacher.get_bank())
        self._spotted: dict[RefinerModel, Any] = {}  # SpotterOutput, whose parts are all there
        for model in (student, teacher):
            model.spotter.register_forward_hook(
                lambda module, inputs, output, model=model: self._spotted.__setitem__(model, output)
            )
        self._student = student

    def __call__(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """The loss of a batch with `labels`; `model` is the student, or what wraps it."""
        output = model(**batch)
        frames, inside = self._frames(self._student)
        labels = batch["labels"]
        known = (labels - TOKEN_OFFSET < self.rows).all(1)
        if not known.any():
            return output.loss
        labels = labels[known]
        before = F.pad(labels.masked_fill(labels == IGNORED, PAD), (1, 0), value=BOS)
        with torch.no_grad():
            images = batch["pixel_values"][known], batch["pixel_mask"][known]
            taught = self.teacher.to(labels.device)(*images, decoder_input_ids=before)
            said, _ = self._frames(self.teacher)
        apart = _divergence(said, frames[known])
        # Blanks outnumber characters several times: each kind has half, as in the Spotter's own loss.
        blank = said[..., 0].exp() > 0.5
        characters, blanks = (_mean(apart, inside[known] & kind) for kind in (~blank, blank))
        steps = _divergence(taught.logits.log_softmax(-1), output.logits[known].log_softmax(-1))
        used = F.pad(labels != IGNORED, (1, 0), value=True)
        return output.loss + 0.5 * (characters + blanks) + _mean(steps, used)

    def _frames(self, model: RefinerModel) -> tuple[torch.Tensor, torch.Tensor]:
        """What a model has just said of each frame: log-probabilities of blank and rows, `[B, T, 1 + N]`; and whether
        the frame is one of the image, `[B, T]`.
        """
        spotted = self._spotted.pop(model)
        return model.spotter.log_probs(spotted.similarity, spotted.blank_similarity), spotted.frame_mask


def _divergence(teacher: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
    """Kullback-Leibler divergence of log-probabilities `[..., N]` and `[..., M]`, M at least N: `[...]`.

    What the teacher rules out altogether has no part in it.
    """
    probabilities = teacher.exp()
    difference = torch.where(probabilities > 0, teacher - student[..., : teacher.shape[-1]], 0.0)
    return (probabilities * difference).sum(-1)


def _mean(values: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """Mean of the chosen values, 0 if there are none."""
    return torch.where(chosen, values, 0.0).sum() / chosen.sum().clamp_min(1)
