"""The command line: `mstr read` and the other verbs that `mstr --help` lists."""

import argparse
import atexit
import gc
import glob
import io
import json
import os
import subprocess
import sys
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tqdm import tqdm
from transformers import AutoModel, AutoProcessor
from transformers.utils import logging

from mstr_hf.hub import cache
from mstr_hf.reading import Reading, read_images, reading_dtype, visible_files

IMAGE_SUFFIXES = (
    *(".avif", ".bmp", ".gif", ".ico", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm"),
    *(".ppm", ".tga", ".tif", ".tiff", ".webp"),
)
"""What is read of a folder."""

_EXIT_CODES = "exit codes: 0 all done, 1 some inputs failed (named on stderr), 2 nothing could be done"


_FORMS = {
    "lmdb": "LMDB, or tree of LANG/train_lmdb and LANG/val_lmdb, to Arrow shards",
    "arrow": "Arrow shards to a tree of LMDBs",
    "manifest": "manifest to Arrow shards",
    "gt": "text file of paths and words, with tabs or commas, to a manifest with images",
    "labels": "folder with labels.json to a manifest with images",
    "icdar": "photographs with quadrilaterals of ICDAR 2015 to a manifest with cropped words",
    "mlt": "photographs of ICDAR MLT 2017 or 2019 to a manifest with cropped words",
    "dataset": "data set of the Hub, or on disk, to a manifest with images",
}


class CommandError(Exception):
    """What keeps a command from doing anything; the message is one line for the user."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        argv: The arguments; those of the process by default.

    Returns:
        The exit code: 0 all done, 1 some inputs failed, 2 nothing could be done.
    """
    arguments = _parser().parse_args(argv)
    # Else the end of the process waits most of a second for the garbage collector to look through all modules.
    atexit.register(gc.freeze)
    try:
        return arguments.run(arguments)
    except CommandError as error:
        print(f"mstr: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The output's reader has seen enough, as in `mstr read ... | head`. Python flushes again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mstr", description="Read photographed words of many scripts.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    read = commands.add_parser(
        "read",
        help="read word images",
        description="Read word images, one line an image: path, text, script and confidence, between tabs.",
        epilog=_EXIT_CODES,
    )
    add = read.add_argument
    add("paths", nargs="+", metavar="PATH", help="image file, folder of images or glob pattern")
    add("--json", action="store_true", help="print all there is of a reading, one JSON object an image")
    add("--lang", type=_languages, metavar="hi,en", help="read characters of these languages only")
    add("--alternatives", type=_at_least(0), default=0, metavar="N", help="add the N next best readings")
    add("--model", metavar="NAME", help="folder or Hub repository (default: the bundled checkpoint)")
    add("--device", help="such as cpu or cuda:0 (default: a GPU if there is one)")
    add("--batch-size", type=_at_least(1), default=32, metavar="N", help="images at a time (default: 32)")
    _add_runtime(read)
    whole = read.add_argument_group("whole photographs", "read every word of an image, in reading order")
    whole.add_argument("--detect", action="store_true", help="find the words (needs the extra detect)")
    whole.add_argument("--boxes", metavar="FILE", help='take the words from JSON lines {"path": ..., "boxes": [...]}')
    whole.add_argument("--draw", metavar="FOLDER", help="write the images with numbered boxes there")
    read.set_defaults(run=_read)

    convert = commands.add_parser(
        "convert",
        help="convert data: LMDBs, Arrow shards, manifests, published collections",
        description="Convert data; FORM is the form of the source. What is left out is named in rejects.jsonl.",
        epilog=_EXIT_CODES,
    )
    forms = convert.add_subparsers(required=True, metavar="FORM", dest="form")
    for form, summary in _FORMS.items():
        parser_of_form = forms.add_parser(form, help=summary, description=f"Convert {summary}.")
        add = parser_of_form.add_argument
        add("source", metavar="SOURCE")
        add("output", metavar="OUTPUT", help="the new folder")
        if form in ("lmdb", "gt", "labels", "icdar", "dataset"):
            of = {"lmdb": "a single LMDB", "dataset": "all rows (default: the column lang)"}.get(form, "all words")
            add("--lang", required=form in ("gt", "labels", "icdar"), help=f"language of {of}, such as bn")
        if form not in ("arrow", "manifest"):
            add("--dataset", metavar="NAME", help="name of the collection (default: that of the source)")
        if form in ("manifest", "dataset"):
            add("--split", default="test", help="name of the split (default: test)")
        if form == "dataset":
            add("--configuration", metavar="NAME", help="of a repository that has several")
            add("--image-column", metavar="NAME", default="image", help="default: image")
            add("--text-column", metavar="NAME", default="text", help="default: text")
        if form in ("lmdb", "manifest"):
            add("--processes", type=_at_least(1), dest="num_proc", metavar="N", help="default: one a core")
    convert.set_defaults(run=_convert)

    evaluate = commands.add_parser(
        "evaluate",
        help="score a model on word images whose text is known",
        description="Read the images of manifests and write predictions.jsonl, metrics.json, report.md and "
        "report.html. An evaluation that was stopped goes on when it is started again. Several processes: "
        "accelerate launch -m mstr_hf.cli evaluate ...",
        epilog=_EXIT_CODES,
    )
    add = evaluate.add_argument
    add("manifests", nargs="+", type=Path, metavar="MANIFEST", help="JSON lines: id, path_rel, gt_text, lang, ...")
    add("--output", type=Path, required=True, metavar="FOLDER", help="where to write; made if needed")
    add("--model", metavar="NAME", help="folder or Hub repository (default: the bundled checkpoint)")
    add(
        "--peers",
        type=lambda text: text.split(","),
        default=[],
        metavar="tesseract,rapidocr",
        help="read the images with these too, or with MODULE:CLASS of yours",
    )
    add(
        "--alternatives",
        type=_at_least(0),
        default=3,
        metavar="N",
        help="note the N next best readings (default: 3)",
    )
    add("--device", help="such as cpu or cuda:0 (default: a GPU if there is one)")
    add("--batch-size", type=_at_least(1), default=32, metavar="N", help="images at a time (default: 32)")
    _add_runtime(evaluate)
    evaluate.set_defaults(run=_evaluate)

    export = commands.add_parser(
        "export",
        help="export a model to ONNX",
        description="Export a model to ONNX (needs the extra onnx). Read with the new folder: "
        "mstr read --runtime onnx --model FOLDER ...",
        epilog=_EXIT_CODES,
    )
    add = export.add_argument
    add("output", metavar="FOLDER", help="where to write; made if needed")
    add("--model", metavar="NAME", help="folder or Hub repository (default: the bundled checkpoint)")
    add("--int8", action="store_true", help="quantise: smaller, faster and a little less exact")
    export.set_defaults(run=_export)

    explain = commands.add_parser(
        "explain",
        help="draw what a model looks at in one image",
        description="Draw an image's reading as a picture: for each character where the model looks, and its best "
        "hypotheses with their scores.",
        epilog=_EXIT_CODES,
    )
    add = explain.add_argument
    add("image", type=Path, metavar="IMAGE", help="image file")
    add("--output", type=Path, required=True, metavar="FILE", help="picture to write, such as word.png")
    add("--top-k", type=_at_least(1), default=5, metavar="K", help="hypotheses of each character (default: 5)")
    add("--model", metavar="NAME", help="folder or Hub repository (default: the bundled checkpoint)")
    explain.set_defaults(run=_explain)

    demo = commands.add_parser(
        "demo",
        help="serve the demo page",
        description="Serve a page that reads images which are dropped, pasted or shot (needs the extra demo).",
    )
    demo.add_argument("--model", metavar="NAME", help="folder or Hub repository (default: the bundled checkpoint)")
    demo.add_argument("--port", type=_at_least(1), default=7860, metavar="N", help="port (default: 7860)")
    demo.set_defaults(run=_demo)

    install = commands.add_parser(
        "install-checkpoint",
        help="make the bundled checkpoint load by its Hub name",
        description="Put the bundled checkpoint into the Hub's cache, so that "
        'AutoModel.from_pretrained("mstr/refiner-6lang") works without network.',
        epilog=_EXIT_CODES,
    )
    install.add_argument("--cache-dir", metavar="FOLDER", help="default: the cache of the Hub's library")
    install.set_defaults(run=_install_checkpoint)

    synthesise = commands.add_parser(
        "synthesise",
        help="draw synthetic words or characters",
        description="Draw synthetic words or characters as a data set of Arrow shards, or as contact sheets. "
        "A killed run goes on when it is called again.",
        epilog=_EXIT_CODES,
    )
    add = synthesise.add_argument
    add("output", metavar="FOLDER", help="where the data set or the contact sheets go")
    add("--lang", type=_languages, required=True, metavar="hi,en", help="languages")
    add("--characters", action="store_true", help="single characters with their prompts, instead of words")
    add("--preview", action="store_true", help="draw contact sheets only, PNG files")
    add("--train", type=_at_least(1), default=10_000, metavar="N", help="images a language (default: 10000)")
    add("--validation", type=_at_least(0), default=0, metavar="N", help="images a language in held-out fonts")
    add("--fonts", action="append", default=[], metavar="FOLDER", help="fonts beside the system's; repeatable")
    add("--seed", type=_at_least(0), default=0, metavar="N", help="seed of all randomness (default: 0)")
    add("--num-proc", type=_at_least(1), metavar="N", help="processes (default: one a core)")
    synthesise.set_defaults(run=_synthesise)

    fonts = commands.add_parser(
        "fonts",
        help="report the fonts that draw a language",
        description="Report the fonts of each language: families, designs, licences, characters that many lack, "
        "and what was refused and why.",
        epilog=_EXIT_CODES,
    )
    fonts.add_argument("folders", nargs="*", metavar="FOLDER", help="fonts beside the system's")
    fonts.add_argument("--lang", type=_languages, required=True, metavar="hi,en", help="languages")
    fonts.set_defaults(run=_fonts)

    words = commands.add_parser(
        "words",
        help="report how often synthetic words hold each character",
        description="Draw words without pictures, and report how often each character occurs, the rarest last: "
        "a summary, then language, code point, character and count, between tabs.",
        epilog=_EXIT_CODES,
    )
    words.add_argument("--lang", type=_languages, required=True, metavar="hi,en", help="languages")
    words.add_argument("--count", type=_at_least(1), default=20_000, metavar="N", help="words (default: 20000)")
    words.set_defaults(run=_words)
    return parser


def _add_runtime(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--runtime",
        choices=("torch", "onnx"),
        default="torch",
        help="what runs the model (default: torch); onnx needs --model with what mstr export wrote",
    )


def _at_least(minimum: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < minimum:
            raise argparse.ArgumentTypeError(f"{text!r}: give a whole number, {minimum} or more")
        return int(text)

    return number


def _languages(text: str) -> list[str]:
    languages = [lang.strip() for lang in text.split(",")]
    if not all(languages):
        raise argparse.ArgumentTypeError(f"{text!r}: give language codes with commas between, such as hi,en")
    return languages


def _convert(arguments: argparse.Namespace) -> int:
    try:
        from mstr_hf.data import evaluation_sets, lmdb, manifest
        from mstr_hf.data.arrow import Totals
    except ImportError as error:
        raise CommandError(f"{error}: install the extra data: pip install 'mstr_hf[data]'") from error

    options = {key: value for key, value in vars(arguments).items() if key not in ("run", "form")}
    converters: dict[str, Callable[..., Any]] = {
        "lmdb": lmdb.convert_lmdb,
        "arrow": lmdb.convert_arrow,
        "manifest": manifest.convert_manifest,
        "gt": evaluation_sets.import_gt,
        "labels": evaluation_sets.import_labels,
        "icdar": evaluation_sets.import_icdar,
        "mlt": evaluation_sets.import_mlt,
        "dataset": evaluation_sets.import_dataset,
    }
    try:
        result = converters[arguments.form](**options)
    except (ValueError, OSError, RuntimeError) as error:
        raise CommandError(_one_line(error)) from error
    totals = result if isinstance(result, dict) else {arguments.output: result}
    for name, total in totals.items():
        print(f"{name}: {total if isinstance(total, Totals) else f'{total} records'}")
    rejects: Counter[str] = Counter()
    for total in totals.values():
        if isinstance(total, Totals):
            rejects += total.rejects
    if rejects:
        print(f"{rejects.total()} rejects: {Path(arguments.output) / 'rejects.jsonl'}", file=sys.stderr)
    rejects.pop(evaluation_sets.ILLEGIBLE, None)
    return 1 if rejects else 0


def _install_checkpoint(arguments: argparse.Namespace) -> int:
    try:
        installed = cache.install_checkpoint(arguments.cache_dir)
    except OSError as error:
        raise CommandError(f"cannot install {cache.REPO_ID}: {error}") from error
    print(
        f"{cache.REPO_ID} {'installed' if installed.changed else 'was there already'}: {installed.snapshot}"
    )
    print(f"revision {installed.revision}")
    print("without network, load it with HF_HUB_OFFLINE=1 or local_files_only=True")
    return 0


def _demo(arguments: argparse.Namespace) -> int:
    try:
        from mstr_hf.hub.demo import Demo
    except ImportError as error:
        raise CommandError(f"{error}: install the extra demo: pip install 'mstr_hf[demo]'") from error
    try:
        demo = Demo(arguments.model or str(cache.CHECKPOINT))
        demo.launch(server_name="127.0.0.1", server_port=arguments.port)
    except (ValueError, OSError) as error:  # no such model, a port that is taken
        raise CommandError(_one_line(error)) from error
    return 0


def _evaluate(arguments: argparse.Namespace) -> int:
    try:
        from mstr_hf.evaluation.run import evaluate, processes
    except ImportError as error:
        raise CommandError(f"{error}: install the extra evaluation: pip install 'mstr_hf[evaluation]'") from error

    _speak_unicode()
    state = processes()
    device = arguments.device or ("cpu" if arguments.runtime == "onnx" else str(state.device))
    model, processor = _load_model(arguments.model, device, arguments.runtime)
    try:
        report = evaluate(
            model,
            processor,
            arguments.model or "the bundled checkpoint",
            arguments.manifests,
            arguments.output,
            arguments.peers,
            arguments.alternatives,
            arguments.batch_size,
        )
    except (OSError, RuntimeError, ValueError) as error:
        raise CommandError(_one_line(error)) from error
    if state.is_main_process:
        print((arguments.output / "report.md").read_text(encoding="utf-8"))
        for entry in report["unreadable"]:
            print(entry["reason"], file=sys.stderr)
        for line in report["missing_peers"]:
            print(line, file=sys.stderr)
        print(arguments.output / "report.html")
    return 1 if report["unreadable"] else 0


def _export(arguments: argparse.Namespace) -> int:
    from mstr_hf.export import export_onnx

    model, processor = _load_model(arguments.model, "cpu")
    try:
        export_onnx(model, processor, arguments.output, arguments.int8)
    except (ImportError, OSError, ValueError) as error:
        raise CommandError(_one_line(error)) from error
    print(f"read with it: mstr read --runtime onnx --model {arguments.output} ...")
    return 0


def _explain(arguments: argparse.Namespace) -> int:
    try:
        from mstr_hf.evaluation.attention import explain
    except ImportError as error:
        raise CommandError(f"{error}: install the extra data: pip install 'mstr_hf[data]'") from error

    _speak_unicode()
    model, processor = _load_model(arguments.model, "cpu")
    try:
        picture = explain(model, processor, arguments.image, arguments.top_k)
        picture.save(arguments.output)
    except (OSError, ValueError) as error:
        raise CommandError(_one_line(error)) from error
    return 0


def _synthesise(arguments: argparse.Namespace) -> int:
    try:
        from mstr_hf.synthesis.dataset import synthesise
        from mstr_hf.synthesis.preview import preview

        common = (arguments.characters, arguments.fonts, arguments.seed)
        if arguments.preview:
            for path in preview(arguments.output, arguments.lang, *common):
                print(path)
            return 0
        counts = (arguments.train, arguments.validation)
        totals = synthesise(arguments.output, arguments.lang, *counts, *common, num_proc=arguments.num_proc)
    except (ImportError, OSError, ValueError, RuntimeError, subprocess.CalledProcessError) as error:
        raise CommandError(_one_line(error)) from error
    for part, total in totals.items():
        print(f"{part}: {total.rows} images")
    return 0


def _fonts(arguments: argparse.Namespace) -> int:
    try:
        from mstr_hf.synthesis.fonts import discover_fonts

        print(discover_fonts(arguments.lang, arguments.folders).report())
    except (ImportError, OSError, ValueError, subprocess.CalledProcessError) as error:
        raise CommandError(_one_line(error)) from error
    return 0


def _words(arguments: argparse.Namespace) -> int:
    try:
        from mstr_hf.synthesis.words import histogram_report

        for lang in arguments.lang:
            print(histogram_report(lang, arguments.count))
    except (ImportError, ValueError, RuntimeError) as error:
        raise CommandError(_one_line(error)) from error
    return 0


def _speak_unicode() -> None:
    """Any script in any locale. A file name that is not UTF-8 is escaped as JSON escapes it."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)


def _read(arguments: argparse.Namespace) -> int:
    _speak_unicode()
    paths = []
    failed = 0
    for argument in arguments.paths:
        found = _find_images(argument)
        if not found:
            reason = "no images in this folder" if os.path.isdir(argument) else "no such file"
            print(f"{argument}: {reason}", file=sys.stderr)
            failed += 1
        paths += found
    if not paths:
        return 2

    if arguments.detect and arguments.boxes:
        raise CommandError("--detect: leave it out where --boxes says where the words are")
    if arguments.draw and not (arguments.detect or arguments.boxes):
        raise CommandError("--draw: there are boxes with --detect or --boxes only")
    reader = _Reader(arguments.model, arguments.device, arguments.lang, arguments.runtime)
    read = 0
    quiet = len(paths) <= arguments.batch_size or not sys.stderr.isatty()
    photographs = arguments.detect or arguments.boxes
    with tqdm(total=len(paths), unit="image", disable=quiet) as progress:
        if photographs:
            readings = _read_photographs(reader, paths, arguments, progress)
        else:
            words = reader.read(paths, arguments.batch_size, arguments.alternatives)
            readings = zip(paths, words, strict=True)
        for path, reading in readings:
            if not photographs:
                progress.update()
            if isinstance(reading, ValueError):
                failed += 1
                tqdm.write(str(reading), file=sys.stderr)
            else:
                read += 1
                tqdm.write(_json_line(path, reading) if arguments.json else _text_line(path, reading))
    return 2 if not read else 1 if failed else 0


def _read_photographs(
    reader: "_Reader", paths: Sequence[Path], arguments: argparse.Namespace, progress: tqdm
) -> Iterator[tuple[Path, Reading | ValueError]]:
    """Yields the readings of all words of photographs, in reading order, or the reason why there are none."""
    from mstr_hf import detection

    try:
        boxes = detection.read_boxes(arguments.boxes) if arguments.boxes else None
        detector = None if boxes is not None else detection.Detector()
        if arguments.draw:
            os.makedirs(arguments.draw, exist_ok=True)
    except (ImportError, ValueError, OSError) as error:
        raise CommandError(str(error)) from error
    for number, path in enumerate(paths, 1):
        progress.update()
        try:
            photograph = detection.open_photograph(path)
        except ValueError as error:
            yield path, error
            continue
        try:
            found = detector.find(photograph) if detector else (boxes or {}).get(path.resolve(), [])
            if not found:
                raise ValueError(f"no words {'found' if detector else f'in {arguments.boxes}'}")
            crops = [detection.cut_out(photograph, box) for box in found]
        except ValueError as error:
            yield path, ValueError(f"{path}: {error}")
            continue
        words = list(reader.read(crops, arguments.batch_size, arguments.alternatives))
        scripts = ["Zyyy" if isinstance(word, ValueError) else word["script"] for word in words]
        order = detection.reading_order(found, scripts)
        for line, index in order:
            word = words[index]
            if isinstance(word, ValueError):
                yield path, ValueError(f"{path}, box {found[index].round().tolist()}: {word}")
            else:
                yield path, {**word, "line": line, "box": found[index].round(1).tolist()}
        if arguments.draw:
            drawn = detection.draw(photograph, [found[index] for _, index in order])
            try:
                drawn.save(Path(arguments.draw, f"{number:04}_{path.stem}.png"))
            except OSError as error:
                yield path, ValueError(f"{path}: no drawing of it in {arguments.draw} ({error.strerror})")


def _find_images(argument: str) -> list[Path]:
    """Lists the images that an argument stands for, sorted; folders are searched through and through."""
    if os.path.isdir(argument):
        files = visible_files(Path(argument))
        return [file for file in files if file.suffix.lower() in IMAGE_SUFFIXES]
    if os.path.exists(argument):
        return [Path(argument)]
    # A quoted pattern, or one that the shell has no match for.
    found = (image for match in sorted(glob.glob(argument, recursive=True)) for image in _find_images(match))
    return list(dict.fromkeys(found))  # "**" matches folders and what is in them


def _json_line(path: Path, reading: Reading) -> str:
    return json.dumps({"path": str(path), **reading}, ensure_ascii=False)


def _text_line(path: Path, reading: Reading) -> str:
    name = str(path).translate({ord(sign): f"\\{letter}" for sign, letter in zip("\n\r\t", "nrt", strict=True)})
    fields = [name, reading["text"], reading["script"], f"{reading['score']:.3f}"]
    return "\t".join(fields + [alternative["text"] for alternative in reading["alternatives"]])


def _load_model(
    name: str | None, device: str, runtime: str = "torch", dtype: torch.dtype = torch.float32
) -> tuple[Any, Any]:
    """Loads a model that reads words, with its processor; the bundled one by default."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if runtime == "onnx":
        return _load_export(name, device)
    name = name or str(cache.CHECKPOINT)
    try:
        model = AutoModel.from_pretrained(name).eval()
        processor = AutoProcessor.from_pretrained(name)
    except Exception as error:  # A damaged or foreign checkpoint makes the libraries stumble over anything.
        if Path(name, "decoder.onnx").is_file():
            raise CommandError(f"{name} is an ONNX export: read it with --runtime onnx") from error
        raise CommandError(f"no model in {name}: {_one_line(error)}") from error
    if not hasattr(model, "recognise"):
        raise CommandError(f"{name} is a {type(model).__name__}: name a model that reads words")
    try:
        return model.to(device, dtype, memory_format=torch.channels_last), processor  # convolutions like it by 5 to 9%
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise CommandError(f"--device {device}: {_one_line(error)}") from error


def _load_export(name: str | None, device: str) -> tuple[Any, Any]:
    """Loads what `mstr export` wrote, with its processor."""
    from mstr_hf.onnx_runtime import OnnxRefiner

    if name is None:
        raise CommandError("--runtime onnx: export a model with `mstr export FOLDER` and name it with --model FOLDER")
    if device != "cpu":
        raise CommandError(f"--device {device}: ONNX Runtime reads on the CPU: leave --device out, or --runtime")
    try:
        model = OnnxRefiner.from_pretrained(name)
    except (ImportError, OSError, ValueError) as error:
        raise CommandError(_one_line(error)) from error
    try:
        return model, AutoProcessor.from_pretrained(name)
    except Exception as error:  # As above.
        raise CommandError(f"no processor in {name}: {_one_line(error)}") from error


class _Reader:
    """A checkpoint, loaded to read files."""

    def __init__(self, name: str | None, device: str | None, languages: list[str] | None, runtime: str):
        fast = "cuda" if runtime == "torch" and torch.cuda.is_available() else "cpu"
        device = device or fast
        self._model, self._processor = _load_model(name, device, runtime, reading_dtype(device))
        try:
            known = self._model.get_bank().all_languages
        except ValueError as error:
            raise CommandError(f"{name}: {_one_line(error)}") from error
        if unknown := [lang for lang in languages or () if lang not in known]:
            raise CommandError(f"--lang: unknown language {', '.join(unknown)}: use {', '.join(known)}")
        self._languages = languages

    def read(
        self, sources: Sequence[Path | Image.Image], batch_size: int, alternatives: int
    ) -> Iterator[Reading | ValueError]:
        """Yields the reading of each image, in the order given, or the reason why there is none."""
        options = {"languages": self._languages, "num_alternatives": alternatives}
        return read_images(self._model, self._processor, sources, batch_size, **options)


def _one_line(error: Exception) -> str:
    return textwrap.shorten(str(error) or type(error).__name__, 400, placeholder=" ...")


if __name__ == "__main__":
    sys.exit(main())
