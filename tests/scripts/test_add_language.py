import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard

from mstr_hf import PrototypeBank, RefinerModel
from mstr_hf.synthesis.words import WordsError, load_words

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "add_language.py"
SAMPLES = ROOT / "mstr_hf" / "pretrained" / "samples" / "labels.jsonl"


@pytest.fixture(scope="module")
def environment(fonts, tmp_path_factory):
    """A machine that has a few fonts of English, Hindi and Arabic."""
    try:
        for lang in ("en", "hi", "ar"):
            load_words(lang)
    except WordsError as error:
        pytest.skip(f"missing: {error}")
    folder = tmp_path_factory.mktemp("fontconfig")
    paths = sorted({face.path for faces in fonts.by_language.values() for face in faces})
    for number, path in enumerate(paths):
        (folder / f"{number}-{Path(path).name}").symlink_to(path)
    config = f"<fontconfig><dir>{folder}</dir><cachedir>{folder}/cache</cachedir></fontconfig>"
    (folder / "fonts.conf").write_text(config)
    return {
        **os.environ,
        "FONTCONFIG_FILE": str(folder / "fonts.conf"),
        "PYTHONPATH": str(ROOT),
        "ACCELERATE_USE_CPU": "yes",
    }


def run_here(monkeypatch, *options: object) -> None:
    monkeypatch.setattr(sys, "argv", ["add_language.py", *map(str, options)])
    runpy.run_path(str(SCRIPT), run_name="__main__")


def test_killed_and_resumed_to_a_checkpoint(environment, tiny_checkpoint, tmp_path):
    output = tmp_path / "run"
    manifest = tmp_path / "photos.jsonl"
    shutil.copy(ROOT / "mstr_hf/pretrained/samples/ar_1.jpg", tmp_path / "word.jpg")
    manifest.write_text(
        json.dumps(
            {"id": "1", "path_rel": "word.jpg", "filename": "word.jpg", "gt_text": "ماء", "lang": "ar", "dataset": "x"}
        )
    )
    options = ["--checkpoint", tiny_checkpoint, "--lang", "ar", "--output_dir", output, "--row_words", 80]
    options += ["--eval_words", 2, "--manifests", manifest, "--steps", 20]
    options += ["--batch_size", 2, "--num_workers", 0, "--save_steps", 2]

    command = [sys.executable, SCRIPT, *map(str, options)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        while process.poll() is None and not any((output / "tune").glob("checkpoint-*")):
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        said = process.stdout.read().decode()
    assert any((output / "tune").glob("checkpoint-*")), said
    assert not (output / "tune.json").exists()

    shares = (output / "tune" / "shares.json").read_text()
    second = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert second.returncode == 0, second.stderr[-3000:]
    for stage in ("fonts", "rows", "before"):
        assert f"-- {stage}: done before" in second.stdout
    starts = [
        json.loads(line) for line in (output / "tune" / "log.jsonl").read_text().splitlines() if '"start"' in line
    ]
    assert [start["step"] > 0 for start in starts] == [False, True]

    old, new = RefinerModel.from_pretrained(tiny_checkpoint), RefinerModel.from_pretrained(output / "checkpoint")
    before, after = old.get_bank(), new.get_bank()
    assert after.all_languages == ["en", "hi", "ar"] and len(after) > len(before)
    assert after.digest(len(before)) == before.digest()
    assert PrototypeBank.from_pretrained(output / "checkpoint").digest() == after.digest()
    assert new.num_parameters() == old.num_parameters()
    # Spotter and Refiner were tuned.
    assert new.spotter.config.base_digest == after.digest() and new.config.freeze_spotter
    tuned = RefinerModel.from_pretrained(output / "tune" / "final")
    for name, tensor in new.state_dict().items():
        assert torch.equal(tensor, tuned.state_dict()[name])
    changed = [name for name, tensor in old.named_parameters() if not torch.equal(tensor, new.get_parameter(name))]
    assert any(name.startswith("encoder.spotter.") for name in changed)
    assert any(not name.startswith("encoder.spotter.") for name in changed)

    rows = json.loads((output / "rows.json").read_text())
    assert set("".join(rows["sources"].values())) == set(after.characters[len(before) :])
    assert rows["words"]["ar"] >= 80 and rows["words"]["en"] == rows["words"]["hi"] == 40
    assert (output / "tune" / "shares.json").read_text() == shares
    assert json.loads((output / "tune.json").read_text())["shares"] == json.loads(shares)
    assert len(rows["sources"]["spotter"]) > 50 and not rows["sources"]["text"]
    figures = json.loads((output / "after.json").read_text())["tuned"]
    assert {lang: found["n"] for lang, found in figures["synthetic"].items()} == {"en": 2, "hi": 2, "ar": 2}
    assert figures["photos"]["ar"]["n"] == 1
    assert "ar" not in json.loads((output / "before.json").read_text())["original"]["synthetic"]
    card = ModelCard.load(output / "checkpoint" / "README.md")
    assert card.data.language == ["en", "hi", "ar"]
    for part in ("Arabic", "| photos | words | before | rows only | tuned |", "20 steps of training"):
        assert part in card.text

    # Nothing is left to do but what was made of other things; another tuning is not mixed into this one.
    def again(*more: object) -> subprocess.CompletedProcess:
        return subprocess.run([*command, *map(str, more)], env=environment, capture_output=True, text=True)

    kept = json.loads((output / "fonts.json").read_text())
    kept["options"]["faces"] = "fewer"
    (output / "fonts.json").write_text(json.dumps(kept))
    third = again()
    assert third.stdout.count("done before") == 5 and "-- fonts\n" in third.stdout
    refused = again("--learning_rate", 0.1, "--stage", "tune")
    assert refused.returncode == 2 and "trained with other learning_rate:" in refused.stderr.splitlines()[-1]
    # Nor is it thrown away because an option was forgotten, which for the command line means 0.
    refused = again("--steps", 0)
    assert refused.returncode == 2 and "is there, but no --steps" in refused.stderr.splitlines()[-1]
    refused = again("--severity", 0.5, "--stage", "before")
    assert refused.returncode == 2 and "was trained with other severity" in refused.stderr.splitlines()[-1]

    shutil.rmtree(output / "checkpoint")
    fourth = again()
    assert fourth.stdout.count("done before") == 5 and (output / "checkpoint" / "model.safetensors").is_file()
    before.save_pretrained(output / "rows")
    refused = again("--eval_words", 1)
    assert refused.returncode == 2 and "rows and rows.json do not belong together" in refused.stderr.splitlines()[-1]


def test_an_old_language_is_drawn_the_more_the_more_it_is_disturbed():
    word_shares = runpy.run_path(str(SCRIPT))["word_shares"]

    def read(**wrr: float) -> dict:
        return {"synthetic": {lang: {"refiner": {"wrr": value}} for lang, value in wrr.items()}}

    before = {"original": read(en=90, hi=85, te=80), "rows": read(en=91, hi=80, te=4)}
    shares = word_shares(before, ["en", "hi", "te"], "kn", 0.6)
    # Those that lose five points are drawn twice as often as those that lose none, and none three times as often.
    assert shares == pytest.approx({"en": 0.1, "hi": 0.2, "te": 0.3, "kn": 0.4})
    nothing = {"original": {"synthetic": {}}, "rows": {"synthetic": {}}}
    assert word_shares(nothing, ["en", "hi"], "kn", 0.5) == {"en": 0.25, "hi": 0.25, "kn": 0.5}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--lang", "hi"], "the bank has language hi already"),
        (["--lang", "xx"], "no charset for language 'xx'"),
        (["--lang", "ar", "--rows", "image"], "name its folder with --mclip"),
        (["--lang", "ar", "--stage", "checkpoint"], "run is missing: run it first"),
        (["--lang", "charsets/ar.json"], "put the file into mstr_hf/charsets and give its code"),
        (["--lang", "ar", "--steps", -5], "--steps -5: give 0, for rows alone, or more"),
        (["--lang", "ar", "--steps", 5, "--batch_size", 0], "batch_size is 0: give 1 or more"),
        (["--lang", "ar", "--checkpoint", "/not/here"], "--checkpoint /not/here: no model there"),
        (["--lang", "ar", "--manifests", SAMPLES, SAMPLES], "a manifest is called labels, but two manifests have it"),
    ],
)
def test_refuses_in_one_line(tiny_checkpoint, tmp_path, monkeypatch, capsys, options, message):
    options = options if "--checkpoint" in options else ["--checkpoint", tiny_checkpoint, *options]
    with pytest.raises(SystemExit) as caught:
        run_here(monkeypatch, "--output_dir", tmp_path / "run", *options)
    assert caught.value.code == 2 and message in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("folder", "name"),
    [("refiner-6lang", "refiner-6lang"), ("runs/kn/checkpoint", "kn"), ("joint/final", "joint"), ("me/it", "me/it")],
)
def test_a_card_names_the_run_and_not_the_folder_that_all_runs_have(tmp_path, monkeypatch, folder, name):
    monkeypatch.chdir(tmp_path)
    if name != folder or "/" not in folder:
        Path(folder).mkdir(parents=True)
    assert runpy.run_path(str(SCRIPT))["checkpoint_name"](folder) == name
