"""LMDBs in the layout of the field, to Arrow shards and back.

An LMDB has the keys `num-samples`, `image-%09d` (an image file) and `label-%09d` (UTF-8), numbered from 1; a tree of
them is `<lang>/train_lmdb` and `<lang>/val_lmdb`.
"""

import contextlib
import json
import logging
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import lmdb
from tqdm import tqdm

from mstr_hf.charsets import available_languages, load_charsets
from mstr_hf.data.arrow import RECORDS_PER_SHARD, Part, Reject, Row, Totals, write_dataset
from mstr_hf.data.records import check_record
from mstr_hf.vocabulary import Vocabulary, build_vocabulary

SPLITS = {"train_lmdb": "train", "val_lmdb": "validation", "test_lmdb": "test"}
"""Splits by the names of the folders."""

_COUNT = b"num-samples"
_KEYS = (b"image-", b"label-")

_BATCH = 1000  # records that are written to an LMDB at a time
_MAP_SIZE = 1 << 28  # of a new LMDB in bytes, doubled whenever it is full
_ORIGIN = "origin.json"  # in an unfinished tree: what it is made from

logger = logging.getLogger(__name__)


def convert_lmdb(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    lang: str | None = None,
    dataset: str | None = None,
    num_proc: int | None = None,
    records_per_shard: int = RECORDS_PER_SHARD,
) -> dict[str, Totals]:
    """Converts one LMDB, or a tree of them, to Arrow shards (`mstr_hf.data.arrow`), images byte for byte.

    Records that are not fit for training (`check_record`) or miss a key are written to `rejects.jsonl`. A call
    that was killed is resumed by another one.

    Args:
        source: An LMDB (a folder with `data.mdb`, or a single file), or the root of a tree.
        output: Folder of the data set.
        lang: Language of a single LMDB; a tree names it.
        dataset: Name of the collection; that of the source, if left out.
        num_proc: Number of processes, as in `write_dataset`.
        records_per_shard: As in `write_dataset`.

    Returns:
        Totals by part, such as `"train/bn"`.

    Raises:
        ValueError: If there is no LMDB, one is damaged or holds no records, a language has no charset, or
            `output` is refused by `write_dataset`. Nothing is written then.
        RuntimeError: If a process was killed.
    """
    root = Path(source).absolute()
    dataset = dataset or root.name
    vocabulary = build_vocabulary(load_charsets(available_languages()))
    parts = []
    states = {}
    for path, code in _find(root, lang):
        if code not in vocabulary.languages:
            raise ValueError(f"{path}: no charset for language {code!r}: use {', '.join(vocabulary.languages)}")
        first, total, state = _examine(path)
        name = "/".join([dataset, *path.relative_to(root).parts])
        records = LMDBRecords(path, first, name, code, dataset, vocabulary)
        part = Part(SPLITS.get(path.name, "train"), code, total, records)
        parts.append(part)
        states[f"{part.split}/{part.name}"] = {"first": first, **state}
    settings = {"dataset": dataset, "charsets": vocabulary.digest, "lmdb": states}
    return write_dataset(output, parts, settings, num_proc, records_per_shard)


@dataclass(frozen=True)
class LMDBRecords:
    """The records of an LMDB, as a source of `write_dataset`.

    Attributes:
        path: The LMDB.
        first: Number of the first record.
        name: What ids begin with.
        lang: Language code.
        dataset: Name of the collection.
        vocabulary: The characters that labels may have.
    """

    path: Path
    first: int
    name: str
    lang: str
    dataset: str
    vocabulary: Vocabulary

    def __call__(self, start: int, stop: int) -> Iterator[Row | Reject]:
        """Reads records `start` to `stop`, counted from 0."""
        # Opened anew for each shard: all that was read through one mapping counts as this process's memory.
        with _open(self.path) as env, env.begin() as transaction:
            for number in range(self.first + start, self.first + stop):
                id = f"{self.name}/{number:09d}"
                image, label = (transaction.get(key + b"%09d" % number) for key in _KEYS)
                if image is None or label is None:
                    keys = zip(_KEYS, (image, label), strict=True)
                    missing = [f"{key.decode()}{number:09d}" for key, value in keys if value is None]
                    yield Reject(id, "missing key", f"no {' and no '.join(missing)}")
                    continue
                try:
                    text = label.decode()
                except UnicodeDecodeError:
                    yield Reject(id, "label not in UTF-8", f"label {label!r}")
                    continue
                yield check_record(id, image, text, self.lang, self.dataset, self.vocabulary)


def _find(root: Path, lang: str | None) -> list[tuple[Path, str]]:
    """Lists LMDBs with their languages."""
    if root.is_file() or (root / "data.mdb").exists():
        if lang is None:
            raise ValueError(f"{root}: a single LMDB does not tell its language; give one, such as --lang bn")
        return [(root, lang)]
    if lang is not None:
        raise ValueError(f"{root}: holds no data.mdb; --lang is for a single LMDB")
    paths = sorted(file.parent for file in root.glob("**/data.mdb"))
    if not paths:
        raise ValueError(f"{root}: no LMDB here; name a folder with data.mdb, or with LANG/train_lmdb/data.mdb")
    for path in paths:
        if path.parent.parent != root or path.name not in SPLITS:
            raise ValueError(
                f"{path}: not at LANG/{{{','.join(SPLITS)}}} in {root}; move it, or convert it alone with --lang"
            )
    return [(path, path.parent.name) for path in paths]


def _examine(path: Path) -> tuple[int, int, dict[str, int]]:
    """Returns the number of the first record, the number of records, and what tells this state of the LMDB."""
    file = path / "data.mdb" if path.is_dir() else path
    with _open(path) as env:
        size = file.stat().st_size
        needed = (env.info()["last_pgno"] + 1) * env.stat()["psize"]
        # Reading beyond the end of the file would kill the process.
        if size < needed:
            raise ValueError(f"{file}: truncated, {size} of {needed} bytes; copy it again")
        entries = env.stat()["entries"]
        with env.begin() as transaction:
            last = max(_last(transaction, key) for key in _KEYS)
            first = 1 if all(transaction.get(key + b"0" * 9) is None for key in _KEYS) else 0
            count = transaction.get(_COUNT)
        state = {"entries": entries, "transaction": env.info()["last_txnid"]}
    if last < first:
        raise ValueError(f"{path}: no records; keys must be like image-000000001 and label-000000001")
    total = last - first + 1
    # A count may be too great because records are missing, which are rejects then, but not by any number.
    if count is None or not count.isdigit() or int(count) > entries:
        logger.warning("%s: num-samples is %r; took all %d records there are instead", path, count, total)
    elif int(count) < total:
        logger.warning("%s: num-samples is %d; took the records beyond it too, %d in all", path, int(count), total)
    else:
        total = int(count)
    return first, total, state


def _last(transaction: lmdb.Transaction, prefix: bytes) -> int:
    """Returns the greatest number of the keys with a prefix, -1 if there are none."""
    with transaction.cursor() as cursor:
        found = cursor.prev() if cursor.set_range(prefix + b":") else cursor.last()  # ":" comes after "9"
        while found and (key := bytes(cursor.key())).startswith(prefix):
            if re.fullmatch(rb"\d{9}", number := key.removeprefix(prefix)):
                return int(number)
            found = cursor.prev()
    return -1


def _open(path: Path) -> lmdb.Environment:
    try:
        return lmdb.open(str(path), subdir=path.is_dir(), readonly=True, lock=False, readahead=False)
    except lmdb.Error as error:
        raise ValueError(f"{path}: not an LMDB, or a damaged one ({error}); copy it again") from None


def convert_arrow(source: str | os.PathLike[str], output: str | os.PathLike[str]) -> dict[str, int]:
    """Converts Arrow shards to a tree of LMDBs: image and text byte for byte, numbered from 1 in their order.

    A call that was killed is resumed by another one.

    Args:
        source: A folder that `datasets.load_from_disk` loads, with the columns `image`, `text` and `lang`.
        output: Root of the new tree.

    Returns:
        Number of records by LMDB, such as `"bn/train_lmdb"`.

    Raises:
        ValueError: If the source does not load or lacks a column, or `output` is there already.
    """
    from datasets import Dataset, Image, load_from_disk

    root = Path(output)
    if root.exists():
        raise ValueError(f"{root}: is there already; choose another folder")
    try:
        loaded = load_from_disk(source)
    except Exception as error:
        raise ValueError(f"{source}: datasets.load_from_disk cannot load it ({error})") from error
    splits = {str(loaded.split or "train"): loaded} if isinstance(loaded, Dataset) else dict(loaded)
    for split, rows in splits.items():
        if missing := {"image", "text", "lang"}.difference(rows.column_names):
            raise ValueError(f"{source}: split {split} has no column {', '.join(sorted(missing))}")
        splits[split] = rows.cast_column("image", Image(decode=False))
    partial = root.with_name(f".{root.name}.partial")
    origin = {"source": str(Path(source).resolve()), **{split: rows._fingerprint for split, rows in splits.items()}}
    _begin_tree(partial, origin)
    folders = {split: name for name, split in SPLITS.items()}
    counts: Counter[str] = Counter()
    total = sum(rows.num_rows for rows in splits.values())
    with tqdm(total=total, unit="record", disable=None) as progress:
        for split, rows in splits.items():
            with contextlib.ExitStack() as stack:
                writers: dict[str, _Writer] = {}
                for batch in rows.with_format("arrow").iter(batch_size=_BATCH):
                    columns = [batch[name].to_pylist() for name in ("image", "text", "lang")]
                    if any(None in column for column in columns):
                        raise ValueError(f"{source}: a record of split {split} has no image, text or lang: mend it")
                    for lang in dict.fromkeys(columns[2]):
                        if not re.fullmatch(r"[\w-]+", str(lang)):
                            raise ValueError(f"{source}: lang {lang!r} of split {split} cannot name a folder")
                        name = f"{lang}/{folders.get(split, f'{split}_lmdb')}"
                        if name not in writers:
                            writers[name] = stack.enter_context(_Writer(partial / name))
                        records = [
                            (image["bytes"] or Path(image["path"]).read_bytes(), text.encode())
                            for image, text, code in zip(*columns, strict=True)
                            if code == lang
                        ]
                        writers[name].write(counts[name] + 1, records)
                        counts[name] += len(records)
                    progress.update(batch.num_rows)
    if counts.total() != total:
        raise RuntimeError(f"{counts.total()} of {total} records written")
    (partial / _ORIGIN).unlink()
    partial.rename(root)
    return dict(counts)


def _begin_tree(folder: Path, origin: dict[str, str]) -> None:
    """Makes the folder of an unfinished tree, unless one of the same origin is there."""
    with contextlib.suppress(OSError, ValueError):
        if json.loads((folder / _ORIGIN).read_text(encoding="utf-8")) == origin:
            return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / _ORIGIN).write_text(json.dumps(origin), encoding="utf-8")


class _Writer:
    """Fills an LMDB; what an earlier process has written is left as it is."""

    def __init__(self, path: Path):
        path.mkdir(parents=True, exist_ok=True)
        self._env = lmdb.open(str(path), map_size=_MAP_SIZE)
        with self._env.begin() as transaction:
            self._written = int(transaction.get(_COUNT, b"0"))

    def __enter__(self) -> "_Writer":
        return self

    def __exit__(self, *_: object) -> None:
        self._env.close()

    def write(self, first: int, records: list[tuple[bytes, bytes]]) -> None:
        """Writes images and labels, the first of which has the number `first`, together with their count."""
        last = first + len(records) - 1
        if last <= self._written:
            return
        try:
            with self._env.begin(write=True) as transaction:
                for number, values in enumerate(records, first):
                    for key, value in zip(_KEYS, values, strict=True):
                        transaction.put(key + b"%09d" % number, value)
                transaction.put(_COUNT, b"%d" % last)
        except lmdb.MapFullError:
            self._env.set_mapsize(2 * self._env.info()["map_size"])
            self.write(first, records)
