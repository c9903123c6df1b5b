"""Custom handler for Inference Endpoints: reads word images that are sent as bytes.

It lies beside the weights on the Hub and needs nothing but transformers, torch and Pillow. Requests are an image
(`Content-Type: image/...`) or JSON:

    {"inputs": BASE64 or [BASE64, ...], "parameters": {"languages": ["hi", "en"], "num_alternatives": 3}}

The answer is a list with one object an image: `generated_text` and what else there is of the reading. What cannot be
read is answered with status 400 and one line that says why.
"""

import base64
import binascii
import io
from typing import Any

import torch
from PIL import Image
from transformers import AutoModel, AutoProcessor

MAX_IMAGES = 64
MAX_ALTERNATIVES = 10
MAX_PIXELS = 25_000_000


class EndpointHandler:
    """What an endpoint calls.

    Args:
        path: Folder of the checkpoint.
    """

    def __init__(self, path: str = ""):
        # The folder is the repository that the owner of the endpoint has chosen, with this file in it.
        self.model = AutoModel.from_pretrained(path, trust_remote_code=True).eval()
        self.processor = AutoProcessor.from_pretrained(path, trust_remote_code=True)
        self.model.to("cuda" if torch.cuda.is_available() else "cpu")

    def __call__(self, data: dict[str, Any]) -> list[dict[str, Any]]:
        """Reads the images of a request.

        Args:
            data: `inputs`, an image or a list of images, each a PIL image, bytes of an image file or base64 of them;
                and `parameters`: `languages` (codes) and `num_alternatives`.

        Returns:
            A reading for each image, as of `RefinerModel.recognise`, with `generated_text` for `text`.

        Raises:
            ValueError: If the request cannot be answered; the server makes a 400 of it.
        """
        images = data.get("inputs")
        if not isinstance(images, list):
            images = [images]
        if not 1 <= len(images) <= MAX_IMAGES:
            raise ValueError(f"inputs: {len(images)} images: send 1 to {MAX_IMAGES} in a request")
        options = self._options(data.get("parameters"))
        batch = [_checked(image, f"image {number}") for number, image in enumerate(images, 1)]
        inputs = self.processor(images=batch, return_tensors="pt").to(self.model.device)
        readings = self.model.recognise(**inputs, **options)
        return [{"generated_text": reading.pop("text"), **reading} for reading in readings]

    def _options(self, parameters: Any) -> dict[str, Any]:
        """Checks the parameters of a request."""
        options = {} if parameters is None else parameters
        if not isinstance(options, dict):
            raise ValueError("parameters: send an object")
        if unknown := options.keys() - {"languages", "num_alternatives"}:
            raise ValueError(
                f"parameters: unknown {', '.join(sorted(unknown))}: there are languages and num_alternatives"
            )
        languages, known = options.get("languages"), self.model.get_bank().all_languages
        if languages is not None and not (
            isinstance(languages, list) and languages and all(lang in known for lang in languages)
        ):
            raise ValueError(f"languages: {languages!r}: send a list of some of {', '.join(known)}")
        number = options.get("num_alternatives", 0)
        if type(number) is not int or not 0 <= number <= MAX_ALTERNATIVES:
            raise ValueError(f"num_alternatives: {number!r}: send a whole number from 0 to {MAX_ALTERNATIVES}")
        return options


def _checked(image: Any, name: str) -> Image.Image | bytes:
    """Returns an image as the processor takes it: never a path or a URL, which it would open."""
    if isinstance(image, str):
        try:
            image = base64.b64decode("".join(image.split()), validate=True)  # many encoders break lines
        except (binascii.Error, ValueError):
            raise ValueError(f"{name}: no base64: send the bytes of an image; URLs and paths are not fetched") from None
    if isinstance(image, bytes):
        try:
            with Image.open(io.BytesIO(image)) as opened:
                size = opened.size
        except Exception:  # Pillow's readers raise whatever a damaged file makes them stumble over.
            raise ValueError(f"{name}: cannot be read: send a complete image file") from None
    elif isinstance(image, Image.Image):
        size = image.size
    else:
        raise ValueError(f"{name}: {type(image).__name__} is no image: send the bytes of one, as base64 in JSON")
    if size[0] * size[1] > MAX_PIXELS:
        raise ValueError(f"{name}: {size[0]}x{size[1]} is too large: send one word, {MAX_PIXELS:,} pixels at most")
    return image
