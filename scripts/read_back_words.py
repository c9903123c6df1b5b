"""Lets Tesseract read synthetic words in held-out fonts: a check that labels and pictures belong together.

Tesseract is no judge of scene text: what counts is that hardly damaged words come back about as well in every
language, and what the misread ones look like (`--sheet`).
"""

import argparse
import os
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from mstr_hf.charsets import load_charsets
from mstr_hf.models.text import normalise
from mstr_hf.synthesis.fonts import discover_fonts
from mstr_hf.synthesis.preview import Sample, contact_sheet
from mstr_hf.synthesis.synthetic_words import SyntheticWord, WordSynthesiser
from mstr_hf.synthesis.words import load_words
from mstr_hf.vocabulary import build_vocabulary

TESSERACT = {"en": "eng", "hi": "hin", "bn": "ben", "ta": "tam", "te": "tel", "ar": "ara"}


def main() -> None:
    """Runs the check from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lang", default=",".join(TESSERACT), help="language codes, separated by commas")
    parser.add_argument("--words", type=int, default=500, help="words a language")
    parser.add_argument("--severity", type=float, default=0.2, help="upper end of the damage, 0 to 1")
    parser.add_argument("--fonts", action="append", default=[], help="folder with fonts; repeatable")
    parser.add_argument("--sheet", type=Path, help="folder for contact sheets of the misread words")
    args = parser.parse_args()
    languages = args.lang.split(",")
    fonts = discover_fonts(languages, args.fonts)
    for lang in languages:
        joiners = build_vocabulary(load_charsets([lang])).joiners
        sources = {lang: load_words(lang)}
        synthesiser = WordSynthesiser(fonts, sources, None, "heldout", args.severity, joiners)
        words = [synthesiser.word(0, index, lang) for index in range(args.words)]
        readings = [normalise(text, joiners) for text in read(words, TESSERACT[lang])]
        wrong = [
            Sample(word.image, word.text, f"{word.family}: {text!a}")
            for word, text in zip(words, readings, strict=True)
            if text != word.text
        ]
        print(f"{lang}: {len(words) - len(wrong)} of {len(words)} words read back", flush=True)
        if args.sheet and wrong:
            args.sheet.mkdir(parents=True, exist_ok=True)
            contact_sheet(wrong, fonts.faces(lang)).save(args.sheet / f"misread-{lang}.png")


def read(words: list[SyntheticWord], language: str) -> list[str]:
    """What Tesseract reads in each image, in one run."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, f"{number}.png") for number in range(len(words))]
        for path, word in zip(paths, words, strict=True):
            image = Image.fromarray(word.image)
            scale = 48 / image.height
            image = image.resize((max(1, round(image.width * scale)), 48), Image.Resampling.BICUBIC)
            ImageOps.expand(image, 10, int(np.asarray(image)[0, 0])).save(path)
        listing = Path(folder, "list.txt")
        listing.write_text("\n".join(map(str, paths)), encoding="utf-8")
        command = ["tesseract", str(listing), "stdout", "-l", language, "--psm", "7"]
        environment = {**os.environ, "OMP_THREAD_LIMIT": "1"}
        output = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    pages = output.split("\f")[: len(words)]
    if len(pages) != len(words):
        raise RuntimeError(f"Tesseract gave {len(pages)} pages for {len(words)} words")
    return pages


if __name__ == "__main__":
    main()
