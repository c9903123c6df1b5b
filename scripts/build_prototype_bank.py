"""Run mCLIP's text side over every charset.

    python scripts/build_prototype_bank.py --mclip runs/mclip/final --output B
"""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path

import torch

from mstr_hf.charsets import load_charsets
from mstr_hf.models.modeling_mclip import MCLIPModel
from mstr_hf.models.prototype_bank import PrototypeBank
from mstr_hf.training.mclip import text_rows
from mstr_hf.vocabulary import build_vocabulary


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mclip", required=True, help="folder of the trained mCLIP")
    parser.add_argument("--output", required=True, help="folder for prototype_bank.safetensors")
    parser.add_argument("--languages", default="en,hi,bn,ta,te,ar", help="the languages mCLIP was trained on, in order")
    parser.add_argument("--closest", type=int, default=20, help="how many of the closest pairs to print")
    args = parser.parse_args()

    vocabulary = build_vocabulary(load_charsets(args.languages.split(",")))
    model = MCLIPModel.from_pretrained(args.mclip).eval()
    with torch.no_grad():
        prototypes = text_rows(model, vocabulary)
    bank = PrototypeBank(
        prototypes,
        [row.character for row in vocabulary.rows],
        [row.subtype for row in vocabulary.rows],
        [row.script for row in vocabulary.rows],
        [row.languages for row in vocabulary.rows],
        vocabulary.joiners,
        hashlib.sha256((Path(args.mclip) / "model.safetensors").read_bytes()).hexdigest()[:12],
    )
    bank.save_pretrained(args.output)
    similarity = (prototypes @ prototypes.t()).triu(1)
    print(f"{len(bank)} rows of {prototypes.shape[1]}, digest {bank.digest()}")
    for index in similarity.flatten().topk(args.closest).indices.tolist():
        first, second = divmod(index, len(bank))
        a, b = bank.characters[first], bank.characters[second]
        print(f"{similarity[first, second]:.3f}  {a} U+{ord(a):04X}  {b} U+{ord(b):04X}")


if __name__ == "__main__":
    main()
