"""Which records are fit for training: whatever they come from, they pass through `check_record`."""

import io

from PIL import Image, UnidentifiedImageError

from mstr_hf.data.arrow import Reject, Row
from mstr_hf.models.image_processing_mstr import MAX_RATIO
from mstr_hf.vocabulary import LabelError, Vocabulary

MAX_LABEL_LENGTH = 64
"""Most code points of a label, after normalisation."""


def check_record(
    id: str, image: bytes, text: str, lang: str, dataset: str, vocabulary: Vocabulary
) -> Row | Reject:
    """Normalises the label of a record, and decodes its image once, as a damaged one would fail in training.

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
    """Returns why the image processor would refuse the bytes of an image file: reason and detail; None if not."""
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
    if width > MAX_RATIO * height:
        return "image too wide", f"{width}x{height} is more than {MAX_RATIO} times as wide as high"
    return None
