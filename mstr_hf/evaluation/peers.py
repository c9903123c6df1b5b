"""Other readers of the same images, for comparison: Tesseract and RapidOCR, and whatever has the form of a `Peer`.

A peer of your own is a class without arguments, named by module and class, as in `--peers my_readers:Shouting`:

    class Shouting:
        '''Tesseract in capitals.'''

        name = "Shouting"

        def __init__(self) -> None:
            self._tesseract = Tesseract()  # may raise PeerMissing
            self.version = self._tesseract.version
            self.languages = frozenset({"en"})
            self.variants = ("8",)

        def read(self, images: Sequence[Path], lang: str, variant: str) -> list[str]:
            return [text.upper() for text in self._tesseract.read(images, lang, variant)]
"""

import importlib
import importlib.metadata
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from mstr_hf.detection import open_photograph
from mstr_hf.models.image_processing_mstr import load_image


class PeerMissing(Exception):
    """A peer that is not installed; the message says how to install it."""


class Peer(Protocol):
    """A reader of word images.

    Attributes:
        name: What tables call it.
        version: Its version, for the report; readings of another version are not used again.
        languages: Codes of the languages that it can read here.
        variants: Settings to try. For each language the one that reads most words right is reported, which favours the
            peer.
    """

    name: str
    version: str
    languages: frozenset[str]
    variants: tuple[str, ...]

    def read(self, images: Sequence[Path], lang: str, variant: str) -> list[str]:
        """Reads word images of one language.

        Raises:
            RuntimeError: If it fails; the message names the image.
        """
        ...


class Tesseract:
    """Tesseract, the program, told the language; https://github.com/tesseract-ocr/tesseract, Apache-2.0."""

    name = "Tesseract"
    variants: tuple[str, ...] = ("7", "8", "13")  # page segmentation: a line, a word, a line without layout analysis

    _CODES = {
        **{"ar": "ara", "as": "asm", "bn": "ben", "el": "ell", "en": "eng", "fa": "fas", "gu": "guj", "he": "heb"},
        **{"hi": "hin", "kn": "kan", "ko": "kor", "ml": "mal", "mr": "mar", "or": "ori", "pa": "pan", "ru": "rus"},
        **{"ta": "tam", "te": "tel", "th": "tha", "ur": "urd"},
    }

    def __init__(self) -> None:
        if not shutil.which("tesseract"):
            raise PeerMissing("no program tesseract; install tesseract-ocr and its languages")
        self.version = self._run("--version").splitlines()[0].removeprefix("tesseract ")
        installed = self._run("--list-langs").split()
        self.languages = frozenset(lang for lang, code in self._CODES.items() if code in installed)

    def read(self, images: Sequence[Path], lang: str, variant: str) -> list[str]:
        """Reads word images, in as many programs as there are threads for it (see `Peer.read`)."""

        def read_part(part: Sequence[Path]) -> list[str]:
            # Of one program for all images only the first pays for loading the language.
            with tempfile.NamedTemporaryFile("w", suffix=".txt", encoding="utf-8") as file:
                file.write("".join(f"{image.resolve()}\n" for image in part))
                file.flush()
                options = ("stdout", "-l", self._CODES[lang], "--psm", variant)
                try:
                    texts = self._run(file.name, *options).split("\f")
                except RuntimeError:
                    if len(part) > 1:  # find out which one it is
                        return [text for image in part for text in read_part([image])]
                    return [self._read_one(part[0], *options).strip()]
            if len(texts) != len(part):
                raise RuntimeError(f"{part[0]}: tesseract gave {len(texts)} texts for {len(part)} images")
            return [text.strip() for text in texts]

        workers = min(len(images), torch.get_num_threads())  # torch knows this process's share of the processors
        with ThreadPoolExecutor(workers) as pool:
            parts = list(pool.map(read_part, [images[start::workers] for start in range(workers)]))
        return [parts[place % workers][place // workers] for place in range(len(images))]

    def _read_one(self, image: Path, *options: str) -> str:
        try:
            return self._run(str(image), *options)
        except RuntimeError:
            # Its image library may know fewer formats than Pillow.
            try:
                picture = load_image(image)
            except ValueError:
                picture = None
            if picture is None:
                raise
        with tempfile.NamedTemporaryFile(suffix=".png") as file:
            picture.save(file)
            file.flush()
            return self._run(file.name, *options)

    def _run(self, *arguments: str) -> str:
        # One thread a process: its own threads slow it down on single words.
        process = subprocess.run(
            ["tesseract", *arguments],
            capture_output=True,
            check=False,
            encoding="utf-8",
            env=os.environ | {"OMP_THREAD_LIMIT": "1"},
        )
        if process.returncode:
            reason = "".join(process.stderr.strip().splitlines()[-1:])
            raise RuntimeError(f"{arguments[0]}: tesseract failed ({reason}); try `tesseract {' '.join(arguments)}`")
        return process.stdout


class RapidOCR:
    """RapidOCR, PP-OCR on ONNX Runtime; https://github.com/RapidAI/RapidOCR, code and models Apache-2.0.

    Only its recogniser is used, on the whole image. The one that comes with the package reads Latin, Chinese and
    Japanese.
    """

    name = "RapidOCR"
    languages = frozenset({"en"})
    variants: tuple[str, ...] = ("recogniser",)

    def __init__(self) -> None:
        try:
            import onnxruntime  # noqa: F401  (rapidocr asks for it only when it reads)
            import rapidocr
        except ImportError as error:
            raise PeerMissing(f"no package {error.name}; install mstr_hf[detect]") from None
        self.version = importlib.metadata.version("rapidocr")
        settings = {"Global.use_det": False, "Global.use_cls": False, "Global.text_score": 0.0}
        self._engine: Any = rapidocr.RapidOCR(params={**settings, "Global.log_level": "error"})

    def read(self, images: Sequence[Path], lang: str, variant: str) -> list[str]:
        """Reads word images one by one (see `Peer.read`)."""
        # Its own reader of files takes a palette's numbers for colours, and cuts 16 bits off at 255.
        return ["".join(self._engine(np.asarray(open_photograph(image))[..., ::-1]).txts or ()) for image in images]


PEERS: dict[str, Callable[[], Peer]] = {"tesseract": Tesseract, "rapidocr": RapidOCR}
"""The peers that have a name on the command line."""


def load_peers(names: Sequence[str]) -> tuple[list[Peer], list[str]]:
    """Starts peers.

    Args:
        names: Keys of `PEERS`, or `MODULE:CLASS`.

    Returns:
        The peers, and for each one that is missing a line that names it and says how to install it.

    Raises:
        ValueError: If there is no such peer.
    """
    peers, missing = [], []
    for name in dict.fromkeys(names):
        try:
            peers.append(_find(name)())
        except PeerMissing as error:
            missing.append(f"{name} skipped: {error}")
    return peers, missing


def _find(name: str) -> Callable[[], Peer]:
    if name in PEERS:
        return PEERS[name]
    module, colon, attribute = name.partition(":")
    if not colon:
        raise ValueError(f"no peer '{name}'; use {', '.join(PEERS)} or MODULE:CLASS")
    # A program's path begins with its own folder; peers lie in the one that it is called from.
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"no peer '{name}': {error}") from None
