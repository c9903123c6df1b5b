import io
from collections.abc import Callable, Mapping
from pathlib import Path

import lmdb
import numpy as np
import pytest
from PIL import Image


def encode(mode: str = "RGB", format: str = "JPEG", size: tuple[int, int] = (40, 16), seed: int = 0) -> bytes:
    """An image file of random pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 4), np.uint8)
    picture = Image.fromarray(pixels, "RGBA")
    if mode == "I;16":
        picture = Image.fromarray(pixels[..., :2].copy().view(np.uint16)[..., 0])
    file = io.BytesIO()
    picture.convert(mode).save(file, format)
    return file.getvalue()


@pytest.fixture(scope="session")
def make_lmdb() -> Callable[[Path, Mapping[str, bytes | str]], Path]:
    """Makes a real LMDB of keys and values, in the folder given."""

    def make(path: Path, values: Mapping[str, bytes | str]) -> Path:
        path.mkdir(parents=True)
        with lmdb.open(str(path), map_size=1 << 26) as env, env.begin(write=True) as transaction:
            for key, value in values.items():
                transaction.put(key.encode(), value.encode() if isinstance(value, str) else value)
        return path

    return make
