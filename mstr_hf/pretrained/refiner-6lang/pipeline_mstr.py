"""Scene text recognition as a pipeline: images in, readings out."""

import os
from typing import Any

from transformers import Pipeline

from .image_processing_mstr import ImageSource, load_image

READING_OPTIONS = {"languages", "num_alternatives", "gate_threshold", "num_views"}


class SceneTextRecognitionPipeline(Pipeline):
    """Reads word images with a Refiner.

    `pipeline("image-to-text", model=..., trust_remote_code=True)` makes one from a checkpoint alone, and
    `pipeline("scene-text-recognition", model=...)` where `mstr_hf` is imported. Called with an image, it gives a
    reading (see `RefinerModel.recognise`); called with a list, a list of them; called with a dataset or a generator, an
    iterator. An image may be a path, bytes, PIL image, array or tensor; images of a batch may differ in size.

    Options, in the call or for all calls: `batch_size`, and those of `recognise`: `languages`, `num_alternatives`,
    `gate_threshold`, `num_views`.

    Raises:
        TypeError: If an option is unknown.
        ValueError: If an image cannot be read (the message names it), or a language is unknown.
    """

    _load_processor = True
    _load_image_processor = False
    _load_feature_extractor = False
    _load_tokenizer = False

    def _sanitize_parameters(self, **options: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        options.pop("local_files_only", None)  # which `pipeline` has heeded, and hands on
        if unknown := options.keys() - READING_OPTIONS:
            names = ", ".join(sorted(READING_OPTIONS))
            raise TypeError(f"this pipeline has no option {', '.join(sorted(unknown))}: its options are {names}")
        return {}, options, {}

    def preprocess(self, input_: ImageSource) -> dict[str, Any]:
        """Decodes an image; images become tensors only as a batch, whose widths they share."""
        return {"image": load_image(input_)}

    def _forward(self, input_tensors: dict[str, Any], **options: Any) -> dict[str, Any]:
        images = input_tensors["image"]
        inputs = self.processor(images=images, return_tensors="pt").to(self.model.device)
        readings = self.model.recognise(**inputs, **options)
        # The base class takes batches apart, but hands single images on as they are.
        return {"reading": readings if isinstance(images, list) else readings[0]}

    def postprocess(self, model_outputs: dict[str, Any]) -> dict[str, Any]:
        """Gives the reading."""
        return model_outputs["reading"]

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:
        """Saves the model and its processor, for where `mstr_hf` is imported: no code is laid beside them.

        The base class would leave out the processor, and enter the task's name as one that needs remote code.
        """
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory, **kwargs)
