"""Beam search over characters: the Refiner's probabilities, and the language model's beside them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch.nn import functional as F

# Characters that may follow a beam, the likeliest ones by the image.
CANDIDATES = 8


class Decoder(Protocol):
    """What an image shows, character by character, for beams of words: W words, K beams of each, side by side.

    An id is 0 for the end of a word and 1 + row for a character.
    """

    def step(self, ids: torch.Tensor) -> torch.Tensor:
        """Appends an id to each beam, `[W * K]`, 0 at first; logits of the next, `[W * K, 1 + N]`."""

    def select(self, beams: torch.Tensor) -> None:
        """Goes on with these of the beams, `[M]`, in this order; words may only be lost from the end."""


class Prior(Protocol):
    """What may follow each beam, whatever the image shows; ids are those of `Decoder`."""

    def step(self, ids: torch.Tensor) -> None:
        """Appends an id to each beam, `[W * K]`, 0 at first."""

    def score(self, candidates: torch.Tensor) -> torch.Tensor:
        """What ids `[W * K, M]` add to the log-probability of a beam."""

    def select(self, beams: torch.Tensor) -> None:
        """See `Decoder`."""


@dataclass
class Hypotheses:
    """What a search has found for W words: K readings each, the best first, L steps at most.

    Attributes:
        ids: 0 for the end and behind it, 1 + row for a character, `[W, K, L]`.
        log_probs: The Refiner's log-probability of each id, 0 behind the end, `[W, K, L]`.
        prior: What the prior adds to the log-probability of a reading, `[W, K]`.
        top_ids: The likeliest ids at each step, `[W, K, L, T]`.
        top_log_probs: Their log-probabilities, `[W, K, L, T]`.
        alive: False where there are fewer readings than K, or one was given up, bool `[W, K]`.
    """

    ids: torch.Tensor
    log_probs: torch.Tensor
    prior: torch.Tensor
    top_ids: torch.Tensor
    top_log_probs: torch.Tensor
    alive: torch.Tensor


def beam_search(
    decoder: Decoder,
    prior: Prior | None,
    words: int,
    beams: int,
    limit: int,
    temperature: float = 1.0,
    row_mask: torch.Tensor | None = None,
    num_top: int = 1,
    margin: float = torch.inf,
    device: torch.device | str = "cpu",
) -> Hypotheses:
    """Looks for the readings that are likeliest by image and prior together (shallow fusion, Gulcehre et al., 2015).

    One beam without a prior is greedy decoding.

    Args:
        decoder: What the images show.
        prior: What may be written; None for anything.
        words: W, the longest readings expected first, as words leave the batch from its end.
        beams: K.
        limit: Longest reading with its end, L.
        temperature: Divides the logits of the log-probabilities that are returned.
        row_mask: Bank rows that may be read, bool `[W, N]`.
        num_top: Likeliest ids to note at each step.
        margin: Beams that are less likely than the best one of their word by so many nats are given up.
        device: Where the logits are.
    """
    shape = (words, beams, limit)
    ids = torch.zeros(shape, dtype=torch.long, device=device)
    log_probs = torch.zeros(shape, device=device)
    top_ids = torch.zeros((*shape, num_top), dtype=torch.long, device=device)
    top_log_probs = torch.zeros((*shape, num_top), device=device)
    priors = torch.zeros((words, beams), device=device)
    # All beams begin alike: only the first of each word counts.
    totals = torch.full((words, beams), -torch.inf, device=device)
    totals[:, 0] = 0
    ended = torch.zeros((words, beams), dtype=torch.bool, device=device)
    allowed = None if row_mask is None else F.pad(row_mask, (1, 0), value=True).repeat_interleave(beams, 0)
    left = words
    last = torch.zeros(words * beams, dtype=torch.long, device=device)
    for step in range(limit):
        logits = decoder.step(last).float()
        if allowed is not None:
            logits = logits.masked_fill(~allowed[: len(logits)], -torch.inf)
        own = (logits / temperature).log_softmax(-1)
        # The temperature makes scores of what is found, and has no part in finding it.
        shown = logits.log_softmax(-1)
        if step == limit - 1:  # only the end is left
            candidates = torch.zeros_like(last)[:, None]
        else:
            candidates = own.topk(min(own.shape[1], beams if prior is None else max(beams, CANDIDATES))).indices
        said = torch.zeros_like(candidates, dtype=own.dtype)
        if prior is not None:
            prior.step(last)
            said = prior.score(candidates)
        gain = shown.gather(1, candidates) + said
        # A reading that has ended stays as it is.
        over = ended[:left].flatten()
        gain = gain.masked_fill(over[:, None], -torch.inf)
        gain[over, 0] = 0
        sums = (totals[:left].view(-1, 1) + gain).view(left, -1)
        # Fewer than K where there are so few candidates.
        best, places = F.pad(sums, (0, max(0, beams - sums.shape[1])), value=-torch.inf).topk(beams)
        places = places.clamp_max(sums.shape[1] - 1)
        source = (torch.arange(left, device=device)[:, None] * beams + places // gain.shape[1]).flatten()
        choice = (places % gain.shape[1]).flatten()
        over = over[source]
        chosen = candidates[source, choice].masked_fill(over, 0)
        for history in (ids, log_probs, top_ids, top_log_probs, priors):
            history[:left] = history[:left].flatten(0, 1)[source].view_as(history[:left])
        ids[:left, :, step] = chosen.view(left, beams)
        log_probs[:left, :, step] = own[source, chosen].masked_fill(over, 0).view(left, beams)
        priors[:left] += said[source, choice].masked_fill(over, 0).view(left, beams)
        top = own.topk(min(num_top, own.shape[1]))
        top_ids[:left, :, step, : top.indices.shape[1]] = top.indices[source].view(left, beams, -1)
        top_log_probs[:left, :, step, : top.values.shape[1]] = top.values[source].view(left, beams, -1)
        totals[:left] = best.masked_fill(best < best[:, :1] - margin, -torch.inf)
        ended[:left] = (chosen == 0).view(left, beams) | (totals[:left] == -torch.inf)
        running = (~ended[:left]).any(1).nonzero()
        if not len(running):
            break
        kept = int(running.max()) + 1
        if kept < left or beams > 1:
            for part in (decoder, prior):
                if part is not None:
                    part.select(source[: kept * beams])
        left = kept
        last = chosen[: left * beams]
    return Hypotheses(ids, log_probs, priors, top_ids, top_log_probs, totals != -torch.inf)
