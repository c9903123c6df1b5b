"""`compare_training.py` and `benchmark_training.py`, on tiny models, and `train_tiny.sh` with a stand-in for Python."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPTS = Path(__file__).parents[2] / "scripts"


def load(name, monkeypatch, *arguments):
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    return module


@pytest.fixture
def trained_by(monkeypatch, fonts):
    """Has trainers run in this process, on a few fonts."""

    def within(compare):
        def train(script, folder, *options):
            module = load(script, monkeypatch, "--output_dir", folder, *options)
            monkeypatch.setattr(module, "discover_fonts", lambda languages, folders=(): fonts, raising=False)
            monkeypatch.setenv("ACCELERATE_USE_CPU", "yes")
            module.main()

        monkeypatch.setattr(compare, "train", train)
        return compare

    return within


def cells(report: str) -> dict[str, list[str]]:
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in report.splitlines()]
    return {name: values for name, *values in rows if name != "---"}


def test_losses_of_mclip_are_compared(monkeypatch, capsys, trained_by, tmp_path):
    options = ["--max_steps", 2, "--eval_steps", 2, "--save_steps", 2, "--log_steps", 1, "--num_workers", 0]
    options += ["--batch_size", 8, "--eval_samples", 20, "--architecture", "projection_dim=16"]
    arguments = ["losses", "--output_dir", tmp_path, "--languages", "en", *options]
    compare = trained_by(load("compare_training", monkeypatch, *arguments))
    compare.main()
    report = (tmp_path / "comparison.md").read_text()
    assert capsys.readouterr().out.endswith(report)
    rows = cells(report)
    assert rows[""] == ["contrastive", "with-arcface", "with-subtype", "with-both"]
    assert {"training loss", "top1", "nearest, mean", "nearest across scripts, mean"} <= rows.keys()
    assert all(len(values) == 4 for values in rows.values())
    # The same seed begins each, so that what differs is the losses' doing.
    assert len(set(rows["training loss"])) == 4
    weights = [json.loads((tmp_path / way / "final/config.json").read_text()) for way in rows[""]]
    assert [(w["arcface_weight"], w["subtype_weight"]) for w in weights] == [(0, 0), (0.1, 0), (0, 0.1), (0.1, 0.1)]


def test_prefixes_of_the_refiner_are_compared(monkeypatch, tmp_path):
    arguments = ["prefixes", "--output_dir", tmp_path, "--simulator", "s.json", "--spotter", "a", "--max_steps", "7"]
    compare = load("compare_training", monkeypatch, *arguments)
    runs = []

    def train(script, folder, *options):
        folder.mkdir()
        log = [{"step": 7, "loss": 2.5 + len(runs)}, {"step": 7, "wrr": 0.25, "wrr_en": 0.25}]
        (folder / "log.jsonl").write_text("\n".join(map(json.dumps, log)))
        runs.append((script, folder, options))

    monkeypatch.setattr(compare, "train", train)
    compare.main()
    common = ("--spotter", "a", "--max_steps", "7")
    assert runs == [
        ("train_refiner", tmp_path / "real", common),
        ("train_refiner", tmp_path / "simulated", (*common, "--simulator", "s.json")),
    ]
    assert cells((tmp_path / "comparison.md").read_text()) == {
        "": ["real", "simulated"],
        "training loss": ["2.5", "3.5"],
        "wrr": ["0.25", "0.25"],
        "wrr_en": ["0.25", "0.25"],
    }


def test_prefixes_need_a_simulator(monkeypatch, capsys, tmp_path):
    with pytest.raises(SystemExit):
        load("compare_training", monkeypatch, "prefixes", "--output_dir", tmp_path).main()
    assert "name a --simulator" in capsys.readouterr().err


def test_a_trainer_that_fails_ends_the_comparison(monkeypatch, tmp_path, capfd):
    compare = load("compare_training", monkeypatch)
    with pytest.raises(SystemExit) as exit_:
        compare.train("train_mclip", tmp_path, "--no_such_option", "1")
    assert exit_.value.code != 0


def test_a_trainer_whose_time_is_up_ends_the_comparison(monkeypatch, tmp_path):
    compare = load("compare_training", monkeypatch)
    monkeypatch.setattr(compare.subprocess, "run", lambda command: subprocess.CompletedProcess(command, 0))
    with pytest.raises(SystemExit, match="stopped by its time_limit; give the same command again to go on"):
        compare.train("train_mclip", tmp_path)


def test_steps_are_timed_and_learn(monkeypatch):
    script = load("benchmark_training", monkeypatch)
    model = torch.nn.Linear(3, 1)
    losses = []

    def step():
        losses.append(model(torch.ones(4, 3)).square().mean())
        return losses[-1]

    found = script.measure(model, step, 4, 2, "cpu")
    assert found["parameters"] == 4e-6 and found["fp32"] > 0 and found["bf16"] > 0
    assert len(losses) == 2 * (script.WARM_UP + 2) and losses[0] > losses[2]


def test_training_steps_of_each_model(monkeypatch):
    from mstr_hf.hub.cache import CHECKPOINT
    from mstr_hf.models.prototype_bank import PrototypeBank

    script = load("benchmark_training", monkeypatch)
    bank = PrototypeBank.from_pretrained(CHECKPOINT)
    for name, spotter_learns in (("Spotter", True), ("Refiner, Spotter frozen", False), ("both together", True)):
        model, step = script.own_step(name, bank, 2, "cpu")
        step().backward()
        spotter = getattr(model, "spotter", model)
        assert any(p.grad is not None for p in spotter.parameters()) == spotter_learns
        assert any(p.grad is not None for p in model.parameters())


def test_models_are_compared_with_each_peer(monkeypatch):
    script = load("benchmark_training", monkeypatch)
    names = ("Spotter", "Refiner", *script.PEERS)
    speeds = {name: {"parameters": 1, "fp32": n, "bf16": 2 * n * n} for n, name in enumerate(names, 1)}
    assert script.row("Spotter", speeds["Spotter"]) == "| Spotter | 1.0 | 1.0 | 2.0 |"
    lines = script.ratios(speeds)
    assert len(lines) == 4 and lines[1] == "| Spotter / doctr ViTSTR-small | | 0.25 | 0.06 |"


def test_tiny_sequence_goes_on_where_it_stopped(tmp_path):
    """With a Python that only notes what it is asked for, and makes what the next stage needs."""
    python = tmp_path / "python"
    python.write_text(
        '#!/usr/bin/env bash\necho "$@" >> "$NOTES"\n'
        'while [[ $# -gt 1 ]]; do case $1 in --output_dir) mkdir -p "$2/final"; touch "$2/final/README.md";; esac; '
        "shift; done\n"
    )
    python.chmod(0o755)
    notes = tmp_path / "notes"
    environment = {**os.environ, "PYTHON": str(python), "NOTES": str(notes)}
    command = [SCRIPTS / "train_tiny.sh", tmp_path / "run", "some fonts"]
    output = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    asked = [Path(line.split()[0]).name for line in notes.read_text().splitlines()]
    trainers = ["train_mclip.py", "build_prototype_bank.py", "train_spotter.py", "fit_simulator.py", "train_refiner.py"]
    assert asked == [*trainers, "build_language_model.py", "-m"]
    assert "== simulator.json: 0 s" in output and output.splitlines()[-1].endswith("s in all")
    assert "--fonts some fonts" in notes.read_text()
    notes.unlink()
    output = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert "== spotter/final/README.md is there already" in output
    assert "train_spotter.py" not in notes.read_text()
