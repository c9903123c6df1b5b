
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mstr_hf.charsets import load_charsets
from mstr_hf.data.arrow import Reject, Row
from mstr_hf.data.records import check_record
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
