"""Arrow shards: the one form of training data, written by any number of processes and resumed when killed.

A data set is a folder, which `datasets.load_from_disk` maps into memory and `datasets.load_dataset` loads too:

    train/bn-00000-of-00012.arrow   one folder a split; the columns are those of `FEATURES`, or more
    rejects.jsonl                   one line a record that was left out: its id, the reason, details
    provenance.json                 what the data set was made from, and how many records became what
    README.md, dataset_dict.json    what the library looks for, beside two JSON files in each split
"""

import contextlib
import hashlib
import json
import multiprocessing
import os
import re
import shutil
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import pyarrow as pa
from filelock import FileLock, Timeout
from tqdm import tqdm

FEATURES: dict[str, dict[str, Any]] = {
    "id": {"dtype": "string", "_type": "Value"},
    "image": {"_type": "Image"},
    "text": {"dtype": "string", "_type": "Value"},
    "label": {"dtype": "string", "_type": "Value"},
    "lang": {"dtype": "string", "_type": "Value"},
    "dataset": {"dtype": "string", "_type": "Value"},
}
"""The columns, as `datasets.Features` writes them: the library is slow to import and not needed to write."""

_IMAGE = pa.struct({"bytes": pa.binary(), "path": pa.string()})
_TYPES = {"Image": _IMAGE, "Value": pa.string(), "ClassLabel": pa.int64(), "List": pa.list_(pa.float32())}

RECORDS_PER_SHARD = 20_000

# A record batch is what one process holds in memory, and what random access has to find its way in.
_BATCH_ROWS = 1000
_BATCH_BYTES = 16 << 20

# Processes of a run that was killed hold its lock until they have noticed.
_LOCK_SECONDS = 5

_PROGRESS = ".progress"  # rejects of finished shards, until all are finished
_PARTIAL = ".{}.{}.partial"  # name and process
_PROVENANCE = "provenance.json"
_REJECTS = "rejects.jsonl"


class Row(NamedTuple):
    """A record of a data set.

    Attributes:
        id: Name of the record, unique in its data set; it tells where the record comes from.
        image: The image file's bytes, as they were found.
        text: What stands on the image, as it was typed.
        label: The normalised text (`mstr_hf.normalise`).
        lang: Language code, such as `"hi"`.
        dataset: The collection that the record comes from.
    """

    id: str
    image: bytes
    text: str
    label: str
    lang: str
    dataset: str


class Reject(NamedTuple):
    """A record that is left out.

    Attributes:
        id: Name of the record.
        reason: Kind of defect, in few words that are the same for all such records: they are counted by it.
        detail: What is wrong with this one.
    """

    id: str
    reason: str
    detail: str


Source: TypeAlias = Callable[[int, int], Iterable[tuple[Any, ...]]]
"""Gives the outcomes of records `start` to `stop` (from 0, `stop` not included): one each, always the same.

An outcome is a `Row`, or another tuple of one value a column, or a `Reject`. The source is pickled once for each
process, so it may build what it needs on first use and keep it.
"""


@dataclass(frozen=True)
class Part:
    """What one source contributes to one split.

    Attributes:
        split: Such as `"train"`: the folder of the shards.
        name: Begins the names of the shards, such as `"bn"`; it is also a configuration of `load_dataset`.
        total: Number of records of the source, at least 1.
        source: Gives the records.
    """

    split: str
    name: str
    total: int
    source: Source


@dataclass
class Totals:
    """What became of the records of one part.

    Attributes:
        records: How many the source has: `rows` and all `rejects`.
        rows: How many are in the shards.
        rejects: How many were left out, by reason.
    """

    records: int
    rows: int = 0
    rejects: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        reasons = [f"{count} {reason}" for reason, count in sorted(self.rejects.items())]
        left_out = f"{self.rejects.total()} rejects" + (f" ({', '.join(reasons)})" if reasons else "")
        return f"{self.records} records = {self.rows} rows + {left_out}"


def write_dataset(
    output: str | os.PathLike[str],
    parts: Sequence[Part],
    settings: Mapping[str, Any],
    num_proc: int | None = None,
    records_per_shard: int = RECORDS_PER_SHARD,
    features: Mapping[str, Mapping[str, Any]] = FEATURES,
) -> dict[str, Totals]:
    """Writes a data set, or what is missing of it after an earlier call was killed.

    A shard appears under its name once it is whole, so a second call with the same arguments goes on where
    the first stopped; the result does not depend on where that was, nor on the number of processes. If all is
    there, nothing is done.

    Args:
        output: Folder of the data set: new, empty, or left by a call with the same settings.
        parts: What to write.
        settings: All that decides what the sources give, as JSON: only equal settings go on with a data set.
        num_proc: Number of processes; as many as there are cores for this one, if left out.
        records_per_shard: Shards are finished, and killed, one by one.
        features: The columns, in the order of the sources' tuples and in the form of `FEATURES`: an `image`,
            strings, class labels and lists of float32.

    Returns:
        The totals by part, such as `"train/bn"`, counted in the finished files.

    Raises:
        ValueError: If `output` holds anything else, another run is writing to it, or parts clash or are empty.
        RuntimeError: If a source does not give one outcome a record, or a process was killed.
    """
    folder = Path(output)
    names = [f"{part.split}/{part.name}" for part in parts]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"parts {', '.join(names) or 'missing'}: give one or more, each with a name of its own")
    for name, part in zip(names, parts, strict=True):
        if not all(re.fullmatch(r"[\w-]+", word) for word in (part.split, part.name)):
            raise ValueError(f"{name}: split and language name files: use letters, digits, - and _")
        if part.total < 1:
            raise ValueError(f"{name}: no records")
    content = {
        **settings,
        "parts": {name: part.total for name, part in zip(names, parts, strict=True)},
        "records_per_shard": records_per_shard,
    }
    content = json.loads(json.dumps(content))
    finished = _begin(folder, content)
    if finished is not None:
        return finished
    try:
        with FileLock(folder / _PROGRESS / "lock", timeout=_LOCK_SECONDS):
            shards = [shard for part in parts for shard in _shards(folder, part, records_per_shard)]
            _write_shards(parts, shards, _schema(features), num_proc or _cores())
            totals = _merge_rejects(folder, shards)
            for split in dict.fromkeys(part.split for part in parts):
                _describe_split(folder, split, shards, content, features)
            _describe(folder, parts)
            _write_json(
                folder / _PROVENANCE,
                {"settings": content, "totals": {name: vars(total) for name, total in totals.items()}},
            )
            shutil.rmtree(folder / _PROGRESS)
    except Timeout:
        raise ValueError(f"{folder}: another run is writing here; wait for it or choose another folder") from None
    return totals


@dataclass(frozen=True)
class _Shard:
    """Records `start` to `stop` of a part, and where they go."""

    part: str
    split: str
    folder: Path
    file: str
    start: int
    stop: int

    @property
    def path(self) -> Path:
        return self.folder / self.split / self.file

    @property
    def rejects(self) -> Path:
        return self.folder / _PROGRESS / self.split / f"{self.file}.rejects"

    def count(self) -> tuple[int, Counter[str]] | None:
        """Counts rows, and rejects by reason; None if the shard is not there, whole."""
        try:
            rejects = Counter(json.loads(line)["reason"] for line in _lines(self.rejects))
            with pa.memory_map(str(self.path)) as file, pa.ipc.open_stream(file) as stream:
                rows = sum(batch.num_rows for batch in stream)
        except (OSError, ValueError):  # pyarrow's own errors are ValueErrors.
            return None
        return (rows, rejects) if rows + rejects.total() == self.stop - self.start else None


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _lines(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8") as file:
        yield from file


def _begin(folder: Path, settings: dict[str, Any]) -> dict[str, Totals] | None:
    """Prepares the folder; returns the totals if it holds the finished data set."""
    provenance = folder / _PROVENANCE
    if provenance.exists():
        written = json.loads(provenance.read_text(encoding="utf-8"))
        if changed := sorted(
            key for key in {*settings, *written["settings"]} if settings.get(key) != written["settings"].get(key)
        ):
            raise ValueError(
                f"{folder}: holds a data set that was made with another {', '.join(changed)}; "
                "choose another folder or delete it"
            )
        if "totals" in written:
            shutil.rmtree(folder / _PROGRESS, ignore_errors=True)
            return {
                name: Totals(total["records"], total["rows"], Counter(total["rejects"]))
                for name, total in written["totals"].items()
            }
    elif folder.exists() and (
        not folder.is_dir() or set(folder.iterdir()).difference(folder.glob(_PARTIAL.format(_PROVENANCE, "*")))
    ):
        raise ValueError(f"{folder}: is not empty and holds no data set of this program; choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(provenance, {"settings": settings})
    (folder / _PROGRESS).mkdir(exist_ok=True)
    return None


def _shards(folder: Path, part: Part, records: int) -> list[_Shard]:
    number = -(-part.total // records)
    return [
        _Shard(
            f"{part.split}/{part.name}",
            part.split,
            folder,
            f"{part.name}-{index:05d}-of-{number:05d}.arrow",
            index * records,
            min((index + 1) * records, part.total),
        )
        for index in range(number)
    ]


def _schema(features: Mapping[str, Mapping[str, Any]]) -> pa.Schema:
    """Returns `datasets.Features.arrow_schema` of the columns."""
    return pa.schema(
        {name: _TYPES[feature["_type"]] for name, feature in features.items()},
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )


def _write_shards(parts: Sequence[Part], shards: Sequence[_Shard], schema: pa.Schema, num_proc: int) -> None:
    """Writes all shards that are not there yet."""
    places = {place.parent for shard in shards for place in (shard.path, shard.rejects)}
    for place in places | {shard.folder for shard in shards}:
        place.mkdir(parents=True, exist_ok=True)
        for partial in place.glob(_PARTIAL.format("*", "*")):  # left by a run that was killed
            partial.unlink()
    missing = [shard for shard in shards if shard.count() is None]
    sources = {f"{part.split}/{part.name}": part.source for part in parts}
    total = sum(shard.stop - shard.start for shard in shards)
    done = total - sum(shard.stop - shard.start for shard in missing)
    num_proc = min(num_proc, len(missing))
    with contextlib.ExitStack() as stack:
        if num_proc > 1:
            # A fork shares the libraries' memory and starts at once; it comes before tqdm starts a thread.
            context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
            pool = stack.enter_context(
                ProcessPoolExecutor(num_proc, context, initializer=_start_worker, initargs=(sources,))
            )
            futures = [pool.submit(_write_shard_in_worker, shard, schema) for shard in missing]
            stack.callback(pool.shutdown, cancel_futures=True)
        progress = stack.enter_context(
            tqdm(total=total, initial=done, unit="record", disable=None)
        )
        if num_proc > 1:
            try:
                for future in as_completed(futures):
                    progress.update(future.result())
            except BrokenProcessPool:
                raise RuntimeError("a process was killed (out of memory?); run again to go on") from None
        else:
            for shard in missing:
                progress.update(_write_shard(shard, schema, sources[shard.part]))


_worker_sources: dict[str, Source] = {}


def _start_worker(sources: dict[str, Source]) -> None:
    """Keeps the sources, and ends this process when its parent is killed: it would wait for work for ever."""
    _worker_sources.update(sources)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent(sentinel: int = parent.sentinel) -> None:
        wait([sentinel])
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


def _write_shard_in_worker(shard: _Shard, schema: pa.Schema) -> int:
    return _write_shard(shard, schema, _worker_sources[shard.part])


def _write_shard(shard: _Shard, schema: pa.Schema, source: Source) -> int:
    """Writes a shard and its rejects, and returns the number of records."""
    records = 0
    image = schema.names.index("image")
    with _whole_file(shard.path) as partial, _whole_file(shard.rejects) as partial_rejects:
        with (
            pa.OSFile(str(partial), "wb") as file,
            pa.ipc.new_stream(file, schema) as stream,
            partial_rejects.open("w", encoding="utf-8", errors="backslashreplace") as rejects,
        ):
            rows: list[tuple[Any, ...]] = []
            size = 0
            for outcome in source(shard.start, shard.stop):
                records += 1
                if isinstance(outcome, Reject):
                    rejects.write(json.dumps(outcome._asdict(), ensure_ascii=False) + "\n")
                    continue
                rows.append(outcome)
                size += len(outcome[image])
                if len(rows) == _BATCH_ROWS or size >= _BATCH_BYTES:
                    stream.write_batch(_batch(rows, schema))
                    rows, size = [], 0
            if rows:
                stream.write_batch(_batch(rows, schema))
        if records != shard.stop - shard.start:
            raise RuntimeError(
                f"{shard.part}: {records} outcomes of records {shard.start} to {shard.stop}; give one each"
            )
    return records


def _batch(rows: Sequence[tuple[Any, ...]], schema: pa.Schema) -> pa.RecordBatch:
    columns = []
    for column, values in zip(schema, zip(*rows, strict=True), strict=True):
        if column.type == _IMAGE:
            files = pa.array(values, pa.binary())
            columns.append(pa.StructArray.from_arrays([files, pa.nulls(len(rows), pa.string())], fields=list(_IMAGE)))
        else:
            columns.append(pa.array(values, column.type))
    return pa.record_batch(columns, schema)


@contextlib.contextmanager
def _whole_file(path: Path) -> Iterator[Path]:
    """Gives a place to write to, which becomes `path` when all is written, and is removed on an error."""
    partial = path.with_name(_PARTIAL.format(path.name, os.getpid()))
    try:
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _write_json(path: Path, content: Any) -> None:
    with _whole_file(path) as partial:
        partial.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def _merge_rejects(folder: Path, shards: Sequence[_Shard]) -> dict[str, Totals]:
    """Writes the rejects of all shards into one file, and counts what is there."""
    totals: dict[str, Totals] = {}
    with _whole_file(folder / _REJECTS) as partial, partial.open("wb") as file:
        for shard in shards:
            total = totals.setdefault(shard.part, Totals(0))
            counted = shard.count()
            if counted is None:
                raise RuntimeError(f"{shard.path}: was changed while the rest was written; run again to mend it")
            total.records += shard.stop - shard.start
            total.rows += counted[0]
            total.rejects.update(counted[1])
            file.write(shard.rejects.read_bytes())
    return totals


def _describe_split(
    folder: Path,
    split: str,
    shards: Sequence[_Shard],
    settings: dict[str, Any],
    features: Mapping[str, Mapping[str, Any]],
) -> None:
    """Writes the files that `load_from_disk` looks for in the folder of a split."""
    fingerprint = hashlib.sha256(json.dumps([settings, split], sort_keys=True).encode()).hexdigest()[:16]
    state: dict[str, Any] = {
        "_data_files": [{"filename": shard.file} for shard in shards if shard.split == split],
        "_fingerprint": fingerprint,
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": split,
    }
    _write_json(folder / split / "state.json", state)
    _write_json(folder / split / "dataset_info.json", {"features": features})


def _describe(folder: Path, parts: Sequence[Part]) -> None:
    """Writes the list of splits for `load_from_disk`, and the configurations for `load_dataset` and the Hub."""
    splits = list(dict.fromkeys(part.split for part in parts))
    _write_json(folder / "dataset_dict.json", {"splits": splits})
    configurations = {"default": {split: f"{split}/*.arrow" for split in splits}}
    for part in parts:
        files = configurations.setdefault(part.name, {})
        files[part.split] = f"{part.split}/{part.name}-*.arrow"
    lines = ["---", "configs:"]
    for name, files in configurations.items():
        lines += [f"- config_name: {name}", "  data_files:"]
        for split, pattern in files.items():
            lines += [f"  - split: {split}", f"    path: {pattern}"]
    with _whole_file(folder / "README.md") as partial:
        partial.write_text("\n".join([*lines, "---", ""]), encoding="utf-8")
