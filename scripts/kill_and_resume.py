"""Kills conversions, syntheses and trainings at random points and checks that they go on as if nothing had happened.

    python scripts/kill_and_resume.py --kills 30

Converts an LMDB with unfit records among good ones to Arrow shards, and the shards back to an LMDB; draws English
words; trains a small Spotter on such words, whose losses and weights have to be the same to the last bit. Each kill is
a SIGKILL after a random time, sent to the run or to one of its processes, with 1, 2 and 3 processes in turn (a training
has one, and a worker).
"""

import argparse
import contextlib
import io
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import psutil
import torch
from PIL import Image

from mstr_hf.charsets import load_charsets
from mstr_hf.data.lmdb import convert_arrow, convert_lmdb
from mstr_hf.models.configuration_spotter import SpotterConfig
from mstr_hf.models.modeling_spotter import SpotterModel
from mstr_hf.synthesis.dataset import synthesise
from mstr_hf.synthesis.fonts import discover_fonts
from mstr_hf.synthesis.synthetic_words import WordSynthesiser
from mstr_hf.synthesis.words import load_words
from mstr_hf.training.arguments import TrainingArguments
from mstr_hf.training.trainer import Batch, Trainer
from mstr_hf.training.words import word_batches
from mstr_hf.vocabulary import Vocabulary, build_vocabulary

# Forks start at once, so that kills hit the work instead of imports.
_CONTEXT = multiprocessing.get_context("fork")


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30, metavar="N", help="each way (default: 30)")
    parser.add_argument("--records", type=int, default=4000, metavar="N", help="default: 4000; words are a tenth")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = folder / "words/en/train_lmdb"
        make_lmdb(source, arguments.records)
        to_arrow = [
            partial(convert_lmdb, folder / "words", num_proc=num_proc, records_per_shard=-(-arguments.records // 20))
            for num_proc in (1, 2, 3)
        ]
        to_arrow[0](folder / "arrow")
        report("LMDB to Arrow", to_arrow, folder / "arrow", contents, arguments.kills, rng)
        to_lmdb = partial(convert_back, folder / "arrow")
        to_lmdb(folder / "lmdb")
        report("Arrow to LMDB", [to_lmdb], folder / "lmdb", keys, arguments.kills, rng)
        words = max(20, arguments.records // 10)
        to_words = [
            partial(synthesise, languages=["en"], train=words, num_proc=num_proc, records_per_shard=-(-words // 20))
            for num_proc in (1, 2, 3)
        ]
        to_words[0](folder / "synthesis")
        report("words", to_words, folder / "synthesis", contents, arguments.kills, rng)
        vocabulary = build_vocabulary(load_charsets(["en"]))
        drawn = WordSynthesiser(discover_fonts(["en"]), {"en": load_words("en")}, joiners=vocabulary.joiners)
        to_model = partial(train, vocabulary, drawn)
        run(to_model, folder / "training")
        report("training", [to_model], folder / "training", trained, arguments.kills, rng)


def make_lmdb(path: Path, records: int) -> None:
    """Makes an LMDB in which every seventh record is unfit."""
    path.mkdir(parents=True)
    rng = np.random.default_rng(0)
    with lmdb.open(str(path), map_size=1 << 40) as env, env.begin(write=True) as transaction:
        for number in range(1, records + 1):
            file = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (24, 64, 3), np.uint8)).save(file, "JPEG")
            image, label = file.getvalue(), f"Word{number}"
            if number % 7 == 0:
                image, label = [(image[:-50], label), (image, ""), (image, "ж")][number % 3]
            transaction.put(b"image-%09d" % number, image)
            transaction.put(b"label-%09d" % number, label.encode())
        transaction.put(b"num-samples", b"%d" % records)


def convert_back(source: Path, output: Path) -> None:
    """Converts Arrow shards, unless the last kill came when all was done."""
    if not output.exists():
        convert_arrow(source, output)


def train(vocabulary: Vocabulary, words: WordSynthesiser, output: Path) -> None:
    """Trains a small Spotter, with a checkpoint after every other step; goes on where the last run was killed."""
    args = TrainingArguments(
        str(output), max_steps=20, batch_size=8, warmup_steps=2, log_steps=5, save_steps=2, num_workers=1, resume=True
    )
    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "stem_channels": 8,
        "stage_channels": [8, 8, 16],
        "stage_blocks": [1, 1],
        "num_hidden_layers": 1,
    }
    config = SpotterConfig(
        projection_dim=8, num_prototypes=len(vocabulary.rows), intermediate_size=16, num_attention_heads=2, **shape
    )

    def batches(first: int, process: int, processes: int) -> Iterator[Batch]:
        height = config.image_height
        return word_batches(words, vocabulary, args.batch_size, 0, args.num_workers, first, process, processes, height)

    with contextlib.redirect_stdout(io.StringIO()):
        Trainer(args, SpotterModel(config), batches).train()


def trained(folder: Path) -> tuple[bytes, dict[int, float]]:
    """Returns the final weights, and the losses by step."""
    lines = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    losses = {line["step"]: line["loss"] for line in lines if "loss" in line}
    return (folder / "final/model.safetensors").read_bytes(), losses


def contents(folder: Path) -> dict[str, bytes]:
    """Returns all files of a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def keys(folder: Path) -> dict[bytes, bytes]:
    """Returns all that is in the LMDBs of a tree."""
    found: dict[bytes, bytes] = {}
    for path in folder.glob("*/*"):
        with lmdb.open(str(path), readonly=True, lock=False) as env, env.begin() as transaction:
            found |= {os.fsencode(path.relative_to(folder)) + b":" + key: value for key, value in transaction.cursor()}
    return found


def report(
    name: str,
    ways: Sequence[Callable[[Path], Any]],
    undisturbed: Path,
    read: Callable[[Path], Any],
    kills: int,
    rng: random.Random,
) -> None:
    """Kills runs, lets them go on until they finish, and exits with code 1 if a result differs.

    Args:
        name: What the ways do.
        ways: Write to a folder; they take turns.
        undisturbed: Such a folder, made without a kill.
        read: Returns what is compared.
        kills: How many to make at least.
        rng: Chooses times and victims.
    """
    expected = read(undisturbed)
    start = time.perf_counter()
    run(ways[0], undisturbed.with_name(f"{undisturbed.name}-timing"))
    seconds = time.perf_counter() - start
    done = results = 0
    while done < kills:
        output = undisturbed.with_name(f"{undisturbed.name}-{results}")
        way = ways[results % len(ways)]
        for _ in range(rng.randint(1, 4)):
            if not run(way, output, rng, seconds):
                break
            done += 1
        else:
            run(way, output)
        if read(output) != expected:
            print(f"{name}: result {results} differs from the undisturbed one")
            sys.exit(1)
        results += 1
    print(f"{name}: {done} kills, {results} results, all the same as the undisturbed one")


def run(way: Callable[[Path], Any], output: Path, rng: random.Random | None = None, seconds: float = 0) -> bool:
    """Runs a way in a process of its own, and returns whether it was killed.

    Args:
        way: Writes to a folder.
        output: The folder.
        rng: Chooses when to kill and whom; None for no kill.
        seconds: The latest time to kill.
    """
    process = _CONTEXT.Process(target=attempt, args=(way, output))
    process.start()
    if rng is None:
        process.join()
        if process.exitcode:
            sys.exit(f"{output}: a run that nobody killed failed with code {process.exitcode}")
        return False
    process.join(rng.uniform(0, seconds))
    if process.exitcode is not None:
        return False
    family = psutil.Process(process.pid)
    helpers = family.children()
    victim = rng.choice([family, *helpers])
    victim.send_signal(signal.SIGKILL)
    process.join()
    # None of them may go on by itself.
    _, alive = psutil.wait_procs(helpers, timeout=10)
    if alive:
        sys.exit(f"{output}: {len(alive)} processes outlive their run")
    return process.exitcode != 0


def attempt(way: Callable[[Path], Any], output: Path) -> None:
    """Runs the way; that one of its processes was killed is no news."""
    try:
        way(output)
    except (RuntimeError, subprocess.CalledProcessError):
        sys.exit(1)


if __name__ == "__main__":
    main()
