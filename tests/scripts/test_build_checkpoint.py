import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
from huggingface_hub import ModelCard

from mstr_hf import MSTRProcessor, RefinerModel

SCRIPT = Path(__file__).parents[2] / "scripts" / "build_checkpoint.py"
FIGURE = {"value": 0.5, "low": None, "high": None}
ROW = {
    "split": "report",
    "words": "hi",
    "n": 7,
    "readers": {"Refiner": dict.fromkeys(("wrr", "crr", "script_accuracy"), FIGURE)},
}


@pytest.fixture
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_checkpoint", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_checkpoint_has_weights_card_and_golden_readings(script, tiny_refiner, tmp_path, monkeypatch):
    tiny_refiner.config.gate_threshold = 0.0  # random weights would write 64 characters on every picture
    tiny_refiner.save_pretrained(tmp_path / "final")
    (tmp_path / "results.json").write_text(json.dumps({"rows": [ROW]}))
    output, golden = tmp_path / "refiner-6lang", tmp_path / "golden" / "refiner-6lang.json"
    command = ["build_checkpoint.py", "--refiner", tmp_path / "final", "--output", output]
    command += ["--results", tmp_path / "results.json", "--golden", golden]
    monkeypatch.setattr("sys.argv", [str(word) for word in command])
    script.main()

    card = ModelCard.load(output / "README.md")
    assert card.data.license == "apache-2.0" and "| Hindi | 7 | 50.0 |" in card.text
    assert f"{tiny_refiner.num_parameters() / 1e6:.1f} million parameters" in card.text
    readings = json.loads(golden.read_text(encoding="utf-8"))
    pictures = sorted(script.SAMPLES.parent.glob("*.jpg"))
    assert sorted(readings) == [picture.name for picture in pictures]
    inputs = MSTRProcessor.from_pretrained(output)(images=pictures[:3], return_tensors="pt")
    again = RefinerModel.from_pretrained(output).recognise(**inputs)
    for picture, reading in zip(pictures, again, strict=False):
        assert readings[picture.name]["text"] == reading["text"]
        assert readings[picture.name]["score"] == pytest.approx(reading["score"], abs=1e-5)
