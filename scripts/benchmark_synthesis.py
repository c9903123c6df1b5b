"""Measures how many synthetic words a second one core draws, beside TRDG.

    python3 -m venv trdg && trdg/bin/pip install trdg 'Pillow<10'     # TRDG needs an old Pillow
    python scripts/benchmark_synthesis.py --trdg trdg/bin/python

Both draw words from the same lists in the same fonts, with all their effects on: TRDG with random skew, blur and
distortion over noise. Speeds are words a second of processor time, so that other work on the machine does not count, of
words that come one by one; ours hold what is thrown away because it is not legible.
"""

import argparse
import json
import random
import subprocess
import time
from pathlib import Path

import cv2

from mstr_hf.synthesis.fonts import FontIndex, discover_fonts
from mstr_hf.synthesis.synthetic_words import WordSynthesiser
from mstr_hf.synthesis.words import load_words

# Fonts and words that come for the first time are slow.
WARM_UP = 0.5
MOST_FONTS = 100

# Runs in TRDG's own environment.
TRDG = """
import json, sys, time
from trdg.generators import GeneratorFromStrings

job = json.load(sys.stdin)
generator = GeneratorFromStrings(
    job["words"], fonts=job["fonts"], size=32, skewing_angle=5, random_skew=True, blur=2, random_blur=True,
    background_type=0, distorsion_type=3, distorsion_orientation=2,
)
for number in range(len(job["words"])):
    if number == job["warm_up"]:
        start = time.process_time()
    assert next(generator)[0] is not None
print((number + 1 - job["warm_up"]) / (time.process_time() - start))
"""


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trdg", type=Path, metavar="PYTHON", help="interpreter of an environment that has TRDG")
    parser.add_argument("--lang", default="en,hi", help="languages (default: en,hi)")
    parser.add_argument("--words", type=int, default=1000, help="words a language (default: 1000; of TRDG a fifth)")
    parser.add_argument("--fonts", nargs="*", default=[], help="folders with fonts beside the system's")
    arguments = parser.parse_args()
    languages = arguments.lang.split(",")
    cv2.setNumThreads(1)
    fonts = discover_fonts(languages, arguments.fonts)
    for lang in languages:
        ours = draw(fonts, lang, arguments.words)
        line = f"{lang}: {ours:.0f} words/s"
        if arguments.trdg:
            peer = draw_with_trdg(arguments.trdg, fonts, lang, max(10, arguments.words // 5))
            line += f", TRDG {peer:.0f} words/s: {ours / peer:.1f} times as fast"
        print(line, flush=True)


def draw(fonts: FontIndex, lang: str, words: int) -> float:
    """Returns the words a second that this package draws."""
    synthesiser = WordSynthesiser(fonts, {lang: load_words(lang)})
    first = int(WARM_UP * words)
    for index in range(first):
        synthesiser.word(0, index, lang)
    start = time.process_time()
    for index in range(first, first + words):
        synthesiser.word(0, index, lang)
    return words / (time.process_time() - start)


def draw_with_trdg(python: Path, fonts: FontIndex, lang: str, words: int) -> float:
    """Returns the words a second that TRDG draws."""
    rng = random.Random(0)
    # TRDG opens a font anew for each word, so that their number makes no difference.
    files = sorted({face.path for face in fonts.faces(lang) if not face.index})
    warm_up = int(WARM_UP * words)
    source = load_words(lang)
    job = {
        "words": [source.sample(rng) for _ in range(warm_up + words)],
        "fonts": rng.sample(files, min(MOST_FONTS, len(files))),
        "warm_up": warm_up,
    }
    result = subprocess.run([python, "-c", TRDG], input=json.dumps(job), stdout=subprocess.PIPE, text=True, check=True)
    return float(result.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
