"""Multi-script scene text recognition: one model reads photographed words of many scripts.

Importing the package registers its models, tokenizer and processors with transformers' Auto classes, and the pipeline
`scene-text-recognition`.
"""

import gc

# Modules stay: the garbage collector, which looks through them again and again while more are imported, would take a
# quarter of the seconds that this import takes.
_collecting = gc.isenabled()
gc.disable()

from transformers import AutoConfig, AutoModel, AutoModelForTextRecognition, AutoProcessor, AutoTokenizer

# transformers before 5.20 gives a placeholder for this class at the top where torchvision is missing.
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from transformers.pipelines import PIPELINE_REGISTRY

from mstr_hf.charsets import available_languages, load_charset, load_charsets
from mstr_hf.models.configuration_mclip import MCLIPConfig
from mstr_hf.models.configuration_refiner import RefinerConfig
from mstr_hf.models.configuration_spotter import SpotterConfig
from mstr_hf.models.image_processing_mstr import MSTRImageProcessor
from mstr_hf.models.modeling_mclip import MCLIPModel
from mstr_hf.models.modeling_refiner import RefinerModel
from mstr_hf.models.modeling_spotter import SpotterModel
from mstr_hf.models.pipeline_mstr import SceneTextRecognitionPipeline
from mstr_hf.models.processing_mstr import MSTRProcessor
from mstr_hf.models.prototype_bank import PrototypeBank
from mstr_hf.models.text import display, normalise
from mstr_hf.models.tokenization_mstr import MSTRTokenizer
from mstr_hf.vocabulary import build_vocabulary

__all__ = [
    "MCLIPConfig",
    "MCLIPModel",
    "MSTRImageProcessor",
    "MSTRProcessor",
    "MSTRTokenizer",
    "PrototypeBank",
    "RefinerConfig",
    "RefinerModel",
    "SceneTextRecognitionPipeline",
    "SpotterConfig",
    "SpotterModel",
    "available_languages",
    "build_vocabulary",
    "display",
    "load_charset",
    "load_charsets",
    "normalise",
]

for _config, _model in (
    (MCLIPConfig, MCLIPModel),
    (SpotterConfig, SpotterModel),
    (RefinerConfig, RefinerModel),
):
    AutoConfig.register(_config.model_type, _config)
    AutoModel.register(_config, _model)
    AutoTokenizer.register(_config, fast_tokenizer_class=MSTRTokenizer)
for _config in (SpotterConfig, RefinerConfig):
    AutoImageProcessor.register(_config, image_processor_classes={"pil": MSTRImageProcessor})
    AutoProcessor.register(_config, MSTRProcessor)
AutoModelForTextRecognition.register(RefinerConfig, RefinerModel)
PIPELINE_REGISTRY.register_pipeline(
    "scene-text-recognition", pipeline_class=SceneTextRecognitionPipeline, pt_model=AutoModel, type="image"
)

if _collecting:
    gc.enable()
