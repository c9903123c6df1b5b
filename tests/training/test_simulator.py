from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rapidfuzz.distance.Levenshtein import distance as edit_distance
from torch.nn import functional as F

from mstr_hf.models.prototype_bank import PrototypeBank
from mstr_hf.training.simulator import (
    Observations,
    Simulator,
    align,
    divergences,
    jensen_shannon,
    note,
)
from mstr_hf.vocabulary import Vocabulary

CHARACTERS = "abcdefgh"
TOP_K = 3


@pytest.fixture(scope="module")
def bank() -> PrototypeBank:
    rows = torch.randn(len(CHARACTERS), 6, generator=torch.Generator().manual_seed(0))
    rows[1] = rows[0] + 0.1 * rows[1]  # b is near a
    count = len(CHARACTERS)
    return PrototypeBank(F.normalize(rows, dim=-1), CHARACTERS, [0] * count, ["Latn"] * count, [["en"]] * count)


@pytest.fixture(scope="module")
def vocabulary(bank) -> Vocabulary:
    return Vocabulary.from_bank(bank)


@given(st.text("abc", max_size=7), st.text("abc", max_size=7))
def test_alignment_is_a_shortest_edit_path(truth, reading):
    pairs = align(truth, reading)
    assert [i for i, _ in pairs if i is not None] == list(range(len(truth)))
    assert [j for _, j in pairs if j is not None] == list(range(len(reading)))
    cost = sum(i is None or j is None or truth[i] != reading[j] for i, j in pairs)
    assert cost == edit_distance(truth, reading)


def test_observations_by_hand():
    found = Observations()
    # "abcd" read as "axce": x is no character of the label, d is gone, e came in... at the same place.
    found.add("abcd", ["abc", "gbh", "cde", "efd"], [[0.9, 0.2, 0.1]] * 4)
    found.add("ab", ["abc"], [[0.8, 0.3, 0.2]])
    found.add("a", ["abc", "hgf"], [[0.7, 0.3, 0.2], [0.4, 0.3, 0.2]])
    found.add("gh", ["gab", "hab"], [[0.6, 0.3, 0.2]] * 2)
    assert found.seen == Counter("abcdabagh") and (found.words, found.exact) == (4, 1)
    assert found.substituted == {("b", "g"): 1, ("d", "e"): 1}
    assert found.deleted == {"b": 1} and found.inserted == {"h": 1}
    # b is second in "gbh", d third in "efd"
    assert found.ranks == {0: 6, 1: 1, 2: 1} and found.length_changes == {0: 2, -1: 1, 1: 1}
    assert found.companions["a", "b"] == 3 and found.companions["e", "d"] == 1
    assert found.scores[-1] == [[0.4, 0.3, 0.2]] and len(found.scores[0]) == 6
    assert found.errors == {(4, 2): 1, (2, 1): 1, (1, 1): 1, (2, 0): 1}
    assert found.rates()["substitutions"] == pytest.approx(2 / 9) and found.rates()["words right"] == 0.25


def flawed_observations(count: int = 3000) -> Observations:
    """A Spotter that reads c for a in one of four, drops d in one of ten, and puts in h in one of twenty."""
    rng = np.random.default_rng(1)
    found = Observations()
    for _ in range(count):
        truth = "".join(rng.choice(list("abcdef"), 4))
        steps, scores = [], []
        for character in truth:
            if character == "d" and rng.random() < 0.1:
                continue
            wrong = character == "a" and rng.random() < 0.25
            steps.append("cae" if wrong else character + "gh" if character != "g" else "gah")
            scores.append([0.52, 0.41, 0.13] if wrong else [0.88, 0.13, 0.02])
            if rng.random() < 0.05:
                steps.append("hab")
                scores.append([0.33, 0.22, 0.13])
        found.add(truth, steps, scores)
    return found


@pytest.fixture(scope="module")
def simulator(bank) -> Simulator:
    return Simulator(flawed_observations(), bank)


def labels(vocabulary: Vocabulary, texts: list[str]) -> torch.Tensor:
    rows = [torch.tensor(vocabulary.encode(text)) for text in texts]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-100)


def test_simulated_errors_are_those_it_was_fitted_to(simulator, vocabulary):
    rng = np.random.default_rng(2)
    texts = ["".join(rng.choice(list("abcdef"), 4)) for _ in range(3000)]
    prefix = simulator.simulate(labels(vocabulary, texts), rng)
    found = Observations()
    note(found, texts, prefix, vocabulary)
    real = simulator.observations
    for name, rate in real.rates().items():
        assert found.rates()[name] == pytest.approx(rate, rel=0.25), name
    replaced = Counter({pair: n for pair, n in found.substituted.items() if pair[0] == "a"})
    # Where h is put in beside it, it may as well have replaced it.
    assert replaced["a", "c"] > 0.85 * replaced.total()
    assert found.deleted["d"] > 0.8 * found.deleted.total() and found.inserted["h"] > 0.9 * found.inserted.total()
    assert found.ranks[1] == pytest.approx(real.ranks[1], rel=0.25) and set(found.ranks) <= {0, 1, 2, 3}
    assert max(divergences(found, real).values()) < 0.05
    # What another Spotter does is further away.
    other = Observations()
    for text in texts[:500]:
        other.add(text, [f"{character}ha" for character in text], [[0.2, 0.1, 0.0]] * 4)
    far = divergences(found, other)
    assert far["outcomes"] > 0.03 and far["scores"] > 0.5


@pytest.mark.parametrize(("hard", "rate", "right"), [(0.1, 0.5, 0.91), (1.0, 0.05, 0.77), (0.3, 0.9, 0.7)])
def test_errors_come_together_as_much_as_they_did(bank, vocabulary, hard, rate, right):
    """Characters are misread in a share of the words alone, at some rate, or in all."""
    rng = np.random.default_rng(3)
    texts = ["".join(rng.choice(list("abcdef"), rng.integers(3, 8))) for _ in range(4000)]
    real = Observations()
    for text in texts:
        here = rate * (rng.random() < hard)
        steps = [("gah" if rng.random() < here else f"{character}gh") for character in text]
        real.add(text, steps, [[0.9, 0.2, 0.1]] * len(text))
    assert real.rates()["words right"] == pytest.approx(right, abs=0.02)
    found = Observations()
    note(found, texts, Simulator(real, bank).simulate(labels(vocabulary, texts), rng), vocabulary)
    assert found.rates()["substitutions"] == pytest.approx(real.rates()["substitutions"], rel=0.1)
    assert found.rates()["words right"] == pytest.approx(real.rates()["words right"], abs=0.015)
    assert divergences(found, real)["errors of a word"] < 0.005


def test_simulated_hypotheses_have_the_form_of_the_spotters(simulator, vocabulary):
    batch = {"labels": labels(vocabulary, ["abcdef", "a", "ffffffff"])}
    prefix = simulator.with_prefixes(batch, (1, 2, 3))["prefix"]
    ids, scores, mask = prefix["top_k_ids"], prefix["top_k_scores"], prefix["character_mask"]
    assert ids.shape == scores.shape == (*mask.shape, TOP_K) and len(mask) == 3
    for row in range(3):
        count = int(mask[row].sum())
        assert mask[row, :count].all() and not ids[row, count:].any() and not scores[row, count:].any()
        for step in ids[row, :count].tolist():
            assert len(set(step)) == TOP_K and min(step) >= 128 and max(step) < 128 + len(CHARACTERS)
    again = simulator.with_prefixes(batch, (1, 2, 3))["prefix"]
    other = simulator.with_prefixes(batch, (1, 2, 4))["prefix"]
    assert all(torch.equal(prefix[name], again[name]) for name in prefix)
    assert prefix["top_k_scores"].shape != other["top_k_scores"].shape or not torch.equal(scores, other["top_k_scores"])
    short = simulator.simulate(batch["labels"], np.random.default_rng(0), max_length=2)
    assert short["character_mask"].shape[1] == 2


def test_characters_never_seen_are_mistaken_for_their_neighbours(bank, vocabulary):
    found = Observations()
    found.add("cd" * 50, ["cef", "eda"] * 50, [[0.5, 0.4, 0.3]] * 100)
    texts = ["bbbbbbbb"] * 200
    result = Observations()
    prefix = Simulator(found, bank).simulate(labels(vocabulary, texts), np.random.default_rng(0))
    note(result, texts, prefix, vocabulary)
    wrong = Counter({pair[1]: n for pair, n in result.substituted.items()})
    assert wrong.total() > 300 and wrong["a"] > 0.9 * wrong.total()


def test_simulator_outlives_a_file(simulator, bank, vocabulary, tmp_path):
    simulator.save(tmp_path / "a" / "simulator.json")
    again = Simulator.from_file(tmp_path / "a" / "simulator.json", bank)
    assert again.observations.substituted == simulator.observations.substituted
    assert again.observations.ranks == simulator.observations.ranks
    assert np.allclose(again.deletion, simulator.deletion) and again.top_k == TOP_K
    assert again.observations.errors == simulator.observations.errors
    assert np.array_equal(again.hardness, simulator.hardness)
    (tmp_path / "broken.json").write_text("{}")
    with pytest.raises(
        ValueError,
        match=r"broken.json: no simulator, or one of an earlier version .*: fit one with scripts/fit_simulator.py",
    ):
        Simulator.from_file(tmp_path / "broken.json", bank)
    other = PrototypeBank(bank.prototypes[:1], "a", [0], ["Latn"], [["en"]])
    with pytest.raises(ValueError, match="are not in the bank: fit it to this Spotter"):
        Simulator.from_file(tmp_path / "a" / "simulator.json", other)


def test_divergence_is_0_for_the_same_and_1_for_the_disjoint():
    assert jensen_shannon(Counter(a=2, b=6), Counter(a=1, b=3)) == pytest.approx(0)
    assert jensen_shannon(Counter(a=2), Counter(b=3)) == pytest.approx(1)
    first, second = Counter(a=1, b=1), Counter(a=3, b=1)
    assert 0 < jensen_shannon(first, second) < 0.2
    assert jensen_shannon(first, second) == pytest.approx(jensen_shannon(second, first))
