"""Builds a prototype bank: runs mCLIP's text side over every charset, and reports what the bank is like.

    python scripts/build_prototype_bank.py --mclip runs/mclip/final --output runs/bank --fonts FOLDER

Writes `prototype_bank.safetensors` (rows with digest and metadata), `report.md` (statistics and the closest pairs) and
`map.png` (near characters near each other, by script and subtype). With `--bank` instead of `--mclip`, a bank that is
there already, alone or in a model, is reported on.
"""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path

from mstr_hf.models.modeling_mclip import MCLIPModel
from mstr_hf.models.prototype_bank import PrototypeBank
from mstr_hf.synthesis.fonts import discover_fonts
from mstr_hf.training.bank_report import bank_report, draw_map
from mstr_hf.training.mclip import text_bank, vocabulary_of


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--mclip", help="folder of the trained mCLIP")
    source.add_argument("--bank", help="prototype bank, or a model that has it, to report on")
    parser.add_argument("--output", required=True, type=Path, help="folder to write")
    parser.add_argument("--fonts", nargs="*", default=[], help="folders with fonts for the map, beside the system's")
    parser.add_argument("--closest", type=int, default=50, help="closest pairs to report (default: 50)")
    args = parser.parse_args()

    if args.bank:
        bank = PrototypeBank.from_pretrained(args.bank)
        args.output.mkdir(parents=True, exist_ok=True)
    else:
        vocabulary = vocabulary_of(args.mclip)
        model = MCLIPModel.from_pretrained(args.mclip).eval()
        revision = hashlib.sha256((Path(args.mclip) / "model.safetensors").read_bytes()).hexdigest()[:12]
        bank = text_bank(model, vocabulary, revision)
        bank.save_pretrained(args.output)
    report = bank_report(bank, args.closest)
    (args.output / "report.md").write_text(report, encoding="utf-8")
    draw_map(bank, discover_fonts(bank.all_languages, args.fonts)).save(args.output / "map.png")
    print(report, end="")


if __name__ == "__main__":
    main()
