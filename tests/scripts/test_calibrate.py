import importlib.util
import json
import math
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from mstr_hf.synthesis.synthetic_words import SyntheticWord

SCRIPT = Path(__file__).parents[2] / "scripts" / "calibrate.py"


@pytest.fixture
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("calibrate", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def outcome(script, scores, right):
    return script.Outcome(np.array(scores), np.array(right, bool))


def test_loss_is_that_of_right_and_wrong(script):
    result = outcome(script, [0.8, 0.25, 1.0], [1, 0, 0])
    assert result.loss == pytest.approx(-(math.log(0.8) + math.log(0.75) + math.log(1e-4)) / 3)


def test_temperature_makes_scores_as_frequent_as_they_say(script):
    """Each word has a logit of 4 (0.98 right), but one in five is wrong: 4 / 3.02 comes nearest to 0.8."""
    config = SimpleNamespace(score_temperature=1.0, model_type="stub")

    class Model:
        def recognise(self, pixel_values, pixel_mask, gate_threshold, num_views):
            score = 1 / (1 + math.exp(-4 / config.score_temperature))
            return [{"text": text, "score": score} for text in "aaaab"]

    batch = {"pixel_values": None, "pixel_mask": None, "labels": None}
    result = script.fit_temperature(Model(), config, [(batch, ["a"] * 5)], script.SPOTTER, "")
    assert config.score_temperature == 3.02 and 3.02 in script.TEMPERATURES
    assert result.scores.mean() == pytest.approx(0.79, abs=0.01)
    assert result.right.tolist() == [True] * 4 + [False]


# Scores of the Spotter's readings, whether these are right, whether the Refiner's are.
SCORES = [0.1, 0.45, 0.55, 0.92, 0.999]


def test_gate_table(script):
    gates = script.gate_table(
        outcome(script, SCORES, [0, 0, 1, 1, 1]), outcome(script, [0.5] * 5, [1, 1, 1, 0, 1])
    )
    table = {gate.threshold: (gate.refined, gate.wrr) for gate in gates}
    assert table[0.0] == (0, pytest.approx(0.6))
    assert table[0.4] == (0.2, pytest.approx(0.8))
    assert table[0.9] == (0.6, pytest.approx(1.0))
    assert table[1.0] == (1, pytest.approx(0.8))


@pytest.mark.parametrize(
    ("spotter", "refiner", "gate"),
    [
        ([0, 0, 1, 1, 1], [1, 1, 1, 1, 1], 0.5),  # all that is mended scores below 0.5
        ([0, 0, 1, 0, 1], [1, 1, 1, 1, 1], 0.93),
        ([0, 0, 1, 1, 1], [1, 0, 1, 1, 0], 0.2),  # one mended where unsure, one broken where sure
        ([0, 0, 1, 1, 1], [0, 0, 1, 0, 0], 0.0),
    ],
)
def test_gate_is_the_lowest_that_keeps_the_gain(script, spotter, refiner, gate):
    gates = script.gate_table(outcome(script, SCORES, spotter), outcome(script, SCORES, refiner))
    assert script.choose_gate(gates) == gate


def test_a_gate_may_cost_what_is_less_than_chance(script):
    rates = {0.2: 0.8, 0.6: 0.8481, 0.9: 0.85, 1.0: 0.8475}
    gates = [script.Gate(threshold, threshold, wrr) for threshold, wrr in rates.items()]
    assert script.choose_gate(gates) == 0.6


def test_run_changes_nothing_but_the_config(script, tiny_refiner, tmp_path, monkeypatch, capsys):
    class Words:
        def __init__(self, fonts, sources, split, severity, joiners, characters):
            assert (fonts, sources) == (["folder"], {"en": "en", "hi": "hi"})
            assert split == "heldout" and "a" in characters

        def word(self, seed, index, lang):
            assert seed != 1  # what the trainers choose checkpoints by
            image = np.random.default_rng(index).integers(0, 256, (40, 90), np.uint8)
            return SyntheticWord(image, "abc", lang, "family", None)

    monkeypatch.setattr(script, "WordSynthesiser", Words)
    monkeypatch.setattr(script, "discover_fonts", lambda languages, folders: folders)
    monkeypatch.setattr(script, "load_words", lambda lang: lang)
    monkeypatch.setattr(script, "TEMPERATURES", [1.2])
    # One of each language, in batches of their own.
    monkeypatch.setattr(script, "BATCH_SIZE", 1)
    tiny_refiner.save_pretrained(tmp_path)
    before = json.loads((tmp_path / "config.json").read_text())
    weights = (tmp_path / "model.safetensors").read_bytes()
    command = ["calibrate.py", "--model", str(tmp_path), "--fonts", "folder", "--words", "1"]
    monkeypatch.setattr("sys.argv", command)
    script.main()

    # Random weights read nothing right: the Refiner gains nothing.
    expected = before | {"score_temperature": 1.2, "gate_threshold": 0.0, "num_views": 4}
    expected["spotter_config"]["score_temperature"] = 1.2
    after = json.loads((tmp_path / "config.json").read_text())
    assert without_dtype(after) == without_dtype(expected)
    assert (tmp_path / "model.safetensors").read_bytes() == weights
    printed = capsys.readouterr().out
    assert "| 0.0 | 0.0% | 0.0% |" in printed and "| 1.0 | 100.0% | 0.0% |" in printed


def without_dtype(config: dict) -> dict:
    """The precision, which loading writes into the parts' configs too."""
    parts = {name: without_dtype(part) for name, part in config.items() if isinstance(part, dict)}
    return {name: value for name, value in (config | parts).items() if name != "dtype"}


def test_votes_get_a_temperature(script):
    """Nine in ten are right; 0.8 on average is the score, 0.8 ** (1 / 2) would be nearest to 0.9."""
    voted = outcome(script, [0.8] * 11, [1] * 9 + [0] * 2).of(np.arange(11) < 10)
    losses = {temperature: voted.at(temperature).loss for temperature in script.TEMPERATURES}
    assert min(losses, key=losses.get) == pytest.approx(2.0, abs=0.15)
