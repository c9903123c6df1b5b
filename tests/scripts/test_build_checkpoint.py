import importlib.util
import json
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard, SpaceCard
from transformers import AutoModel, AutoTokenizer

from mstr_hf import (
    MCLIPConfig,
    MCLIPModel,
    MSTRProcessor,
    PrototypeBank,
    RefinerModel,
    SpotterModel,
    build_vocabulary,
    load_charsets,
)
from mstr_hf.training.mclip import Retrieval

SCRIPT = Path(__file__).parents[2] / "scripts" / "build_checkpoint.py"
FIGURE = {"value": 0.5, "low": None, "high": None}
FIGURES = dict.fromkeys(("wrr", "crr", "script_accuracy"), FIGURE)
ROW = {"split": "report", "words": "hi", "n": 7, "readers": {"Spotter": FIGURES, "Refiner": FIGURES}}


@pytest.fixture
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_checkpoint", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def build(script, tmp_path, monkeypatch) -> Callable[..., None]:
    """Runs the script with figures for one language."""
    results = tmp_path / "results.json"
    results.write_text(json.dumps({"rows": [ROW]}))

    def run(*arguments: object) -> None:
        words = ["build_checkpoint.py", *arguments]
        if {"--refiner", "--spotter"} & set(arguments) and "--results" not in arguments:
            words += ["--results", results]
        monkeypatch.setattr("sys.argv", [str(word) for word in words])
        script.main()

    return run


def test_checkpoint_has_weights_card_and_golden_readings(script, build, tiny_refiner, tmp_path):
    tiny_refiner.config.gate_threshold = 0.0  # random weights would write 64 characters on every picture
    tiny_refiner.save_pretrained(tmp_path / "final")
    output, golden = tmp_path / "refiner-6lang", tmp_path / "golden" / "refiner-6lang.json"
    build("--refiner", tmp_path / "final", "--output", output, "--golden", golden)

    card = ModelCard.load(output / "README.md")
    assert card.data.license == "apache-2.0" and "| Hindi | 7 | 50.0 |" in card.text
    assert f"{tiny_refiner.num_parameters() / 1e6:.1f} million parameters" in card.text
    readings = json.loads(golden.read_text(encoding="utf-8"))
    pictures = sorted(script.SAMPLES.glob("*.jpg"))
    assert sorted(readings) == [picture.name for picture in pictures]
    inputs = MSTRProcessor.from_pretrained(output)(images=pictures[:3], return_tensors="pt")
    again = RefinerModel.from_pretrained(output).recognise(**inputs)
    for picture, reading in zip(pictures, again, strict=False):
        assert readings[picture.name]["text"] == reading["text"]
        assert readings[picture.name]["score"] == pytest.approx(reading["score"], abs=1e-5)


def test_card_is_written_anew_in_place(build, tiny_refiner, tmp_path):
    output = tmp_path / "refiner-6lang"
    tiny_refiner.save_pretrained(tmp_path / "final")
    build("--refiner", tmp_path / "final", "--output", output)
    before = {path.name: path.read_bytes() for path in output.iterdir() if path.is_file()}
    (output / "README.md").write_text("an old card")
    build("--refiner", output, "--output", output, "--results", output / "eval_results.json")
    assert {path.name: path.read_bytes() for path in output.iterdir() if path.is_file()} == before


def test_parts_of_a_refiner_are_repositories_too(build, tiny_refiner, tmp_path):
    tiny_refiner.save_pretrained(tmp_path / "final")
    spotter, bank = tmp_path / "spotter-6lang", tmp_path / "prototype-bank-6lang"
    build("--spotter", tmp_path / "final", "--output", spotter)
    build("--bank", spotter, "--output", bank)
    model = AutoModel.from_pretrained(spotter)
    assert type(model) is SpotterModel
    for name, tensor in tiny_refiner.spotter.state_dict().items():
        stored = tensor.half().float() if tensor.is_floating_point() and name != "head.prototypes" else tensor
        assert torch.equal(model.state_dict()[name], stored), name
        assert model.state_dict()[name].dtype == tensor.dtype
    assert not (spotter / "handler.py").exists() and (spotter / "samples" / "en_1.jpg").exists()
    assert ModelCard.load(spotter / "README.md").data.eval_results[0].metric_value == 50.0
    assert PrototypeBank.from_pretrained(bank).digest() == tiny_refiner.get_bank().digest()
    assert tiny_refiner.get_bank().digest() in ModelCard.load(bank / "README.md").text


def test_mclip_is_a_repository_too(build, tmp_path):
    vocabulary = build_vocabulary(load_charsets(["en", "hi"]))
    model = MCLIPModel(MCLIPConfig(vocab_size=1024, num_rows=len(vocabulary.rows)))
    model.save_pretrained(tmp_path / "final")
    # As its trainer logs them, of a letter, a digit and a mark, one of which is found.
    rows = [next(n for n, row in enumerate(vocabulary.rows) if row.character == c) for c in "a7\u0301"]
    found = np.array([rows[0], rows[0], rows[0]])
    figures = Retrieval(["en"] * 3, np.array(rows), found, found, vocabulary).figures()
    (tmp_path / "figures.json").write_text(json.dumps(figures))
    output = tmp_path / "mclip-6lang"
    build("--mclip", tmp_path / "final", "--languages", "en,hi", "--output", output)
    assert "no figures yet" in ModelCard.load(output / "README.md").text
    build("--mclip", output, "--languages", "en,hi", "--output", output, "--results", tmp_path / "figures.json")
    card = " ".join(ModelCard.load(output / "README.md").text.split())
    assert "33.3% have the right row" in card and "of letters 100.0% among all rows, of digits 0.0%" in card
    assert type(AutoModel.from_pretrained(output)) is MCLIPModel
    ids = AutoTokenizer.from_pretrained(output)("<lang=hi> <type=1> <char=ि>")["input_ids"]
    assert len(ids) == 3 and max(ids) < 1024


def test_metrics_are_copied_with_what_they_link_to(build, tmp_path):
    module = tmp_path / "evaluation" / "wrr"
    module.mkdir(parents=True)
    (module / "wrr.py").write_text('"""Word recognition rate."""\nfrom .shared import x\n')
    (module.parent / "shared.py").write_text("x = 1\n")
    (module / "shared.py").symlink_to("../shared.py")
    build("--metrics", module.parent, "--output", tmp_path / "metrics")
    card = SpaceCard.load(tmp_path / "metrics" / "README.md")
    assert "| [wrr](wrr/README.md) | Word recognition rate. |" in card.text
    copied = tmp_path / "metrics" / "wrr" / "shared.py"
    assert copied.read_text() == "x = 1\n" and not copied.is_symlink()


def test_a_model_of_ones_own_gets_a_plain_card(build, tiny_refiner, tmp_path):
    tiny_refiner.save_pretrained(tmp_path / "final")
    build("--refiner", tmp_path / "final", "--output", tmp_path / "mine", "--repo_id", "me/mine")
    card = ModelCard.load(tmp_path / "mine" / "README.md")
    assert card.data.language == ["en", "hi"] and 'from_pretrained("me/mine")' in card.text
    assert "Debian" not in card.text


def test_demo_is_a_space(build, tmp_path):
    build("--demo", "--output", tmp_path / "demo")
    card = SpaceCard.load(tmp_path / "demo" / "README.md")
    assert (card.data.sdk, card.data.app_file, card.data.models) == ("gradio", "app.py", ["mstr/refiner-6lang"])
    constraints = (SCRIPT.parents[1] / "constraints.txt").read_text()
    assert f"gradio=={card.data.sdk_version}\n" in constraints
    names = re.findall(r"^(?:from|import) (\w+)", (tmp_path / "demo" / "app.py").read_text(), re.MULTILINE)
    assert "mstr_hf" not in names and {"gradio", "transformers"} <= set(names)
    assert "transformers" in (tmp_path / "demo" / "requirements.txt").read_text()
