"""A simulator of the Spotter's errors: hypotheses to refine for any label, without a Spotter that has to err.

A Spotter errs less on the words that it was trained on than on those it will read, so a Refiner that is trained behind
it sees too few errors and too timid ones. The simulator is fitted to what the Spotter does on held-out words: how often
it leaves out, replaces and puts in each character, by which, at what rank the truth then stands, and with which scores.
Errors come together, since some words are harder than others. Pairs that were never seen borrow from the bank: a
character is mistaken for its neighbours.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mstr_hf.models.modeling_spotter import IGNORED, TOKEN_OFFSET, SpotterModel
from mstr_hf.models.prototype_bank import PrototypeBank
from mstr_hf.vocabulary import Vocabulary

from .sources import Word
from .trainer import Batch, to_device
from .words import collate, image_height, model_pixels

# Score vectors that are kept of each rank of the truth.
KEPT_SCORES = 500
# Characters that a rate over all characters counts as, beside those that were seen.
RATE_PRIOR = 20.0
# Likewise, mistakes that the bank's neighbourhood counts as, and how sharply near rows are preferred.
PAIR_PRIOR, NEIGHBOUR_SCALE = 2.0, 10.0
# How many times as many errors as usual a word may have, and how many of its characters at most, as a share.
HARDNESS = np.array([0, 0.1, 0.2, 0.5, 1, 2, 4, 8, 16, 32], float)
MAX_RATE = 0.95
SCORE_BINS = np.linspace(-1, 1, 41)


@dataclass
class Observations:
    """What a Spotter, real or simulated, made of some words; characters stand for themselves.

    Attributes:
        seen: How often each character was to be read.
        deleted: How often nothing stood for it.
        substituted: How often another one stood for it: `(truth, reading)`.
        inserted: How often each character stood for nothing.
        companions: How often a character was among the lower ranks of a step: `(best of the step, character)`.
        ranks: How often the truth had each rank, 0 the best; K if it was not among the K hypotheses.
        scores: Cosines of K hypotheses, by the rank of the truth; -1 where there is no truth.
        length_changes: How many words were read with so many characters more than they have.
        errors: How many words had so many characters and errors: `(characters, errors)`.
        words: Words.
        exact: Words that were read right.
    """

    seen: Counter[str] = field(default_factory=Counter)
    deleted: Counter[str] = field(default_factory=Counter)
    substituted: Counter[tuple[str, str]] = field(default_factory=Counter)
    inserted: Counter[str] = field(default_factory=Counter)
    companions: Counter[tuple[str, str]] = field(default_factory=Counter)
    ranks: Counter[int] = field(default_factory=Counter)
    scores: dict[int, list[list[float]]] = field(default_factory=dict)
    length_changes: Counter[int] = field(default_factory=Counter)
    errors: Counter[tuple[int, int]] = field(default_factory=Counter)
    words: int = 0
    exact: int = 0

    def add(self, truth: str, steps: Sequence[str], scores: Sequence[Sequence[float]]) -> None:
        """Adds a word.

        Args:
            truth: Its characters.
            steps: The hypotheses of each step, best first.
            scores: Their cosines.
        """
        self.words += 1
        self.exact += truth == "".join(step[0] for step in steps)
        self.length_changes[len(steps) - len(truth)] += 1
        self.seen.update(truth)
        errors = 0
        for place, number in align(truth, [step[0] for step in steps]):
            errors += place is None or number is None or steps[number][0] != truth[place]
            if number is None:
                assert place is not None
                self.deleted[truth[place]] += 1
                continue
            step = steps[number]
            self.companions.update((step[0], other) for other in step[1:])
            rank = -1
            if place is None:
                self.inserted[step[0]] += 1
            else:
                if step[0] != truth[place]:
                    self.substituted[truth[place], step[0]] += 1
                rank = step.find(truth[place]) if truth[place] in step else len(step)
                self.ranks[rank] += 1
            self.scores.setdefault(rank, []).append(list(scores[number]))
        self.errors[len(truth), errors] += 1

    def rates(self) -> dict[str, float]:
        """Substitutions, deletions and insertions a character, and the share of words that are right."""
        characters = max(1, self.seen.total())
        return {
            "substitutions": self.substituted.total() / characters,
            "deletions": self.deleted.total() / characters,
            "insertions": self.inserted.total() / characters,
            "words right": self.exact / max(1, self.words),
        }

    def hardness(self) -> tuple[np.ndarray, np.ndarray]:
        """How hard words are: the mixture of binomial distributions that makes their errors likeliest (Laird, 1978).

        Returns:
            How many times as many errors as usual a word may have, `[H]`, and how likely each is, `[H]`; the mean is 1.
        """
        words = np.array([(*word, count) for word, count in self.errors.items()], float).reshape(-1, 3)
        lengths, errors, counts = np.maximum(words[:, 0], words[:, 1]), words[:, 1], words[:, 2]
        rate = (errors * counts).sum() / max(1.0, (lengths * counts).sum())
        chance = (rate * HARDNESS).clip(1e-9, MAX_RATE)
        likely = errors[:, None] * np.log(chance) + (lengths - errors)[:, None] * np.log1p(-chance)
        likely = np.exp(likely - likely.max(1, keepdims=True, initial=-np.inf))
        weights = np.full(len(HARDNESS), 1 / len(HARDNESS))
        for _ in range(200):
            share = likely * weights
            share /= share.sum(1, keepdims=True)
            weights = (counts @ share + 1e-9) / (counts.sum() + len(HARDNESS) * 1e-9)
        return chance / (weights @ chance), weights


def align(truth: Sequence[str], reading: Sequence[str]) -> list[tuple[int | None, int | None]]:
    """Pairs of places along a shortest edit path; None on the side that has nothing."""
    rows, columns = len(truth), len(reading)
    cost = np.zeros((rows + 1, columns + 1), int)
    cost[:, 0], cost[0] = range(rows + 1), range(columns + 1)
    for i in range(rows):
        for j in range(columns):
            same = cost[i, j] + (truth[i] != reading[j])
            cost[i + 1, j + 1] = min(same, cost[i, j + 1] + 1, cost[i + 1, j] + 1)
    pairs: list[tuple[int | None, int | None]] = []
    i, j = rows, columns
    while i or j:
        if i and j and cost[i, j] == cost[i - 1, j - 1] + (truth[i - 1] != reading[j - 1]):
            i, j = i - 1, j - 1
            pairs.append((i, j))
        elif i and cost[i, j] == cost[i - 1, j] + 1:
            i -= 1
            pairs.append((i, None))
        else:
            j -= 1
            pairs.append((None, j))
    return pairs[::-1]


@torch.no_grad()
def observe(model: SpotterModel, words: Sequence[Word], vocabulary: Vocabulary) -> Observations:
    """Reads words with a Spotter, in eval mode, and notes what becomes of them."""
    found = Observations()
    height = image_height(model)
    items = sorted(((model_pixels(word.image, height), word) for word in words), key=lambda item: item[0].shape[1])
    for start in range(0, len(items), 32):
        part = items[start : start + 32]
        batch = to_device(collate(part, vocabulary), model.device)
        output = model(batch["pixel_values"], batch["pixel_mask"])
        note(found, [word.text for _, word in part], output, vocabulary)
    return found


def note(found: Observations, texts: Sequence[str], hypotheses: Any, vocabulary: Vocabulary) -> None:
    """Adds words by their `top_k_ids`, `top_k_scores` and `character_mask` (see `SpotterOutput`)."""
    counts = hypotheses["character_mask"].sum(1).tolist()
    ids, scores = hypotheses["top_k_ids"].tolist(), hypotheses["top_k_scores"].tolist()
    for text, count, word_ids, word_scores in zip(texts, counts, ids, scores, strict=True):
        found.add(text, [vocabulary.decode(step) for step in word_ids[:count]], word_scores[:count])


class Simulator:
    """Draws hypotheses for labels.

    Args:
        observations: What the Spotter did on words that it was not trained on.
        bank: The Spotter's bank.
    """

    def __init__(self, observations: Observations, bank: PrototypeBank):
        self.observations = observations
        size = len(bank)
        row = {character: number for number, character in enumerate(bank.characters)}
        near = np.exp(NEIGHBOUR_SCALE * (bank.prototypes @ bank.prototypes.t()).numpy().astype(np.float64))
        np.fill_diagonal(near, 0)
        near /= near.sum(1, keepdims=True)

        def table(counts: Counter[str]) -> np.ndarray:
            values = np.zeros(size)
            for character, count in counts.items():
                values[row[character]] = count
            return values

        def pairs(counts: Counter[tuple[str, str]]) -> np.ndarray:
            values = PAIR_PRIOR * near
            for (first, second), count in counts.items():
                values[row[first], row[second]] += count
            return values / values.sum(1, keepdims=True)

        seen = table(observations.seen)
        total = max(1.0, seen.sum())

        def rate(counts: np.ndarray) -> np.ndarray:
            return (counts + RATE_PRIOR * counts.sum() / total) / (seen + RATE_PRIOR)

        replaced: Counter[str] = Counter()
        for (truth, _), count in observations.substituted.items():
            replaced[truth] += count
        self.deletion = rate(table(observations.deleted))
        # Of the characters that are there at all.
        self.substitution = (rate(table(replaced)) / (1 - self.deletion).clip(1e-6)).clip(max=1)
        self.insertion = observations.inserted.total() / total
        self.hardness, weights = observations.hardness()
        self._hardness = weights.cumsum()
        inserted = table(observations.inserted) + 1e-3
        self._inserted = (inserted / inserted.sum()).cumsum()
        self._replacements = pairs(observations.substituted).cumsum(1)
        self._companions = np.log(pairs(observations.companions) + 1e-12)
        self.top_k = max(len(vector) for vectors in observations.scores.values() for vector in vectors)
        ranks = np.array([observations.ranks[rank] for rank in range(1, self.top_k + 1)]) + 1e-3
        self._ranks = (ranks / ranks.sum()).cumsum()
        everything = [vector for vectors in observations.scores.values() for vector in vectors]
        self._scores = {
            rank: np.array(observations.scores.get(rank) or everything, np.float32)
            for rank in range(-1, self.top_k + 1)
        }

    def with_prefixes(self, batch: Batch, seed: Sequence[int]) -> Batch:
        """The batch with simulated hypotheses as its `prefix` (see `RefinerModel.forward`); a function of the seed."""
        return {**batch, "prefix": self.simulate(batch["labels"], np.random.default_rng(list(seed)))}

    def simulate(self, labels: torch.Tensor, rng: np.random.Generator, max_length: int = 64) -> dict[str, torch.Tensor]:
        """Hypotheses for labels.

        Args:
            labels: Token ids in logical order, `[B, S]`, padded with -100.
            rng: Source of randomness.
            max_length: Steps at most.

        Returns:
            `top_k_ids` and `top_k_scores` `[B, L, K]` and `character_mask` `[B, L]`, as in `SpotterOutput`.
        """
        present = (labels != IGNORED).numpy()
        word, _ = present.nonzero()
        truth = labels.numpy()[present] - TOKEN_OFFSET
        count = len(truth)
        drawn = self._hardness.searchsorted(rng.random(len(labels))).clip(max=len(self.hardness) - 1)
        hard = self.hardness[drawn][word]
        kept = rng.random(count) >= self.deletion[truth] * hard
        wrong = rng.random(count) < self.substitution[truth] * hard
        other = (self._replacements[truth] < rng.random((count, 1))).sum(1).clip(max=len(self._inserted) - 1)
        rank = np.where(wrong, 1 + self._ranks.searchsorted(rng.random(count)).clip(max=self.top_k - 1), 0)
        extra = (rng.random(count) < self.insertion * hard).nonzero()[0]
        put_in = self._inserted.searchsorted(rng.random(len(extra))).clip(max=len(self._inserted) - 1)
        # What is put in comes right after some character; its truth is no row.
        order = np.concatenate([np.arange(count)[kept] * 2, extra * 2 + 1]).argsort()
        word = np.concatenate([word[kept], word[extra]])[order]
        best = np.concatenate([np.where(wrong, other, truth)[kept], put_in])[order]
        rank = np.concatenate([rank[kept], np.full(len(extra), -1)])[order]
        truth = np.concatenate([truth[kept], np.full(len(extra), -1)])[order]

        steps = len(best)
        chances = self._companions[best] + rng.gumbel(size=(steps, self._companions.shape[1]))
        here = np.arange(steps)
        chances[here, best] = -np.inf
        chances[here[truth >= 0], truth[truth >= 0]] = -np.inf
        rows = np.concatenate([best[:, None], (-chances).argsort(1)[:, : self.top_k - 1]], 1)
        for place in range(1, self.top_k):
            at = rank == place
            rows[at, place + 1 :] = rows[at, place:-1]
            rows[at, place] = truth[at]
        scores = np.zeros((steps, self.top_k), np.float32)
        for value, vectors in self._scores.items():
            at = (rank == value).nonzero()[0]
            scores[at] = vectors[rng.integers(len(vectors), size=len(at))]

        lengths = np.bincount(word, minlength=len(labels))
        position = here - (lengths.cumsum() - lengths)[word]
        inside = position < max_length
        length = max(1, int(lengths.clip(max=max_length).max(initial=0)))
        top_k_ids = np.zeros((len(labels), length, self.top_k), np.int64)
        top_k_scores = np.zeros((len(labels), length, self.top_k), np.float32)
        mask = np.zeros((len(labels), length), bool)
        top_k_ids[word[inside], position[inside]] = rows[inside] + TOKEN_OFFSET
        top_k_scores[word[inside], position[inside]] = scores[inside]
        mask[word[inside], position[inside]] = True
        return {
            "top_k_ids": torch.from_numpy(top_k_ids),
            "top_k_scores": torch.from_numpy(top_k_scores),
            "character_mask": torch.from_numpy(mask),
        }

    def save(self, path: str | Path) -> None:
        """Writes the observations as JSON, by character, for the eye as well."""
        found = self.observations
        rng = np.random.default_rng(0)  # words come sorted by width: the first ones are no fair choice

        def some(vectors: list[list[float]]) -> list[list[float]]:
            chosen = rng.permutation(len(vectors))[:KEPT_SCORES]
            return [[round(value, 4) for value in vectors[place]] for place in chosen]

        content = {
            "words": found.words,
            "exact": found.exact,
            "seen": found.seen,
            "deleted": found.deleted,
            "inserted": found.inserted,
            "substituted": {"".join(pair): count for pair, count in found.substituted.most_common()},
            "companions": {"".join(pair): count for pair, count in found.companions.items()},
            "ranks": found.ranks,
            "length_changes": found.length_changes,
            "errors": {f"{length},{errors}": count for (length, errors), count in sorted(found.errors.items())},
            "scores": {rank: some(vectors) for rank, vectors in sorted(found.scores.items())},
        }
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")

    @classmethod
    def from_file(cls, path: str | Path, bank: PrototypeBank) -> Simulator:
        """Reads what `save` wrote.

        Raises:
            ValueError: If the file is no simulator, or one of another bank.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            found = Observations(
                seen=Counter(content["seen"]),
                deleted=Counter(content["deleted"]),
                inserted=Counter(content["inserted"]),
                substituted=Counter({(pair[0], pair[1]): n for pair, n in content["substituted"].items()}),
                companions=Counter({(pair[0], pair[1]): n for pair, n in content["companions"].items()}),
                ranks=Counter({int(rank): n for rank, n in content["ranks"].items()}),
                length_changes=Counter({int(change): n for change, n in content["length_changes"].items()}),
                errors=Counter({_pair(text): n for text, n in content["errors"].items()}),
                scores={int(rank): vectors for rank, vectors in content["scores"].items()},
                words=content["words"],
                exact=content["exact"],
            )
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{path}: no simulator, or one of an earlier version ({error!r}): fit one with scripts/fit_simulator.py"
            ) from None
        if strange := set(found.seen) - set(bank.characters):
            raise ValueError(f"{path}: characters {sorted(strange)[:5]} are not in the bank: fit it to this Spotter")
        return cls(found, bank)


def _pair(text: str) -> tuple[int, int]:
    first, second = text.split(",")
    return int(first), int(second)


def divergences(first: Observations, second: Observations) -> dict[str, float]:
    """How far two sets of observations are apart: Jensen-Shannon divergences in bits, 0 the same, 1 disjoint.

    Returns:
        `outcomes` (right, substituted, deleted, inserted), `ranks` of the truth, `errors of a word`, `length changes`,
        `pairs` (which character stands for which, among substitutions), `inserted` characters, `scores` (cosines, the
        mean over ranks).
    """

    def outcomes(found: Observations) -> Counter[Any]:
        wrong = {"s": found.substituted.total(), "d": found.deleted.total()}
        right = found.seen.total() - sum(wrong.values())
        return Counter(wrong | {"r": right, "i": found.inserted.total()})

    def errors(found: Observations) -> Counter[Any]:
        counts: Counter[Any] = Counter()
        for (_, number), count in found.errors.items():
            counts[number] += count
        return counts

    def scores(found: Observations, rank: int) -> Counter[Any]:
        values = [vector[rank] for vectors in found.scores.values() for vector in vectors]
        return Counter(np.digitize(values, SCORE_BINS).tolist())

    top_k = max(len(vector) for vectors in first.scores.values() for vector in vectors)
    return {
        "outcomes": jensen_shannon(outcomes(first), outcomes(second)),
        "ranks": jensen_shannon(first.ranks, second.ranks),
        "errors of a word": jensen_shannon(errors(first), errors(second)),
        "length changes": jensen_shannon(first.length_changes, second.length_changes),
        "pairs": jensen_shannon(first.substituted, second.substituted),
        "inserted": jensen_shannon(first.inserted, second.inserted),
        "scores": float(np.mean([jensen_shannon(scores(first, rank), scores(second, rank)) for rank in range(top_k)])),
    }


def jensen_shannon(first: Counter[Any], second: Counter[Any]) -> float:
    """Jensen-Shannon divergence of two counted distributions, in bits; NaN if one of them is empty."""
    keys = list(first.keys() | second.keys())
    p, q = (np.array([counts[key] for key in keys], float) for counts in (first, second))
    if not p.sum() or not q.sum():
        return float("nan")
    p, q = p / p.sum(), q / q.sum()
    middle = (p + q) / 2

    def divergence(values: np.ndarray) -> float:
        some = values > 0
        return float((values[some] * np.log2(values[some] / middle[some])).sum())

    return (divergence(p) + divergence(q)) / 2
