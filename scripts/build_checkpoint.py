"""Lays out what is published as its Hub repository: weights, bank, processor, remote code, samples and card.

    python scripts/build_checkpoint.py --refiner runs/refiner/final --results metrics.json \
        --output mstr_hf/pretrained/refiner-6lang --golden tests/golden/refiner-6lang.json

Calibrate first (scripts/calibrate.py), then evaluate: `mstr evaluate` writes the results, metrics.json. The other
repositories of the family are made likewise, the first two of a Refiner too:

    --spotter runs/refiner/final --results metrics.json --output build/spotter-6lang
    --bank runs/refiner/final --output build/prototype-bank-6lang
    --mclip runs/mclip/final --output build/mclip-6lang
    --metrics mstr_hf/evaluation --output build/metrics
    --demo --output build/demo

Models are stored in float16, and load in float32.

The card is model_cards/NAME.md, where NAME is the output folder's; where there is no such file, models get a plain one
and all else none. The results are kept in eval_results.json: with them and the folder itself as the source, its card is
written anew.
"""

import argparse
import ast
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoModel, AutoProcessor
from transformers.utils import SAFE_WEIGHTS_NAME

import mstr_hf
from mstr_hf.charsets import load_charset, load_charsets
from mstr_hf.data.manifest import read_manifest
from mstr_hf.hub.card import fill_card
from mstr_hf.hub.publish import SAMPLES, assemble
from mstr_hf.models.modeling_mclip import MCLIPModel
from mstr_hf.models.modeling_refiner import RefinerModel
from mstr_hf.models.prototype_bank import PrototypeBank
from mstr_hf.vocabulary import build_vocabulary

CARDS = Path(__file__).parents[1] / "model_cards"
MANIFEST = SAMPLES / "labels.jsonl"

# Gradio itself is installed by the Space, in the version of the card: the one that the page was tested with.
DEMO_SDK_VERSION = "6.31.0"
DEMO_REQUIREMENTS = "torch>=2.6,<3\ntransformers>=5.17,<6\n"


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--refiner", help="folder of the trained Refiner")
    source.add_argument("--spotter", help="folder of a trained Spotter, or of a Refiner that contains it")
    source.add_argument("--bank", help="folder that has a prototype bank")
    source.add_argument("--mclip", help="folder of the trained mCLIP")
    source.add_argument("--metrics", type=Path, help="folder with a folder for each metric")
    source.add_argument("--demo", action="store_true", help="the demo page")
    parser.add_argument("--languages", default="en,hi,bn,ta,te,ar", help="what the mCLIP was trained on, in order")
    parser.add_argument("--results", type=Path, help="figures for the card: the evaluation's JSON, or mCLIP's metrics")
    parser.add_argument("--repo_id", help="the repository's name; mstr/ and the output folder's by default")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--golden", type=Path, help="file for a Refiner's readings of the samples, for tests")
    args = parser.parse_args()
    if (args.refiner or args.spotter) and not args.results:
        parser.error("--results: a reader's card needs its figures: metrics.json, which `mstr evaluate` writes")

    repo_id = args.repo_id or f"mstr/{args.output.name}"
    results = json.loads(args.results.read_text(encoding="utf-8")) if args.results else None
    filled: dict[str, Any] = {}
    if args.metrics:
        filled["places"] = copy_metrics(args.metrics, args.output)
    elif args.demo:
        args.output.mkdir(parents=True, exist_ok=True)
        shutil.copy(Path(mstr_hf.__file__).parent / "hub" / "demo.py", args.output / "app.py")
        (args.output / "requirements.txt").write_text(DEMO_REQUIREMENTS)
        filled["places"] = {"sdk_version": DEMO_SDK_VERSION}
    elif args.bank:
        bank = PrototypeBank.from_pretrained(args.bank)
        bank.save_pretrained(args.output)
        filled["places"] = describe_bank(bank)
    elif args.mclip:
        vocabulary = build_vocabulary(load_charsets(args.languages.split(",")))
        mclip = MCLIPModel.from_pretrained(args.mclip, dtype=torch.float32)
        assemble(mclip, args.output, vocabulary, repo_id)
        store_in_half(args.output / SAFE_WEIGHTS_NAME)
        filled["places"] = {
            "parameters": f"{mclip.num_parameters() / 1e6:.1f}",
            "rows": str(len(vocabulary.rows)),
            "retrieval": describe_retrieval(results),
        }
    else:
        model = AutoModel.from_pretrained(args.refiner or args.spotter, dtype=torch.float32)
        if args.spotter and isinstance(model, RefinerModel):
            model = model.spotter
        assemble(model, args.output, repo_id=repo_id)
        store_in_half(args.output / SAFE_WEIGHTS_NAME)
        filled = {
            "places": {"parameters": f"{model.num_parameters() / 1e6:.1f}"},
            "report": results,
            "reader": "Spotter" if args.spotter else "Refiner",
            "samples": [(record.lang, f"samples/{record.path.name}") for record in first_samples()],
        }
    write_card(args.output, repo_id, **filled)
    if results:
        # Of an evaluation, the figures alone: the rest has the paths of images.
        kept = {"rows": results["rows"]} if "rows" in results else results
        text = json.dumps(kept, indent=1)
        (args.output / "eval_results.json").write_text(text + "\n", encoding="utf-8")
    if args.golden:
        args.golden.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(read_samples(args.output), ensure_ascii=False, indent=1)
        args.golden.write_text(text + "\n", encoding="utf-8")


def store_in_half(weights: Path) -> None:
    """Halves a file of weights, which load in float32 all the same, as the configuration says.

    Rounding them to float16 moves a score by less than 0.001. The bank's rows are kept, for its digest.

    Raises:
        ValueError: If a weight is too large for float16.
    """
    with safe_open(weights, "pt") as file:
        metadata, names = file.metadata(), list(file.keys())
        tensors = {name: file.get_tensor(name) for name in names}
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not name.endswith("prototypes"):
            tensors[name] = tensor.half()
            if not tensors[name].isfinite().all():
                raise ValueError(f"{weights}: {name} has values that float16 has not: is the training sound?")
    partial = weights.with_suffix(".partial")  # the file itself may still be mapped
    save_file(tensors, partial, metadata)
    partial.replace(weights)


def write_card(output: Path, repo_id: str, places: dict[str, str], **filled: Any) -> None:
    """Writes the card and the licence; what several cards share lies in files whose names begin with "_"."""
    shutil.copy(CARDS.parent / "LICENSE", output)
    template = CARDS / f"{output.name}.md"
    if template.exists():
        shared = {path.stem[1:]: path.read_text(encoding="utf-8").rstrip() for path in CARDS.glob("_*.md")}
        card = fill_card(template.read_text(encoding="utf-8"), repo_id, {**shared, **places}, **filled)
        (output / "README.md").write_text(card, encoding="utf-8")


def describe_bank(bank: PrototypeBank) -> dict[str, str]:
    """What a bank's card says of it."""
    counts = {lang: int(bank.language_mask([lang]).sum()) for lang in bank.all_languages}
    return {
        "rows": str(len(bank)),
        "dimensions": str(bank.prototypes.shape[1]),
        "languages": "\n".join(f"| {load_charset(lang).name} | {count} |" for lang, count in counts.items()),
        "digest": bank.digest(),
        "mclip_revision": bank.mclip_revision or "unknown",
    }


def describe_retrieval(figures: dict[str, float] | None) -> str:
    """What an mCLIP's card says of its figures, as its trainer logs them."""
    if figures is None:
        return "These weights have no figures yet."
    return (
        "Of crops in held-out fonts, {top1:.1%} have the right row nearest among all rows, and {top1_in_language:.1%} "
        "among those of their language; of letters {top1_letters:.1%} among all rows, of digits {top1_digits:.1%}, of "
        "combining marks {top1_diacritics:.1%}."
    ).format_map(figures)


def copy_metrics(source: Path, output: Path) -> dict[str, str]:
    """Copies the folders of metrics, with what their links point to; returns what the card says of them."""
    lines = []
    for module in sorted(source.glob("*/*.py")):
        name = module.parent.name
        if module.stem == name:
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(module.parent, output / name, ignore=ignored, dirs_exist_ok=True)
            described = ast.get_docstring(ast.parse(module.read_text(encoding="utf-8"))) or ""
            lines.append(f"| [{name}]({name}/README.md) | {' '.join(described.split())} |")
    if not lines:
        raise SystemExit(f"--metrics {source}: no metrics in it: name a folder with NAME/NAME.py")
    return {"modules": "\n".join(lines)}


def first_samples() -> list[Any]:
    """The first sample of each language."""
    return list({record.lang: record for record in reversed(read_manifest(MANIFEST))}.values())[::-1]


def read_samples(checkpoint: Path) -> dict[str, dict[str, str | float]]:
    """What the checkpoint reads in the bundled samples: text and score by file name."""
    model = AutoModel.from_pretrained(checkpoint).eval()
    processor = AutoProcessor.from_pretrained(checkpoint)
    records = read_manifest(MANIFEST)
    inputs = processor(images=[record.path for record in records], return_tensors="pt")
    return {
        record.path.name: {"text": reading["text"], "score": round(reading["score"], 6)}
        for record, reading in zip(records, model.recognise(**inputs), strict=True)
    }


if __name__ == "__main__":
    main()
