"""Makes the Refiner's language model of word lists."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from mstr_hf.models.configuration_refiner import RefinerLanguageConfig
from mstr_hf.models.language_model import ABSENT, END, NOTHING, SIGN, STEPS, LanguageModel, character_classes, key, mix
from mstr_hf.models.prototype_bank import PrototypeBank
from mstr_hf.models.text import normalise
from mstr_hf.synthesis.words import WordSource

ORDER = 6
# The words' weights, frequency ** 0.4, are to this power here: common words are on more signs than rare ones, if not as
# often as in running text.
POWER = 1.5
# Contexts that make what follows them in all words less likely by no more than so many nats, if they are cut short, are
# left out (as in Stolcke, 1998).
EVIDENCE = 3.0


def build_language_model(bank: PrototypeBank, sources: Sequence[WordSource]) -> LanguageModel:
    """A language model over a bank's rows.

    Args:
        bank: The bank.
        sources: Words of its languages; each language counts the same.
    """
    classes = dict(
        zip(bank.characters, character_classes(bank.characters, bank.subtypes, bank.joiners)[1:], strict=True)
    )
    words: list[list[int]] = []
    weights: list[float] = []
    totals = []
    for source in sources:
        own = np.diff(np.array([0.0, *source.cumulative]))
        own = (own / own.min()) ** POWER
        totals.append(own.sum())
        for text, weight in zip(source.words, own / own.sum(), strict=True):
            word: list[int] = []
            for value in [*(classes.get(character, SIGN) for character in normalise(text)), END]:
                if value > END:
                    word.append(value)
                elif value != NOTHING and word:
                    words.append([END, *word, END])
                    weights.append(weight)
                    word = []
    # Smoothing needs counts, not shares: on average as many as the rarest word of a list makes 1.
    scale = float(np.mean(totals))
    table = _tables(words, np.array(weights) * scale, max(classes.values()) + 1)
    table.config.num_rows, table.config.rows_digest = len(bank), bank.charset_digest
    return table


def _tables(words: Sequence[Sequence[int]], weights: np.ndarray, size: int) -> LanguageModel:
    """The tables of words with their start and end; where nothing is known, `size` characters are equally likely."""
    lengths = np.array([len(word) for word in words])
    tokens = torch.tensor([value for word in words for value in word])
    place = torch.from_numpy(np.concatenate([np.arange(length) for length in lengths]))
    count = torch.from_numpy(np.repeat(weights, lengths))
    ends = (place > 0).nonzero()[:, 0]  # a start is never predicted
    hashes = mix(torch.zeros_like(ends), tokens[ends])
    contexts = torch.zeros_like(ends)
    lower = torch.full((len(ends),), 1.0 / size, dtype=torch.float64)
    keys, values = [], []
    prices: dict[int, float] = {}
    for order in range(1, ORDER + 1):
        if order > 1:
            there = place[ends] >= order - 1
            ends, hashes, contexts, lower = ends[there], hashes[there], contexts[there], lower[there]
            older = tokens[ends - order + 1]
            hashes, contexts = mix(hashes, older), mix(contexts, older)
        grams, member = torch.unique(hashes, return_inverse=True)
        sums = torch.zeros(len(grams), dtype=torch.float64).index_add_(0, member, count[ends])
        sample = torch.zeros(len(grams), dtype=torch.long).scatter_(0, member, torch.arange(len(member)))
        befores, group = torch.unique(contexts[sample], return_inverse=True)
        total = torch.zeros(len(befores), dtype=torch.float64).index_add_(0, group, sums)
        types = torch.bincount(group).double()
        backoff = types / (total + types)
        shorter = lower[sample]
        probability = sums / (total + types)[group] + backoff[group] * shorter
        evidence = torch.zeros(len(befores), dtype=torch.float64)
        evidence.index_add_(0, group, sums * (probability / shorter).log())
        kept = ((evidence > EVIDENCE) | (order < 3))[group]
        keys.append(grams[kept])
        values.append(probability[kept])
        used = torch.unique(group[kept])
        prices.update(zip(befores[used].tolist(), backoff[used].tolist(), strict=True))
        lower = torch.where(kept, probability, shorter)[member]
    known = dict(zip(torch.cat(keys).tolist(), torch.cat(values).tolist(), strict=True))
    prices.pop(0, None)  # of the empty context: there is nothing shorter
    merged = {int(k): v for k, v in zip(key(torch.tensor(list(known))).tolist(), known.values(), strict=True)}
    paid = {int(k): v for k, v in zip(key(torch.tensor(list(prices))).tolist(), prices.values(), strict=True)}
    table = np.array(sorted(merged.keys() | paid.keys()), np.int64)
    model = LanguageModel(RefinerLanguageConfig(order=ORDER, num_ngrams=len(table)))
    model.keys = torch.from_numpy(table.astype(np.int32))
    model.log_probs = torch.tensor([_byte(merged[k]) if k in merged else ABSENT for k in table.tolist()]).to(
        torch.uint8
    )
    model.backoffs = torch.tensor([_byte(paid.get(k, 1.0)) for k in table.tolist()]).to(torch.uint8)
    return model


def _byte(probability: float) -> int:
    return min(ABSENT - 1, round(-STEPS * math.log(probability)))
