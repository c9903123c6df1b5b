"""Synthetic images straight into training: an endless stream, split over processes and workers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

import torch.distributed
from torch.utils.data import IterableDataset, get_worker_info

Sample = TypeVar("Sample")


class SyntheticStream(IterableDataset[Sample]):
    """Endless samples, of which each training process and each of its loader's workers draws its own share.

    Sample i is a function of the seed and i alone, and all workers together draw every i from `start` on once.
    The stream splits itself: a loader over it must not be split again (`accelerator.prepare` would).

    Args:
        draw: Draws the sample at a seed and an index, such as `WordSynthesiser.word`; a whole batch is a sample too.
        seed: Seed of the stream.
        start: First index; a training that goes on starts behind the samples that it has seen.
        rank: Number of this training process; that of `torch.distributed` if left out, 0 without it.
        world_size: How many training processes there are; likewise, 1 without it.
    """

    def __init__(
        self,
        draw: Callable[[int, int], Sample],
        seed: int,
        start: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
    ):
        # asked here, since the workers of a loader do not belong to the group
        group = torch.distributed.is_available() and torch.distributed.is_initialized()
        self.rank = rank if rank is not None else torch.distributed.get_rank() if group else 0
        self.world_size = world_size or (torch.distributed.get_world_size() if group else 1)
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"rank {self.rank} of {self.world_size} processes: count ranks from 0")
        self.draw, self.seed, self.start = draw, seed, start

    def __iter__(self) -> Iterator[Sample]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        index = self.start + self.rank + self.world_size * worker
        while True:
            yield self.draw(self.seed, index)
            index += self.world_size * workers
