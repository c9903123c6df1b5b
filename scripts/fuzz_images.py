"""Reads damaged images: each is read, or refused in one line that names it.

    python scripts/fuzz_images.py --count 1000 --seed 0

Images of many formats, modes and sizes are drawn, and their bytes changed: flipped, cut off, doubled, overwritten, with
extreme numbers in their headers. Anything but a reading or a one-line ValueError is a failure, which is kept in a file
and makes the exit code 1.
"""

import argparse
import collections
import io
import random
import sys
import warnings
from pathlib import Path

import numpy as np
from PIL import Image
from transformers import AutoModel, AutoProcessor

import mstr_hf  # noqa: F401 (registers the Auto classes)
from mstr_hf.hub.cache import CHECKPOINT
from mstr_hf.models.image_processing_mstr import load_image

FORMATS = {
    "BMP": ("1", "L", "P", "RGB"),
    "GIF": ("L", "P"),
    "JPEG": ("L", "RGB", "CMYK"),
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
    "PPM": ("1", "L", "RGB"),
    "TIFF": ("1", "L", "LA", "RGB", "RGBA", "CMYK", "I;16", "F"),
    "WEBP": ("RGB", "RGBA"),
}


def draw(rng: random.Random) -> bytes:
    """The file of a random image."""
    kind = rng.choice(sorted(FORMATS))
    mode = rng.choice(FORMATS[kind])
    size = rng.randint(10, 60), rng.randint(1, 200)
    pixels = np.random.default_rng(rng.getrandbits(32)).integers(0, 256, size, np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, kind)
    return file.getvalue()


def mutate(data: bytes, rng: random.Random) -> bytes:
    """The file with one to eight changes, headers more often than the rest."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        if not changed:
            break
        place = rng.randrange(min(len(changed), 64) if rng.random() < 0.5 else len(changed))
        match rng.randrange(6):
            case 0:
                changed[place] ^= 1 << rng.randrange(8)
            case 1:
                changed[place] = rng.choice((0, 1, 0x7F, 0x80, 0xFF))
            case 2:
                del changed[place:]
            case 3:
                del changed[place : place + rng.randint(1, 16)]
            case 4:
                changed[place:place] = changed[place : place + rng.randint(1, 64)]
            case 5:
                changed[place : place + 4] = rng.choice((0, 1, 0x7FFFFFFF, 0xFFFFFFFF)).to_bytes(4, "big")
    return bytes(changed)


def main() -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000, help="images (default: 1000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--failures", type=Path, default=Path("fuzz-failures"), help="folder for what failed")
    parser.add_argument("--no-reading", action="store_true", help="only load the images")
    args = parser.parse_args()

    warnings.simplefilter("ignore")  # Pillow's, about damaged metadata
    model, processor = AutoModel.from_pretrained(CHECKPOINT), AutoProcessor.from_pretrained(CHECKPOINT)
    outcomes: collections.Counter[str] = collections.Counter()
    for number in range(args.count):
        rng = random.Random(f"{args.seed}/{number}")
        data = mutate(draw(rng), rng)
        try:
            image = load_image(data, f"image {number}")
            if not args.no_reading:
                model.recognise(**processor(images=image, return_tensors="pt"))
            outcomes["read"] += 1
        except ValueError as error:
            if str(error).startswith(f"image {number}: ") and len(str(error).splitlines()) == 1:
                outcomes["refused in one line"] += 1
                continue
            outcomes[f"failed: {error!r}"] += 1
        except Exception as error:
            outcomes[f"failed: {error!r}"] += 1
        else:
            continue
        args.failures.mkdir(parents=True, exist_ok=True)
        (args.failures / f"{args.seed}-{number}").write_bytes(data)
    for outcome, count in outcomes.most_common():
        print(f"{count}\t{outcome}")
    return int(any(outcome.startswith("failed") for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
