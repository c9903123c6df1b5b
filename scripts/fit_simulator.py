"""Fits a simulator to a Spotter's errors on held-out words, and says how close the two are.

    python scripts/fit_simulator.py --spotter runs/spotter/final --output runs/simulator.json --fonts FOLDER

The words are synthetic, in fonts that training never sees, or labelled pictures (`--data`) that the Spotter was not
trained on. Half of them fit the simulator; with the other half the Spotter and the simulator are compared.
`train_refiner.py --simulator FILE` then refines simulated readings.
"""

import argparse
from collections import Counter
from collections.abc import Sequence

from mstr_hf.models.modeling_spotter import SpotterModel
from mstr_hf.models.text import display
from mstr_hf.training.arguments import WordArguments
from mstr_hf.training.simulator import Observations, Simulator, divergences, note, observe
from mstr_hf.training.sources import RealWords, Word
from mstr_hf.training.words import HEIGHT, collate, model_pixels, synthesisers
from mstr_hf.vocabulary import Vocabulary

# Other words than those that chose the checkpoint (seed 1) and calibrate it (seed 2).
SEED = 3
# Simulated words are drawn several times over, so that what is compared is not the draw.
DRAWS = 5


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spotter", required=True, help="folder of the trained Spotter")
    parser.add_argument("--output", required=True, help="file to write")
    parser.add_argument("--words", type=int, default=500, help="words a language (default: 500)")
    parser.add_argument("--fonts", nargs="*", default=[], help="folders with fonts beside the system's")
    parser.add_argument(
        "--data",
        nargs="*",
        default=[],
        help="manifests or Arrow folders (their split validation) instead of synthetic words",
    )
    parser.add_argument("--severity", type=float, default=0.9, help="degradation of synthetic words (default: 0.9)")
    args = parser.parse_args()

    model = SpotterModel.from_pretrained(args.spotter).eval()
    bank = model.get_bank()
    vocabulary = Vocabulary.from_bank(bank)
    words: list[Word]
    if args.data:
        words = list(RealWords(args.data, vocabulary, split="validation").some(args.words))
    else:
        options = WordArguments(fonts=args.fonts, severity=args.severity / 0.6)  # held-out words are drawn milder
        _, heldout = synthesisers(options, bank, vocabulary)
        words = [heldout.word(SEED, index, lang) for lang in bank.all_languages for index in range(args.words)]
    mine, others = halves(words)
    fitted, other = (observe(model, half, vocabulary) for half in (mine, others))
    if not (fitted.scores and other.scores):
        parser.error(f"the Spotter reads no character of {len(words)} words: train it longer, or give more words")
    simulator = Simulator(fitted, bank)
    simulator.save(args.output)
    print(f"{args.output}: fitted to {fitted.words} words")
    for name, rate in fitted.rates().items():
        print(f"  {name} {rate:.1%}")
    common = ", ".join(f"{display(a)}>{display(b)} {n}" for (a, b), n in fitted.substituted.most_common(15))
    print(f"  most frequent substitutions: {common}")
    simulated = simulate(simulator, others, vocabulary)
    print("\nJensen-Shannon divergence from the Spotter on other words, in bits (0 the same, 1 disjoint)")
    print("| | simulator | the Spotter itself, on the words of the fit |\n| --- | --: | --: |")
    floor = divergences(fitted, other)
    for name, value in divergences(simulated, other).items():
        print(f"| {name} | {value:.4f} | {floor[name]:.4f} |")


def halves(words: Sequence[Word]) -> tuple[list[Word], list[Word]]:
    """Every other word of each language, and the rest."""
    parts: tuple[list[Word], list[Word]] = ([], [])
    seen = Counter[str]()
    for word in words:
        parts[seen[word.lang] % 2].append(word)
        seen[word.lang] += 1
    return parts


def simulate(simulator: Simulator, words: list[Word], vocabulary: Vocabulary) -> Observations:
    """What the simulator makes of words."""
    found = Observations()
    for draw in range(DRAWS):
        for start in range(0, len(words), 256):
            part = words[start : start + 256]
            batch = collate([(model_pixels(word.image, HEIGHT), word) for word in part], vocabulary)
            prefix = simulator.with_prefixes(batch, (SEED, draw, start))["prefix"]
            note(found, [word.text for word in part], prefix, vocabulary)
    return found


if __name__ == "__main__":
    main()
