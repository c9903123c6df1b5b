"""Evaluation sets, each a manifest and its images, from the forms in which collections of words are published."""

import hashlib
import io
import json
import logging
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from mstr_hf.data.arrow import Reject, Totals
from mstr_hf.data.manifest import read_manifest
from mstr_hf.data.records import image_defect
from mstr_hf.reading import visible_files

MLT_LANGUAGES = {
    "Arabic": "ar",
    "Bangla": "bn",
    "Chinese": "zh",
    "Hindi": "hi",
    "Japanese": "ja",
    "Korean": "ko",
    "Latin": "en",
    "Mixed": "mul",
    "None": "und",
    "Symbols": "zxx",
}
"""Language codes of the scripts that MLT names; `mul`, `und` and `zxx` are ISO 639's for several, unknown, none.

Latin words of MLT are English, French, German and Italian, without telling which.
"""

ILLEGIBLE = "marked as illegible"
"""Reason of the rejects that a collection itself sets aside, with the text `###`."""

_PHOTOGRAPHS = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Word:
    """A word image on its way into an evaluation set.

    Attributes:
        id: Name of the image, unique in its set.
        file: Where it goes in the folder `images`, with `/` between the parts; without a suffix it gets one.
        image: Bytes of the image file.
        text: What stands on it, as it was typed.
        lang: Language code.
        photo: The photograph it was cut from, if known.
    """

    id: str
    file: str
    image: bytes
    text: str
    lang: str
    photo: str | None = None


def import_gt(
    source: str | os.PathLike[str], output: str | os.PathLike[str], lang: str, dataset: str | None = None
) -> Totals:
    """Imports word images that a text file lists, one a line: path, tab or comma, text.

    The first line tells the separator. After a comma, a text in double quotes loses them (ICDAR).

    Args:
        source: The text file, in UTF-8; paths are relative to its folder.
        output: Folder of the new evaluation set.
        lang: Language code of all words.
        dataset: Name of the collection; that of the source's folder, if left out.

    Returns:
        What became of the lines.

    Raises:
        ValueError: If the file is not UTF-8 or gives no word, or `output` is there already.
        OSError: If the file cannot be read.
    """
    file = Path(source).absolute()
    lines = [(number, line) for number, line in enumerate(_lines(file), 1) if line.strip()]
    separator = "\t" if lines and "\t" in lines[0][1] else ","

    def words() -> Iterator[Word | Reject]:
        for number, line in lines:
            path, found, text = line.partition(separator)
            if not found:
                yield Reject(f"{file.name}:{number}", "no label", f"no {separator!r} in {line!r}")
                continue
            if separator == ",":
                text = _unquote(text.strip())
            yield _listed_word(file.parent, path.strip(), text, lang)

    return write_evaluation_set(output, words(), dataset or file.parent.name)


def import_labels(
    source: str | os.PathLike[str], output: str | os.PathLike[str], lang: str, dataset: str | None = None
) -> Totals:
    """Imports a folder of word images with a file `labels.json`: an object of paths and texts.

    Args:
        source: The folder; paths are relative to it, or to `images` in it.
        output: Folder of the new evaluation set.
        lang: Language code of all words.
        dataset: Name of the collection; that of the folder, if left out.

    Returns:
        What became of the entries.

    Raises:
        ValueError: If `labels.json` holds anything else or gives no word, or `output` is there already.
        OSError: If it cannot be read.
    """
    folder = Path(source).absolute()
    file = folder / "labels.json"
    try:
        labels = json.loads("\n".join(_lines(file)), object_pairs_hook=_Pairs)
    except json.JSONDecodeError as error:
        raise ValueError(f"{file}:{error.lineno}: not JSON ({error.msg}); correct it") from None
    if not isinstance(labels, _Pairs):
        raise ValueError(f'{file}: not an object; write {{"image.png": "text", ...}}')

    def words() -> Iterator[Word | Reject]:
        for path, text in labels:
            if isinstance(text, str):
                inside = "" if os.path.isfile(folder / path) else "images"
                yield _listed_word(folder / inside, path, text, lang)
            else:
                yield Reject(path, "no label", f"{text!r} is no string")

    return write_evaluation_set(output, words(), dataset or folder.name)


def import_icdar(
    source: str | os.PathLike[str], output: str | os.PathLike[str], lang: str, dataset: str | None = None
) -> Totals:
    """Cuts words out of photographs with ground truth in the form of ICDAR 2015.

    Each photograph `X.jpg` has a text file `gt_X.txt` or `X.txt`, with one word a line: `x1,y1,...,x4,y4,text`,
    clockwise from the word's top left, in the pixels as they are stored. Each word is rectified in perspective.

    Args:
        source: A folder with photographs and text files anywhere inside.
        output: Folder of the new evaluation set.
        lang: Language code of all words.
        dataset: Name of the collection; that of the folder, if left out.

    Returns:
        What became of the lines.

    Raises:
        ValueError: If there is no word, or `output` is there already.
        OSError: If a text file cannot be read.
    """
    root = Path(source).absolute()
    return write_evaluation_set(output, _photographed_words(root, lang), dataset or root.name)


def import_mlt(
    source: str | os.PathLike[str], output: str | os.PathLike[str], dataset: str | None = None
) -> Totals:
    """Cuts words out of the photographs of ICDAR MLT 2017 or 2019.

    As `import_icdar`, with a script before the text: `x1,y1,...,x4,y4,script,text`. It becomes a language code
    by `MLT_LANGUAGES`.
    """
    root = Path(source).absolute()
    return write_evaluation_set(output, _photographed_words(root, None), dataset or root.name)


def import_dataset(
    source: str,
    output: str | os.PathLike[str],
    lang: str | None = None,
    dataset: str | None = None,
    split: str = "test",
    configuration: str | None = None,
    image_column: str = "image",
    text_column: str = "text",
) -> Totals:
    """Imports a split of a data set of the `datasets` library, images byte for byte.

    Args:
        source: A Hub repository, or a folder that `load_from_disk` or `load_dataset` loads.
        output: Folder of the new evaluation set.
        lang: Language code of all words; if left out, a column `lang` has it.
        dataset: Name of the collection; the last part of the source, if left out.
        split: Name of the split.
        configuration: Which of the repository's configurations, where it has several.
        image_column: Column of the images.
        text_column: Column of the texts.

    Returns:
        What became of the rows.

    Raises:
        ValueError: If the source does not load, lacks a column or gives no word, or `output` is there already.
    """
    from datasets import Dataset, Value, load_dataset, load_from_disk
    from datasets import Image as ImageFeature

    try:
        if any((Path(source) / name).is_file() for name in ("dataset_dict.json", "state.json")):
            loaded = load_from_disk(source)
            rows = loaded if isinstance(loaded, Dataset) else loaded[split]
        else:
            rows = load_dataset(source, configuration, split=split)
    except Exception as error:  # A foreign or damaged data set makes the library stumble over anything.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{source}: cannot be loaded by datasets, split {split} ({reason})") from error
    columns = [image_column, text_column] + ["lang"] * (lang is None)
    if missing := [name for name in columns if name not in rows.column_names]:
        raise ValueError(
            f"{source}: no column {', '.join(missing)}; it has {', '.join(rows.column_names)}"
            + ("; or give a language for all rows" if missing == ["lang"] else "")
        )
    rows = rows.select_columns(columns)
    if isinstance(rows.features[image_column], ImageFeature):
        rows = rows.cast_column(image_column, ImageFeature(decode=False))
    elif rows.features[image_column] not in (Value("binary"), Value("large_binary")):
        raise ValueError(f"{source}: column {image_column} is {rows.features[image_column]}, not of images")

    def words() -> Iterator[Word | Reject]:
        for number, row in enumerate(rows):
            id = f"{split}-{number:09d}"
            image, text, code = row[image_column], row[text_column], lang or row["lang"]
            if not isinstance(text, str) or not isinstance(code, str) or not code.strip():
                yield Reject(id, "no label", f"text {text!r}, language {code!r}")
                continue
            try:
                if isinstance(image, dict):
                    image = image["bytes"] or Path(image["path"] or "").read_bytes()
                yield Word(id, id, image or b"", text, code)
            except OSError as error:
                yield Reject(id, "missing image", str(error))

    return write_evaluation_set(output, words(), dataset or Path(source).name)


def write_evaluation_set(
    output: str | os.PathLike[str], words: Iterable[Word | Reject], dataset: str
) -> Totals:
    """Writes an evaluation set: `manifest.jsonl`, `images/`, and what was left out in `rejects.jsonl`.

    Words whose image cannot be read, whose text is empty or whose id came before are left out too. The folder
    appears once it is complete.

    Args:
        output: The new folder.
        words: What to write.
        dataset: Name of the collection.

    Returns:
        What became of the words.

    Raises:
        ValueError: If there is no word to write, or `output` is there already.
    """
    folder = Path(output).absolute()
    if folder.exists():
        raise ValueError(f"{folder}: is there already; choose another folder")
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    (partial / "images").mkdir(parents=True)
    totals = Totals(0)
    ids: set[str] = set()
    with (
        (partial / "manifest.jsonl").open("w", encoding="utf-8") as manifest,
        (partial / "rejects.jsonl").open("w", encoding="utf-8", errors="backslashreplace") as rejects,
    ):
        for word in words:
            totals.records += 1
            outcome = word if isinstance(word, Reject) else _defect(word, ids)
            if isinstance(outcome, Reject):
                totals.rejects[outcome.reason] += 1
                rejects.write(json.dumps(outcome._asdict(), ensure_ascii=False) + "\n")
                continue
            assert isinstance(word, Word)
            ids.add(word.id)
            entry = _save(word, partial, dataset)
            manifest.write(json.dumps(entry, ensure_ascii=False) + "\n")
            totals.rows += 1
    if not totals.rows:
        reasons = ", ".join(f"{count} {reason}" for reason, count in totals.rejects.items())
        shutil.rmtree(partial)
        raise ValueError(f"no words to import ({reasons or 'nothing there'})")
    if len(read_manifest(partial / "manifest.jsonl")) + totals.rejects.total() != totals.records:
        raise RuntimeError(f"{partial}: the manifest was changed while it was written; run again")
    partial.rename(folder)
    return totals


def _defect(word: Word, ids: set[str]) -> Reject | None:
    try:
        f"{word.id}{word.file}{word.text}".encode()
    except UnicodeEncodeError:
        return Reject(word.id, "not in UTF-8", f"file {word.file!r}, text {word.text!r}")
    if word.text.strip() == "###":
        return Reject(word.id, ILLEGIBLE, "text '###'")
    if not word.text.strip():
        return Reject(word.id, "empty label", f"text {word.text!r}")
    if word.id in ids:
        return Reject(word.id, "listed twice", f"text {word.text!r}")
    defect = image_defect(word.image)
    return Reject(word.id, *defect) if defect else None


def _save(word: Word, folder: Path, dataset: str) -> dict[str, str]:
    """Saves an image; returns its entry in the manifest."""
    path = folder / "images" / word.file
    if not path.suffix:
        with Image.open(io.BytesIO(word.image)) as picture:
            path = path.with_name(f"{path.name}.{str(picture.format).lower().replace('jpeg', 'jpg')}")
    if path.exists() and path.read_bytes() != word.image:  # of another word: one of the two had no suffix
        name = hashlib.sha256(word.id.encode()).hexdigest()[:8]
        path = path.with_name(f"{path.stem}-{name}{path.suffix}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(word.image)
    entry = {
        "id": word.id,
        "path_rel": path.relative_to(folder).as_posix(),
        "filename": path.name,
        "gt_text": word.text,
        "lang": word.lang,
        "dataset": dataset,
    }
    return entry | ({"photo": word.photo} if word.photo is not None else {})


class _Pairs(list[tuple[str, Any]]):
    """The entries of a JSON object, those of equal keys too."""


def _lines(file: Path) -> list[str]:
    """Reads the lines of a text file, which may begin with a byte order mark."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: not UTF-8 at byte {error.start}; save it as UTF-8") from None
    # Not splitlines(): it also splits at U+2028 and others, which may stand in a text.
    return [line.removesuffix("\r") for line in text.split("\n")]


def _unquote(text: str) -> str:
    if len(text) < 2 or not (text.startswith('"') and text.endswith('"')):
        return text
    return re.sub(r'\\(["\\])|"(")', r"\1\2", text[1:-1])


def _listed_word(folder: Path, path: str, text: str, lang: str) -> Word | Reject:
    """Reads an image file by a path that comes from outside."""
    try:
        image = (folder / path).resolve()
        if not image.is_relative_to(folder.resolve()):
            return Reject(path, "path outside the folder", f"{image} is not in {folder}")
        return Word(path, image.relative_to(folder.resolve()).as_posix(), image.read_bytes(), text, lang)
    except (OSError, ValueError) as error:  # ValueError: a path with a null character
        return Reject(path, "missing image", str(error))


def _photographed_words(root: Path, lang: str | None) -> Iterator[Word | Reject]:
    """Cuts out the words of all photographs in a folder; with `lang` None, ground truth has a script column."""
    files = visible_files(root)
    photographs: dict[str, list[Path]] = {}
    for file in files:
        if file.suffix.lower() in _PHOTOGRAPHS:
            photographs.setdefault(file.stem, []).append(file)
    described = set()
    for file in files:
        if file.suffix.lower() != ".txt":
            continue
        stem = file.stem if file.stem in photographs else file.stem.removeprefix("gt_")
        candidates = photographs.get(stem, [])
        described.add(stem)
        try:
            lines = [(number, line) for number, line in enumerate(_lines(file), 1) if line.strip()]
        except ValueError as error:
            yield Reject(file.name, "text file not in UTF-8", str(error))
            continue
        try:
            if len(candidates) != 1:
                raise ValueError(f"{len(candidates)} photographs named {stem}")
            with Image.open(candidates[0]) as picture:
                photograph = np.asarray(picture.convert("L" if picture.mode == "L" else "RGB"))
        except Exception as error:  # Pillow's readers raise whatever a damaged file makes them stumble over.
            for number, _ in lines:
                yield Reject(f"{stem}_{number:04d}", "photograph missing or damaged", f"{file}: {error}")
            continue
        for number, line in lines:
            yield _photographed_word(photograph, stem, f"{stem}_{number:04d}", line, lang)
    if bare := sorted(photographs.keys() - described):
        logger.warning("%s: %d photographs without a text file, such as %s", root, len(bare), bare[0])


def _photographed_word(
    photograph: np.ndarray, stem: str, id: str, line: str, lang: str | None
) -> Word | Reject:
    fields = line.split(",", 8 if lang else 9)
    try:
        quad = np.array([float(number) for number in fields[:8]]).reshape(4, 2)
        *script, text = fields[8:]
    except ValueError:
        columns = "x1,y1,x2,y2,x3,y3,x4,y4," + ("text" if lang else "script,text")
        return Reject(id, "malformed line", f"{line!r}: write {columns}")
    if lang is None:
        if not script or script[0].strip() not in MLT_LANGUAGES:
            return Reject(id, "unknown script", f"{line!r}: scripts are {', '.join(MLT_LANGUAGES)}")
        lang = MLT_LANGUAGES[script[0].strip()]
    if text.strip() == "###":
        return Reject(id, ILLEGIBLE, "text '###'")
    try:
        crop = rectify(photograph, quad)
    except ValueError as error:
        return Reject(id, "unusable quadrilateral", str(error))
    file = io.BytesIO()
    Image.fromarray(crop).save(file, "PNG")
    return Word(id, f"{id}.png", file.getvalue(), text, lang, stem)


def rectify(photograph: np.ndarray, quad: np.ndarray) -> np.ndarray:
    """Cuts a quadrilateral out of a photograph and makes it a rectangle of the same size.

    Args:
        photograph: Pixels, uint8 `[H, W]` or `[H, W, C]`.
        quad: Corners `[4, 2]` as x and y in pixels, clockwise from the top left of the word; anticlockwise
            ones are turned round. Where it reaches over the edge, the edge's pixels go on.

    Returns:
        Pixels uint8 `[h, w]` or `[h, w, C]`; h and w are the means of opposite sides.

    Raises:
        ValueError: If the quadrilateral is not convex, thinner than a pixel, or not in the photograph.
    """
    corners = ", ".join(f"({x:g}, {y:g})" for x, y in quad)
    size = np.array(photograph.shape[1::-1])
    if not (np.abs(quad) < 4 * size.max()).all() or (quad.max(0) <= 0).any() or (quad.min(0) >= size).any():
        raise ValueError(f"{corners}: not in the photograph of {size[0]}x{size[1]}")  # NaN is not either.
    sides = np.roll(quad, -1, axis=0) - quad
    turns = sides[:, 0] * np.roll(sides[:, 1], -1) - sides[:, 1] * np.roll(sides[:, 0], -1)
    if (turns < 0).all():
        return rectify(photograph, quad[[0, 3, 2, 1]])
    lengths = np.hypot(*sides.T)
    width, height = round((lengths[0] + lengths[2]) / 2), round((lengths[1] + lengths[3]) / 2)
    if not (turns > 0).all() or min(width, height) < 1:
        raise ValueError(f"{corners}: not convex or thinner than a pixel")
    target = np.array([[0, 0], [width, 0], [width, height], [0, height]])
    matrix = cv2.getPerspectiveTransform(quad.astype(np.float32), target.astype(np.float32))
    return cv2.warpPerspective(
        photograph, matrix, (width, height), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE
    )
