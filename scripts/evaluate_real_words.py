"""Scores a checkpoint on photographed words, beside Tesseract on the same images.

    python scripts/evaluate_real_words.py dev.jsonl report.jsonl --model FOLDER --tesseract

The model is not told the language; Tesseract is, and gets the best of three page segmentation modes for each.
One table comes out: each manifest apart, then all together; a single photograph gives no interval.
"""

import argparse
import json
import os
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from math import isnan
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tqdm.auto import tqdm
from transformers import AutoModel, AutoProcessor

import mstr_hf  # noqa: F401  (registers the Auto classes)
from mstr_hf.data.manifest import Record, read_manifest
from mstr_hf.evaluation.metrics import (
    Score,
    crr,
    crr_per_word,
    graphemes,
    script_accuracy,
    wrr,
    wrr_alphanumeric,
)

TESSERACT_LANGUAGES = {"en": "eng", "hi": "hin", "bn": "ben", "ta": "tam", "te": "tel", "ar": "ara"}
TESSERACT_MODES = (7, 8, 13)  # one line, one word, one line without layout analysis
BATCH_SIZE = 32

Metric = Callable[[Sequence[str], Sequence[str]], Score]
Figure = dict[str, float | None]  # value, low, high
Row = dict[str, Any]


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("manifests", nargs="+", type=Path, metavar="MANIFEST")
    parser.add_argument("--model", required=True, help="checkpoint folder or Hub repository")
    parser.add_argument("--spotter-only", action="store_true", help="read with the Spotter alone")
    parser.add_argument("--tesseract", action="store_true", help="read the images with Tesseract 5 too")
    parser.add_argument("--tesseract-cache", type=Path, metavar="FILE", help="keep Tesseract's readings here")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write .json (every figure) or Markdown")
    arguments = parser.parse_args()
    names = [manifest.stem for manifest in arguments.manifests]
    if len(set(names)) < len(names):
        parser.error("two manifests of one name; rename one")
    if arguments.tesseract and not shutil.which("tesseract"):
        parser.error("no tesseract on this machine; install tesseract-ocr and its languages")

    try:
        manifests = [read_manifest(manifest) for manifest in arguments.manifests]
    except (OSError, ValueError) as error:
        parser.error(str(error))
    model = AutoModel.from_pretrained(arguments.model).eval()
    processor = AutoProcessor.from_pretrained(arguments.model)
    known = languages(processor)
    splits: dict[str, list[Record]] = {}
    skipped: Counter[str] = Counter()
    for name, records in zip(names, manifests, strict=True):
        splits[name] = [record for record in records if record.lang in known]
        skipped.update(record.lang for record in records if record.lang not in known)
    records = [record for split in splits.values() for record in split]
    if not records:
        parser.error(f"no image in a language of this model ({', '.join(known)})")

    start = time.perf_counter()
    readings = read(model, processor, records, arguments.spotter_only)
    seconds = {"model": time.perf_counter() - start}
    readers = {"Spotter": [reading["spotter_text"] for reading in readings]}
    if not arguments.spotter_only:
        readers["Refiner"] = [reading["text"] for reading in readings]
    modes: dict[str, int] = {}
    if arguments.tesseract:
        start = time.perf_counter()
        readers["Tesseract"], modes = read_with_tesseract(records, arguments.tesseract_cache)
        seconds["tesseract"] = time.perf_counter() - start

    report = {
        "model": str(arguments.model),
        "rows": score(splits, readers, known),
        "skipped": dict(skipped),
        "seconds": seconds,
        "tesseract_modes": modes,
    }
    text = markdown(report)
    print(text)
    if arguments.output:
        if arguments.output.suffix == ".json":
            text = json.dumps(report, indent=1)
        arguments.output.write_text(text + "\n", encoding="utf-8")


def languages(processor: Any) -> list[str]:
    """Returns the languages of a checkpoint, in the order of its tokenizer."""
    vocabulary = processor.tokenizer.get_vocab()
    return [token[6:-1] for token in sorted(vocabulary, key=vocabulary.get) if token.startswith("<lang=")]


def read(model: Any, processor: Any, records: Sequence[Record], spotter_only: bool) -> list[dict[str, Any]]:
    """Reads the images of records, similar widths together because a batch is as wide as its widest image."""
    order = sorted(range(len(records)), key=lambda index: _aspect(records[index].path))
    readings: dict[int, dict[str, Any]] = {}
    for start in tqdm(range(0, len(order), BATCH_SIZE), desc="model", unit="batch"):
        batch = order[start : start + BATCH_SIZE]
        images = [Image.open(records[index].path) for index in batch]
        inputs = processor(images=images, return_tensors="pt")
        results = spot(model, processor, inputs) if spotter_only else model.recognise(**inputs)
        readings.update(zip(batch, results, strict=True))
    return [readings[index] for index in range(len(records))]


def spot(model: Any, processor: Any, inputs: Any) -> list[dict[str, Any]]:
    """Reads a batch with the Spotter alone: the model itself, or the one inside a Refiner."""
    with torch.inference_mode():
        ids = getattr(model, "spotter", model)(**inputs).top_k_ids[..., 0]
    return [{"spotter_text": text} for text in processor.batch_decode(ids, skip_special_tokens=True)]


def read_with_tesseract(
    records: Sequence[Record], cache_file: Path | None
) -> tuple[list[str], dict[str, int]]:
    """Reads the images of records with Tesseract, told the language.

    Args:
        records: What to read.
        cache_file: Where readings are kept between runs.

    Returns:
        The readings in order, and the page segmentation mode of each language: the one that reads most words
        right.
    """
    cache: dict[str, str] = {}
    if cache_file and cache_file.exists():
        cache = json.loads(cache_file.read_text(encoding="utf-8"))

    def read_one(job: tuple[Record, int]) -> str:
        record, mode = job
        language = TESSERACT_LANGUAGES[record.lang]
        key = f"{record.id} {language} {mode}"
        if key not in cache:
            cache[key] = tesseract(record.path, language, mode)
        return cache[key]

    jobs = [(record, mode) for record in records for mode in TESSERACT_MODES]
    try:
        with ThreadPoolExecutor(2) as pool:
            texts = list(tqdm(pool.map(read_one, jobs), total=len(jobs), desc="tesseract", unit="reading"))
    finally:
        if cache_file:
            cache_file.write_text(json.dumps(cache, ensure_ascii=False, indent=0), encoding="utf-8")

    readings = [""] * len(records)
    modes = {}
    for lang in dict.fromkeys(record.lang for record in records):
        places = [index for index, record in enumerate(records) if record.lang == lang]
        references = [records[index].text for index in places]
        by_mode = {
            mode: [texts[index * len(TESSERACT_MODES) + offset] for index in places]
            for offset, mode in enumerate(TESSERACT_MODES)
        }
        modes[lang] = max(by_mode, key=lambda mode: wrr(by_mode[mode], references).value)
        for index, text in zip(places, by_mode[modes[lang]], strict=True):
            readings[index] = text
    return readings, modes


def tesseract(image: Path, language: str, mode: int) -> str:
    """Returns what Tesseract reads in an image file.

    Raises:
        RuntimeError: If Tesseract fails, for instance because the language is not installed.
    """
    # One thread a process: its own threads slow it down on single words.
    process = subprocess.run(
        ["tesseract", str(image), "stdout", "-l", language, "--psm", str(mode)],
        capture_output=True,
        check=False,
        encoding="utf-8",
        env=os.environ | {"OMP_THREAD_LIMIT": "1"},
    )
    if process.returncode:
        reason = process.stderr.strip().splitlines()[-1:]
        raise RuntimeError(
            f"{image}: tesseract failed ({''.join(reason)}); is tesseract-ocr-{language} installed?"
        )
    return process.stdout.strip()


def score(splits: dict[str, list[Record]], readers: dict[str, list[str]], known: Sequence[str]) -> list[Row]:
    """Scores each reader for each language of each split, and of all splits together.

    Args:
        splits: Records by the name of their manifest.
        readers: What each reader read, over the records of all splits in order.
        known: The languages, in the order wanted.

    Returns:
        Rows `{split, words, n, readers: {name: {metric: {value, low, high}}}}`, where `words` is a language
        or `all`, with `mended` and `broken`: words that only the Refiner or only the Spotter reads right.
    """
    records = [record for split in splits.values() for record in split]
    split_of = [name for name, split in splits.items() for _ in split]
    rows = []
    for split in [*splits, "together"] if len(splits) > 1 else splits:
        for words in [*known, "all"]:
            places = [
                index
                for index, record in enumerate(records)
                if split in (split_of[index], "together") and words in (record.lang, "all")
            ]
            if places:
                rows.append(_row(split, words, [records[index] for index in places], readers, places))
    return rows


def _row(
    split: str, words: str, records: Sequence[Record], readers: dict[str, list[str]], places: Sequence[int]
) -> Row:
    metrics: dict[str, Metric] = {
        "wrr": wrr,
        "crr": crr,
        "crr_per_word": crr_per_word,
        "script_accuracy": script_accuracy,
        "wrr_without_joiners": lambda read, true: wrr(read, true, keep=""),
        "crr_without_joiners": lambda read, true: crr(read, true, keep=""),
    }
    if words == "en":
        metrics["wrr_alphanumeric"] = wrr_alphanumeric
    if find_spec("regex"):
        metrics["crr_graphemes"] = lambda read, true: crr(read, true, units=graphemes)
    references = [record.text for record in records]
    photos = [record.photo for record in records]
    figures: dict[str, dict[str, Figure]] = {}
    correct = {}
    for name, texts in readers.items():
        predictions = [texts[place] for place in places]
        scores = {metric: compute(predictions, references) for metric, compute in metrics.items()}
        figures[name] = {
            metric: _figure(score.value, *score.interval(photos)) for metric, score in scores.items()
        }
        correct[name] = scores["wrr"].parts
    row: Row = {"split": split, "words": words, "n": len(records), "readers": figures}
    if "Refiner" in readers:
        change = correct["Refiner"] - correct["Spotter"]
        row["mended"], row["broken"] = int((change > 0).sum()), int((change < 0).sum())
    return row


def markdown(report: dict[str, Any]) -> str:
    """Lays a report out as one table with a few lines under it."""
    rows: list[Row] = report["rows"]
    readers = list(rows[0]["readers"])
    refined = "mended" in rows[0]
    header = ["split", "words", "n"]
    header += [f"{reader} {column}" for reader in readers for column in ("WRR", "CRR", "script")]
    header += ["mended / broken"] * refined
    lines = [header, ["---"] * 2 + ["--:"] * (len(header) - 2)]
    for row in rows:
        figures = [row["readers"][reader] for reader in readers]
        variants = [("", "wrr", "crr", "script_accuracy")]
        if row["words"] == "en":
            variants.append((", case-insensitive alphanumeric", "wrr_alphanumeric", "", ""))
        if any(figure["wrr"] != figure["wrr_without_joiners"] for figure in figures):
            variants.append((", joiners dropped", "wrr_without_joiners", "crr_without_joiners", ""))
        for suffix, words, characters, script in variants:
            line = [row["split"], row["words"] + suffix, str(row["n"])]
            for figure in figures:
                line += [
                    _interval(figure[words]),
                    _percent(figure.get(characters)),
                    _percent(figure.get(script)),
                ]
            change = f"{row['mended']} / {row['broken']}" if refined and not suffix else ""
            lines.append(line + [change] * refined)
    text = ["| " + " | ".join(line) + " |" for line in lines]
    text += ["", "Per cent; WRR with its 95% interval by photograph; script over words with a letter."]
    if report["skipped"]:
        counts = ", ".join(f"{lang} {count}" for lang, count in report["skipped"].items())
        text.append(f"Skipped, no language of this model: {counts}.")
    if report["tesseract_modes"]:
        modes = ", ".join(f"{lang} {mode}" for lang, mode in report["tesseract_modes"].items())
        text.append(
            f"Tesseract's page segmentation mode: {modes}; readings kept from an earlier run took no time."
        )
    seconds = ", ".join(f"{name} {value:.1f}" for name, value in report["seconds"].items())
    text.append(f"Seconds: {seconds}.")
    return "\n".join(text)


def _aspect(path: Path) -> float:
    with Image.open(path) as image:
        return image.width / image.height


def _figure(value: float, low: float, high: float) -> Figure:
    """Names the three; NaN becomes None, which JSON can say."""
    return {
        name: None if isnan(number) else number
        for name, number in (("value", value), ("low", low), ("high", high))
    }


def _percent(figure: Figure | None) -> str:
    if figure is None:
        return ""
    return "-" if figure["value"] is None else f"{100 * figure['value']:.1f}"


def _interval(figure: Figure) -> str:
    if figure["low"] is None or figure["high"] is None:
        return _percent(figure)
    return f"{_percent(figure)} ({100 * figure['low']:.0f}-{100 * figure['high']:.0f})"


if __name__ == "__main__":
    main()
