from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import nn
from torch.nn import functional as F

from mstr_hf.charsets import load_charsets
from mstr_hf.models.configuration_spotter import SpotterConfig
from mstr_hf.models.image_processing_mstr import MSTRImageProcessor
from mstr_hf.models.modeling_spotter import SpotterModel
from mstr_hf.models.prototype_bank import PrototypeBank
from mstr_hf.vocabulary import build_vocabulary


@pytest.fixture(scope="session")
def bank() -> PrototypeBank:
    """Random prototypes of the English, Hindi and Arabic characters."""
    vocabulary = build_vocabulary(load_charsets(["en", "hi", "ar"]))
    rows = vocabulary.rows
    return PrototypeBank(
        F.normalize(torch.randn(len(rows), 24, generator=torch.Generator().manual_seed(0)), dim=-1),
        [row.character for row in rows],
        [row.subtype for row in rows],
        [row.script for row in rows],
        [row.languages for row in rows],
        vocabulary.joiners,
        "test",
    )


@pytest.fixture(scope="session")
def bank_of_three_times_the_size(bank: PrototypeBank) -> PrototypeBank:
    count = 2 * len(bank)
    rows = torch.randn(count, 24, generator=torch.Generator().manual_seed(1))
    han = [chr(0x4E00 + index) for index in range(count)]
    return bank.extend(rows, han, [0] * count, ["Hani"] * count, [["zh"]] * count)


@pytest.fixture(scope="session")
def shake() -> Callable[[nn.Module], None]:
    """Gives biases and batch statistics values, which are all alike in a new model, and so hide what is not masked."""

    def shake(model: nn.Module) -> None:
        generator = torch.Generator().manual_seed(2)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.copy_(0.3 * torch.randn(module.running_mean.shape, generator=generator))
                module.running_var.copy_(0.5 + torch.rand(module.running_var.shape, generator=generator))
            bias = getattr(module, "bias", None)
            if bias is not None:
                bias.data.copy_(0.3 * torch.randn(bias.shape, generator=generator))

    return shake


@pytest.fixture(scope="session")
def make_spotter(shake: Callable[[nn.Module], None]) -> Callable[..., SpotterModel]:
    """Makes a small Spotter with random weights, ready to read."""

    def make_spotter(bank: PrototypeBank, **shape: Any) -> SpotterModel:
        torch.manual_seed(0)
        config = SpotterConfig(
            stem_channels=8,
            stage_channels=(8, 12, 16),
            stage_blocks=(1, 1),
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            projection_dim=24,
            num_prototypes=len(bank),
            **shape,
        )
        model = SpotterModel(config)
        model.set_bank(bank, base=True)
        shake(model)
        return model.eval()

    return make_spotter


@pytest.fixture
def spotter(make_spotter: Callable[..., SpotterModel], bank: PrototypeBank) -> SpotterModel:
    return make_spotter(bank)


@pytest.fixture(scope="session")
def words() -> list[str]:
    """What the images show."""
    return ["Hi", "mixed", "Wide-Words!", "12%"]


@pytest.fixture(scope="session")
def images(words: list[str]) -> dict[str, torch.Tensor]:
    """`pixel_values` and `pixel_mask` of words of different widths."""
    font = ImageFont.load_default(size=26)
    drawn = []
    for word in words:
        image = Image.new("L", (int(font.getlength(word)) + 8, 34), 220)
        ImageDraw.Draw(image).text((4, 1), word, font=font, fill=30)
        drawn.append(np.asarray(image))
    return dict(MSTRImageProcessor()(drawn, return_tensors="pt"))


@pytest.fixture(scope="session")
def labels(bank: PrototypeBank, words: list[str]) -> torch.Tensor:
    """Token ids of the words, padded with -100."""
    ids = [torch.tensor([128 + bank.row(character) for character in word]) for word in words]
    return nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=-100)
