import numpy as np
import pytest
import torch
from torch.nn import functional as F

from mstr_hf.charsets import load_charset
from mstr_hf.models.prototype_bank import PrototypeBank
from mstr_hf.training.bank_report import _glyph, bank_report, bank_statistics, closest_pairs, draw_map, tsne

CHARACTERS = ["a", "A", "b", "7", "क", "ं"]


@pytest.fixture(scope="module")
def bank() -> PrototypeBank:
    rows = torch.eye(6, 8)
    rows[1] = torch.tensor([0.8, 0.6, 0, 0, 0, 0, 0, 0])
    rows[4] = torch.tensor([0, 0, 0.6, 0, 0.8, 0, 0, 0])
    scripts = ["Latn", "Latn", "Latn", "Zyyy", "Deva", "Deva"]
    return PrototypeBank(rows, CHARACTERS, [0, 0, 0, 2, 0, 1], scripts, [["en"]] * 4 + [["hi"]] * 2)


def test_closest_pairs_come_first(bank):
    pairs = closest_pairs(bank, 3)
    assert [(first, second) for first, second, _ in pairs[:2]] == [("a", "A"), ("b", "क")]
    assert [cosine for *_, cosine in pairs] == pytest.approx([0.8, 0.6, 0.0])
    assert len(closest_pairs(bank, 99)) == 15


def test_statistics_tell_scripts_apart(bank):
    figures = bank_statistics(bank)
    assert figures["nearest, greatest"] == pytest.approx(0.8)
    assert figures["nearest, mean"] == pytest.approx((0.8 + 0.8 + 0.6 + 0 + 0.6 + 0) / 6)
    assert figures["nearest within scripts, mean"] == pytest.approx((0.8 + 0.8 + 0 + 0 + 0) / 5)
    assert figures["nearest across scripts, mean"] == pytest.approx((0 + 0 + 0.6 + 0 + 0.6 + 0) / 6)
    assert figures["confusable pairs, above 0.5"] == 2 and figures["of these look-alikes"] == 1


def test_report_names_the_bank_and_its_pairs(bank):
    lines = bank_report(bank, 2).splitlines()
    assert lines[0] == "# 6 rows of 8" and lines[2] == f"Digest {bank.digest()}"
    assert "| a | A | U+0061 U+0041 | 0.800 | yes |" in lines and "| b | क | U+0062 U+0915 | 0.600 |  |" in lines


def test_map_keeps_clusters_together():
    generator = torch.Generator().manual_seed(0)
    centres = F.normalize(torch.randn(4, 12, generator=generator), dim=-1)
    rows = F.normalize(centres.repeat_interleave(10, 0) + 0.1 * torch.randn(40, 12, generator=generator), dim=-1)
    places = tsne(rows, perplexity=5, steps=250)
    assert places.shape == (40, 2) and torch.isfinite(places).all()
    nearest = torch.cdist(places, places).fill_diagonal_(torch.inf).argmin(1)
    assert (nearest // 10 == torch.arange(40) // 10).float().mean() > 0.9


def test_map_shows_every_character(bank, fonts):
    picture = np.asarray(draw_map(bank, fonts, 400))
    assert picture.shape == (400, 400, 3)
    colours = {tuple(colour) for colour in picture.reshape(-1, 3).tolist()}
    # Each script's own colour, and white.
    assert {(0, 0x72, 0xB2), (0xD5, 0x5E, 0), (0, 0x9E, 0x73), (255, 255, 255)} <= colours


def test_scripts_are_drawn_in_one_size(bank, fonts):
    faces = [face for face in fonts.by_language["hi"] if face.style == "Regular"]
    heights = []
    for face in faces:
        glyph = np.asarray(_glyph("क", [face], load_charset("hi").letters))
        heights.append(np.ptp(np.flatnonzero(glyph.any(1))))
    latin = np.asarray(_glyph("H", [fonts.by_language["en"][0]], load_charset("en").letters))
    tall = np.ptp(np.flatnonzero(latin.any(1)))
    assert len(faces) > 1 and min(heights) > 0.5 * tall and max(heights) < 1.5 * tall
