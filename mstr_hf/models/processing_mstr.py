"""Images and labels in, model inputs out; token ids in, text out."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from transformers.image_processing_base import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor
from transformers.processing_utils import ProcessorMixin
from transformers.tokenization_utils_base import PreTrainedTokenizerBase
from transformers.utils import TensorType

from .image_processing_mstr import ImageSource
from .text import display, normalise

_NEW_TOKENIZER = "a larger bank needs a new tokenizer: mstr_hf.hub.publish.assemble(model, folder) makes one"

IGNORED = -100
"""Label of the padding, which torch's losses leave out."""


class MSTRProcessor(ProcessorMixin):
    """Prepares images and labels for Spotter and Refiner, and turns their token ids into text.

    Args:
        image_processor: An `MSTRImageProcessor`.
        tokenizer: An `MSTRTokenizer`, or the plain fast tokenizer that its files load as.
    """

    def __init__(self, image_processor: BaseImageProcessor, tokenizer: PreTrainedTokenizerBase):
        super().__init__(image_processor, tokenizer)
        characters = (token for token in tokenizer.get_vocab() if len(token) == 1)
        self._joiners = "".join(character for character in characters if not normalise(character))

    def __call__(
        self,
        images: ImageSource | Sequence[ImageSource] | None = None,
        text: str | Sequence[str] | None = None,
        return_tensors: str | TensorType | None = None,
    ) -> BatchFeature:
        """Prepares images, labels or both.

        Args:
            images: One image or several, as in `MSTRImageProcessor.preprocess`.
            text: The word of each image, in any normal form.
            return_tensors: `"pt"` for tensors; arrays if left out.

        Returns:
            `pixel_values` and `pixel_mask` of the images; `labels` int64 `[B, L]`, the token ids of the
            normalised text in logical order, without start or end, padded with -100.

        Raises:
            ValueError: If there is nothing to prepare, images and texts differ in number, or an image or a
                text is unusable: empty, or with characters that the tokenizer does not know.
        """
        if images is None and text is None:
            raise ValueError("nothing to process: give images, text or both")
        inputs = BatchFeature()
        if images is not None:
            inputs.update(self.image_processor(images))
        if text is not None:
            inputs["labels"] = self._labels([text] if isinstance(text, str) else text)
        counts = {name: len(values) for name, values in inputs.items()}
        if len(set(counts.values())) > 1:
            raise ValueError(
                f"{counts['pixel_values']} images but {counts['labels']} texts: give each image one text"
            )
        return inputs.convert_to_tensors(return_tensors)

    def decode(self, *args: Any, **kwargs: Any) -> str | list[str]:
        """Returns the text (NFC) of token ids, of each row where there are several: see the tokenizer's `decode`."""
        text = self.tokenizer.decode(*args, **kwargs)
        return [display(one) for one in text] if isinstance(text, list) else display(text)

    def batch_decode(self, *args: Any, **kwargs: Any) -> list[str]:
        """Returns the texts (NFC) of sequences of token ids; see the tokenizer's `batch_decode`."""
        return [display(text) for text in self.tokenizer.batch_decode(*args, **kwargs)]

    def post_process_text_recognition(self, outputs: Any) -> list[dict[str, Any]]:
        """Turns what the Refiner makes of images into text, as transformers' own text recognisers do.

        Args:
            outputs: `model(**inputs)`, with the images alone as inputs.

        Returns:
            For each image `text` (NFC) and `score`, the confidence that all of it is right.

        Raises:
            ValueError: If the outputs are not those of such a call, or of a model with more characters.
        """
        if getattr(outputs, "sequences", None) is None:
            raise ValueError("no readings in these outputs: call the Refiner with images alone, model(**inputs)")
        if outputs.sequences.numel() and outputs.sequences.max() >= len(self.tokenizer):
            raise ValueError(f"ids of more than the tokenizer's {len(self.tokenizer)} tokens ({_NEW_TOKENIZER})")
        texts = self.batch_decode(outputs.sequences, skip_special_tokens=True)
        scores = outputs.sequences_scores.tolist()
        return [{"text": text, "score": score} for text, score in zip(texts, scores, strict=True)]

    @property
    def model_input_names(self) -> list[str]:
        """Names of what the processor makes."""
        return [*self.image_processor.model_input_names, "labels"]

    def _labels(self, texts: Sequence[str]) -> np.ndarray:
        words = [normalise(text, keep=self._joiners) for text in texts]
        rows = self.tokenizer(words)["input_ids"]
        for text, word, row in zip(texts, words, rows, strict=True):
            if not word:
                raise ValueError(f"label {text!r}: no characters, leave it out")
            if self.tokenizer.unk_token_id in row:
                known = self.tokenizer.get_vocab()
                unknown = [f"{c!r} (U+{ord(c):04X})" for c in dict.fromkeys(word) if c not in known]
                raise ValueError(f"label {text!r}: no token for {', '.join(unknown)}, leave it out ({_NEW_TOKENIZER})")
        labels = np.full((len(rows), max(map(len, rows), default=0)), IGNORED)
        for label, row in zip(labels, rows, strict=True):
            label[: len(row)] = row
        return labels
