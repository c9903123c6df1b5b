"""A model that knows a word by the width of its image, so that figures can be told by hand."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

# Manifest, image width, language, reference, and what the Spotter, the Refiner and the peer read.
WORDS = [
    ("dev", 90, "en", "Cafe", "Cafe", "cafe", "Cale"),
    ("dev", 40, "en", "Shop", "Shap", "Shop", "Shop"),
    ("dev", 70, "hi", "नमक", "नमक", "नमक", "नम\u200dक"),
    ("report", 60, "hi", "दूध", "दूघ", "दूध", "दूध"),
    ("report", 50, "kn", "ಹಾಲು", "", "", ""),
]


class FakeProcessor:
    """Hands images on."""

    image_processor = SimpleNamespace(to_json_string=lambda: "{}")

    def __call__(self, images: Sequence[Image.Image], return_tensors: str) -> "FakeInputs":
        return FakeInputs(images=images)


class FakeInputs(dict):
    def to(self, device: str) -> "FakeInputs":
        return self


class FakeModel:
    """Reads what `WORDS` says; fails before the batch of number `last`."""

    device = "cpu"
    config = SimpleNamespace(to_dict=lambda: {"size": 1})

    def __init__(self, last: int = 100):
        self.read: list[int] = []
        self.batches = 0
        self.last = last

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {"weight": torch.ones(2)}

    def get_bank(self) -> SimpleNamespace:
        return SimpleNamespace(all_languages=["en", "hi"])

    def recognise(self, images: Sequence[Image.Image], num_alternatives: int = 0) -> list[dict]:
        by_width = {width: (spotter, refiner) for _, width, _, _, spotter, refiner, _ in WORDS}
        readings = []
        if not num_alternatives:
            if self.batches == self.last:
                raise KeyboardInterrupt
            self.batches += 1
            self.read += [image.width for image in images]
        for image in images:
            spotter, refiner = by_width[image.width]
            # Looking for alternatives reads another way, and finds what is shown too.
            text = refiner if not num_alternatives else refiner[::-1]
            others = [refiner, "x", "y"][:num_alternatives]
            readings.append(
                {
                    "text": text,
                    "score": 0.75,
                    "script": "Latn",
                    "characters": [{"char": char, "score": 0.9, "alternatives": []} for char in text],
                    "alternatives": [{"text": other, "score": 0.1} for other in others],
                    "spotter_text": spotter,
                }
            )
        return readings


class FakePeer:
    """Reads with one of its two settings only, and no Hindi."""

    name = "Fake"
    version = "2"
    languages = frozenset({"en"})
    variants = ("blind", "seeing")
    calls: list[list[str]] = []

    def read(self, images: Sequence[Path], lang: str, variant: str) -> list[str]:
        self.calls.append([image.name for image in images])
        texts = {f"{split}{width}.png": text for split, width, *_, text in WORDS}
        return [texts[image.name] if variant == "seeing" else "" for image in images]


@pytest.fixture
def manifests(tmp_path: Path) -> list[Path]:
    """Two manifests; words of one language share a photograph."""
    for split, width, lang, text, *_ in WORDS:
        name = f"{split}{width}.png"
        Image.new("L", (width, 20), 200).save(tmp_path / name)
        entry = {"id": name, "path_rel": name, "filename": name, "gt_text": text, "lang": lang, "dataset": f"of {lang}"}
        with (tmp_path / f"{split}.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry | {"photo": lang}) + "\n")
    return [tmp_path / "dev.jsonl", tmp_path / "report.jsonl"]


@pytest.fixture
def fake_peer(monkeypatch: pytest.MonkeyPatch) -> type[FakePeer]:
    """A peer that goes by the name my_readers:Fake."""
    monkeypatch.setitem(sys.modules, "my_readers", SimpleNamespace(Fake=FakePeer))
    FakePeer.calls = []
    return FakePeer


@pytest.fixture
def fake_model() -> type[FakeModel]:
    return FakeModel


@pytest.fixture
def fake_processor() -> FakeProcessor:
    return FakeProcessor()
