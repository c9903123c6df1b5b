"""Measures the conversion of an LMDB to Arrow shards: speed beside other ways, random access, or memory.

    python scripts/benchmark_conversion.py                               # speed and random access
    python scripts/benchmark_conversion.py --memory --records 1000000    # peak memory

Makes an LMDB of JPEG words in a temporary folder. Speed is that of one process, in rows a second of processor time, so
that other work on the machine does not count; the ways take turns, and the best of three rounds is printed. Memory is
that of the command `mstr convert lmdb` with all its processes: resident memory of each added up, which counts shared
memory several times, and proportional memory, which does not.
"""

import argparse
import io
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import psutil
from datasets import Dataset, Image, disable_progress_bars, load_from_disk
from PIL import Image as PILImage
from PIL import ImageDraw, ImageFont

from mstr_hf.charsets import load_charsets
from mstr_hf.data.arrow import Part, Row, write_dataset
from mstr_hf.data.lmdb import LMDBRecords, convert_lmdb
from mstr_hf.vocabulary import build_vocabulary

ROUNDS = 3
DISTINCT = 1000  # images, over and over


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=10_000, metavar="N", help="default: 10000")
    parser.add_argument("--memory", action="store_true", help="measure memory instead of speed")
    parser.add_argument("--processes", type=int, default=2, metavar="N", help="with --memory (default: 2)")
    parser.add_argument("--folder", type=Path, help="where to put the temporary folder")
    arguments = parser.parse_args()
    disable_progress_bars()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        source = Path(folder) / "words"
        size = make_lmdb(source, arguments.records)
        print(f"{arguments.records} records, {size / arguments.records:.0f} bytes an image")
        if arguments.memory:
            measure_memory(source, arguments.processes)
        else:
            measure_speed(source, arguments.records)
            measure_access(source, arguments.records)


def make_lmdb(path: Path, records: int) -> int:
    """Makes an LMDB of JPEG words, and returns how many bytes its images have in all."""
    rng = np.random.default_rng(0)
    font = ImageFont.load_default(24)
    images = []
    for number in range(min(records, DISTINCT)):
        width, height = rng.integers(60, 180), rng.integers(28, 48)
        ground = rng.normal(rng.integers(90, 220), 6, (height, width, 3)).clip(0, 255)
        picture = PILImage.fromarray(ground.astype(np.uint8))
        ImageDraw.Draw(picture).text((4, 2), f"Word{number}", (20, 20, 30), font)
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=85)
        images.append(file.getvalue())
    with lmdb.open(str(path), map_size=1 << 40) as env:
        for start in range(0, records, 10_000):
            with env.begin(write=True) as transaction:
                for number in range(start, min(start + 10_000, records)):
                    transaction.put(b"image-%09d" % (number + 1), images[number % DISTINCT])
                    transaction.put(b"label-%09d" % (number + 1), b"Word%d" % (number % DISTINCT))
                transaction.put(b"num-samples", b"%d" % records)
    return sum(len(images[number % DISTINCT]) for number in range(records))


def read(source: Path, records: int) -> Iterator[tuple[int, bytes, str]]:
    """Reads an LMDB as training code does."""
    with lmdb.open(str(source), readonly=True, lock=False, readahead=False) as env, env.begin() as transaction:
        for number in range(1, records + 1):
            yield number, *record(transaction, number)


def record(transaction: lmdb.Transaction, number: int) -> tuple[bytes, str]:
    """Fetches a record, which must be there."""
    image, label = transaction.get(b"image-%09d" % number), transaction.get(b"label-%09d" % number)
    assert isinstance(image, bytes) and isinstance(label, bytes)
    return image, label.decode()


class Unchecked:
    """Writes what it reads: what is left of a conversion without its checks."""

    def __init__(self, source: Path, records: int, encode: Callable[[bytes], bytes] = bytes):
        self.source, self.records, self.encode = source, records, encode

    def __call__(self, start: int, stop: int) -> Iterator[Row]:
        """Gives the rows; the benchmark has one shard."""
        for number, image, text in read(self.source, self.records):
            yield Row(str(number), self.encode(image), text, text, "en", "words")


def as_jpeg(image: bytes) -> bytes:
    """Decodes an image file and encodes it again."""
    file = io.BytesIO()
    decode(image).save(file, "JPEG", quality=85)
    return file.getvalue()


def decode(image: bytes) -> PILImage.Image:
    """Decodes an image file."""
    with PILImage.open(io.BytesIO(image)) as picture:
        return picture.convert("RGB")


def measure_speed(source: Path, records: int) -> None:
    """Prints rows a second of several ways to convert."""

    def reencode_by_library(folder: Path) -> None:
        def generate() -> Iterator[dict[str, Any]]:
            for number, image, text in read(source, records):
                yield {"id": str(number), "image": decode(image), "text": text}

        # A fingerprint of its own: the library cannot always pickle what reads an LMDB.
        Dataset.from_generator(generate, cache_dir=str(folder), fingerprint="benchmark")

    def write(folder: Path, **options: Any) -> None:
        part = Part("train", "en", records, Unchecked(source, records, **options))
        write_dataset(folder, [part], {}, num_proc=1, records_per_shard=records)

    def check_only(folder: Path) -> None:
        list(LMDBRecords(source, 1, "", "en", "", vocabulary)(0, records))

    vocabulary = build_vocabulary(load_charsets(["en"]))
    ways: dict[str, Callable[[Path], Any]] = {
        "read the LMDB only": lambda folder: sum(1 for _ in read(source, records)),
        "read and check only": check_only,
        "copy without checks": write,
        "mstr convert lmdb": lambda folder: convert_lmdb(source, folder, "en", num_proc=1),
        "decode, encode as JPEG, same writer": lambda folder: write(folder, encode=as_jpeg),
        "decode, Dataset.from_generator (PNG)": reencode_by_library,
    }
    best = dict.fromkeys(ways, 0.0)
    for _ in range(ROUNDS):
        for name, way in ways.items():
            with tempfile.TemporaryDirectory(dir=source.parent) as folder:
                start = time.process_time()
                way(Path(folder) / "output")
                best[name] = max(best[name], records / (time.process_time() - start))
    for name, speed in best.items():
        print(f"{name:40}{speed:10.0f} rows/s  ours is {best['mstr convert lmdb'] / speed:.2f} times as fast")


def measure_access(source: Path, records: int) -> None:
    """Prints how many records a second can be fetched in random order, from the LMDB and from our shards."""
    output = source.parent / "arrow"
    convert_lmdb(source, output, "en", num_proc=1)
    rows = load_from_disk(output)["train"]
    encoded = rows.cast_column("image", Image(decode=False))
    order = [random.Random(0).randrange(records) for _ in range(min(records, 10_000))]
    env = lmdb.open(str(source), readonly=True, lock=False, readahead=False)

    def from_lmdb(open_image: Callable[[bytes], Any]) -> None:
        with env.begin() as transaction:
            for index in order:
                open_image(record(transaction, index + 1)[0])

    def from_arrow(rows: Dataset, batch_size: int = 1) -> None:
        for start in range(0, len(order), batch_size):
            for row in rows.__getitems__(order[start : start + batch_size]):
                picture = row["image"]
                if isinstance(picture, PILImage.Image):
                    picture.convert("RGB")

    ways: dict[str, Callable[[], None]] = {
        "LMDB, encoded": lambda: from_lmdb(bytes),
        "Arrow, encoded, one by one": lambda: from_arrow(encoded),
        "Arrow, encoded, batches of 64": lambda: from_arrow(encoded, 64),
        "LMDB, decoded": lambda: from_lmdb(decode),
        "Arrow, decoded, one by one": lambda: from_arrow(rows),
        "Arrow, decoded, batches of 64": lambda: from_arrow(rows, 64),
    }
    best = dict.fromkeys(ways, 0.0)
    for _ in range(ROUNDS):
        for name, way in ways.items():
            start = time.process_time()
            way()
            best[name] = max(best[name], len(order) / (time.process_time() - start))
    env.close()
    for name, speed in best.items():
        print(f"{name:40}{speed:10.0f} records/s in random order")


def measure_memory(source: Path, processes: int) -> None:
    """Prints the greatest memory of a conversion with all its processes."""
    command = [sys.executable, "-m", "mstr_hf.cli", "convert", "lmdb", str(source), str(source.parent / "arrow")]
    start = time.perf_counter()
    peaks: dict[str, int] = {}
    with subprocess.Popen([*command, "--lang", "en", "--processes", str(processes)]) as conversion:
        while conversion.poll() is None:
            for name, size in memory(psutil.Process(conversion.pid)).items():
                peaks[name] = max(peaks.get(name, 0), size)
            time.sleep(0.5)
    print(f"{processes} processes, {time.perf_counter() - start:.0f} s, exit code {conversion.returncode}")
    for name, size in peaks.items():
        print(f"peak {name:30}{size / 1e6:8.0f} MB")


def memory(process: psutil.Process) -> dict[str, int]:
    """Returns the memory of a process and its children in bytes."""
    sizes = []
    for one in [process, *process.children(recursive=True)]:
        try:
            info = one.memory_full_info()
            sizes.append((info.rss, info.pss))
        except psutil.Error:  # has just ended
            continue
    return {
        "of the largest process": max((rss for rss, _ in sizes), default=0),
        "of all, proportional": sum(pss for _, pss in sizes),
        "of all, added up": sum(rss for rss, _ in sizes),
    }


if __name__ == "__main__":
    main()
