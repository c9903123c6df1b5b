"""Beam search against all readings there are."""

import itertools

import pytest
import torch

from mstr_hf.models.beam_search import beam_search

SIZE, LIMIT = 4, 4


class Table:
    """Logits that depend on all that was written, drawn anew for each word and past; notes what it is given."""

    def __init__(self, words: int, beams: int, scale: float = 2.0):
        self.pasts: list[tuple[int, ...]] = [(word,) for word in range(words) for _ in range(beams)]
        self.beams, self.scale, self.begun = beams, scale, False

    def row(self, past: tuple[int, ...]) -> torch.Tensor:
        generator = torch.Generator().manual_seed(hash(past) % 2**31)
        return self.scale * torch.randn(SIZE, generator=generator)

    def append(self, ids: torch.Tensor) -> None:
        if self.begun:
            self.pasts = [(*past, int(index)) for past, index in zip(self.pasts, ids, strict=True)]
        self.begun = True

    def select(self, beams: torch.Tensor) -> None:
        words = [self.pasts[beam][0] for beam in beams.tolist()]
        assert words == sorted(words) and len(words) % self.beams == 0
        assert all(len(set(words[i : i + self.beams])) == 1 for i in range(0, len(words), self.beams))
        self.pasts = [self.pasts[beam] for beam in beams.tolist()]


class Decoder(Table):
    def step(self, ids: torch.Tensor) -> torch.Tensor:
        self.append(ids)
        return torch.stack([self.row(past) for past in self.pasts])


class Prior(Table):
    def step(self, ids: torch.Tensor) -> None:
        self.append(ids)

    def score(self, candidates: torch.Tensor) -> torch.Tensor:
        return torch.stack([self.row(past) for past in self.pasts]).gather(1, candidates)


def readings(word: int, prior: Prior | None, allowed: set[int]) -> dict[tuple[int, ...], tuple[float, float, float]]:
    """Of each reading the log-probability, that at a temperature of 1.3, and what the prior adds."""
    decoder = Decoder(1, 1)
    found = {}
    for length in range(LIMIT):
        for ids in itertools.product(range(1, SIZE), repeat=length):
            shown = scored = said = 0.0
            for place, index in enumerate((*ids, 0)):
                past = (word, *ids[:place])
                logits = torch.full((SIZE,), -torch.inf)
                logits[sorted(allowed)] = decoder.row(past)[sorted(allowed)]
                shown += logits.log_softmax(0)[index].item()
                scored += (logits / 1.3).log_softmax(0)[index].item()
                said += 0.0 if prior is None else prior.row(past)[index].item()
            if set(ids) <= allowed:
                found[ids] = shown, scored, said
    return found


@pytest.mark.parametrize("with_prior", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_wide_beams_find_the_best_readings(with_prior, masked):
    words, beams = 3, 40  # as many as there are readings
    prior = Prior(words, beams, scale=1.0) if with_prior else None
    mask = torch.tensor([[True, False, True]] * words) if masked else None
    found = beam_search(Decoder(words, beams), prior, words, beams, LIMIT, temperature=1.3, row_mask=mask, num_top=2)
    for word in range(words):
        every = readings(word, prior, {0, 1, 3} if masked else set(range(SIZE)))
        best = sorted(every, key=lambda ids: -every[ids][0] - every[ids][2])
        alive = int(found.alive[word].sum())
        assert alive == len(best)
        for beam, ids in enumerate(best[:alive]):
            length = len(ids)
            assert tuple(found.ids[word, beam].tolist()) == (*ids, *[0] * (LIMIT - length))
            assert found.log_probs[word, beam].sum().item() == pytest.approx(every[ids][1], abs=1e-4)
            assert found.prior[word, beam].item() == pytest.approx(every[ids][2], abs=1e-4)
            assert torch.equal(found.log_probs[word, beam, length + 1 :], torch.zeros(LIMIT - length - 1))


def test_one_beam_takes_the_likeliest_character_at_each_step():
    words = 6
    found = beam_search(Decoder(words, 1), None, words, 1, LIMIT, num_top=2)
    lengths = set()
    for word in range(words):
        past = (word,)
        for step in range(LIMIT):
            chances = Decoder(1, 1).row(past).log_softmax(0)
            index = int(chances.argmax()) if step < LIMIT - 1 else 0
            assert found.ids[word, 0, step] == index
            assert found.log_probs[word, 0, step].item() == pytest.approx(chances[index].item(), abs=1e-5)
            assert found.top_ids[word, 0, step].tolist() == chances.topk(2).indices.tolist()
            past = (*past, index)
            if index == 0:
                break
        lengths.add(step)
    assert len(lengths) > 1


def test_a_prior_changes_what_is_read_and_not_what_the_image_says():
    words, beams = 5, 8
    alone = beam_search(Decoder(words, beams), None, words, beams, LIMIT)
    guided = beam_search(Decoder(words, beams), Prior(words, beams, scale=3.0), words, beams, LIMIT)
    assert not torch.equal(alone.ids[:, 0], guided.ids[:, 0])
    assert (guided.log_probs[:, 0].sum(1) <= alone.log_probs[:, 0].sum(1) + 1e-4).all()
    assert torch.equal(alone.prior, torch.zeros(words, beams)) and guided.prior.any()


def test_what_is_far_behind_is_given_up():
    words, beams = 4, 40
    every, near = (
        beam_search(Decoder(words, beams), None, words, beams, LIMIT, margin=margin) for margin in (torch.inf, 2.0)
    )
    assert torch.equal(every.ids[:, 0], near.ids[:, 0])
    sums = near.log_probs.sum(-1)
    assert 1 < near.alive.sum() < every.alive.sum()
    assert (sums[near.alive] >= sums[:, :1].expand_as(sums)[near.alive] - 2.0 - 1e-5).all()
