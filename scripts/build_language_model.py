"""Gives a Refiner a language model, made of the word lists of its languages.

    python scripts/build_language_model.py --refiner runs/refiner/final --output runs/reader

It says which characters may follow each other in a word, and is asked where the Spotter is not sure. The lists are
those that synthetic words are drawn from. Fit the scores again afterwards (scripts/calibrate.py).
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from mstr_hf.hub.publish import assemble
from mstr_hf.models.modeling_refiner import RefinerModel
from mstr_hf.synthesis.words import WordsError, load_words
from mstr_hf.training.language_model import build_language_model


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--refiner", type=Path, required=True, help="folder of the trained Refiner")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--beams", type=int, default=4, help="readings that are followed at a time (default: 4)")
    args = parser.parse_args()

    model = RefinerModel.from_pretrained(args.refiner)
    try:
        sources = [load_words(lang) for lang in model.get_bank().all_languages]
    except WordsError as error:
        parser.error(str(error))
    table = build_language_model(model.get_bank(), sources)
    model.set_language_model(table)
    model.config.beam_width = args.beams
    assemble(model, args.output)
    if (args.refiner / "README.md").exists() and args.refiner.resolve() != args.output.resolve():
        shutil.copy(args.refiner / "README.md", args.output)
    size = sum(buffer.numel() * buffer.element_size() for buffer in table.buffers())
    words = sum(len(source.words) for source in sources)
    print(f"{len(table.keys):,} n-grams of up to {table.order} characters, {size / 1e6:.1f} MB, of {words:,} words")


if __name__ == "__main__":
    main()
