"""`mstr evaluate`: reads the images of manifests, scores the readings and reports, in any number of processes.

A batch holds the same images however many processes share the batches, so that they read the same. Each process keeps
what it has read in a journal; a killed evaluation that is started again reads only what is left.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from PIL import Image
from tqdm.auto import tqdm

from mstr_hf import models
from mstr_hf.data.manifest import Record, read_manifest
from mstr_hf.models.image_processing_mstr import load_image
from mstr_hf.models.modeling_refiner import RefinerModel
from mstr_hf.models.processing_mstr import MSTRProcessor
from mstr_hf.models.text import normalise
from mstr_hf.onnx_runtime import OnnxRefiner

from . import tables
from .metrics import wrr
from .peers import Peer, load_peers
from .report import html
from .tables import Word

Entry = dict[str, Any]

_DIGITS = 6  # of scores; beyond them lie differences between processors


class EvaluationError(ValueError):
    """What keeps an evaluation from being done; the message is one line for the user."""


def processes() -> Accelerator:
    """The processes that share the work, and the device of this one."""
    # One process may have to wait for another's peers for hours.
    return Accelerator(kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(days=7))])


def evaluate(
    model: RefinerModel,
    processor: MSTRProcessor,
    name: str,
    manifests: Sequence[Path],
    output: Path,
    peers: Sequence[str] = (),
    num_alternatives: int = 3,
    batch_size: int = 32,
) -> dict[str, Any]:
    """Reads the images of manifests and writes `predictions.jsonl`, `metrics.json`, `report.md` and `report.html`.

    The model is not told the language; peers are. Words in languages that the model does not know are left out, and so
    are images that cannot be read; both are reported.

    Args:
        model: The model, on its device.
        processor: Its processor.
        name: What the report calls the model.
        manifests: Files as in `read_manifest`, of different names.
        output: Folder for the files, and for the journals of a run that is not complete.
        peers: Other readers (see `mstr_hf.evaluation.peers.load_peers`); those that are missing are left out.
        num_alternatives: Next best readings to note for each word. They are looked for apart from the reading itself,
            which takes longer than reading; 0 saves that.
        batch_size: Images a batch.

    Returns:
        The content of `metrics.json`: `model`, `rows` by language and manifest, `datasets`, `scripts`, `lengths`,
        `calibration`, `peers`, `missing_peers`, `skipped` (words of each unknown language) and `unreadable`.

    Raises:
        EvaluationError: If a manifest is malformed, nothing can be scored, or the folder holds an evaluation of
            something else.
        RuntimeError: If a peer fails.
    """
    state = processes()
    records, skipped = _records(manifests, model.get_bank().all_languages)
    try:
        readers, missing = load_peers(peers)
    except ValueError as error:
        raise EvaluationError(str(error)) from None
    settings = {
        "model": model_digest(model),
        "processor": hashlib.sha256(processor.image_processor.to_json_string().encode()).hexdigest(),
        "code": _code_digest(),
        "manifests": {path.stem: hashlib.sha256(path.read_bytes()).hexdigest() for path in manifests},
        "num_alternatives": num_alternatives,
        "batch_size": batch_size,
    }
    with state.main_process_first():
        _check_settings(output, settings)

    entries = _read(state, model, processor, records, output / "journal" / "model", num_alternatives, batch_size)
    readable = {key: record for key, record in records.items() if "error" not in entries[key]}
    if not readable:
        raise EvaluationError(f"no image can be read, for instance {next(iter(entries.values()))['error']}")
    texts: dict[str, dict[Key, str | None]] = {}
    peer_notes = []
    for reader in readers:
        texts[reader.name], variants = _read_with_peer(state, reader, readable, output / "journal")
        peer_notes.append({"name": reader.name, "version": reader.version, "variants": variants})
    words = [
        Word(
            split=key[0],
            id=record.id,
            image=Path(os.path.relpath(record.path, manifest.parent)).as_posix(),
            lang=record.lang,
            dataset=record.dataset,
            photo=record.photo,
            reference=record.text,
            peers={peer: readings[key] for peer, readings in texts.items()},
            **entries[key],
        )
        for manifest in manifests
        for key, record in readable.items()
        if key[0] == manifest.stem
    ]
    report = {
        "model": name,
        "rows": tables.language_rows(words, model.get_bank().all_languages),
        "datasets": tables.dataset_rows(words),
        "scripts": tables.script_rows(words),
        "lengths": tables.length_rows(words),
        "calibration": _calibration(words),
        "peers": peer_notes,
        "missing_peers": missing,
        "skipped": dict(skipped),
        "unreadable": [
            {"split": split, "id": name, "reason": entry["error"]}
            for (split, name), entry in entries.items()
            if "error" in entry
        ],
    }
    if state.is_main_process:
        lines = (json.dumps(asdict(word), ensure_ascii=False) for word in words)
        _write(output / "predictions.jsonl", "".join(f"{line}\n" for line in lines))
        _write(output / "metrics.json", json.dumps(report, ensure_ascii=False, indent=1) + "\n")
        _write(output / "report.md", tables.markdown(report))
        _write(output / "report.html", html(report, words, [readable[word.split, word.id].path for word in words]))
    state.wait_for_everyone()
    return report


Key = tuple[str, str]
"""Name of the manifest, id of the image."""


def _records(manifests: Sequence[Path], languages: Sequence[str]) -> tuple[dict[Key, Record], Counter[str]]:
    """The records in the model's languages, and how many there are of each other language."""
    names = [manifest.stem for manifest in manifests]
    if len(set(names)) < len(names):
        raise EvaluationError(f"two manifests are called {Counter(names).most_common(1)[0][0]}: rename one")
    if "together" in names:
        raise EvaluationError("a manifest is called together, which stands for all of them: rename it")
    records, skipped = {}, Counter[str]()
    for manifest in manifests:
        try:
            found = read_manifest(manifest)
        except (OSError, ValueError) as error:
            raise EvaluationError(str(error)) from None
        for record in found:
            if record.lang not in languages:
                skipped[record.lang] += 1
            elif not normalise(record.text):
                raise EvaluationError(f"{manifest}: {record.id}: field 'gt_text': no character with ink; leave it out")
            else:
                records[manifest.stem, record.id] = record
    if not records:
        raise EvaluationError(f"no image in a language of this model ({', '.join(languages)})")
    return records, skipped


def model_digest(model: RefinerModel) -> str:
    """SHA-256 of weights, bank and settings."""
    digest = hashlib.sha256()
    config = {key: value for key, value in model.config.to_dict().items() if not key.startswith(("_", "transformers"))}
    digest.update(json.dumps(config, sort_keys=True, default=str).encode())
    if isinstance(model, OnnxRefiner):
        digest.update(model.digest().encode())
        return digest.hexdigest()
    for key, tensor in sorted(model.state_dict().items()):
        digest.update(key.encode() + tensor.detach().cpu().float().numpy().tobytes())
    return digest.hexdigest()


def _code_digest() -> str:
    """SHA-256 of the code that reads."""
    files = sorted(Path(models.__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def _check_settings(output: Path, settings: dict[str, Any]) -> None:
    file = output / "journal" / "settings.json"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        _write(file, json.dumps(settings, indent=1) + "\n")
    elif (found := json.loads(file.read_text(encoding="utf-8"))) != settings:
        changed = ", ".join(key for key in settings if found.get(key) != settings[key])
        raise EvaluationError(f"{output} holds an evaluation with another {changed}: name another folder, or delete it")


class _Journal:
    """What has been read, by key, in files that are only added to: one a process."""

    def __init__(self, folder: Path, state: Accelerator):
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._own = folder / f"{state.process_index}.jsonl"

    def entries(self) -> dict[tuple[str, ...], Any]:
        """Everything that any process has noted."""
        found = {}
        for file in sorted(self._folder.glob("*.jsonl")):
            # A kill may have cut a line short, also within a character.
            for line in file.read_text(encoding="utf-8", errors="replace").split("\n"):
                try:
                    key, value = json.loads(line)
                except ValueError:  # such a line, or nothing behind the last one
                    continue
                # What one process failed to read, another may have read since.
                if not (isinstance(value, dict) and "error" in value and tuple(key) in found):
                    found[tuple(key)] = value
        return found

    def note(self, entries: Iterable[tuple[tuple[str, ...], Any]]) -> None:
        """Adds what a batch gave, in one step."""
        lines = "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries)
        with self._own.open("a", encoding="utf-8") as file:
            # The line break ends a line that a kill may have cut short.
            file.write("\n" + lines if file.tell() else lines)


def _read(
    state: Accelerator,
    model: RefinerModel,
    processor: MSTRProcessor,
    records: dict[Key, Record],
    folder: Path,
    num_alternatives: int,
    batch_size: int,
) -> dict[Key, Entry]:
    """What the model reads in each image, or `error`: why it cannot be read."""
    journal = _Journal(folder, state)
    done = journal.entries()
    places = _places(records)
    # Similar widths together because a batch is as wide as its widest image.
    order = sorted(records, key=lambda key: _ratio(records[key].path))
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    mine = batches[state.process_index :: state.num_processes]
    for batch in tqdm(mine, desc="model", unit="batch", disable=not state.is_main_process):
        # What could not be read is tried again: it may have been mended.
        if all("error" not in done.get(places[key], {"error": "not read yet"}) for key in batch):
            continue
        entries = _read_batch(model, processor, {key: records[key] for key in batch}, num_alternatives)
        journal.note((places[key], entry) for key, entry in entries.items())
    state.wait_for_everyone()
    done = journal.entries()
    return {key: done[places[key]] for key in records}


def _places(records: dict[Key, Record]) -> dict[Key, tuple[str, ...]]:
    """Where the journals have what is read in each image: another place if its file was replaced since."""
    places: dict[Key, tuple[str, ...]] = {}
    for key, record in records.items():
        try:
            file = record.path.stat()
            places[key] = (*key, f"{file.st_size} {file.st_mtime_ns}")
        except OSError:  # which `load_image` will report
            places[key] = (*key, "")
    return places


def _read_batch(
    model: RefinerModel, processor: MSTRProcessor, records: dict[Key, Record], num_alternatives: int
) -> dict[Key, Entry]:
    entries: dict[Key, Entry] = {}
    images = {}
    for key, record in records.items():
        try:
            images[key] = load_image(record.path)
        except ValueError as error:
            entries[key] = {"error": str(error)}
    if not images:
        return entries
    inputs = processor(images=list(images.values()), return_tensors="pt").to(model.device)
    readings = model.recognise(**inputs)
    # Looking for alternatives refines every word, with more beams, and may read otherwise: it does not count.
    others = model.recognise(**inputs, num_alternatives=num_alternatives) if num_alternatives else readings
    for key, reading, other in zip(images, readings, others, strict=True):
        candidates = [other, *other["alternatives"]] if num_alternatives else []
        entries[key] = {
            "reading": reading["text"],
            "confidence": round(reading["score"], _DIGITS),
            "script": reading["script"],
            "characters": [
                {"char": character["char"], "score": round(character["score"], _DIGITS)}
                for character in reading["characters"]
            ],
            "alternatives": [
                {"text": candidate["text"], "score": round(candidate["score"], _DIGITS)}
                for candidate in candidates
                if candidate["text"] != reading["text"]
            ][:num_alternatives],
            "spotter": reading["spotter_text"],
        }
    return entries


def _read_with_peer(
    state: Accelerator, peer: Peer, records: dict[Key, Record], folder: Path
) -> tuple[dict[Key, str | None], dict[str, str]]:
    """What a peer reads, and which of its variants each language got: the one that reads most words right."""
    journal = _Journal(folder / f"{peer.name} {peer.version}".replace(os.sep, "-"), state)
    by_language: dict[str, list[Key]] = {}
    for key, record in records.items():
        if record.lang in peer.languages:
            by_language.setdefault(record.lang, []).append(key)
    jobs = [
        (lang, variant, keys[start : start + 32])
        for lang, keys in by_language.items()
        for variant in peer.variants
        for start in range(0, len(keys), 32)
    ]
    done = journal.entries()
    places = _places(records)
    mine = jobs[state.process_index :: state.num_processes]
    for lang, variant, keys in tqdm(mine, desc=peer.name, unit="batch", disable=not state.is_main_process):
        if not all((*places[key], variant) in done for key in keys):
            texts = peer.read([records[key].path for key in keys], lang, variant)
            journal.note(((*places[key], variant), text) for key, text in zip(keys, texts, strict=True))
    state.wait_for_everyone()
    done = journal.entries()
    readings: dict[Key, str | None] = dict.fromkeys(records)
    variants = {}
    for lang, keys in by_language.items():
        references = [records[key].text for key in keys]
        rates = {
            variant: wrr([done[(*places[key], variant)] for key in keys], references).value for variant in peer.variants
        }
        variants[lang] = max(rates, key=lambda variant: rates[variant])
        readings.update((key, done[(*places[key], variants[lang])]) for key in keys)
    return readings, variants


def _calibration(words: Sequence[Word]) -> dict[str, Any]:
    curve = tables.calibration_of(words)
    return {
        "error": tables.figure(curve, [tables.photo_of(word) for word in words]),
        "bins": [
            {"n": count, "confidence": round(confidence, _DIGITS), "correct": round(right, _DIGITS)}
            for count, confidence, right in curve.curve
            if count
        ],
    }


def _ratio(path: Path) -> float:
    """Returns width / height as the file's header has them, 0 if it cannot be read."""
    try:
        with Image.open(path) as image:
            return image.width / image.height
    except Exception:  # What is wrong, `load_image` will say.
        return 0


def _write(file: Path, text: str) -> None:
    """Writes a file in one step, so that a kill leaves none half done."""
    partial = file.with_name(file.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(file)
