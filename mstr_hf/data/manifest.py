"""Evaluation manifests: which images to read and what stands on them; to Arrow shards."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from mstr_hf.charsets import available_languages, load_charsets
from mstr_hf.data.arrow import Part, Reject, Row, Totals, write_dataset
from mstr_hf.data.records import check_record
from mstr_hf.vocabulary import Vocabulary, build_vocabulary

REQUIRED = ("id", "path_rel", "filename", "gt_text", "lang", "dataset")


@dataclass(frozen=True)
class Record:
    """One word image of a manifest.

    Attributes:
        id: Name of the image, unique in its manifest.
        path: Where the image lies.
        text: What stands on it, as it was typed.
        lang: Its language, such as `"hi"`.
        dataset: The collection it comes from.
        photo: The photograph it was cut from, if known; words of one photograph are not independent.
    """

    id: str
    path: Path
    text: str
    lang: str
    dataset: str
    photo: str | None = None


def read_manifest(path: str | PathLike[str]) -> list[Record]:
    """Reads a manifest: one JSON object a line, or one JSON array of objects.

    Each object has the strings `id`, `path_rel` (relative to the manifest's folder), `filename`, `gt_text`,
    `lang` and `dataset`, and may have `photo`; other fields are ignored.

    Args:
        path: The manifest, in UTF-8.

    Returns:
        Its records in order, at least one.

    Raises:
        ValueError: If an object is malformed, an id comes twice, or an image lies outside the manifest's
            folder or is missing. The message names the file, the line (the item of an array), the field and
            the mend.
        OSError: If the manifest cannot be read.
    """
    manifest = Path(path)
    records: dict[str, Record] = {}
    for where, entry in _entries(manifest):
        record = _record(entry, manifest.parent, where)
        if record.id in records:
            raise ValueError(
                f"{where}: field 'id': {record.id!r} is there already; give each image its own id"
            )
        records[record.id] = record
    if not records:
        raise ValueError(f"{manifest}: no records; write one JSON object a line")
    return list(records.values())


def _entries(manifest: Path) -> Iterator[tuple[str, Any]]:
    """Yields each entry with the place it stands at, for messages."""
    try:
        content = manifest.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{manifest}: not UTF-8 at byte {error.start}; save it as UTF-8") from None
    if content.lstrip().startswith("["):
        try:
            entries = json.loads(content)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{manifest}:{error.lineno}: not JSON ({error.msg}); correct the array"
            ) from None
        yield from ((f"{manifest}: item {number}", entry) for number, entry in enumerate(entries, start=1))
        return
    # Not splitlines(): it also splits at U+2028 and others, which may stand inside JSON strings.
    for number, line in enumerate(content.split("\n"), start=1):
        if line.strip():
            try:
                yield f"{manifest}:{number}", json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(
                    f"{manifest}:{number}: not JSON ({error.msg}); write one object a line"
                ) from None


def _record(entry: Any, folder: Path, where: str) -> Record:
    for field in REQUIRED:
        if not isinstance(entry, dict) or field not in entry:
            raise ValueError(
                f"{where}: field '{field}' is missing; write an object with {', '.join(REQUIRED)}"
            )
        if not isinstance(entry[field], str) or not entry[field].strip():
            raise ValueError(f"{where}: field '{field}' is {entry[field]!r}; write a non-empty string")
    photo = entry.get("photo")
    if photo is not None and not isinstance(photo, str):
        raise ValueError(f"{where}: field 'photo' is {photo!r}; write a string or leave it out")
    image = folder / entry["path_rel"]
    # Resolved, so that neither "..", an absolute path nor a link leads out.
    if not image.resolve().is_relative_to(folder.resolve()):
        raise ValueError(
            f"{where}: field 'path_rel': {entry['path_rel']!r} leaves the manifest's folder; put it inside"
        )
    if not image.is_file():
        raise ValueError(f"{where}: field 'path_rel': no file {image}; correct the path or add the image")
    return Record(entry["id"], image, entry["gt_text"], entry["lang"], entry["dataset"], photo)


def convert_manifest(
    source: str | PathLike[str],
    output: str | PathLike[str],
    split: str = "test",
    num_proc: int | None = None,
) -> dict[str, Totals]:
    """Converts a manifest to Arrow shards (`mstr_hf.data.arrow`), images byte for byte.

    Args:
        source: The manifest.
        output: Folder of the data set.
        split: Name of its split.
        num_proc: Number of processes, as in `write_dataset`.

    Returns:
        Totals by part, such as `"test/hi"`.

    Raises:
        ValueError: If the manifest is refused by `read_manifest` or the output by `write_dataset`.
        OSError: If the manifest cannot be read.
        RuntimeError: If a process was killed.
    """
    vocabulary = build_vocabulary(load_charsets(available_languages()))
    records: dict[str, list[Record]] = {}
    for record in read_manifest(source):
        records.setdefault(record.lang, []).append(record)
    parts = [
        Part(split, lang, len(listed), ManifestRecords(tuple(listed), vocabulary))
        for lang, listed in sorted(records.items())
    ]
    digest = hashlib.sha256(Path(source).read_bytes()).hexdigest()
    return write_dataset(output, parts, {"charsets": vocabulary.digest, "manifest": digest}, num_proc)


@dataclass(frozen=True)
class ManifestRecords:
    """Records of a manifest, as a source of `write_dataset`.

    Attributes:
        records: The records.
        vocabulary: The characters that labels may have.
    """

    records: tuple[Record, ...]
    vocabulary: Vocabulary

    def __call__(self, start: int, stop: int) -> Iterator[Row | Reject]:
        """Reads records `start` to `stop`, counted from 0."""
        for record in self.records[start:stop]:
            image = record.path.read_bytes()
            yield check_record(
                record.id, image, record.text, record.lang, record.dataset, self.vocabulary
            )
