
import io
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mstr_hf.charsets import load_charsets
from mstr_hf.data import records
from mstr_hf.data.arrow import Reject, Row
from mstr_hf.data.records import check_record, image_defect
from mstr_hf.models.image_processing_mstr import load_image
from mstr_hf.vocabulary import build_vocabulary

from .conftest import encode

VOCABULARY = build_vocabulary(load_charsets(["en", "hi", "bn"]))


def check(image, text="word"):
    return check_record("a", image, text, "en", "set", VOCABULARY)


@pytest.mark.parametrize(
    ("mode", "format"),
    [("RGB", "JPEG"), ("CMYK", "JPEG"), ("L", "JPEG"), ("I;16", "PNG"), ("RGBA", "PNG"), ("P", "GIF"), ("1", "BMP")],
)
def test_images_of_any_mode_pass_untouched(mode, format):
    image = encode(mode, format)
    assert check(image, "a\u200d b") == Row("a", image, "a\u200d b", "a\u200db", "en", "set")


def test_label_is_decomposed_and_text_is_as_it_was():
    row = check(encode(), "\u09cb \u0958")
    assert isinstance(row, Row)
    assert (row.text, row.label) == ("\u09cb \u0958", "\u09c7\u09be\u0915\u093c")


@pytest.mark.parametrize(
    ("text", "reason", "detail"),
    [
        ("", "empty label", "label '': no characters"),
        (" \u200b\n", "empty label", r"label ' \u200b\n': no characters"),
        ("aक😀ก", "characters outside the charsets", "'😀' (U+1F600), 'ก' (U+0E01)"),
        ("ﷺ" * 4, "characters outside the charsets", "(U+0635)"),
        ("½" * 22, "label too long", "66 code points after normalisation, at most 64"),
    ],
)
def test_unfit_labels_are_rejected_with_the_reason(text, reason, detail):
    reject = check(encode(), text)
    assert isinstance(reject, Reject)
    assert (reject.id, reject.reason) == ("a", reason)
    assert detail in reject.detail


def test_label_of_64_code_points_passes():
    assert isinstance(check(encode(), "½" * 21 + "a"), Row)


@pytest.mark.parametrize(
    ("image", "reason", "detail"),
    [
        (b"", "undecodable image", "not in an image format"),
        (b"GIF89a", "undecodable image", ""),
        (encode()[:-200], "undecodable image", "truncated"),
        (encode(format="PNG")[:-60], "undecodable image", "truncated"),
        (encode(size=(321, 16)), "image too wide", "321x16 is more than 20 times"),
    ],
)
def test_unfit_images_are_rejected_with_the_reason(image, reason, detail):
    reject = check(image)
    assert isinstance(reject, Reject)
    assert (reject.id, reject.reason) == ("a", reason)
    assert detail in reject.detail


@pytest.mark.filterwarnings("ignore::UserWarning")  # of Pillow, on damaged TIFF files
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "BMP"])
@settings(max_examples=50)
@given(data=st.data())
def test_a_row_is_what_the_image_processor_reads(format, data):
    """Cut or altered anywhere, an image passes if and only if it can be read in training."""
    image = bytearray(encode(format=format, seed=1))
    for _ in range(data.draw(st.integers(0, 3))):
        image[data.draw(st.integers(0, len(image) - 1))] = data.draw(st.integers(0, 255))
    image = bytes(image[: data.draw(st.integers(0, len(image)))])
    try:
        load_image(image)
        readable = True
    except ValueError:
        readable = False
    assert isinstance(check(image), Row) == readable


def damaged(image: bytes, other: bytes, rng: random.Random) -> bytes:
    changed = bytearray(image)
    place = rng.randrange(len(changed))
    match rng.randrange(5):
        case 0:
            del changed[place:]
        case 1:
            del changed[place : place + rng.randint(1, 200)]
        case 2:
            changed[place:] = other[rng.randrange(len(other)) :]
        case 3:
            for _ in range(rng.randint(1, 20)):
                changed[rng.randrange(len(changed))] = rng.choice((0, 0xFF, rng.randrange(256)))
        case 4:
            changed[rng.randrange(len(changed) // 2, len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed) + rng.choice((b"", b"\xff\xd9"))


def test_jpegs_that_are_not_decoded_are_those_that_would_be(monkeypatch):
    """Damaged in all ways, files with headers that are known are taken if and only if they can be read in training."""
    rng = random.Random(0)
    images = []
    for mode in ("L", "RGB", "CMYK"):
        for options in ({}, {"optimize": True}, {"progressive": True}, {"restart_marker_blocks": 3}):
            pixels = np.random.default_rng(len(images)).integers(0, 256, (20, 45, 4), np.uint8)
            file = io.BytesIO()
            Image.fromarray(pixels, "RGBA").convert(mode).save(file, "JPEG", **options)
            images.append(file.getvalue())
    monkeypatch.setattr(records, "_decoded_headers", set())
    assert all(image_defect(image) is None for image in images)
    decoded, opened = [], Image.open
    monkeypatch.setattr(records.Image, "open", lambda file: decoded.append(file) or opened(file))
    taken = [image_defect(image) is None for image in images]
    assert all(taken) and 0 < len(decoded) < len(images)

    short = 0
    for _ in range(3000):
        image = damaged(*rng.choices(images, k=2), rng)
        decoded.clear()
        defect = image_defect(image)
        short += not decoded
        try:
            load_image(image)
        except ValueError:
            assert defect is not None
        else:
            assert defect is None
    assert short > 100


@pytest.mark.parametrize(("size", "wide"), [((320, 16), False), ((321, 16), True)])
def test_images_of_known_headers_have_sizes_of_their_own(size, wide):
    assert image_defect(encode(size=(30, 30))) is None
    assert (image_defect(encode(size=size)) is not None) == wide
