"""The language model's tables against a dictionary of counts."""

from __future__ import annotations

import math
from collections import Counter, defaultdict

import numpy as np
import pytest
import torch

from mstr_hf.charsets import load_charset, load_charsets
from mstr_hf.models.language_model import (
    ABSENT,
    ANY_SIGN,
    END,
    NEW_WORD,
    NOTHING,
    SIGN,
    character_classes,
    key,
    mix,
)
from mstr_hf.models.prototype_bank import PrototypeBank
from mstr_hf.synthesis.words import WordSource
from mstr_hf.training import language_model as training
from mstr_hf.vocabulary import build_vocabulary

WORDS = {
    "en": {"the": 9.0, "then": 4.0, "hen": 3.0, "Thebes": 1.0, "don't": 2.0, "ten-pin": 1.0},
    "hi": {"नमक": 3.0, "नमन": 2.0, "मकान": 1.0},
}


def source(lang: str) -> WordSource:
    charset = load_charset(lang)
    words, weights = list(WORDS[lang]), list(WORDS[lang].values())
    cumulative = np.cumsum(weights).tolist()
    return WordSource(charset, frozenset(charset.characters), words, cumulative, {}, {}, [])


@pytest.fixture(scope="module")
def bank() -> PrototypeBank:
    vocabulary = build_vocabulary(load_charsets(["en", "hi"]))
    rows = vocabulary.rows
    return PrototypeBank(
        torch.nn.functional.normalize(torch.randn(len(rows), 8), dim=-1),
        [row.character for row in rows],
        [row.subtype for row in rows],
        [row.script for row in rows],
        [row.languages for row in rows],
        vocabulary.joiners,
    )


@pytest.fixture(scope="module")
def classes(bank) -> list[int]:
    return character_classes(bank.characters, bank.subtypes, bank.joiners)


@pytest.fixture
def model(bank, monkeypatch):
    monkeypatch.setattr(training, "EVIDENCE", -math.inf)  # all n-grams are kept
    return training.build_language_model(bank, [source("en"), source("hi")])


def smoothed(bank, classes) -> tuple[dict, int]:
    """Probability of a character after a context by Witten and Bell, from counts in dictionaries."""
    counts: dict[tuple, Counter] = defaultdict(Counter)
    languages = [
        {word: (weight / min(words.values())) ** training.POWER for word, weight in words.items()}
        for words in WORDS.values()
    ]
    mean = np.mean([sum(words.values()) for words in languages])
    for words in languages:
        for word, weight in words.items():
            count = weight * mean / sum(words.values())
            for part in word.replace("-", " ").replace("'", " ").split():
                text = [END, *(classes[1 + bank.row(c)] for c in part), END]
                for place in range(1, len(text)):
                    for length in range(min(place, training.ORDER - 1) + 1):
                        counts[tuple(text[place - length : place])][text[place]] += count
    return counts, max(classes) + 1


def probability(counts: dict, size: int, context: tuple, value: int) -> float:
    chance = 1 / size
    for length in range(len(context) + 1):
        after = counts.get(context[len(context) - length :])
        if after is None:
            break
        total = sum(after.values())
        chance = (after[value] + len(after) * chance) / (total + len(after))
    return chance


@pytest.mark.parametrize(
    "text", ["then", "THEN", "hen", "eth", "नमक", "नमhe", "the-then", "x", "12", "don't", "न\u200dम", "(hen)"]
)
def test_words_are_as_likely_as_their_counts_say(bank, classes, model, text):
    counts, size = smoothed(bank, classes)
    contexts = model.contexts(1)
    context: tuple = (END,)
    for value in [*(classes[1 + bank.row(c)] for c in text), classes[0]]:
        own = model(contexts, torch.tensor([[value]])).item()
        expected = ANY_SIGN if value == SIGN else 0.0
        if value != NOTHING and (value > END or context != (END,)):
            after = max(value, END)  # a word ends before a sign
            expected += math.log(probability(counts, size, context[-training.ORDER + 1 :], after))
            if after not in counts[()]:
                assert own < -7  # no word has it
                expected = own
        assert own == pytest.approx(expected, abs=0.25)  # bytes: a step for the character, one for each context
        contexts = model.append(contexts, torch.tensor([value]))
        if value != NOTHING:
            context = (*context, value) if value > END else (END,)


def test_a_word_may_follow_another_without_a_space(bank, classes, model):
    def spelled(text: str) -> list[int]:
        return [classes[1 + bank.row(c)] for c in text]

    def log_probs(values: list[int]) -> list[float]:
        contexts, found = model.contexts(1), []
        for value in values:
            found.append(model(contexts, torch.tensor([[value]])).item())
            contexts = model.append(contexts, torch.tensor([value]))
        return found

    first, second = log_probs([*spelled("hen"), END]), log_probs([*spelled("नमक"), END])
    together = log_probs([*spelled("henनमक"), END])
    assert together[:3] == first[:3] and together[4:] == second[1:]  # as in a word of its own
    assert together[3] == pytest.approx(first[3] + NEW_WORD + second[0])
    # within a word it costs nothing, and none begins before there is one
    assert sum(log_probs([*spelled("then"), END])) > sum(log_probs([*spelled("t"), END])) + sum(first) + NEW_WORD
    assert second[0] > log_probs(spelled("त"))[0]


def test_what_may_follow_adds_up_to_one(model, classes):
    every = torch.tensor([sorted(set(classes) - {NOTHING, SIGN})])
    contexts = model.contexts(1)
    for _ in range(4):
        chances = model(contexts, every).exp()[0]
        if contexts[0, 0] == END:
            chances = chances[1:]  # no word ends before it begins
        assert chances.sum().item() == pytest.approx(1, abs=0.12)
        contexts = model.append(contexts, every[0, chances.argmax() + (contexts[0, 0] == END)][None])


def test_capitals_joiners_and_signs(bank, classes):
    by_character = dict(zip(bank.characters, classes[1:], strict=True))
    assert by_character["A"] == by_character["a"] == 1 + bank.row("a")
    assert by_character["-"] == by_character["7"] == SIGN and classes[0] == END
    assert by_character["\u200d"] == NOTHING
    assert by_character["क"] == 1 + bank.row("क") and by_character["ा"] == 1 + bank.row("ा")


def test_n_grams_that_say_little_are_left_out(bank, model, monkeypatch):
    monkeypatch.setattr(training, "EVIDENCE", 3.0)
    smaller = training.build_language_model(bank, [source("en"), source("hi")])
    assert len(smaller.keys) < len(model.keys) and smaller.config.num_ngrams == len(smaller.keys)
    assert torch.equal(smaller.keys, smaller.keys.sort().values)


def test_what_only_begins_n_grams_is_none(bank, model, classes):
    """The n-gram "then" less its probability: what follows it is known, it is not."""
    letters = [classes[1 + bank.row(character)] for character in "then"]
    contexts = model.contexts(1)
    state = torch.zeros(1, dtype=torch.long)
    for value in reversed(letters):
        state = mix(state, torch.tensor([value]))
    for value in letters[:-1]:
        contexts = model.append(contexts, torch.tensor([value]))
    last = torch.tensor([[letters[-1]]])
    before = model(contexts, last).item()
    place = torch.searchsorted(model.keys, key(state).to(torch.int32))
    assert model.keys[place] == key(state)
    model.log_probs[place] = ABSENT
    longest = mix(state, torch.tensor([END]))  # the one with the start before
    model.log_probs[torch.searchsorted(model.keys, key(longest).to(torch.int32))] = ABSENT
    assert model(contexts, last).item() < before - 0.05


def test_a_batch_is_as_its_rows(model, classes):
    values = torch.tensor(sorted(set(classes)))[None].expand(3, -1)
    contexts = model.contexts(3)
    for column in ([5, 3, SIGN], [3, NOTHING, 5]):
        contexts = model.append(contexts, torch.tensor(column))
    together = model(contexts, values)
    for row in range(3):
        assert torch.equal(model(contexts[row : row + 1], values[:1])[0], together[row])
