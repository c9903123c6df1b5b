"""Draws the bundled samples: words of signs in fonts that training never saw, damaged like photographs.

    python scripts/make_samples.py mstr_hf/pretrained/samples --fonts FOLDER

Which picture a seed gives depends on the installed fonts and on the generator. The seeds were chosen by eye.
"""

import argparse
import colorsys
import hashlib
import json
import random
from pathlib import Path

import numpy as np
from PIL import Image

from mstr_hf.charsets import load_charsets
from mstr_hf.models.text import display
from mstr_hf.synthesis.fonts import discover_fonts
from mstr_hf.synthesis.synthetic_words import WordSynthesiser
from mstr_hf.synthesis.words import load_words
from mstr_hf.vocabulary import build_vocabulary

# Text and seed of each sample.
SAMPLES = {
    "en": [("Bakery", 10), ("OPEN", 18), ("Pharmacy", 20), ("24/7", 12)],
    "hi": [("स्वागत", 16), ("बाज़ार", 10), ("मिठाई", 3), ("अस्पताल", 2)],
    "bn": [("ওষুধ", 7), ("বাজার", 10), ("মিষ্টান্ন", 13), ("প্রবেশ", 5)],
    "ta": [("கடை", 13), ("மருந்தகம்", 5), ("உணவகம்", 8), ("நூலகம்", 12)],
    "te": [("బజారు", 2), ("మందులు", 3), ("పాఠశాల", 13), ("స్వాగతం", 19)],
    "ar": [("صيدلية", 10), ("مطعم", 18), ("مخبز", 22), ("مدخل", 9)],
}
SEVERITY = 0.7
# Paints and plastics are seldom violet.
HUES = (0.01, 0.09, 0.14, 0.36, 0.6)
LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", type=Path, help="folder for the pictures and labels.jsonl")
    parser.add_argument("--fonts", nargs="*", default=[], help="folders with fonts beside the system's")
    args = parser.parse_args()

    synthesiser = WordSynthesiser(
        discover_fonts(list(SAMPLES), args.fonts),
        {lang: load_words(lang) for lang in SAMPLES},
        split="heldout",
        severity=SEVERITY,
        joiners=build_vocabulary(load_charsets(list(SAMPLES))).joiners,
    )
    args.output.mkdir(parents=True, exist_ok=True)
    lines = []
    for lang, samples in SAMPLES.items():
        for number, (text, seed) in enumerate(samples, 1):
            word = synthesiser.draw(seed, text, lang)
            path = args.output / f"{lang}_{number}.jpg"
            Image.fromarray(tint(word.image, random.Random(f"{seed}/{text}"))).save(path, quality=85)
            print(path.name, display(text), word.family)
            record = {
                "id": hashlib.sha1(path.read_bytes()).hexdigest(),
                "path_rel": path.name,
                "filename": path.name,
                "gt_text": display(text),
                "lang": lang,
                "dataset": "mstr_samples",
            }
            lines.append(json.dumps(record, ensure_ascii=False) + "\n")
    (args.output / "labels.jsonl").write_text("".join(lines), encoding="utf-8")


def tint(image: np.ndarray, rng: random.Random) -> np.ndarray:
    """Gives dark and light parts a hue each and keeps the brightness: uint8 `[H, W]` to `[H, W, 3]`."""
    paints = [colorsys.hsv_to_rgb(rng.choice(HUES), rng.uniform(0.2, 1), 1) for _ in range(2)]
    hues = np.array(paints, np.float32)
    dark, light = hues - (hues @ LUMA)[:, None]
    share = image.astype(np.float32)[..., None] / 255
    # The nearer to black or white, the less room for colour.
    room = 4 * share * (1 - share)
    colour = share + 0.5 * room * (dark + share * (light - dark))
    return np.rint(255 * colour.clip(0, 1)).astype(np.uint8)


if __name__ == "__main__":
    main()
