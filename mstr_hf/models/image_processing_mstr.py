"""Pictures of words, of any kind and shape, as one grey batch."""

import contextlib
import io
import os
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from transformers.image_processing_base import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor
from transformers.utils import TensorType

ImageSource: TypeAlias = Image.Image | np.ndarray | torch.Tensor | str | os.PathLike[str] | bytes

MAX_RATIO = 20
"""An image more than this many times as wide as high is refused."""

_MIN_WIDTH = 8
_WIDTH_STEP = 8
_BATCH_WIDTH_STEP = 32

# Ink is put on black where it stands out this many times better than on white.
_LIGHT_INK = 3

# Percent of the pixels at either end that may be cut off when contrast is stretched: noise, specks, a glint.
_CONTRAST_CUTOFF = 0.5

_BOOKKEEPING = {"image_processor_type", "processor_class", "auto_map"}


def load_image(source: ImageSource, name: str = "the image") -> Image.Image:
    """Reads an image into upright 8-bit grey.

    Transparent images are put on white, or on black where their ink is too light to be seen on white.

    Args:
        source: Path or bytes of an image file; PIL image of any mode; array or tensor, `[H, W]`, `[H, W, C]`
            or `[C, H, W]` with 1, 3 or 4 channels. Where a shape can be read both ways, arrays have their
            channels last and tensors first. Values are 0 to 255, or 0 to 1 (floats, booleans), or 0 to 65535,
            which the greatest value tells.
        name: What errors call the image if it has no path.

    Returns:
        The image in mode `L`, in its own size.

    Raises:
        ValueError: If the image cannot be read, is empty, has values out of range (NaN included), or is more
            than `MAX_RATIO` times as wide as high. The message is one line that names the image.
    """
    if isinstance(source, (str, os.PathLike)):
        name = os.fspath(source)
    elif isinstance(source, Image.Image):
        name = getattr(source, "filename", "") or name
    try:
        image = _open(source)
        if 0 in image.size:
            raise ValueError(f"no pixels ({image.width}x{image.height}), leave it out")
        if image.width > MAX_RATIO * image.height:
            size = f"{image.width}x{image.height}"
            raise ValueError(f"{size} is more than {MAX_RATIO} times as wide as high, cut it into words")
        return _grey(image)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def resized_width(width: int, height: int, target_height: int = 32, max_width: int = 640) -> int:
    """Returns the width, a multiple of 8, of an image that is resized to `target_height` in its ratio."""
    fitted = min(max(round(target_height * width / height), _MIN_WIDTH), max_width)
    return _round_up(fitted, _WIDTH_STEP)


def resize(image: Image.Image, width: int, height: int, resample: int = Image.Resampling.BICUBIC) -> Image.Image:
    """Resizes a grey image and stretches its contrast to the full range: faded signs are read like fresh ones."""
    # PIL's filters widen as they shrink, so nothing aliases; the gap only speeds up large images.
    resized = image.resize((width, height), resample, reducing_gap=3.0)
    return _stretch_contrast(resized)


def _stretch_contrast(image: Image.Image) -> Image.Image:
    """What `PIL.ImageOps.autocontrast` makes of a grey image, without its loops over levels."""
    pixels = np.asarray(image)
    counts = np.bincount(pixels.ravel(), minlength=256).cumsum()
    cut = int(pixels.size * _CONTRAST_CUTOFF // 100)
    low = int(np.argmax(counts > cut))
    high = int(np.argmax(counts >= pixels.size - cut))
    if high <= low:
        return image
    scale = 255.0 / (high - low)
    levels = np.clip(np.arange(256) * scale - low * scale, 0, 255).astype(np.uint8)
    return Image.fromarray(levels[pixels])


class MSTRImageProcessor(BaseImageProcessor):
    """Resizes images to one height, keeping their ratio, stretches their contrast, and pads them to a batch.

    Args:
        size: `height` of all images and greatest `width`, in pixels.
        resample: PIL's number of the resampling filter.
        image_mean: Mean of the pixels (0 black, 1 white), which becomes 0.
        image_std: Deviation of the pixels from the mean which becomes 1.

    Raises:
        TypeError: If a keyword is unknown.
        ValueError: If a value is out of range.
    """

    model_input_names = ["pixel_values", "pixel_mask"]

    def __init__(
        self,
        size: dict[str, int] | None = None,
        resample: int = Image.Resampling.BICUBIC,
        image_mean: float = 0.5,
        image_std: float = 0.5,
        **kwargs: Any,
    ):
        # The base class would keep, and save, a misspelt keyword.
        if unknown := kwargs.keys() - _BOOKKEEPING:
            raise TypeError(
                f"MSTRImageProcessor has no {', '.join(sorted(unknown))}: "
                "its keywords are size, resample, image_mean and image_std"
            )
        super().__init__(**kwargs)
        self.size = dict(size or {"height": 32, "width": 640})
        if self.size.keys() != {"height", "width"} or min(self.size.values()) < _MIN_WIDTH:
            raise ValueError(f"size {size}: give a height and a width of {_MIN_WIDTH} pixels or more")
        if not image_std > 0:
            raise ValueError(f"image_std {image_std}: give a positive number")
        self.resample = int(Image.Resampling(resample))
        self.image_mean = image_mean
        self.image_std = image_std

    def preprocess(
        self, images: ImageSource | Sequence[ImageSource], return_tensors: str | TensorType | None = None
    ) -> BatchFeature:
        """Reads images into one batch.

        Args:
            images: One image or several, each as in `load_image`; arrays and tensors of four dimensions are
                batches.
            return_tensors: `"pt"` for tensors; arrays if left out.

        Returns:
            `pixel_values` float32 `[B, 1, H, W]`, in [-1, 1] by default and 0 in the padding; `pixel_mask`
            bool `[B, W]`, true in the columns of the image. W is a multiple of 32.

        Raises:
            ValueError: If there are no images, or one is refused by `load_image`.
        """
        greys = [load_image(image, name) for image, name in _named(images)]
        height, max_width = self.size["height"], self.size["width"]
        widths = [resized_width(*grey.size, height, max_width) for grey in greys]
        batch_width = _round_up(max(widths), _BATCH_WIDTH_STEP)
        levels = ((np.arange(256) / 255 - self.image_mean) / self.image_std).astype(np.float32)
        pixel_values = np.zeros((len(greys), 1, height, batch_width), np.float32)
        for pixels, grey, width in zip(pixel_values, greys, widths, strict=True):
            pixels[0, :, :width] = levels[np.asarray(resize(grey, width, height, self.resample))]
        pixel_mask = np.arange(batch_width) < np.array(widths)[:, None]
        batch = {"pixel_values": pixel_values, "pixel_mask": pixel_mask}
        return BatchFeature(batch, tensor_type=return_tensors)


def _round_up(value: int, step: int) -> int:
    return -(-value // step) * step


def _named(images: Any) -> list[tuple[ImageSource, str]]:
    """Lists single images and what errors call them."""
    if isinstance(images, (np.ndarray, torch.Tensor)) and images.ndim == 4:
        images = list(images)
    if isinstance(images, (str, bytes)) or not isinstance(images, Sequence):
        return [(images, "the image")]
    if not images:
        raise ValueError("no images: give at least one")
    return [(image, f"image {number} of the batch") for number, image in enumerate(images, 1)]


def _open(source: ImageSource) -> Image.Image:
    if isinstance(source, (np.ndarray, torch.Tensor)):
        return _from_array(source)
    if not isinstance(source, (Image.Image, str, os.PathLike, bytes)):
        kind = type(source).__name__
        raise ValueError(f"{kind} is not an image, give a path, bytes, a PIL image, an array or a tensor")
    try:
        if isinstance(source, Image.Image):
            return upright(source)
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            return upright(image)
    except Exception as error:  # Pillow's readers raise whatever a damaged file makes them stumble over.
        if isinstance(error, UnidentifiedImageError):
            reason = "not in an image format"
        else:
            reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise ValueError(f"cannot be read ({reason}), give a complete image file") from error


def upright(image: Image.Image) -> Image.Image:
    """Turns an image as its metadata say."""
    image.load()
    with contextlib.suppress(Exception):  # Damaged metadata must not cost good pixels.
        if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
            return ImageOps.exif_transpose(image)
    return image


def _from_array(source: np.ndarray | torch.Tensor) -> Image.Image:
    if isinstance(source, torch.Tensor):
        # NumPy has no bfloat16.
        array = (source.float() if source.is_floating_point() else source).numpy(force=True)
        axes = (0, 2)
    else:
        array = source
        axes = (2, 0)
    axis = next((axis for axis in axes if array.ndim == 3 and array.shape[axis] in (1, 3, 4)), None)
    if axis is not None:
        array = np.moveaxis(array, axis, 2)
        array = array[..., 0] if array.shape[2] == 1 else array
    elif array.ndim != 2:
        shape = tuple(source.shape)
        raise ValueError(f"shape {shape}, give [H, W], [H, W, C] or [C, H, W] with 1, 3 or 4 channels")
    return Image.fromarray(_eight_bits(array))


def _eight_bits(values: np.ndarray) -> np.ndarray:
    """Scales pixel values of any number type to 0..255."""
    if values.dtype == np.uint8:
        return values
    if values.dtype.kind not in "biuf":
        raise ValueError(f"values of type {values.dtype}, give numbers")
    low, high = float(values.min(initial=0)), float(values.max(initial=0))
    if not (low >= 0 and high <= 65535):  # NaN fails this too.
        raise ValueError(f"values from {low} to {high}, give 0 to 1, 0 to 255 or 0 to 65535")
    if values.dtype.kind == "f":  # resized ones overshoot the end of their range, hence twice the range
        top = 1 if high <= 2 else 255 if high <= 510 else 65535
    else:  # cameras and scanners have 10, 12 and 14 bits too
        depths = (1,) if values.dtype.kind == "b" else (8, 10, 12, 14, 16)
        top = next(2**depth - 1 for depth in depths if high < 2**depth)
    return np.rint(values * (255 / top)).clip(max=255).astype(np.uint8)


def _grey(image: Image.Image) -> Image.Image:
    # Pillow's own conversion of these cuts off at 255.
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return Image.fromarray(_eight_bits(np.asarray(image)))
    if not image.has_transparency_data:
        return image.convert("L")
    image = image.convert("RGBA")
    alpha = np.asarray(image.getchannel("A"), np.float32)
    on_black = np.asarray(image.convert("L"), np.float32) * alpha / 255
    on_white = on_black + (255 - alpha)
    flat = on_black if on_black.std() > _LIGHT_INK * on_white.std() else on_white
    return Image.fromarray(np.rint(flat).astype(np.uint8))
