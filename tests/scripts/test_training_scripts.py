import functools
import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mstr_hf import (
    MCLIPModel,
    MSTRImageProcessor,
    PrototypeBank,
    RefinerModel,
    SpotterModel,
    build_vocabulary,
    load_charsets,
)
from mstr_hf.synthesis.words import WordsError, load_words

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def run(fonts, tmp_path_factory):
    """Runs a script on English words in a few fonts of the system; gives its output."""
    try:
        load_words("en")
    except WordsError as error:
        pytest.skip(f"missing: {error}")
    folder = tmp_path_factory.mktemp("fontconfig")
    folders = {str(Path(face.path).parent) for face in fonts.by_language["en"]}
    config = "".join(f"<dir>{path}</dir>" for path in sorted(folders))
    (folder / "fonts.conf").write_text(f"<fontconfig>{config}<cachedir>{folder}</cachedir></fontconfig>")
    environment = {
        **os.environ,
        "FONTCONFIG_FILE": str(folder / "fonts.conf"),
        "PYTHONPATH": str(ROOT),
        "ACCELERATE_USE_CPU": "yes",
    }

    def run(script: str, *options: object) -> str:
        command = [sys.executable, ROOT / "scripts" / script, *map(str, options)]
        result = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr[-3000:]
        return result.stdout

    return run


def figures(folder: Path) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for line in (folder / "log.jsonl").read_text().splitlines():
        for name, value in json.loads(line).items():
            found.setdefault(name, []).append(value)
    return found


def test_from_characters_to_a_refiner(run, tmp_path):
    steps = ["--max_steps", 2, "--eval_steps", 2, "--save_steps", 1, "--log_steps", 1]
    words = [*steps, "--batch_size", 2, "--num_workers", 0, "--language_weights", "en=1", "--eval_words", 3]

    mclip = tmp_path / "mclip"
    options = ["--languages", "en", "--projection_dim", 16, "--batch_size", 16, "--eval_samples", 40]
    weights = ["--arcface_weight", 0.1, "--subtype_weight", 0.1]
    run("train_mclip.py", "--output_dir", mclip, *steps, *options, *weights)
    log = figures(mclip)
    assert len(log["loss"]) == 2 and {"top1", "top1_in_language", "top1_marks", "nearest_row_max"} <= log.keys()
    assert MCLIPModel.from_pretrained(mclip / "final").config.projection_dim == 16

    built = tmp_path / "bank"
    output = run("build_prototype_bank.py", "--mclip", mclip / "final", "--output", built, "--languages", "en")
    bank = PrototypeBank.from_pretrained(built)
    vocabulary = build_vocabulary(load_charsets(["en"]))
    assert bank.charset_digest == vocabulary.digest and bank.prototypes.shape == (len(vocabulary.rows), 16)
    assert torch.allclose(bank.prototypes.norm(dim=-1), torch.ones(len(bank)))
    lines = output.splitlines()
    assert lines[0] == f"{len(bank)} rows of 16, digest {bank.digest()}" and len(lines) == 21

    spotter = tmp_path / "spotter"
    run("train_spotter.py", "--bank", built, "--output_dir", spotter, *words)
    log = figures(spotter)
    assert len(log["loss"]) == 2 and len(log["wrr"]) == len(log["wrr_en"]) == 1
    assert SpotterModel.from_pretrained(spotter / "final").get_bank().digest() == bank.digest()

    refiner = tmp_path / "refiner"
    run("train_refiner.py", "--spotter", spotter / "final", "--output_dir", refiner, *words)
    log = figures(refiner)
    assert len(log["loss"]) == 2 and len(log["wrr"]) == 1
    model = RefinerModel.from_pretrained(refiner / "final")
    state = SpotterModel.from_pretrained(spotter / "final").state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.spotter.state_dict().items())
    pixels = MSTRImageProcessor()([torch.randint(0, 256, (40, 100), dtype=torch.uint8)], return_tensors="pt")
    (reading,) = model.recognise(**pixels, num_alternatives=1)
    assert set(reading["text"]) <= set(bank.characters)

    for folder in (mclip, spotter, refiner):
        assert {path.name for path in folder.iterdir()} == {
            "checkpoint-00000001",
            "checkpoint-00000002",
            "best",
            "final",
            "log.jsonl",
        }


def test_the_seed_is_the_weights_too(fonts, tmp_path, monkeypatch, request):
    # the trainer answers SIGTERM from here on
    request.addfinalizer(functools.partial(signal.signal, signal.SIGTERM, signal.getsignal(signal.SIGTERM)))
    path = ROOT / "scripts" / "train_mclip.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    monkeypatch.setitem(sys.modules, path.stem, script := importlib.util.module_from_spec(spec))
    spec.loader.exec_module(script)
    monkeypatch.setattr(script, "discover_fonts", lambda languages, folders: fonts)
    weights = []
    for number, seed in enumerate((1, 1, 2)):
        options = ["--languages", "en", "--eval_samples", "1", "--max_steps", "0", "--seed", str(seed)]
        monkeypatch.setattr(sys, "argv", ["train_mclip.py", "--output_dir", str(tmp_path / str(number)), *options])
        script.main()
        weights.append((tmp_path / str(number) / "final" / "model.safetensors").read_bytes())
    assert weights[0] == weights[1] != weights[2]
