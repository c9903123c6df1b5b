"""Scores an mCLIP on characters in fonts that training never saw, and its bank.

    python scripts/evaluate_mclip.py --mclip runs/mclip/final --fonts FOLDER

Top-1 retrieval among the rows of the crop's own language and among all rows, by language and kind of character; in
brackets with look-alikes let pass, which come from a fixed list (mstr_hf/training/lookalikes.py).
"""

import argparse

import torch

from mstr_hf.charsets import load_charsets
from mstr_hf.models.modeling_mclip import MCLIPModel
from mstr_hf.synthesis.characters import CharacterSynthesiser
from mstr_hf.synthesis.fonts import discover_fonts
from mstr_hf.training.mclip import retrieve, vocabulary_of

# Other crops than those that chose the checkpoint (seed 1).
SEED = 2


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mclip", required=True, help="folder of the trained mCLIP")
    parser.add_argument("--fonts", nargs="*", default=[], help="folders with fonts beside the system's")
    parser.add_argument("--crops", type=int, default=10_000, help="crops (default: 10000)")
    parser.add_argument("--severity", type=float, default=0.3, help="degradation of the crops (default: 0.3)")
    args = parser.parse_args()

    vocabulary = vocabulary_of(args.mclip)
    letters = {charset.lang: charset.letters for charset in load_charsets(vocabulary.languages)}
    fonts = discover_fonts(vocabulary.languages, args.fonts)
    synthesiser = CharacterSynthesiser(fonts, vocabulary.rows, letters, split="heldout", severity=args.severity)
    crops = [synthesiser.character(SEED, index) for index in range(args.crops)]
    model = MCLIPModel.from_pretrained(args.mclip).eval()
    with torch.no_grad():
        print(retrieve(model, vocabulary, crops).table())


if __name__ == "__main__":
    main()
