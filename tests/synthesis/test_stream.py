import itertools

import pytest
from torch.utils.data import DataLoader

from mstr_hf.synthesis.stream import SyntheticStream


def draw(seed: int, index: int) -> tuple[int, int]:
    return seed, index


def test_a_single_process_draws_all_in_order():
    stream = SyntheticStream(draw, seed=7, start=5)
    assert list(itertools.islice(stream, 4)) == [(7, 5), (7, 6), (7, 7), (7, 8)]


@pytest.mark.parametrize(("processes", "workers"), [(1, 2), (2, 0), (3, 2)])
def test_processes_and_workers_draw_each_index_once(processes: int, workers: int):
    drawn = []
    for rank in range(processes):
        stream = SyntheticStream(draw, 0, start=10, rank=rank, world_size=processes)
        loader = DataLoader(stream, batch_size=None, num_workers=workers)
        drawn += [index for _, index in itertools.islice(loader, 12)]
    assert sorted(drawn) == list(range(10, 10 + 12 * processes))


def test_ranks_outside_the_group_are_named():
    with pytest.raises(ValueError, match="rank 2 of 2 processes"):
        SyntheticStream(draw, 0, rank=2, world_size=2)
