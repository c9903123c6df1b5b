"""Measures the speed of reading from image files, ours beside other recognisers, in one run on one machine.

    python scripts/benchmark.py --output runs/benchmark                  # about 12 minutes on two cores
    python scripts/benchmark.py --images words/ --output runs/benchmark  # on images of your own
    python scripts/benchmark.py --output runs/benchmark --quick          # a look
    python scripts/benchmark.py --output runs/benchmark --scaling        # how cost grows; a roofline note

Every system has a process of its own and reads the same PNG or JPEG files: decode, its usual preprocessing, model,
text. The systems take turns in every round, so that what else the machine does falls on all of them; ratios to our
default are taken within a round. The folder of `--output` gets benchmark.json, benchmark.md and benchmark.png, and
without `--images` the words that are read: 768 synthetic ones of six languages.

Peers that are not installed are left out, and named. They read with random weights where their trained ones are not to
be had offline, which changes no speed but that of decoding character by character: there every word is given as many
steps as the images' labels have characters on average and one for the end (PARSeq), or a third of that (TrOCR, whose
tokens hold several characters). Labels are those of labels.jsonl in the folder, as for evaluation; without it 7
characters a word are taken. docTR needs other versions of our requirements: make an environment for it and name its
Python, as in

    python -m venv doctr && doctr/bin/pip install python-doctr==1.1.0
    python scripts/benchmark.py --images words/ --output runs/benchmark --python docTR=doctr/bin/python
"""

import argparse
import contextlib
import importlib
import itertools
import json
import math
import os
import platform
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

# A worker may run in the environment of a peer: what is imported here is of Python alone.

MAX_SECONDS = 20  # a batch that would take longer is left out
# What is drawn to be read where no images are named.
LANGUAGES, DRAWN_WORDS, SEED = ["en", "hi", "bn", "ta", "te", "ar"], 768, 77
ROOT = Path(__file__).resolve().parents[1]


class Missing(Exception):
    """A system that cannot be measured here; the message says why."""


Read = Callable[[Sequence[str], int], list[str]]
"""Reads image files in batches of a size."""


# -------------------- the systems: each gives its Read, in a process of its own


def mstr(
    gate: float | None = None, views: int | None = None, compiled: bool = False, dtype: str | None = None
) -> Callable[[argparse.Namespace], Read]:
    """Ours, with the checkpoint's gate and views or others: a gate of 0 is the Spotter alone, 2 refines every word.

    It computes in what `mstr read` chooses on this machine unless a dtype is named.
    """

    def load(arguments: argparse.Namespace) -> Read:
        import torch
        from transformers import AutoModel, AutoProcessor

        from mstr_hf.hub.cache import CHECKPOINT  # the package registers the Auto classes
        from mstr_hf.reading import read_images, reading_dtype

        name = arguments.model or str(CHECKPOINT)
        chosen = getattr(torch, dtype) if dtype else reading_dtype(arguments.device)
        model = AutoModel.from_pretrained(name, dtype=chosen).eval()
        model.to(arguments.device, memory_format=torch.channels_last)  # as `mstr read` has it
        processor = AutoProcessor.from_pretrained(name)
        if compiled:
            spotter = model.spotter
            spotter.backbone = torch.compile(spotter.backbone, dynamic=True)

        def read(paths: Sequence[str], batch_size: int) -> list[str]:
            options = {"gate_threshold": gate, "num_views": views}
            return texts_of(read_images(model, processor, [Path(path) for path in paths], batch_size, **options))

        return read

    return load


def onnx(int8: bool) -> Callable[[argparse.Namespace], Read]:
    """Ours in ONNX Runtime, on the CPU."""

    def load(arguments: argparse.Namespace) -> Read:
        from transformers import AutoProcessor

        from mstr_hf.hub.cache import CHECKPOINT
        from mstr_hf.reading import read_images

        optional("onnxruntime", "mstr_hf[onnx]")
        from mstr_hf.onnx_runtime import OnnxRefiner

        # Exported by a process of its own, whose time and memory are not those of reading.
        model = OnnxRefiner.from_pretrained(Path(arguments.exports, EXPORTS[int8]))
        processor = AutoProcessor.from_pretrained(arguments.model or str(CHECKPOINT))

        def read(paths: Sequence[str], batch_size: int) -> list[str]:
            return texts_of(read_images(model, processor, [Path(path) for path in paths], batch_size))

        return read

    return load


def export(model: str | None, folder: Path, int8: bool) -> None:
    """Exports our checkpoint to a folder that is not there yet.

    Raises:
        Missing: If it cannot be exported.
    """
    if folder.exists():
        return
    command = [sys.executable, "-m", "mstr_hf.cli", "export", str(folder), *["--int8"] * int8]
    command += ["--model", model] if model else []
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        shutil.rmtree(folder, ignore_errors=True)
        raise Missing(f"no export: {''.join(done.stderr.strip().splitlines()[-1:])}")


def texts_of(readings: Iterable[Any]) -> list[str]:
    """Texts of readings; of what could not be read, none."""
    return ["" if isinstance(reading, ValueError) else reading["text"] for reading in readings]


def doctr(arch: str) -> Callable[[argparse.Namespace], Read]:
    """A recogniser of docTR with random weights."""

    def load(arguments: argparse.Namespace) -> Read:
        models = optional("doctr.models", "python-doctr")
        predictor = models.recognition_predictor(arch, pretrained=False, pretrained_backbone=False)
        predictor = predictor.eval().to(arguments.device)
        if arch == "parseq":
            predictor.model.max_length = arguments.characters  # and one step for the end

        def read(paths: Sequence[str], batch_size: int) -> list[str]:
            predictor.pre_processor.batch_size = batch_size
            return [text for batch in batches(paths, batch_size) for text, _ in predictor(rgb(batch))]

        return read

    return load


def trocr(arguments: argparse.Namespace) -> Read:
    """TrOCR-small with random weights."""
    import torch
    from transformers import DeiTConfig, TrOCRConfig, VisionEncoderDecoderConfig, VisionEncoderDecoderModel

    encoder = DeiTConfig(image_size=384, hidden_size=384, num_attention_heads=6, intermediate_size=1536)
    decoder = TrOCRConfig(
        vocab_size=64044, d_model=256, decoder_layers=6, decoder_attention_heads=8, decoder_ffn_dim=1024
    )
    decoder.cross_attention_hidden_size = encoder.hidden_size
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    model = VisionEncoderDecoderModel(config).eval().to(arguments.device)
    steps = -(-arguments.characters // 3) + 1
    options = {"min_new_tokens": steps, "max_new_tokens": steps, "decoder_start_token_id": 2, "do_sample": False}

    def read(paths: Sequence[str], batch_size: int) -> list[str]:
        texts: list[str] = []
        for batch in batches(paths, batch_size):
            pixels = torch.from_numpy(resized(batch, 384, 384)).to(arguments.device)
            with torch.inference_mode():
                texts += map(str, model.generate(pixel_values=pixels, **options).tolist())
        return texts

    return read


def mgp_str(arguments: argparse.Namespace) -> Read:
    """MGP-STR (base) with random weights; its characters alone are made into text, which favours it."""
    import torch
    from transformers import MgpstrConfig, MgpstrForSceneTextRecognition

    model = MgpstrForSceneTextRecognition(MgpstrConfig()).eval().to(arguments.device)

    def read(paths: Sequence[str], batch_size: int) -> list[str]:
        texts: list[str] = []
        for batch in batches(paths, batch_size):
            pixels = torch.from_numpy(resized(batch, 32, 128)).to(arguments.device)
            with torch.inference_mode():
                texts += map(str, model(pixels).logits[0].argmax(-1).tolist())
        return texts

    return read


def rapidocr(arguments: argparse.Namespace) -> Read:
    """RapidOCR's recogniser, PP-OCR on ONNX Runtime, with the weights of its package."""
    import numpy as np

    module = optional("rapidocr", "rapidocr")
    optional("onnxruntime", "onnxruntime")
    inputs = importlib.import_module("rapidocr.ch_ppocr_rec").TextRecInput
    threads = {"EngineConfig.onnxruntime.intra_op_num_threads": arguments.threads}
    engine = module.RapidOCR(params={"Global.log_level": "error", **threads})
    engine(np.zeros((32, 64, 3), np.uint8), use_det=False, use_cls=False, use_rec=True)  # loads the recogniser
    recogniser = engine.text_rec

    def read(paths: Sequence[str], batch_size: int) -> list[str]:
        recogniser.rec_batch_num = batch_size
        texts: list[str] = []
        for batch in batches(paths, batch_size):
            texts += recogniser(inputs(img=[image[..., ::-1] for image in rgb(batch)])).txts
        return texts

    return read


def tesseract(arguments: argparse.Namespace) -> Read:
    """Tesseract, a program for each batch of words of one language, which it is told."""
    from mstr_hf.evaluation.peers import PeerMissing, Tesseract

    try:
        program = Tesseract()
    except PeerMissing as error:
        raise Missing(str(error)) from None
    languages = json.loads(Path(arguments.languages).read_text(encoding="utf-8"))

    def read(paths: Sequence[str], batch_size: int) -> list[str]:
        texts: list[str] = []
        for batch in batches(paths, batch_size):
            by_language: dict[str, list[Path]] = {}
            for path in batch:
                lang = languages.get(Path(path).name, "en")
                by_language.setdefault(lang if lang in program.languages else "en", []).append(Path(path))
            found: dict[str, str] = {}
            for lang, images in by_language.items():
                found.update(zip(map(str, images), program.read(images, lang, "8"), strict=True))
            texts += [found[str(Path(path))] for path in batch]
        return texts

    return read


SYSTEMS: dict[str, Callable[[argparse.Namespace], Read]] = {
    "mstr": mstr(),
    "mstr, Spotter alone": mstr(0.0),
    "mstr, one view": mstr(views=1),
    "mstr, one view, all refined": mstr(2.0, 1),
    "mstr, compiled": mstr(compiled=True),
    "mstr, float32": mstr(dtype="float32"),
    "mstr, bfloat16": mstr(dtype="bfloat16"),
    "mstr, ONNX": onnx(int8=False),
    "mstr, ONNX int8": onnx(int8=True),
    "docTR parseq": doctr("parseq"),
    "docTR crnn_vgg16_bn": doctr("crnn_vgg16_bn"),
    "docTR crnn_mobilenet_v3_small": doctr("crnn_mobilenet_v3_small"),
    "docTR viptr_tiny": doctr("viptr_tiny"),
    "TrOCR-small": trocr,
    "MGP-STR": mgp_str,
    "RapidOCR recogniser": rapidocr,
    "Tesseract": tesseract,
}
"""What is measured, in the order of the tables. The first is what the others are compared with."""

EXPORTS = {False: "float32", True: "int8"}
UNTRAINED = ("docTR", "TrOCR", "MGP-STR")
WITHOUT_GPU = ("mstr, ONNX", "mstr, ONNX int8", "RapidOCR recogniser", "Tesseract")


def optional(module: str, package: str) -> Any:
    """Imports what need not be there."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise Missing(f"no package {error.name}; install {package}, in an environment of its own if need be") from None


def batches(paths: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    """Cuts paths into batches."""
    for start in range(0, len(paths), size):
        yield paths[start : start + size]


def rgb(paths: Sequence[str]) -> list[Any]:
    """Decodes image files to arrays uint8 `[H, W, 3]`."""
    import numpy as np
    from PIL import Image

    images = []
    for path in paths:
        with Image.open(path) as image:
            images.append(np.asarray(image.convert("RGB")))
    return images


def resized(paths: Sequence[str], height: int, width: int) -> Any:
    """Decodes image files to one batch float32 `[B, 3, height, width]`, -1 to 1."""
    import numpy as np
    from PIL import Image

    images = (Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR) for image in rgb(paths))
    return (np.stack([np.asarray(image).transpose(2, 0, 1) for image in images]) / np.float32(127.5)) - 1


# -------------------- a worker: one system in one process, told what to read by lines of JSON


def work(arguments: argparse.Namespace) -> None:
    """Loads a system, then answers each request `{"paths", "batch_size"}` with its times."""
    answers, sys.stdout = sys.stdout, sys.stderr  # libraries print

    def answer(content: dict[str, Any]) -> None:
        print(json.dumps(content), file=answers, flush=True)

    if arguments.device == "cpu" and hasattr(os, "sched_setaffinity"):
        # As many cores as threads: else those who decode images beside the model would have another one.
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-arguments.threads :])
    if arguments.worker != "Tesseract":
        try:
            import torch
        except ImportError as error:
            return answer({"missing": str(error)})
        torch.set_num_threads(arguments.threads)
    try:
        read = SYSTEMS[arguments.worker](arguments)
    except Missing as error:
        return answer({"missing": str(error)})
    answer({"ready": True})
    for line in sys.stdin:
        request = json.loads(line)
        start, cpu = time.perf_counter(), processor_time()
        texts = read(request["paths"], request["batch_size"])
        if arguments.device != "cpu":
            torch.cuda.synchronize()
        seconds, cpu = time.perf_counter() - start, processor_time() - cpu
        assert len(texts) == len(request["paths"]), f"{arguments.worker}: {len(texts)} texts"
        texts = texts if request["texts"] else []
        answer({"seconds": seconds, "cpu": cpu, "memory": peak_memory(), "texts": texts})


def processor_time() -> float:
    """Processor seconds of this process and of the programs that it has run."""
    return sum(os.times()[:4])


def peak_memory() -> int:
    """Most resident memory so far, of this process or of a program that it has run, in bytes."""
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    status = Path("/proc/self/status")
    if status.exists():  # on Linux the former begins with the memory of the process that started this one
        own = next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return max(own, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss) * unit


class Worker:
    """The process of a system.

    Raises:
        Missing: If the system is not to be had.
    """

    def __init__(self, name: str, python: str, threads: int, device: str, options: Sequence[str]):
        command = [python, str(Path(__file__).resolve()), "--worker", name, "--threads", str(threads), *options]
        environment = os.environ | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "USE_TORCH": "1"}
        if name.startswith(("mstr", "Tesseract")):
            environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        # A file, as a pipe that nobody reads would stop the process.
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed with the worker)
        start = time.perf_counter()
        self._process = subprocess.Popen(
            [*command, "--device", device],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=environment,
        )
        self.name = name
        reply = self._answer()
        if "missing" in reply:
            self.close()
            raise Missing(reply["missing"])
        self.load_seconds = time.perf_counter() - start

    def read(self, paths: Sequence[str], batch_size: int, texts: bool = False) -> dict[str, Any]:
        """Reads images: `seconds`, `cpu` seconds, peak `memory` in bytes; and `texts` if they are wanted."""
        assert self._process.stdin is not None
        request = {"paths": list(paths), "batch_size": batch_size, "texts": texts}
        with contextlib.suppress(BrokenPipeError):  # of a process that has ended, whose answer says so
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._errors.seek(0)
            reason = self._errors.read().strip().splitlines()[-1:]
            raise Missing(f"its process ended with code {self._process.returncode}: {''.join(reason)}")
        return json.loads(line)

    def close(self) -> None:
        """Ends the process."""
        self._process.communicate()
        self._errors.close()


# -------------------- measuring


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--images", type=Path, metavar="FOLDER", help="word images, with labels.jsonl where their text is known")
    add("--fonts", nargs="*", default=[], help="folders with fonts beside the system's, to draw words in")
    add("--output", type=Path, metavar="FOLDER", help="where to write; made if needed")
    add("--systems", type=names, metavar="NAME;NAME", help=f"some of: {'; '.join(SYSTEMS)}")
    add("--batch_sizes", type=numbers, default=[1, 8, 64, 256], metavar="N,N", help="default: 1,8,64,256")
    add("--threads", type=numbers, metavar="N,N", help="default: 1,2")
    add("--rounds", type=int, default=5, metavar="N", help="default: 5")
    add("--seconds", type=float, default=0.5, help="time of one measurement, about (default: 0.5)")
    add(
        "--python",
        action="append",
        default=[],
        type=interpreter,
        metavar="docTR=PYTHON",
        help="Python of the systems whose names begin so",
    )
    add("--model", metavar="NAME", help="our checkpoint: folder or Hub repository (default: the bundled one)")
    add("--device", default="cpu", help="cpu, or a GPU such as cuda:0 (default: cpu)")
    add("--quick", action="store_true", help="one thread, batches of 1 and 64, two short rounds")
    add("--scaling", action="store_true", help="instead, of ours alone: how cost grows; a roofline note")
    for option in ("--worker", "--languages", "--exports"):  # of the script's own processes
        add(option, help=argparse.SUPPRESS)
    add("--characters", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        arguments.threads = arguments.threads[0]
        return work(arguments)
    if arguments.quick:
        arguments.batch_sizes, arguments.rounds, arguments.seconds = [1, 64], 2, 0.1
    arguments.threads = arguments.threads or ([1] if arguments.quick else [1, 2])
    if not arguments.output:
        parser.error("--output FOLDER is needed")
    arguments.output.mkdir(parents=True, exist_ok=True)
    sys.path.insert(0, str(ROOT))
    if arguments.scaling:
        return write(arguments.output, "scaling", scaling(arguments))
    if arguments.images is None:
        arguments.images = arguments.output / "words"
        try:
            draw_words(arguments.images, arguments.fonts)
        except (ImportError, ValueError, RuntimeError) as error:
            parser.error(f"no words can be drawn: {str(error).splitlines()[0]}; or name images with --images FOLDER")
    if not arguments.images.is_dir() or not (paths := image_files(arguments.images)):
        parser.error(f"--images {arguments.images}: name a folder of PNG or JPEG files")
    report = benchmark(arguments, paths)
    write(arguments.output, "benchmark", report)
    if not any("seconds" in row for row in report["rows"]):
        parser.exit(1, "nothing could be measured\n")
    plot(report, arguments.output / "benchmark.png")


def names(text: str) -> list[str]:
    """Names of systems with semicolons between."""
    found = [name.strip() for name in text.split(";")]
    if unknown := [name for name in found if name not in SYSTEMS]:
        raise argparse.ArgumentTypeError(f"no system {unknown[0]!r}: use {'; '.join(SYSTEMS)}")
    return found


def interpreter(text: str) -> tuple[str, str]:
    """The beginning of systems' names, and their Python."""
    start, _, python = text.partition("=")
    if not any(name.startswith(start) for name in SYSTEMS) or not (found := shutil.which(python)):
        raise argparse.ArgumentTypeError(f"{text!r}: give the beginning of systems' names and a Python, docTR=PYTHON")
    return start, found


def numbers(text: str) -> list[int]:
    """Whole numbers above 0 with commas between."""
    found = [int(number) if number.isdecimal() else 0 for number in text.split(",")]
    if 0 in found:
        raise argparse.ArgumentTypeError(f"{text!r}: give whole numbers above 0 with commas between")
    return found


def draw_words(folder: Path, fonts: Sequence[str]) -> None:
    """Draws words of the six languages in turns, in fonts that training never saw, into a folder that lacks them."""
    if (folder / "labels.jsonl").exists():
        return
    from mstr_hf import build_vocabulary, load_charsets
    from mstr_hf.models.text import display
    from mstr_hf.synthesis.dataset import encode_image
    from mstr_hf.synthesis.fonts import discover_fonts
    from mstr_hf.synthesis.synthetic_words import WordSynthesiser
    from mstr_hf.synthesis.words import load_words

    joiners = build_vocabulary(load_charsets(LANGUAGES)).joiners
    words = {lang: load_words(lang) for lang in LANGUAGES}
    synthesiser = WordSynthesiser(discover_fonts(LANGUAGES, fonts), words, split="heldout", joiners=joiners)
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for index in range(DRAWN_WORDS):
        word = synthesiser.word(SEED, index, LANGUAGES[index % len(LANGUAGES)])
        name = f"{index:04}_{word.lang}.png"
        (folder / name).write_bytes(encode_image(word.image))
        record = {"filename": name, "gt_text": display(word.text), "lang": word.lang}
        lines.append(json.dumps(record, ensure_ascii=False))
    (folder / "labels.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def image_files(folder: Path) -> list[str]:
    """Image files of a folder in an order that is random, but always the same."""
    files = sorted(str(path) for path in folder.iterdir() if path.suffix.lower() in (".png", ".jpg", ".jpeg"))
    random.Random(0).shuffle(files)
    return files


def benchmark(arguments: argparse.Namespace, paths: Sequence[str]) -> dict[str, Any]:
    """Measures the systems in turns."""
    from mstr_hf.reading import reading_dtype

    labels = arguments.images / "labels.jsonl"
    lines = labels.read_text(encoding="utf-8").splitlines() if labels.exists() else []
    records = [json.loads(line) for line in lines if line.strip()]
    characters = round(statistics.mean(len(record["gt_text"]) for record in records)) if records else 7
    languages = {record["filename"]: record["lang"] for record in records}
    exports = tempfile.TemporaryDirectory()
    of_images = Path(exports.name, "languages.json")  # a command line takes only so much
    of_images.write_text(json.dumps(languages), encoding="utf-8")
    options = ["--characters", str(characters), "--languages", str(of_images), "--exports", exports.name]
    options += ["--model", arguments.model] if arguments.model else []
    pythons = dict(arguments.python)
    chosen = [name for name in arguments.systems or SYSTEMS if arguments.device == "cpu" or name not in WITHOUT_GPU]
    start = start_up(paths[0], arguments) if "mstr" in chosen else None
    there = {Path(path).name for path in paths}
    references = {record["filename"]: record["gt_text"] for record in records if record["filename"] in there}
    rows, missing, accuracy = [], {}, {}
    for threads in arguments.threads:
        workers = []
        for name in chosen:
            python = next((python for start, python in pythons.items() if name.startswith(start)), sys.executable)
            try:
                if name.startswith("mstr, ONNX"):
                    int8 = name.endswith("int8")
                    export(arguments.model, Path(exports.name, EXPORTS[int8]), int8)
                workers.append(Worker(name, python, threads, arguments.device, options))
            except Missing as error:
                missing[name] = str(error)
                print(f"{name} skipped: {error}", file=sys.stderr)
        try:
            rows += measure(workers, threads, arguments, paths, missing)
            for worker in workers:
                if references and worker.name not in accuracy and not worker.name.startswith(UNTRAINED):
                    try:
                        accuracy[worker.name] = right(worker, paths, references, max(arguments.batch_sizes))
                    except Missing as error:
                        missing[worker.name] = str(error)
        finally:
            for worker in workers:
                worker.close()
    exports.cleanup()
    return {
        "machine": machine(arguments.device),
        "dtype": str(reading_dtype(arguments.device)).removeprefix("torch."),
        "images": {"count": len(paths), "mean_characters": characters, "labelled": bool(records)},
        "rounds": arguments.rounds,
        "start": start,
        "accuracy": accuracy,
        "rows": rows,
        "missing": missing,
    }


def measure(
    workers: list[Worker],
    threads: int,
    arguments: argparse.Namespace,
    paths: Sequence[str],
    missing: dict[str, str],
) -> list[dict[str, Any]]:
    """Rounds in which the workers take turns: a row for each worker and batch size.

    A worker that fails goes into `missing`, with the reason; what was measured of it before stays.
    """
    rows: dict[tuple[str, int], dict[str, Any]] = {}

    def drop(worker: Worker, error: Missing) -> None:
        missing[worker.name] = str(error)
        print(f"{worker.name} failed: {error}", file=sys.stderr)
        workers.remove(worker)

    for worker in list(workers):
        try:
            first = worker.read(paths[:1], 1)["seconds"]
            per_word = 0.0
            for batch_size in arguments.batch_sizes:
                row = {"system": worker.name, "threads": threads, "batch_size": batch_size, "rounds": []}
                row["start_seconds"] = worker.load_seconds + first
                rows[worker.name, batch_size] = row
                if per_word * batch_size > MAX_SECONDS:
                    row["left_out"] = f"a batch would take more than {MAX_SECONDS} s"
                    continue
                # Words differ, and most so for us, who look at some of them several times.
                least = max(batch_size, 64 if worker.name.startswith("mstr") else 8)
                for _ in range(2):  # the first call of a size may prepare what the second one needs
                    per_word = worker.read(words(paths, least), batch_size)["seconds"] / least
                row["words"] = least * max(1, round(arguments.seconds / per_word / least))
        except Missing as error:
            drop(worker, error)
    for number in range(arguments.rounds):
        for batch_size in arguments.batch_sizes:
            first = number % max(1, len(workers))
            for worker in workers[first:] + workers[:first]:
                row = rows[worker.name, batch_size]
                if "words" in row:
                    try:
                        result = worker.read(words(paths, row["words"], start=97 * number), batch_size)
                    except Missing as error:
                        drop(worker, error)
                        continue
                    row["memory"] = result["memory"]
                    times = {kind: result[kind] / row["words"] for kind in ("seconds", "cpu")}
                    row["rounds"].append({"round": number, **times})
        print(f"{threads} threads, round {number + 1} of {arguments.rounds}", file=sys.stderr)
    found = [row for row in rows.values() if row["rounds"]]
    for row in found:
        ours = {base["round"]: base for base in rows.get(("mstr", row["batch_size"]), {}).get("rounds", [])}
        for kind in ("seconds", "cpu"):
            row[kind] = spread([one[kind] for one in row["rounds"]])
            ratios = [one[kind] / max(ours[one["round"]][kind], 1e-9) for one in row["rounds"] if one["round"] in ours]
            row[f"{kind}_ratio"] = spread(ratios) if ratios else None
    return [row for row in rows.values() if row["rounds"] or "left_out" in row]


def right(worker: Worker, paths: Sequence[str], references: dict[str, str], batch_size: int) -> float:
    """Share of the labelled images that a worker reads right."""
    from mstr_hf.models.text import normalise

    labelled = [path for path in paths if Path(path).name in references]
    texts = worker.read(labelled, min(64, batch_size), texts=True)["texts"]
    pairs = zip(labelled, texts, strict=True)
    return statistics.mean(normalise(text) == normalise(references[Path(path).name]) for path, text in pairs)


def words(paths: Sequence[str], count: int, start: int = 0) -> list[str]:
    """Paths in their order, from the first again after the last."""
    return [paths[(start + index) % len(paths)] for index in range(count)]


def spread(values: Sequence[float]) -> dict[str, float]:
    """Least, median and greatest value."""
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def start_up(path: str, arguments: argparse.Namespace) -> dict[str, float]:
    """Seconds of the command `mstr read` for one image, files warm."""
    command = [sys.executable, "-m", "mstr_hf.cli", "read", path, "--device", arguments.device]
    command += ["--model", arguments.model] if arguments.model else []
    path_list = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": path_list}
    seconds = []
    for _ in range(arguments.rounds + 1):
        start = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        if done.returncode:
            raise SystemExit(f"`mstr read` fails: {''.join(done.stderr.strip().splitlines()[-1:])}")
        seconds.append(time.perf_counter() - start)
    return spread(seconds[1:])


def machine(device: str) -> dict[str, str]:
    """What the figures were measured on."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    models = [line.split(":")[1].strip() for line in info.splitlines() if line.startswith("model name")]
    described = {
        "processor": f"{models[0] if models else platform.processor()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "device": device,
    }
    if device != "cpu":
        import torch

        described["device"] = torch.cuda.get_device_name(device)
    return described


# -------------------- reports


def write(folder: Path, name: str, report: dict[str, Any]) -> None:
    """Writes a report as JSON and Markdown."""
    (folder / f"{name}.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    text = (markdown if name == "benchmark" else scaling_markdown)(report)
    (folder / f"{name}.md").write_text(text, encoding="utf-8")
    print(text)


def markdown(report: dict[str, Any]) -> str:
    """The table."""
    images, start = report["images"], report["start"]
    lines = [
        "# Speed of reading from image files",
        "",
        f"{', '.join(report['machine'].values())}; {images['count']} images, {images['mean_characters']} characters "
        f"on average; median of {report['rounds']} rounds (least to greatest). A ratio says how many times as long "
        f"as our default, in {report['dtype']}, a system takes for a word. Each has as many cores as threads. Start: "
        "from the start of the process to the first reading. MB: the most memory of the process so far, batches of all "
        "sizes tried. Right: share of the labelled images, where weights are trained.",
        "",
    ]
    if start:
        lines += [f"The command `mstr read` for one image: {_range(start)} s.", ""]
    head = ["system", "threads", "batch", "words/s", "ms a word", "CPU ms a word", "ratio", "CPU ratio"]
    head += ["start, s", "MB", "right, %"]
    table = [head, ["---", *["--:"] * (len(head) - 1)]]
    for row in report["rows"]:
        cells = [row["system"], str(row["threads"]), str(row["batch_size"])]
        if "left_out" in row:
            table.append([*cells, f"- ({row['left_out']})", *[""] * (len(head) - 4)])
            continue
        cells.append(f"{1 / row['seconds']['median']:.0f}")
        cells += [_range(row[kind], 1000) for kind in ("seconds", "cpu")]
        cells += [_range(row[f"{kind}_ratio"]) if row[f"{kind}_ratio"] else "-" for kind in ("seconds", "cpu")]
        share = report["accuracy"].get(row["system"])
        cells += [f"{row['start_seconds']:.1f}", f"{row['memory'] / 1e6:.0f}"]
        table.append([*cells, "-" if share is None else f"{100 * share:.1f}"])
    lines += ["| " + " | ".join(row) + " |" for row in table]
    lines += ["", *(f"{name} left out: {reason}." for name, reason in report["missing"].items())]
    return "\n".join(lines).rstrip() + "\n"


def _range(values: dict[str, float], factor: float = 1) -> str:
    least, middle, most = (f"{factor * values[name]:.3g}" for name in ("min", "median", "max"))
    return f"{middle} ({least} to {most})"


def plot(report: dict[str, Any], path: Path) -> None:
    """Draws words a second of every system, on a logarithmic scale, at the batch size where each is best."""
    from PIL import Image, ImageDraw, ImageFont

    best: dict[tuple[str, int], dict[str, Any]] = {}
    for row in report["rows"]:
        key = row["system"], row["threads"]
        if "seconds" in row and (key not in best or row["seconds"]["median"] < best[key]["seconds"]["median"]):
            best[key] = row
    height, left, width = 26, 300, 900
    picture = Image.new("RGB", (left + width + 150, height * (len(best) + 3)), "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(14)
    speeds = [1 / row["seconds"][end] for row in best.values() for end in ("min", "max")]
    low, high = 10.0 ** math.floor(math.log10(min(speeds))), 10.0 ** math.ceil(math.log10(max(speeds)))

    def x(speed: float) -> float:
        return left + width * math.log(speed / low) / math.log(high / low)

    draw.text((10, 8), "Words a second from image files, at the best batch size of each", "black", font)
    tick = low
    while tick <= high * 1.01:
        draw.line((x(tick), height, x(tick), picture.height - height), "#d8dde2")
        draw.text((x(tick), picture.height - height + 4), f"{tick:g}", "#555555", font, anchor="ma")
        tick *= 10
    for number, ((system, threads), row) in enumerate(best.items()):
        y = height * (number + 1.5)
        colour = "#1f6feb" if system.startswith("mstr") else "#8b949e"
        slow, middle, fast = (1 / row["seconds"][end] for end in ("max", "median", "min"))
        draw.text((left - 8, y + 9), f"{system}, {threads} thread{'s' * (threads > 1)}", "black", font, anchor="rm")
        draw.rectangle((left, y + 2, x(middle), y + 16), colour)
        draw.line((x(slow), y + 9, x(fast), y + 9), "black", 2)
        draw.text((x(fast) + 8, y + 9), f"{middle:.3g} (batch {row['batch_size']})", "black", font, anchor="lm")
    picture.save(path)


# -------------------- how cost grows, and what bounds it


def scaling(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measures processor time a word by bank rows, word length, batch size and languages, and each part's work."""
    import torch
    from transformers import AutoModel, AutoProcessor

    from mstr_hf.hub.cache import CHECKPOINT  # the package registers the Auto classes

    torch.set_num_threads(arguments.threads[0])
    name = arguments.model or str(CHECKPOINT)
    model = AutoModel.from_pretrained(name).eval()
    model.to(arguments.device, memory_format=torch.channels_last)  # in float32, as the peak it is measured by
    processor = AutoProcessor.from_pretrained(name)
    bank = model.get_bank()
    inputs = text_images(processor, 8, 64).to(arguments.device)
    repeats = 2 if arguments.quick else 5

    def per_word(count: int, call: Callable[[], Any]) -> dict[str, float]:
        call()
        return spread([timed(call, arguments.device) / count for _ in range(repeats)])

    report: dict[str, Any] = {"machine": machine(arguments.device), "threads": arguments.threads[0], "tables": {}}
    tables = report["tables"]
    batch_sizes = [1, 4, 16, 64] if arguments.quick else [1, 4, 16, 64, 256, 1024]
    tables["images a batch, words of 8 letters"] = {
        size: per_word(size, partial(model.recognise, **batch))
        for size in batch_sizes
        for batch in [take(inputs, size)]
    }
    lengths = [2, 8, 64] if arguments.quick else [2, 4, 8, 16, 32, 64]
    for label, gate in (("Spotter alone", 0.0), ("all refined", 2.0)):
        tables[f"letters a word, 16 words a batch, {label}"] = {
            length: per_word(16, partial(model.recognise, **batch, gate_threshold=gate, num_views=1))
            for length in lengths
            for batch in [text_images(processor, length, 16).to(arguments.device)]
        }
    languages = bank.all_languages
    tables["languages that may be read, 64 words a batch"] = {
        count: per_word(64, partial(model.recognise, **inputs, languages=languages[:count]))
        for count in range(1, len(languages) + 1)
    }
    report["roofline"] = roofline(model, take(inputs, 16), arguments.device, repeats)
    rows = [500, 10_000] if arguments.quick else [500, 10_000, 100_000, 1_000_000]
    table = tables["bank rows (words a batch: 64 up to 10,000 rows, then 8, then 1)"] = {}
    for count in rows:
        size = 64 if count <= 10_000 else 8 if count <= 100_000 else 1
        batch = take(inputs, size)
        model.set_bank(grown(bank, count))
        table[max(count, len(bank))] = per_word(size, partial(model.recognise, **batch, languages=languages))
    return report


def grown(bank: Any, count: int) -> Any:
    """A bank of about so many rows: its own, and random ones for unused code points."""
    import torch

    used = set(bank.characters)
    points = (chr(point) for point in range(0x110000) if not 0xD800 <= point < 0xE000)
    spare = (character for character in points if character not in used)
    fresh = list(itertools.islice(spare, max(0, count - len(bank))))
    if not fresh:
        return bank
    rows = torch.randn(len(fresh), bank.prototypes.shape[1], generator=torch.Generator().manual_seed(0))
    return bank.extend(rows, fresh, [0] * len(fresh), ["Zyyy"] * len(fresh), [["zxx"]] * len(fresh))


def text_images(processor: Any, length: int, count: int) -> Any:
    """The model's inputs for pictures of random letters, `length` a word."""
    from PIL import Image, ImageDraw, ImageFont

    letters, font = random.Random(0), ImageFont.load_default(28)
    pictures = []
    for _ in range(count):
        word = "".join(letters.choices("abcdefghijklmnopqrstuvwxyz", k=length))
        picture = Image.new("L", (min(int(font.getlength(word)) + 12, 800), 40), 230)
        ImageDraw.Draw(picture).text((6, 2), word, 20, font)
        pictures.append(picture)
    return processor(images=pictures, return_tensors="pt")


def take(inputs: Any, count: int) -> Any:
    """A batch of so many images, from the first again after the last."""
    return {name: tensor[[index % len(tensor) for index in range(count)]] for name, tensor in inputs.items()}


def timed(call: Callable[[], Any], device: str) -> float:
    """Seconds of processor time of a call; on a GPU of time."""
    import torch

    if device != "cpu":
        torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        torch.cuda.synchronize()
        return time.perf_counter() - start
    start = time.process_time()
    call()
    return time.process_time() - start


def roofline(model: Any, inputs: Any, device: str, repeats: int) -> dict[str, Any]:
    """Work of each part for a word, and its share of the peak of a large matrix product in the same run."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    square = torch.randn(2048, 2048, device=device)
    count = len(inputs["pixel_values"])
    with torch.no_grad():
        peak = 2 * 2048**3 / min(timed(lambda: square @ square, device) for _ in range(10))
        copied = torch.empty(64 * 2**20, device=device)
        bandwidth = 2 * copied.nbytes / min(timed(lambda: copied.clone(), device) for _ in range(6))
        spotter = model.spotter
        levels, _ = spotter.backbone(inputs["pixel_values"], inputs["pixel_mask"])
        embeddings = spotter.head.embed(levels[-1])
        spotted = model.encoder.spot(**inputs)
        memory = model.encoder.remember(spotted)
        ids = torch.ones(count, 1, dtype=torch.long, device=device)
        cache = importlib.import_module("transformers").DynamicCache
        parts: dict[str, Callable[[], Any]] = {
            "backbone": lambda: spotter.backbone(inputs["pixel_values"], inputs["pixel_mask"]),
            "head": lambda: spotter.head.embed(levels[-1]),
            "bank product": lambda: spotter.head.retrieve(embeddings),
            "collapse and score": lambda: spotter.word_scores(spotter.read_frames(spotted)),
            "memories": lambda: model.encoder.remember(spotted),
            "decoder step": lambda: model._logits(
                model._decode(ids, memory.last_hidden_state, memory.memory_mask, cache()).last_hidden_state
            ),
        }
        table = {}
        for name, call in parts.items():
            as_it_was = model.config._attn_implementation
            model.set_attn_implementation("eager")  # of another one, nothing is counted on a CPU
            with FlopCounterMode(display=False) as counter:
                call()
            model.set_attn_implementation(as_it_was)
            seconds = min(timed(call, device) for _ in range(repeats + 2))
            flops, moved = counter.get_total_flops(), bytes_moved(call)
            bound = max(flops / peak, moved / bandwidth)
            table[name] = {
                "mflop": flops / count / 1e6,
                "mbyte": moved / count / 1e6,
                "ms": 1000 * seconds / count,
                "share_of_peak": flops / seconds / peak,
                "share_of_bound": bound / seconds,
            }
    return {"peak_gflops": peak / 1e9, "bandwidth_gbytes": bandwidth / 1e9, "parts": table}


def bytes_moved(call: Callable[[], Any]) -> int:
    """Bytes that a call's operators take and give, as if none of it were in a processor's cache."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    class Count(TorchDispatchMode):
        total = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            if not func.is_view:
                found = tree_leaves((args, kwargs, result))
                Count.total += sum(tensor.nbytes for tensor in found if isinstance(tensor, torch.Tensor))
            return result

    with Count():
        call()
    return Count.total


def scaling_markdown(report: dict[str, Any]) -> str:
    """The tables of growth and of each part."""
    kind = "Processor time" if report["machine"]["device"] == "cpu" else "Time"
    lines = ["# How cost grows", "", f"{', '.join(report['machine'].values())}; {report['threads']} threads. "]
    lines[-1] += f"{kind} in ms a word, from decoded images: median (least to greatest)."
    for title, table in report["tables"].items():
        lines += ["", "| " + " | ".join([title, *(f"{int(count):,}" for count in table)]) + " |"]
        lines += ["| " + " | ".join(["---", *["--:"] * len(table)]) + " |"]
        lines += ["| " + " | ".join(["ms a word", *(_range(value, 1000) for value in table.values())]) + " |"]
    roof = report["roofline"]
    lines += ["", "## Work of each part for a word", ""]
    lines += [
        f"Peak of a 2048 x 2048 float32 product in this run: {roof['peak_gflops']:.0f} GFLOP/s; of copying: "
        f"{roof['bandwidth_gbytes']:.1f} GB/s. Bound: the greater of the times that operations and bytes take at these "
        "peaks, if nothing stayed in a cache.",
        "",
        "| | MFLOP | MB | ms | share of the peak, % | of the bound, % |",
        "| --- | --: | --: | --: | --: | --: |",
    ]
    for name, part in roof["parts"].items():
        cells = [f"{part['mflop']:.1f}", f"{part['mbyte']:.1f}", f"{part['ms']:.3f}"]
        cells += [f"{100 * part[share]:.0f}" for share in ("share_of_peak", "share_of_bound")]
        lines.append("| " + " | ".join([name, *cells]) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
