"""Fits a Refiner's score temperatures and its gate, and saves them in the model folder's config.json.

    python scripts/calibrate.py --model runs/refiner/final --fonts FOLDER

The data are synthetic words in fonts that training never saw. Temperature scaling is that of Guo et al. (On
Calibration of Modern Neural Networks, 2017): one number divides all logits. As a word's score says whether the word
is right, the number is chosen that gives the least negative log-likelihood of just that, for the Spotter and for the
Refiner. The gate is then the lowest threshold with which nearly as many words are read right as with any, with all
views that a word may get; 0, the Spotter alone, if the Refiner gains nothing. What several views agree on gets a
temperature of its own. A language model was made of the same word lists: what it gains on these words, it gains on
others only if they are in its lists too.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tqdm.auto import tqdm

from mstr_hf.models.configuration_refiner import RefinerConfig
from mstr_hf.models.configuration_spotter import SpotterConfig
from mstr_hf.models.modeling_refiner import RefinerModel
from mstr_hf.models.text import normalise
from mstr_hf.models.views import VIEWS
from mstr_hf.synthesis.fonts import discover_fonts
from mstr_hf.synthesis.synthetic_words import SyntheticWord, WordSynthesiser
from mstr_hf.synthesis.words import load_words
from mstr_hf.training.trainer import Batch, to_device
from mstr_hf.training.words import collate, image_height, model_pixels
from mstr_hf.vocabulary import Vocabulary

# Words like those of the trainers' evaluation; its own, of seed 1, have chosen the checkpoint.
SEED = 2
SEVERITY = 0.54
BATCH_SIZE = 32

TEMPERATURES = np.geomspace(0.6, 4.8, 10).round(2).tolist()
THRESHOLDS = (0.0, 0.2, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.93, 0.95, 0.97, 0.98, 0.99, 0.995, 1.0)
# One batch in so many fits the temperatures, which takes ten readings of each; the gate takes three of all words.
EVERY = 3
# WRR that a gate may cost where it spares refinement: less than chance makes of a few thousand words.
TOLERANCE = 0.0025
# Gate thresholds under which all readings are the Spotter's, or the Refiner's.
SPOTTER, REFINER = 0.0, 2.0

Words = list[tuple[Batch, list[str]]]


@dataclass(frozen=True)
class Outcome:
    """What became of the words.

    Attributes:
        scores: Score of each reading, `[n]`.
        right: Whether it is right, bool `[n]`.
    """

    scores: np.ndarray
    right: np.ndarray

    @property
    def loss(self) -> float:
        """Negative log-likelihood, a word, of which readings are right."""
        scores = self.scores.clip(1e-4, 1 - 1e-4)
        return float(-np.log(np.where(self.right, scores, 1 - scores)).mean())

    def of(self, words: np.ndarray) -> "Outcome":
        """What became of some of the words, bool `[n]`."""
        return Outcome(self.scores[words], self.right[words])

    def at(self, temperature: float) -> "Outcome":
        """The outcome at another `vote_temperature`."""
        return Outcome(self.scores ** (1 / temperature), self.right)


@dataclass(frozen=True)
class Gate:
    """What a gate threshold costs and brings: the share of words that are refined, and the WRR."""

    threshold: float
    refined: float
    wrr: float


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="folder of the trained Refiner; its config is changed")
    parser.add_argument("--fonts", nargs="*", default=[], help="folders with fonts beside the system's")
    parser.add_argument("--words", type=int, default=400, help="words a language")
    parser.add_argument(
        "--views",
        type=int,
        choices=range(1, len(VIEWS) + 1),
        default=len(VIEWS),
        help="views of a word below the gate",
    )
    args = parser.parse_args()

    model = RefinerModel.from_pretrained(args.model).eval()
    config = model.config
    languages = model.get_bank().all_languages
    vocabulary = Vocabulary.from_bank(model.get_bank())
    synthesiser = WordSynthesiser(
        discover_fonts(languages, args.fonts),
        {lang: load_words(lang) for lang in languages},
        split="heldout",
        severity=SEVERITY,
        joiners=vocabulary.joiners,
        characters=set(model.get_bank().characters),
    )
    drawn = [synthesiser.word(SEED, index, lang) for lang in languages for index in range(args.words)]
    words = batches(drawn, vocabulary, image_height(model))

    fit_temperature(model, config.spotter_config, words[::EVERY], SPOTTER, vocabulary.joiners)
    fit_temperature(model, config, words[::EVERY], REFINER, vocabulary.joiners)
    spotted, refined = (read(model, words, gate, vocabulary.joiners) for gate in (SPOTTER, REFINER))
    config.num_views, config.vote_temperature = args.views, 1.0
    voted = read(model, words, REFINER, vocabulary.joiners, args.views) if args.views > 1 else refined
    gates = gate_table(spotted, voted)
    config.gate_threshold = choose_gate(gates)
    print("| threshold | refined | WRR |\n| --: | --: | --: |")
    for gate in gates:
        print(f"| {gate.threshold} | {gate.refined:.1%} | {gate.wrr:.1%} |")
    print(f"gate_threshold {config.gate_threshold}")
    # One view decides the others, whose scores are what that view gives them.
    several = (spotted.scores < config.gate_threshold) & (voted.scores != refined.scores)
    if args.views > 1 and several.any():
        outcomes = [(temperature, voted.of(several).at(temperature)) for temperature in TEMPERATURES]
        config.vote_temperature, best = min(outcomes, key=lambda outcome: outcome[1].loss)
        once, votes = (100 * outcome.of(several).right.mean() for outcome in (refined, voted))
        print(f"vote_temperature {config.vote_temperature}, negative log-likelihood {best.loss:.4f}")
        print(f"words that one view does not decide: {several.mean():.1%}, WRR {once:.1f}, with more views {votes:.1f}")
    config.save_pretrained(args.model)


def batches(words: Sequence[SyntheticWord], vocabulary: Vocabulary, height: int) -> Words:
    """Puts words of similar width into batches, each with its texts."""
    items = sorted(((model_pixels(word.image, height), word) for word in words), key=lambda item: item[0].shape[1])
    parts = [items[start : start + BATCH_SIZE] for start in range(0, len(items), BATCH_SIZE)]
    return [(to_device(collate(part, vocabulary), "cpu"), [word.text for _, word in part]) for part in parts]


def fit_temperature(
    model: RefinerModel,
    config: RefinerConfig | SpotterConfig,
    words: Words,
    gate_threshold: float,
    joiners: str,
) -> Outcome:
    """Gives `config` the best of the temperatures, prints it, and returns what is read at it."""
    outcomes = {}
    for temperature in tqdm(TEMPERATURES, desc=type(config).__name__):
        config.score_temperature = temperature
        outcomes[temperature] = read(model, words, gate_threshold, joiners)
    config.score_temperature = best = min(outcomes, key=lambda temperature: outcomes[temperature].loss)
    print(f"{config.model_type}: score_temperature {best}, negative log-likelihood {outcomes[best].loss:.4f}")
    return outcomes[best]


def read(model: RefinerModel, words: Words, gate_threshold: float, joiners: str, num_views: int = 1) -> Outcome:
    """Reads the words; the outcome has them in the order of the batches."""
    scores, right = [], []
    for batch, texts in words:
        images = batch["pixel_values"], batch["pixel_mask"]
        readings = model.recognise(*images, gate_threshold=gate_threshold, num_views=num_views)
        for reading, text in zip(readings, texts, strict=True):
            scores.append(reading["score"])
            right.append(normalise(reading["text"], joiners) == text)
    return Outcome(np.array(scores), np.array(right))


def gate_table(spotted: Outcome, refined: Outcome) -> list[Gate]:
    """What each threshold would do, from both readings of the same words."""
    gates = []
    for threshold in THRESHOLDS:
        unsure = spotted.scores < threshold
        wrr = np.where(unsure, refined.right, spotted.right).mean()
        gates.append(Gate(threshold, float(unsure.mean()), float(wrr)))
    return gates


def choose_gate(gates: Sequence[Gate]) -> float:
    """The lowest threshold that reads as many words right as the best one, but for `TOLERANCE`."""
    best = max(gate.wrr for gate in gates)
    return min(gate.threshold for gate in gates if gate.wrr >= best - TOLERANCE)


if __name__ == "__main__":
    main()
