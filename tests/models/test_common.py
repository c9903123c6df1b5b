"""transformers' own common tests of models, configurations, image processors and tokenizers, run on this family."""

import unittest

import torch
import transformers
import transformers_suite
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from mstr_hf import (
    MCLIPConfig,
    MCLIPModel,
    MSTRImageProcessor,
    MSTRTokenizer,
    RefinerConfig,
    RefinerModel,
    SpotterConfig,
    SpotterModel,
    build_vocabulary,
    load_charsets,
)

modeling = transformers_suite.load("test_modeling_common")
configuration = transformers_suite.load("test_configuration_common")
image_processing = transformers_suite.load("test_image_processing_common")
tokenization = transformers_suite.load("test_tokenization_common")

# transformers before 5.20 gives a placeholder for this class at the top where torchvision is missing.
image_processing.AutoImageProcessor = AutoImageProcessor
# Would set fields of other models' configurations, which ours refuse to save.
modeling.set_config_for_less_flaky_test = lambda config: None

SPOTTER = {
    "stem_channels": 4,
    "stage_channels": [4, 4, 8],
    "stage_blocks": [1, 1],
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 8,
    "projection_dim": 8,
    "top_k": 3,
    "max_length": 16,
    "num_prototypes": 12,
    "num_base_prototypes": 12,
}
DECODER = {
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 8,
    "max_position_embeddings": 18,
}
MCLIP = {
    "vocab_size": 20,
    "num_rows": 12,
    "projection_dim": 8,
    "image_channels": [4, 8],
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 8,
}
FIRST, NUM_ROWS = 128, 12  # token ids of the bank's rows


class Tester:
    """What the common tests ask of a model's tester."""

    batch_size, width, is_training = 3, 32, True
    hidden_size, num_hidden_layers, num_attention_heads = 8, 2, 2

    def __init__(self, parent):
        self.parent = parent

    def images(self):
        generator = torch.Generator().manual_seed(0)
        pixels = torch.rand(self.batch_size, 1, 32, self.width, generator=generator) * 2 - 1
        return {"pixel_values": pixels, "pixel_mask": torch.ones(self.batch_size, self.width, dtype=torch.bool)}

    def labels(self):
        return {"labels": torch.tensor([[FIRST, FIRST + 1], [FIRST + 3, FIRST + 4], [FIRST + 5, -100]])}

    def prepare_config_and_inputs_for_common(self):
        return self.get_config(), self.inputs()


class SpotterTester(Tester):
    seq_length = 16  # two rows of eight columns

    def get_config(self):
        return SpotterConfig(**SPOTTER)

    def inputs(self):
        return self.images()


class RefinerTester(Tester):
    encoder_seq_length, decoder_seq_length = SpotterTester.seq_length, 3

    def get_config(self):
        return RefinerConfig(spotter_config=SPOTTER, text_config=DECODER, freeze_spotter=False)

    def inputs(self):
        ids = torch.tensor([[1, FIRST, FIRST + 1], [1, FIRST + 2, FIRST + 3], [1, FIRST + 5, FIRST + 4]])
        return {**self.images(), "decoder_input_ids": ids}


class MCLIPTester(Tester):
    seq_length = 3

    def get_config(self):
        return MCLIPConfig(**MCLIP)

    def inputs(self):
        ids = torch.arange(self.batch_size * self.seq_length).view(self.batch_size, self.seq_length)
        images = {"pixel_values": self.images()["pixel_values"]}
        return {**images, "input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def labels(self):
        return {"rows": torch.tensor([0, 1, 2])}


def skip(**reasons):
    """Skips the tests of a case whose names begin with a keyword; the value is the reason."""

    def decorate(case):
        for prefix, reason in reasons.items():
            for name in filter(lambda name: name.startswith(prefix), dir(case)):
                setattr(case, name, unittest.skip(reason)(getattr(case, name)))
        return case

    return decorate


class CommonTests(modeling.ModelTesterMixin):
    test_resize_embeddings = False  # the alphabet's vectors are the bank's rows, of which there may be any number

    def setUp(self):
        self.model_tester = self.model_tester_class(self)
        self.config_tester = configuration.ConfigTester(
            self, config_class=type(self.model_tester.get_config()), has_text_modality=False, **self.config_values
        )

    @unittest.skipIf(transformers.__version__ < "5.20", "takes batch norm's counter of batches for a weight")
    def test_keep_in_fp32_modules(self):
        super().test_keep_in_fp32_modules()

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs = super()._prepare_for_class(inputs_dict, model_class)
        return {**inputs, **self.model_tester.labels()} if return_labels else inputs

    def _prepare_config_and_inputs_for_retain_grad_hidden_states_attentions(self):
        # The gradient is that of the first output: the loss depends on all there is.
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        return config, {**inputs, **self.model_tester.labels()}

    def test_model_outputs_equivalence(self):
        """In place of transformers' own, which subtracts all outputs, and masks are boolean here."""
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        model = self.all_model_classes[0]._from_config(config, attn_implementation="eager").eval()
        for labels in ({}, self.model_tester.labels()):
            call = {**inputs, **labels, "output_hidden_states": True, "output_attentions": True}
            with torch.no_grad():
                dictionary, plain = model(**call), model(**call, return_dict=False)
            assert type(plain) is tuple
            torch.testing.assert_close(plain, dictionary.to_tuple(), rtol=0, atol=0)

    def test_config(self):
        self.config_tester.run_common_tests()


@skip(test_model_get_set_embeddings="images go in through a convolution, not through a table of tokens")
class SpotterModelTest(CommonTests, unittest.TestCase):
    model_tester_class, all_model_classes, config_values = SpotterTester, (SpotterModel,), SPOTTER


@skip(
    test_model_get_set_embeddings="characters go in as rows of the bank, not through a table of tokens",
    test_model_base_model_prefix="the model that generates is the whole model: no head lies on top of a base model",
    test_generation_tester_mixin_inheritance="the source distribution lacks them; see test_modeling_refiner",
    test_attention_outputs="the memory is longer than the Spotter's states; see test_modeling_refiner",
)
class RefinerModelTest(CommonTests, unittest.TestCase):
    model_tester_class, all_model_classes = RefinerTester, (RefinerModel,)
    config_values = {"logit_scale_init": 20.0}
    is_encoder_decoder = True
    _is_composite = True
    test_all_params_have_gradient = False  # the Spotter's blank row has a part in the Spotter's own loss only


@skip(
    test_get_image_features="features are the unit rows alone, of which a bank is made: the tower is a ResNet",
    test_get_text_features="features are the unit rows alone, of which a bank is made",
)
class MCLIPModelTest(CommonTests, unittest.TestCase):
    model_tester_class, all_model_classes, config_values = MCLIPTester, (MCLIPModel,), MCLIP
    additional_model_inputs = ["input_ids"]


class ImageProcessorTester:
    def __init__(self, parent):
        self.parent = parent
        self.batch_size, self.num_channels, self.min_resolution, self.max_resolution = 3, 3, 30, 80

    def prepare_image_processor_dict(self):
        return {"size": {"height": 32, "width": 640}, "image_mean": 0.4, "image_std": 0.6}

    def expected_output_image_shape(self, images):
        return (1, *MSTRImageProcessor(**self.prepare_image_processor_dict())(images)["pixel_values"].shape[2:])

    def prepare_image_inputs(self, equal_resolution=False, numpify=False, torchify=False):
        return image_processing.prepare_image_inputs(
            batch_size=self.batch_size,
            num_channels=self.num_channels,
            min_resolution=self.min_resolution,
            max_resolution=self.max_resolution,
            equal_resolution=equal_resolution,
            numpify=numpify,
            torchify=torchify,
        )


@skip(
    test_call_numpy_4_channels="unknown options of a call are refused, such as do_convert_rgb",
    test_image_processor_from_dict_with_kwargs="unknown settings are refused, such as do_convert_rgb",
    test_new_models_require_torchvision_backend="images are read with Pillow alone, and torchvision is not needed",
)
class MSTRImageProcessorTest(image_processing.ImageProcessingTestMixin, unittest.TestCase):
    image_processing_classes = {"pil": MSTRImageProcessor}
    test_cast_dtype = True

    def setUp(self):
        self.image_processor_tester = ImageProcessorTester(self)

    @property
    def image_processor_dict(self):
        return self.image_processor_tester.prepare_image_processor_dict()


@skip(
    test_internal_consistency="expects a space to be kept, and words have none",
    test_tokenize_special_tokens="a word that is spelled like a special token is read as its characters",
)
class MSTRTokenizerTest(tokenization.TokenizerTesterMixin, unittest.TestCase):
    tokenizer_class = rust_tokenizer_class = MSTRTokenizer
    test_seq2seq = False

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        vocabulary = build_vocabulary(load_charsets(["en", "hi", "ar"]))
        vocabulary.tokenizer().save_pretrained(cls.tmpdirname)
