"""Times the metric modules on random words of all charsets: `python scripts/benchmark_metrics.py`."""

import argparse
import random
import time
from pathlib import Path

import evaluate

import mstr_hf.evaluation
from mstr_hf.charsets import available_languages, load_charset
from mstr_hf.evaluation.metrics import METRICS

FOLDER = Path(mstr_hf.evaluation.__file__).parent


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=100_000, help="words (default: 100000)")
    pairs = parser.parse_args().pairs

    random.seed(0)
    characters = [charset.letters + charset.diacritics for charset in map(load_charset, available_languages())]
    references = ["".join(random.choices(random.choice(characters), k=random.randint(2, 14))) for _ in range(pairs)]
    # Two in five have lost a character.
    predictions = [text if random.random() < 0.6 else text[1:] for text in references]
    for module in METRICS:
        metric = evaluate.load(str(FOLDER / module))
        seconds, cpu = time.perf_counter(), time.process_time()
        metric.compute(predictions=predictions, references=references)
        seconds, cpu = time.perf_counter() - seconds, time.process_time() - cpu
        print(f"{module}: {pairs} pairs in {seconds:.2f} s, {cpu:.2f} s of them at work")


if __name__ == "__main__":
    main()
