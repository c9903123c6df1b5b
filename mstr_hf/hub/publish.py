"""Checkpoint folders, laid out as repositories of the Hub."""

import inspect
import os
import shutil
from pathlib import Path

from transformers.dynamic_module_utils import get_relative_import_files

from mstr_hf.models import modeling_refiner, pipeline_mstr, processing_mstr
from mstr_hf.models.image_processing_mstr import MAX_RATIO, MSTRImageProcessor
from mstr_hf.models.modeling_refiner import RefinerModel
from mstr_hf.models.processing_mstr import MSTRProcessor
from mstr_hf.vocabulary import Row, Vocabulary

# The tokenizer is left out: its files load as a plain fast tokenizer where the package is missing.
AUTO_MAP = {
    "AutoConfig": "configuration_refiner.RefinerConfig",
    "AutoModel": "modeling_refiner.RefinerModel",
    "AutoModelForTextRecognition": "modeling_refiner.RefinerModel",
    "AutoProcessor": "processing_mstr.MSTRProcessor",
    "AutoImageProcessor": "image_processing_mstr.MSTRImageProcessor",
}
# A task of transformers' own before v5, and still that of the Hub.
PIPELINES = {
    "image-to-text": {"impl": "pipeline_mstr.SceneTextRecognitionPipeline", "pt": ["AutoModel"], "type": "image"}
}


def assemble(model: RefinerModel, folder: str | os.PathLike[str]) -> None:
    """Writes a checkpoint that AutoModel and AutoProcessor load.

    They do so, and a pipeline can be made of it, where `mstr_hf` is imported, and with `trust_remote_code=True` where
    it is not installed.

    Args:
        model: A Refiner with its bank; it is saved in the precision that it has.
        folder: Where to write; made if needed, files of the same names are replaced.

    Raises:
        BankError: If the model was never given a bank.
    """
    folder = Path(folder)
    bank = model.get_bank()
    bank.save_pretrained(folder)

    model.config.auto_map, model.config.custom_pipelines = AUTO_MAP, PIPELINES
    # As in `recognise`: the longest reading and its end.
    model.generation_config.max_new_tokens = model.config.spotter_config.max_length + 1
    model.save_pretrained(folder)

    height = model.config.spotter_config.image_height
    image_processor = MSTRImageProcessor(size={"height": height, "width": MAX_RATIO * height})
    # Tokens follow the bank, so that they agree even where its charsets have changed since.
    rows = zip(bank.characters, bank.subtypes, bank.scripts, map(tuple, bank.languages), strict=True)
    vocabulary = Vocabulary(tuple(Row(*row) for row in rows), tuple(bank.all_languages), bank.joiners)
    processor = MSTRProcessor(image_processor, vocabulary.tokenizer())
    image_processor.auto_map = processor.auto_map = AUTO_MAP  # type: ignore[attr-defined]  # only saved, so not declared
    processor.save_pretrained(folder)

    for module in (modeling_refiner, pipeline_mstr, processing_mstr):
        source = inspect.getfile(module)
        for path in (source, *get_relative_import_files(source)):
            shutil.copy(path, folder)
