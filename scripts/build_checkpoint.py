"""Lays a trained Refiner out as its Hub repository: weights, bank, processor, remote code and card.

    python scripts/build_checkpoint.py --refiner runs/refiner/final --results results.json \
        --output mstr_hf/pretrained/refiner-6lang --golden tests/golden/refiner-6lang.json

Calibrate first (scripts/calibrate.py), then evaluate (scripts/evaluate_real_words.py --output results.json).
"""

import argparse
import json
from pathlib import Path

import torch
from transformers import AutoModel, AutoProcessor

from mstr_hf.data.manifest import read_manifest
from mstr_hf.hub.cache import CHECKPOINT
from mstr_hf.hub.card import fill_card
from mstr_hf.hub.publish import assemble
from mstr_hf.models.modeling_refiner import RefinerModel

CARDS = Path(__file__).parents[1] / "model_cards"
SAMPLES = CHECKPOINT.parent / "samples" / "labels.jsonl"


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--refiner", required=True, help="folder of the trained Refiner")
    parser.add_argument("--results", type=Path, required=True, help="the evaluation's JSON, for the card")
    parser.add_argument(
        "--output", type=Path, required=True, help="folder to write; its card is model_cards/NAME.md"
    )
    parser.add_argument("--golden", type=Path, help="file for the readings of the samples, for tests")
    args = parser.parse_args()

    model = RefinerModel.from_pretrained(args.refiner, dtype=torch.float32)
    template = (CARDS / f"{args.output.name}.md").read_text(encoding="utf-8")
    report = json.loads(args.results.read_text(encoding="utf-8"))
    card = fill_card(template, model.num_parameters(), report)
    assemble(model, args.output)
    (args.output / "README.md").write_text(card, encoding="utf-8")
    if args.golden:
        args.golden.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(read_samples(args.output), ensure_ascii=False, indent=1)
        args.golden.write_text(text + "\n", encoding="utf-8")


def read_samples(checkpoint: Path) -> dict[str, dict[str, str | float]]:
    """What the checkpoint reads in the bundled samples: text and score by file name."""
    model = AutoModel.from_pretrained(checkpoint).eval()
    processor = AutoProcessor.from_pretrained(checkpoint)
    records = read_manifest(SAMPLES)
    inputs = processor(images=[record.path for record in records], return_tensors="pt")
    return {
        record.path.name: {"text": reading["text"], "score": round(reading["score"], 6)}
        for record, reading in zip(records, model.recognise(**inputs), strict=True)
    }


if __name__ == "__main__":
    main()
