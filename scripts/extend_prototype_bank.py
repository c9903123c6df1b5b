"""Adds the characters of your labels to a prototype bank that lacks them.

    python scripts/extend_prototype_bank.py --bank mstr_hf/pretrained/refiner-6lang --data my-words/labels.jsonl \
        --output runs/bank-mine

A bank of your own takes an mCLIP of your own, `--mclip runs/mclip/final`. Old rows stay bit for bit what they are, so
that models on the old bank take the new one (`train_spotter.py --init_from SPOTTER --bank BANK`). A new row is what
mCLIP's image side sees in renderings of the character, on average; mCLIP need not have been trained on it.
"""

from __future__ import annotations

import argparse
import dataclasses
import unicodedata
from pathlib import Path

import numpy as np
import torch

from mstr_hf.charsets import CharsetError, load_charset, subtype_of
from mstr_hf.hub.cache import MCLIP
from mstr_hf.models.modeling_mclip import MCLIPModel
from mstr_hf.models.prototype_bank import PrototypeBank
from mstr_hf.synthesis.characters import CharacterSynthesiser
from mstr_hf.synthesis.fonts import discover_fonts
from mstr_hf.training.bank_rows import check_space
from mstr_hf.training.mclip import vocabulary_of
from mstr_hf.training.sources import RealWords
from mstr_hf.training.trainer import to_device
from mstr_hf.vocabulary import COMMON_SCRIPT, Row, Vocabulary

SEED = 4


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bank", required=True, help="folder or Hub repository with the bank")
    parser.add_argument(
        "--mclip",
        default=str(MCLIP),
        help="folder of an mCLIP in the bank's space (train_mclip.py --bank; default: that of the bundled bank)",
    )
    parser.add_argument("--data", nargs="+", required=True, help="manifests or Arrow folders whose characters to add")
    parser.add_argument("--output", required=True, help="folder to write")
    parser.add_argument("--fonts", nargs="*", default=[], help="folders with fonts beside the system's")
    parser.add_argument("--crops", type=int, default=64, help="renderings a character (default: 64)")
    args = parser.parse_args()

    bank = PrototypeBank.from_pretrained(args.bank)
    try:
        rows = wanted_rows(bank, args.data)
    except CharsetError as error:
        parser.error(f"--data: {error}")
    if not rows:
        parser.error("nothing to add: the bank has all characters of these labels")
    model = MCLIPModel.from_pretrained(args.mclip).eval()
    check_space(model, vocabulary_of(args.mclip), bank)
    vectors, missing = image_rows(model, rows, args.fonts, args.crops)
    for row in missing:
        print(f"left out: no font draws {row.character!r} U+{ord(row.character):04X}: install one and run this again")
    rows = [row for row in rows if row not in missing]
    # A language that is new to the bank has, of the bank's characters, those of its charset.
    for lang in sorted({lang for row in rows for lang in row.languages} - set(bank.all_languages)):
        if joiners := set(load_charset(lang).joiners) - set(bank.joiners):
            named = ", ".join(f"U+{ord(joiner):04X}" for joiner in sorted(joiners))
            print(f"{lang} writes {named} too, which this bank leaves out of labels: add_language.py would add them")
        known = [place for place, one in enumerate(bank.characters) if one in load_charset(lang).characters]
        bank = bank.extend(
            bank.prototypes[known],
            [bank.characters[place] for place in known],
            [bank.subtypes[place] for place in known],
            [bank.scripts[place] for place in known],
            [(lang,)] * len(known),
        )
    extended = bank.extend(
        vectors,
        [row.character for row in rows],
        [row.subtype for row in rows],
        [row.script for row in rows],
        [row.languages for row in rows],
    )
    extended.save_pretrained(args.output)
    print(f"{len(extended) - len(bank)} rows added to {len(bank)}: {' '.join(extended.characters[len(bank) :])}")


def wanted_rows(bank: PrototypeBank, data: list[str]) -> list[Row]:
    """Rows of the characters that labels have and the bank lacks; not of spaces and control characters.

    Raises:
        CharsetError: If labels are in a language that has no charset.
    """
    vocabulary = Vocabulary.from_bank(bank)
    words = [RealWords(data, vocabulary)]
    if both := [path for path in data if (Path(path) / "validation").is_dir()]:
        words.append(RealWords(both, vocabulary, split="validation"))
    rows: dict[str, Row] = {}
    for lang, counts in (item for part in words for item in part.outside.items()):
        for character in sorted(counts):
            subtype = subtype_of(character)
            if subtype is None:
                continue
            script = load_charset(lang).script if unicodedata.category(character)[0] in "LM" else COMMON_SCRIPT
            row = rows.get(character, Row(character, subtype, script, ()))
            rows[character] = dataclasses.replace(row, languages=tuple(dict.fromkeys((*row.languages, lang))))
    return list(rows.values())


@torch.no_grad()
def image_rows(
    model: MCLIPModel, rows: list[Row], font_folders: list[str], crops: int
) -> tuple[torch.Tensor, list[Row]]:
    """Mean image embeddings `[M, D]` of renderings in all fonts, and the rows that no font draws."""
    languages = sorted({lang for row in rows for lang in row.languages})
    letters = {lang: load_charset(lang).letters for lang in languages}
    fonts = discover_fonts(languages, font_folders)
    synthesiser = CharacterSynthesiser(fonts, rows, letters, severity=0.2)
    vectors, missing = [], []
    for index, row in enumerate(rows):
        usable = [lang for drawn, lang in synthesiser.drawable if drawn == index]
        if not usable:
            missing.append(row)
            continue
        drawn = [synthesiser.crop(index, usable[number % len(usable)], SEED, number).image for number in range(crops)]
        pixels = to_device({"pixel_values": torch.from_numpy(np.stack(drawn)[:, None])}, model.device)["pixel_values"]
        vectors.append(model.get_image_features(pixels).mean(0))
    size = model.config.projection_dim
    return (torch.stack(vectors) if vectors else torch.empty(0, size)), missing


if __name__ == "__main__":
    main()
