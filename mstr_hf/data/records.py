"""Which records are fit for training: whatever they come from, they pass through `check_record`."""

import io
import re

from PIL import Image, UnidentifiedImageError

from mstr_hf.data.arrow import Reject, Row
from mstr_hf.models.image_processing_mstr import MAX_RATIO
from mstr_hf.vocabulary import LabelError, Vocabulary

MAX_LABEL_LENGTH = 64
"""Most code points of a label, after normalisation."""


def check_record(
    id: str, image: bytes, text: str, lang: str, dataset: str, vocabulary: Vocabulary
) -> Row | Reject:
    """Normalises the label of a record, and checks its image, as a damaged one would fail in training.

    Args:
        id: Name of the record.
        image: Bytes of an image file; the row has the very same.
        text: What stands on the image, as it was typed.
        lang: Language code.
        dataset: The collection that the record comes from.
        vocabulary: The characters that labels may have.

    Returns:
        The row, or a reject whose detail names the characters, the length or the defect of the image.
    """
    try:
        label = vocabulary.validate(text)
    except LabelError as error:
        return Reject(id, "characters outside the charsets" if error.characters else "empty label", str(error))
    if len(label) > MAX_LABEL_LENGTH:
        detail = f"label {text!r}: {len(label)} code points after normalisation, at most {MAX_LABEL_LENGTH}"
        return Reject(id, "label too long", detail)
    if defect := image_defect(image):
        return Reject(id, *defect)
    return Row(id, image, text, label, lang, dataset)


def image_defect(image: bytes) -> tuple[str, str] | None:
    """Returns why the image processor would refuse the bytes of an image file: reason and detail; None if not.

    The image is decoded, unless it is a JPEG file that is sure to be decoded (see `_whole_jpeg`).
    """
    jpeg = _whole_jpeg(image)
    if jpeg is not None and jpeg[0] in _decoded_headers:
        _, width, height = jpeg
    else:
        try:
            with Image.open(io.BytesIO(image)) as picture:
                width, height = picture.size
                # JPEG: every coefficient is read as in a full decoding, but only one pixel in 64 is made of them.
                picture.draft("L", (1, 1))
                picture.load()
        except UnidentifiedImageError:
            return "undecodable image", "not in an image format"
        except Exception as error:  # Pillow's readers raise whatever a damaged file makes them stumble over.
            return "undecodable image", " ".join(str(error).split()) or type(error).__name__
        if jpeg is not None and len(_decoded_headers) < _MAX_HEADERS:
            _decoded_headers.add(jpeg[0])
    if width > MAX_RATIO * height:
        return "image too wide", f"{width}x{height} is more than {MAX_RATIO} times as wide as high"
    return None


_decoded_headers: set[bytes] = set()
_MAX_HEADERS = 10_000
_MAX_PIXELS = 1 << 24
_SEQUENTIAL_DCT = (0xFFC0, 0xFFC1)
_START_OF_SCAN = 0xFFDA
_END_OF_IMAGE = b"\xff\xd9"
_MARKER = re.compile(rb"\xff[^\x00]")


def _whole_jpeg(image: bytes) -> tuple[bytes, int, int] | None:
    """Returns header, width and height of a JPEG file that has one scan and is whole; None for any other file.

    Whatever the bits of a scan, a decoder makes pixels of them: it fails only on headers, and where the file ends
    before the end of the image is marked. So a file decodes if it is whole and its header is that of one that did.

    Returns:
        All bytes before the scan, less the four of height and width (which make no difference within bounds),
        width and height.
    """
    position, frame = 2, 0
    marker = 0
    while marker != _START_OF_SCAN:
        if position + 4 > len(image):
            return None
        marker = int.from_bytes(image[position : position + 2], "big")
        if marker in _SEQUENTIAL_DCT:
            frame = position
        position += 2 + int.from_bytes(image[position + 2 : position + 4], "big")
    end = _MARKER.search(image, position)
    if not frame or end is None or end.start() != len(image) - 2 or end.group() != _END_OF_IMAGE:
        return None
    height, width = (int.from_bytes(image[place : place + 2], "big") for place in (frame + 5, frame + 7))
    if not 0 < width * height <= _MAX_PIXELS:
        return None
    return image[: frame + 5] + image[frame + 9 : position], width, height
