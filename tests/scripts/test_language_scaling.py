import functools
import importlib.util
import json
import runpy
import signal
import sys
import xml.etree.ElementTree
from pathlib import Path

import pytest

from mstr_hf.synthesis.words import WordsError, load_words

SCRIPT = Path(__file__).parents[2] / "scripts" / "language_scaling.py"


@pytest.fixture
def script():
    spec = importlib.util.spec_from_file_location("language_scaling", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["language_scaling"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["language_scaling"]


def figure(value: float, low: float | None = None, high: float | None = None) -> dict:
    return {"value": value, "low": low, "high": high}


def result(languages: list[str], seed: int, **wrr: dict) -> dict:
    scores = {lang: {"n": 10, "wrr": score, "crr": figure(0.9)} for lang, score in wrr.items()}
    cost = {"parameters": 1234567, "bank_rows": 200, "words_per_second": 70.5}
    return {"languages": languages, "seed": seed, **cost, "scores": {"real": scores}}


HI, THREE = ["hi"], ["hi", "bn", "en"]


def test_seeds_are_averaged_and_their_intervals_spanned(script):
    results = [
        result(HI, 0, hi=figure(0.4, 0.3, 0.5)),
        result(HI, 1, hi=figure(0.5, 0.42, 0.61)),
        result(THREE, 0, hi=figure(0.9), en=figure(0.7)),
    ]
    mean = {**figure(pytest.approx(0.45), 0.3, 0.61), "least": 0.4}
    assert script.over_seeds(results, "real", "hi", HI, "wrr") == mean
    assert script.over_seeds(results, "real", "hi", THREE, "wrr") == {**figure(0.9), "least": 0.9}
    assert script.over_seeds(results, "real", "en", HI, "wrr") is None


@pytest.mark.parametrize(
    ("before", "after", "conclusion"),
    [
        (figure(0.4, 0.35, 0.45), figure(0.6, 0.5, 0.7), "+20.0, beyond the intervals."),
        (figure(0.6, 0.5, 0.7), figure(0.4, 0.35, 0.45), "-20.0, beyond the intervals."),
        (figure(0.4, 0.3, 0.5), figure(0.5, 0.45, 0.6), "+10.0, within the intervals: no conclusion."),
        (figure(0.24, 0.2, 0.26), figure(0.9, 0.8, 1), "no conclusion may be drawn: WRR below 25."),
        (figure(0.9, 0.8, 1), figure(0.1, 0, 0.2), "no conclusion may be drawn: WRR below 25."),
        (figure(0.5), figure(0.9), "+40.0, without intervals: no conclusion may be drawn."),
    ],
)
def test_conclusions_need_words_that_are_read_and_intervals_apart(script, before, after, conclusion):
    results = [result(HI, 0, hi=before), result(THREE, 0, hi=after, en=figure(0.5))]
    assert script.conclusions(results) == [f"Hindi, real, 1 to 3 languages: {conclusion}"]


def test_each_training_has_to_read_enough_for_a_conclusion(script):
    results = [
        result(HI, 0, hi=figure(0.1, 0.05, 0.15)),
        result(HI, 1, hi=figure(0.5, 0.45, 0.55)),
        result(THREE, 0, hi=figure(0.9, 0.8, 1)),
    ]
    assert script.conclusions(results) == [
        "Hindi, real, 1 to 3 languages: no conclusion may be drawn: WRR below 25."
    ]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a/manifest.jsonl", "b/manifest.jsonl"], "two sets of test words are called manifest: rename a manifest"),
        (["a/synthetic.jsonl"], "two sets of test words are called synthetic: rename a manifest"),
        (["a/nowhere.jsonl"], "nowhere.jsonl"),
    ],
)
def test_manifests_are_looked_at_before_the_training(script, tmp_path, monkeypatch, capsys, names, message):
    monkeypatch.setattr(script, "draw_test_words", lambda *args: pytest.fail("goes on"))
    paths = [str(tmp_path / name) for name in names]
    monkeypatch.setattr(sys, "argv", ["language_scaling.py", "--output", str(tmp_path / "out"), "--manifests", *paths])
    with pytest.raises(SystemExit):
        script.main()
    assert message in capsys.readouterr().err


def test_report_and_plot(script):
    results = [
        result(HI, 0, hi=figure(0.4, 0.3, 0.5)),
        result(THREE, 0, hi=figure(0.6, 0.5, 0.7), en=figure(0.7, 0.6, 0.8)),
    ]
    text = script.report(results)
    assert "| real | Hindi | WRR | 40.0 (30-50) | 60.0 (50-70) |" in text
    assert "| real | English | WRR |  | 70.0 (60-80) |" in text and "Bengali" not in text
    assert "| hi, bn, en | 0 | 1,234,567 | 200 | 70.5 |" in text
    root = xml.etree.ElementTree.fromstring(script.plot(results))
    names = [element.tag.rpartition("}")[2] for element in root.iter()]
    assert names.count("circle") == 3
    # Higher is better, and up is less in SVG.
    heights = [float(element.get("cy")) for element in root.iter() if element.tag.endswith("circle")]
    assert heights[1] < heights[0]


def test_from_fonts_to_a_table(script, fonts, tmp_path, monkeypatch, capsys, request):
    try:
        for lang in ("en", "hi"):
            load_words(lang)
    except WordsError as error:
        pytest.skip(f"missing: {error}")
    # The trainer answers SIGTERM from here on.
    request.addfinalizer(functools.partial(signal.signal, signal.SIGTERM, signal.getsignal(signal.SIGTERM)))
    ran = []

    def run_here(command: list[str]) -> None:
        """Runs a script in this process, which has torch loaded and the fonts indexed."""
        ran.append(Path(command[0]).stem)
        if len(ran) == 3:
            raise KeyboardInterrupt
        small = {"train_mclip": ["--eval_samples", "4"], "train_refiner": ["--eval_words", "1"]}
        workers = ["--num_workers", "0"] if ran[-1] in small else []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("mstr_hf.synthesis.fonts.discover_fonts", lambda languages, folders=(): fonts)
            patch.setattr(sys, "argv", [*command, *small.get(ran[-1], []), *workers])
            runpy.run_path(command[0], run_name="__main__")

    monkeypatch.setattr(script, "run_script", run_here)
    monkeypatch.setattr(script, "discover_fonts", lambda languages, folders: fonts)
    monkeypatch.setattr(script, "SPEED_WORDS", 2)
    sizes = ["--words", "4", "--characters", "8", "--test-words", "3", "--batch-size", "4"]
    config = tmp_path / "small.yaml"
    config.write_text("learning_rate: 2.0e-3\nrefiner: {architecture: {hidden_size: 64}}\n")
    command = ["--output", str(tmp_path), "--sets", "hi", "hi,en", "--seeds", "0", *sizes, "--config", str(config)]
    monkeypatch.setattr(sys, "argv", ["language_scaling.py", *command])
    with pytest.raises(KeyboardInterrupt):
        script.main()
    script.main()
    steps = ["train_mclip", "build_prototype_bank", "train_refiner"]
    # The third step was stopped, so it was run again; what was done before was not.
    assert ran == [*steps[:2], steps[2], *steps[2:], *steps]
    results = json.loads((tmp_path / "results.json").read_text())
    assert [entry["languages"] for entry in results] == [["hi"], ["hi", "en"]]
    assert results[0]["bank_rows"] < results[1]["bank_rows"] and results[0]["parameters"] == results[1]["parameters"]
    scores = results[1]["scores"]["synthetic"]
    assert {lang: score["n"] for lang, score in scores.items()} == {"hi": 3, "en": 3, "all": 6}
    logs = [tmp_path / name / "seed-0" / "train_refiner" / "log.jsonl" for name in ("hi", "hi-en")]
    steps_run = [max(json.loads(line).get("step", 0) for line in log.read_text().splitlines()) for log in logs]
    assert steps_run == [1, 2]  # as many words a language
    shape = json.loads((tmp_path / "hi/seed-0/train_refiner/final/config.json").read_text())
    assert shape["text_config"]["hidden_size"] == 64  # as the config has it
    printed = capsys.readouterr().out
    assert "Hindi, synthetic, 1 to 2 languages: no conclusion may be drawn: WRR below 25." in printed
    assert (tmp_path / "table.md").read_text(encoding="utf-8") in printed and (tmp_path / "plot.svg").exists()

    count = len(ran)
    # Other words to score need no other training, and an option is the same when it is spelled out.
    manifest = tmp_path / "words.jsonl"
    lines = (tmp_path / "synthetic" / "synthetic.jsonl").read_text(encoding="utf-8")
    manifest.write_text(lines.replace('"path_rel": "', '"path_rel": "synthetic/'), encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["language_scaling.py", *command, "--manifests", str(manifest)])
    script.main()
    assert len(ran) == count
    again = json.loads((tmp_path / "results.json").read_text())
    assert again[0]["scores"]["words"] == again[0]["scores"]["synthetic"] == results[0]["scores"]["synthetic"]
    assert again[0]["words_per_second"] == results[0]["words_per_second"]
    config.write_text("learning_rate: 1.0e-3\n")
    with pytest.raises(SystemExit):
        script.main()
    assert "holds an experiment with other options" in capsys.readouterr().err
    config.write_text("learning_rate: 2.0e-3\nrefiner: {architecture: {hidden_size: 64}}\n")
    monkeypatch.setattr(sys, "argv", ["language_scaling.py", *command, "--words", "5"])
    with pytest.raises(SystemExit):
        script.main()
    assert "holds an experiment with other options: name another folder" in capsys.readouterr().err
