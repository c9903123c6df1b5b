import json
import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoProcessor

from mstr_hf import cli
from mstr_hf.charsets import load_charsets
from mstr_hf.hub import cache
from mstr_hf.models.image_processing_mstr import MSTRImageProcessor
from mstr_hf.models.processing_mstr import MSTRProcessor
from mstr_hf.vocabulary import build_vocabulary


class GreyReader(torch.nn.Module):
    """Reads the grey level of a picture, so that a reading tells which picture it belongs to."""

    device = torch.device("cpu")

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.calls = []

    def get_bank(self):
        return SimpleNamespace(all_languages=["hi", "en"])

    def recognise(self, pixel_values, pixel_mask, languages, num_alternatives):
        self.calls.append({"widths": pixel_mask.sum(1).tolist(), "languages": languages})
        readings = []
        for pixels, mask in zip(pixel_values, pixel_mask, strict=True):
            text = str(round((pixels[0][:, mask].mean().item() + 1) * 127.5))
            alternatives = [{"text": f"{text}-{n}", "score": 0.1} for n in range(num_alternatives)]
            readings.append({"text": text, "score": 0.5, "script": "Zyyy", "alternatives": alternatives})
        return readings


@pytest.fixture
def model(monkeypatch):
    """Takes the place of any checkpoint."""
    model = GreyReader()
    processor = MSTRProcessor(MSTRImageProcessor(), build_vocabulary(load_charsets(["hi", "en"])).tokenizer())
    monkeypatch.setattr("transformers.AutoModel.from_pretrained", lambda name: model)
    monkeypatch.setattr("transformers.AutoProcessor.from_pretrained", lambda name: processor)
    return model


@pytest.fixture
def folder(tmp_path):
    """Seven pictures of many widths, whose grey levels follow their names, and a file that is no picture."""
    for grey, width in enumerate([90, 20, 300, 40, 64, 500, 33], start=10):
        _picture(tmp_path / f"{grey}.png", grey, width)
    (tmp_path / "labels.jsonl").write_text("{}\n")
    (tmp_path / "._10.png").write_text("left by another system")
    return tmp_path


def _picture(path: Path, grey: int, width: int = 50) -> Path:
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(np.full((32, width), grey, np.uint8)).save(path)
    return path


def _run(capsys, *arguments) -> tuple[int, list[list[str]], str]:
    code = cli.main(["read", *map(str, arguments)])
    out, err = capsys.readouterr()
    return code, [line.split("\t") for line in out.splitlines()], err


def test_folder_is_read_in_order_though_batches_are_sorted_by_width(model, folder, capsys, monkeypatch):
    monkeypatch.setattr("mstr_hf.reading._WINDOW", 2)  # several windows too
    code, lines, err = _run(capsys, folder, "--batch-size", 2)
    assert (code, err) == (0, "")
    assert lines == [[str(folder / f"{grey}.png"), str(grey), "Zyyy", "0.500"] for grey in range(10, 17)]
    calls = [call["widths"] for call in model.calls]  # of a window, in any order: side by side
    assert sorted(calls[:3]) == [[24, 40], [96], [304]] and sorted(calls[3:]) == [[40], [64], [504]]


def test_files_patterns_and_subfolders(model, folder, capsys):
    nested = _picture(folder / "more" / "word.JPG", 99)
    code, lines, _ = _run(capsys, folder / "12.png", folder / "1[01].*", folder / "*r*")
    assert code == 0
    assert [path for path, *_ in lines] == [str(folder / f"{n}.png") for n in (12, 10, 11)] + [str(nested)]


def test_a_pattern_reads_an_image_once_and_names_stay_on_their_line(model, folder, capsys):
    _picture(folder / "a" / "1.jfif", 77)
    _picture(folder / "a" / "b\tc\nd.png", 78)
    _, lines, _ = _run(capsys, folder / "a" / "**")
    assert [fields[0] for fields in lines] == [str(folder / "a" / "1.jfif"), str(folder / "a" / "b\\tc\\nd.png")]


def test_json_lines_hold_all_of_a_reading(model, folder, capsys):
    assert cli.main(["read", str(folder / "10.png"), "--json", "--alternatives", "1"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "path": str(folder / "10.png"),
        "text": "10",
        "score": 0.5,
        "script": "Zyyy",
        "alternatives": [{"text": "10-0", "score": 0.1}],
    }


def test_alternatives_follow_on_the_line(model, folder, capsys):
    _, [line], _ = _run(capsys, folder / "10.png", "--alternatives", 2)
    assert line[3:] == ["0.500", "10-0", "10-1"]


def test_a_checkpoint_is_read_from_its_folder(tiny_checkpoint, folder, capsys, monkeypatch):
    # What an untrained model reads turns on the last bits.
    monkeypatch.setattr(cli, "reading_dtype", lambda device: torch.float32)
    assert cli.main(["read", str(folder), "--json", "--model", str(tiny_checkpoint), "--lang", "hi"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    model, processor = (
        AutoModel.from_pretrained(tiny_checkpoint),
        AutoProcessor.from_pretrained(tiny_checkpoint),
    )
    for line in lines:
        inputs = processor(images=line.pop("path"), return_tensors="pt")
        [reading] = model.eval().recognise(**inputs, languages=["hi"])
        assert line["text"] == reading["text"] != ""
        assert line["score"] == pytest.approx(reading["score"], rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_reads_in_the_dtype_of_the_machine(tiny_checkpoint, monkeypatch, dtype):
    monkeypatch.setattr(cli, "reading_dtype", lambda device: dtype if device == "cpu" else None)
    reader = cli._Reader(str(tiny_checkpoint), "cpu", None, "torch")
    weights = {name: weight.dtype for name, weight in reader._model.named_parameters()}
    assert set(weights.values()) == {dtype}
    assert reader._model.spotter.head.prototypes.dtype == torch.float32


def test_languages_reach_the_model(model, folder, capsys):
    assert _run(capsys, folder / "10.png", "--lang", "hi, en")[0] == 0
    assert model.calls[0]["languages"] == ["hi", "en"]


def test_what_cannot_be_read_is_named_and_the_rest_is_read(model, folder, capsys):
    broken = folder / "13.png"
    broken.write_bytes(broken.read_bytes()[:40])
    wide = _picture(folder / "14.png", 14, 900)
    empty = folder / "empty"
    empty.mkdir()
    code, lines, err = _run(capsys, folder, "gone.png", empty, "--batch-size", 2)
    assert code == 1
    assert [text for _, text, *_ in lines] == ["10", "11", "12", "15", "16"]
    reasons = err.splitlines()
    assert reasons[:2] == ["gone.png: no such file", f"{empty}: no images in this folder"]
    assert [reason.split(": ")[0] for reason in reasons[2:]] == [str(broken), str(wide)]


@pytest.mark.parametrize("name", ["labels.jsonl", "gone.png", "*.tiff", "x" * 300])
def test_nothing_read_is_exit_code_2(model, folder, capsys, name):
    code, lines, err = _run(capsys, folder / name)
    assert (code, lines) == (2, [])
    assert len(err.splitlines()) == 1
    assert name in err


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--lang", "hi,xx"], "unknown language xx: use hi, en"),
        (["--device", "abacus"], "--device abacus: "),
        (["--device", "cuda:99"], "--device cuda:99: "),
    ],
)
def test_wrong_options_are_one_line(model, folder, capsys, arguments, named):
    code, lines, err = _run(capsys, folder, *arguments)
    assert (code, lines) == (2, [])
    assert err.startswith("mstr: ") and named in err and len(err.splitlines()) == 1


@pytest.mark.parametrize(
    "arguments",
    [["--lang", "hi,,en"], ["--batch-size", "0"], ["--alternatives", "-1"], ["--alternatives", "½"]],
)
def test_usage_errors_are_exit_code_2(folder, capsys, arguments):
    with pytest.raises(SystemExit) as exit_:
        cli.main(["read", str(folder), *arguments])
    assert exit_.value.code == 2
    assert f"argument {arguments[0]}: {arguments[1]!r}" in capsys.readouterr().err


@pytest.mark.parametrize(
    "content", [None, "{", '{"model_type": "resnet"}', '{"model_type": "no such model"}']
)
def test_missing_or_foreign_models_are_one_line(folder, capsys, content):
    checkpoint = folder / "checkpoint"
    if content:
        checkpoint.mkdir()
        (checkpoint / "config.json").write_text(content)
    code, lines, err = _run(capsys, folder, "--model", checkpoint)
    assert (code, lines) == (2, [])
    assert err.startswith(f"mstr: no model in {checkpoint}: ") and len(err.splitlines()) == 1


def _edit_config(folder, old, new):
    path = folder / "config.json"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def _edit_weights(folder, edit):
    weights = load_file(folder / "model.safetensors")
    edit(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda folder: _edit_config(folder, '"top_k"', '"top_n"'), "has no field top_n: did you mean top_k?"),
        (lambda folder: _edit_config(folder, '"freeze_spotter": true', '"freeze_spotter": 3'), "'freeze_spotter' exp"),
        (lambda folder: _edit_config(folder, '"max_length": 64', '"max_length": 0'), "max_length is 0: give 1 or more"),
        (lambda folder: _edit_weights(folder, lambda w: w.pop("norm.weight")), "1 missing weights, such as norm.weig"),
        (lambda folder: _edit_weights(folder, lambda w: w.update(new=w["norm.weight"] + 1)), "1 unexpected weights, "),
        (lambda folder: _edit_weights(folder, lambda w: w.update({"norm.bias": torch.ones(3)})), "1 mismatched weigh"),
        (
            lambda folder: _edit_weights(folder, lambda w: w["encoder.spotter.head.prototypes"].neg_()),
            "do not match their digest",
        ),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"cut off"), "weights cannot be read"),
        (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors"),
        (lambda folder: (folder / "tokenizer.json").write_text("{"), ""),
        (lambda folder: (folder / "processor_config.json").unlink(), ""),
    ],
)
def test_damaged_checkpoints_are_one_line(tiny_checkpoint, folder, capsys, damage, reason):
    checkpoint = folder / "checkpoint"
    shutil.copytree(tiny_checkpoint, checkpoint)
    damage(checkpoint)
    code, lines, err = _run(capsys, folder / "10.png", "--model", checkpoint)
    assert (code, lines) == (2, [])
    assert err.startswith("mstr: ") and str(checkpoint) in err and reason in err
    assert len(err.splitlines()) == 1 and "Traceback" not in err


def test_checkpoint_without_a_bank_is_one_line(folder, capsys, tiny_checkpoint):
    checkpoint = folder / "checkpoint"
    shutil.copytree(tiny_checkpoint, checkpoint)
    config = json.loads((checkpoint / "config.json").read_text())
    config["spotter_config"]["bank"] = None
    (checkpoint / "config.json").write_text(json.dumps(config))
    code, lines, err = _run(capsys, folder / "10.png", "--model", checkpoint)
    assert (code, lines) == (2, [])
    assert err.startswith(f"mstr: {checkpoint}: this model has no prototype bank: ") and len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("cut.jpg", "cut", "give a complete image file"),
        ("empty.png", "", "cannot be read"),
        ("text.png", "text", "not in an image format"),
        ("wide.png", "20000x10", "20000x10 is more than 20 times as wide as high, cut it into words"),
        ("dot.png", "1x1", None),
    ],
)
def test_odd_images_are_one_line_beside_a_good_one(tiny_checkpoint, folder, capsys, name, content, reason):
    path = folder / name
    if "x" in content and content != "text":
        Image.new("L", tuple(map(int, content.split("x"))), 200).save(path)
    elif content == "cut":
        Image.effect_noise((200, 60), 90).save(path)
        path.write_bytes(path.read_bytes()[:600])
    else:
        path.write_text(content)
    code, lines, err = _run(capsys, path, folder / "10.png", "--model", tiny_checkpoint)
    assert lines[-1][0] == str(folder / "10.png")
    if reason is None:
        assert (code, len(lines), err) == (0, 2, "")
    else:
        assert (code, len(lines), len(err.splitlines())) == (1, 1, 1)
        assert err.startswith(f"{path}: ") and reason in err


def test_model_that_reads_no_words_is_refused(folder, capsys, monkeypatch):
    monkeypatch.setattr("transformers.AutoModel.from_pretrained", lambda name: torch.nn.Linear(1, 1))
    monkeypatch.setattr("transformers.AutoProcessor.from_pretrained", lambda name: None)
    code, _, err = _run(capsys, folder, "--model", "some/model")
    assert (code, err) == (2, "mstr: some/model is a Linear: name a model that reads words\n")


def test_missing_bundled_checkpoint_is_one_line(folder, capsys, monkeypatch):
    monkeypatch.setattr(cache, "CHECKPOINT", folder / "nothing")
    assert _run(capsys, folder)[0] == 2
    assert cli.main(["install-checkpoint", "--cache-dir", str(folder / "cache")]) == 2
    assert "no checkpoint in" in capsys.readouterr().err
    assert not (folder / "cache").exists()


def test_install_checkpoint_says_what_it_did(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cache, "CHECKPOINT", tmp_path / "checkpoint")
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "config.json").write_text("{}")
    for expected in ("mstr/refiner-6lang installed: ", "mstr/refiner-6lang was there already: "):
        assert cli.main(["install-checkpoint", "--cache-dir", str(tmp_path)]) == 0
        done, revision, _ = capsys.readouterr().out.splitlines()
        assert done.startswith(expected)
        assert done.endswith(revision.removeprefix("revision "))


def test_any_script_and_any_file_name_can_be_printed(model, tmp_path, capsysbinary, monkeypatch):
    path = _picture(tmp_path / os.fsdecode(b"caf\xe9.png"), 1)
    reading = {"text": "हिन्दी", "script": "Deva", "score": 1, "alternatives": []}
    monkeypatch.setattr(model, "recognise", lambda **_: [reading])
    sys.stdout.reconfigure(encoding="ascii")
    assert cli.main(["read", "--json", str(path)]) == 0
    line = json.loads(capsysbinary.readouterr().out)
    assert (line["text"], os.fsencode(line["path"])) == ("हिन्दी", os.fsencode(path))


def test_output_that_nobody_reads_any_more_is_no_traceback(model, folder, monkeypatch, capfd):
    read_end, write_end = os.pipe()
    os.close(read_end)
    with open(write_end, "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        assert cli.main(["read", str(folder)]) == 1
    assert capfd.readouterr().err == ""


def test_help_names_the_commands(capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.main(["--help"])
    out = capsys.readouterr().out
    assert exit_.value.code == 0 and "read" in out and "install-checkpoint" in out
