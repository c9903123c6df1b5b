import numpy as np
import pytest
import torch
from PIL import Image

from mstr_hf import cli
from mstr_hf.evaluation import attention
from mstr_hf.evaluation.attention import attention_maps
from mstr_hf.models.configuration_refiner import RefinerConfig
from mstr_hf.models.modeling_refiner import RefinerModel
from mstr_hf.models.modeling_spotter import TOKEN_OFFSET
from mstr_hf.models.processing_mstr import MSTRProcessor


def test_maps_have_the_image_without_its_padding(tiny_refiner):
    pixel_values = torch.rand(1, 1, 32, 96) * 2 - 1
    pixel_mask = torch.arange(96)[None] < 72
    implementation = tiny_refiner.config._attn_implementation
    maps = attention_maps(tiny_refiner, pixel_values, pixel_mask, [TOKEN_OFFSET, TOKEN_OFFSET + 5])
    assert maps.shape == (2, 4, 9) and maps.min() >= 0
    assert ((maps.sum((1, 2)) > 0) & (maps.sum((1, 2)) <= 1 + 1e-5)).all()
    assert tiny_refiner.config._attn_implementation == implementation
    assert not any(layer.cross_attn._forward_hooks for layer in tiny_refiner.layers)
    assert attention_maps(tiny_refiner, pixel_values, pixel_mask, []).shape == (0, 4, 9)


def test_maps_are_where_the_decoder_looks(tiny_refiner, monkeypatch):
    """All attention on one row of the memory: the last level's second row, fifth column; then the fine level's."""
    width = 6
    coarse = look_at(monkeypatch, tiny_refiner, width + 4, width)
    assert coarse[2:, 4].tolist() == [0.5, 0.5] and coarse.sum() == 1
    fine = look_at(monkeypatch, tiny_refiner, 2 * width + 3 * width + 4, width)
    assert fine[3, 4] == 1 and fine.sum() == 1


def test_maps_of_merged_rows_are_of_the_whole_height(tiny_refiner, monkeypatch):
    width = 6
    shape = tiny_refiner.spotter.config.to_dict() | {"merge_rows": True}
    merged = RefinerModel(RefinerConfig(spotter_config=shape)).eval()
    coarse = look_at(monkeypatch, merged, 4, width)
    assert coarse[:, 4].tolist() == [0.25] * 4 and coarse.sum() == 1
    fine = look_at(monkeypatch, merged, width + 3 * width + 4, width)
    assert fine[3, 4] == 1 and fine.sum() == 1


def look_at(monkeypatch, model: RefinerModel, row: int, width: int) -> torch.Tensor:
    """The map of a decoder that only looks at one row of the visual memory."""

    def forward(hidden_states, memory=None, *arguments, **options):
        weights = torch.zeros(1, 4, hidden_states.shape[1], memory.shape[1])
        weights[..., model.config.spotter_config.max_length + row] = 1
        return torch.zeros_like(hidden_states), weights

    for layer in model.layers:
        monkeypatch.setattr(layer.cross_attn, "forward", forward)
    pixels = torch.zeros(1, 1, 32, 8 * width)
    return attention_maps(model, pixels, torch.ones(1, 8 * width, dtype=torch.bool), [TOKEN_OFFSET])[0]


@pytest.mark.parametrize("top_k", [1, 3])
def test_command_draws_a_picture(tiny_checkpoint, fonts, tmp_path, monkeypatch, top_k):
    monkeypatch.setattr(attention, "discover_fonts", lambda languages: fonts)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 90), np.uint8)).save(tmp_path / "word.png")
    command = ["explain", str(tmp_path / "word.png"), "--model", str(tiny_checkpoint), "--top-k", str(top_k)]
    assert cli.main([*command, "--output", str(tmp_path / "picture.png")]) == 0
    with Image.open(tmp_path / "picture.png") as picture:
        assert picture.mode == "RGB" and picture.width >= 420
        # The word itself, left and top, as it was.
        colours = np.asarray(picture)[24:96, 24:144].std()
    assert colours > 20


def test_fonts_are_for_the_hypotheses_too(tiny_refiner, tiny_checkpoint, fonts, monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(attention, "discover_fonts", lambda languages: asked.append(languages) or fonts)
    character = {"char": "a", "score": 0.9, "alternatives": [{"char": "क", "score": 0.1}]}
    reading = {"text": "a", "script": "Latn", "score": 0.9, "characters": [character]}
    monkeypatch.setattr(type(tiny_refiner), "recognise", lambda *arguments, **options: [reading])
    Image.new("L", (60, 30), 128).save(tmp_path / "word.png")
    attention.explain(tiny_refiner, MSTRProcessor.from_pretrained(tiny_checkpoint), tmp_path / "word.png", 2)
    assert asked == [["en", "hi"]]


def test_broken_images_are_named(tiny_checkpoint, tmp_path, capsys):
    (tmp_path / "word.png").write_bytes(b"no image")
    command = ["explain", str(tmp_path / "word.png"), "--model", str(tiny_checkpoint), "--output", "x.png"]
    assert cli.main(command) == 2
    assert "word.png: cannot be read" in capsys.readouterr().err
