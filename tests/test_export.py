"""The bundled checkpoint, exported to ONNX and read with ONNX Runtime."""

import json
import shutil
import sys
from pathlib import Path

import onnx
import pytest
import torch
from transformers import AutoModel, AutoProcessor

from mstr_hf import PrototypeBank, cli
from mstr_hf.data.manifest import read_manifest
from mstr_hf.export import export_onnx
from mstr_hf.hub.cache import CHECKPOINT
from mstr_hf.onnx_runtime import GRAPHS, LANGUAGE_MODEL, ExportError, OnnxRefiner

RECORDS = read_manifest(CHECKPOINT.parent / "samples" / "labels.jsonl")
PATHS = [record.path for record in RECORDS]


@pytest.fixture(scope="module")
def model():
    return AutoModel.from_pretrained(CHECKPOINT).eval()


@pytest.fixture(scope="module")
def processor():
    return AutoProcessor.from_pretrained(CHECKPOINT)


@pytest.fixture(scope="module")
def exported(model, processor, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "float32"
    export_onnx(model, processor, folder)
    return folder


@pytest.fixture(scope="module")
def reader(exported) -> OnnxRefiner:
    return OnnxRefiner.from_pretrained(exported)


@pytest.fixture
def copied(exported, tmp_path) -> Path:
    return shutil.copytree(exported, tmp_path / "copied")


def check_alike(readings: list[dict], expected: list[dict]) -> None:
    for reading, other in zip(readings, expected, strict=True):
        scores = [reading.pop("score"), *(character.pop("score") for character in reading["characters"])]
        others = [other.pop("score"), *(character.pop("score") for character in other["characters"])]
        assert reading == other
        assert scores == pytest.approx(others, abs=1e-4)


@pytest.mark.parametrize("gate_threshold", [0.0, 0.6, 1.1])
@pytest.mark.parametrize("languages", [None, ["hi", "ar"]])
@pytest.mark.parametrize("count", [1, 5, len(PATHS)])
def test_readings_are_those_of_torch(model, processor, reader, count, languages, gate_threshold):
    # Each count has a width of its own.
    inputs = processor(images=PATHS[-count:], return_tensors="pt")
    options = {"languages": languages, "gate_threshold": gate_threshold}
    check_alike(reader.recognise(**inputs, **options), model.recognise(**inputs, **options))


@pytest.mark.parametrize(("batch", "width"), [(1, 16), (3, 64), (2, 960)])
def test_graphs_give_what_torch_gives(model, reader, batch, width):
    generator = torch.Generator().manual_seed(width)
    pixels = torch.rand(batch, 1, 48, width, generator=generator) * 2 - 1
    mask = torch.arange(width) < torch.tensor([[width]] + [[width // 2]] * (batch - 1))
    spotted = reader.encoder.spot(pixels, mask)
    with torch.no_grad():
        expected = model.spotter(pixels, mask)
    for name in ("similarity", "blank_similarity", "top_k_scores"):
        torch.testing.assert_close(spotted[name], expected[name], atol=1e-4, rtol=0)
    for level, other in zip(spotted.feature_maps, expected.feature_maps, strict=True):
        torch.testing.assert_close(level, other, atol=1e-4, rtol=1e-4)
    assert reader.spotter.head.scale == model.spotter.head.scale


def test_long_readings_end(model, reader):
    # Whatever a reading's last step is, it is the end: noise is read as long words.
    pixels = torch.rand(4, 1, 48, 960, generator=torch.Generator().manual_seed(0)) * 2 - 1
    check_alike(reader.recognise(pixels, gate_threshold=1.1), model.recognise(pixels, gate_threshold=1.1))


def test_int8_reads_nearly_all_samples_alike(exported, reader, processor, tmp_path, capsys):
    folder = tmp_path / "int8"
    assert cli.main(["export", str(folder), "--int8"]) == 0
    assert capsys.readouterr().out == f"read with it: mstr read --runtime onnx --model {folder} ...\n"
    sizes = [sum((path / f"{name}.onnx").stat().st_size for name in GRAPHS) for path in (folder, exported)]
    assert sizes[0] < 0.5 * sizes[1]
    inputs = processor(images=PATHS, return_tensors="pt")
    expected = [reading["text"] for reading in reader.recognise(**inputs)]
    assert cli.main(["read", *map(str, PATHS), "--runtime", "onnx", "--model", str(folder), "--json"]) == 0
    texts = [json.loads(line)["text"] for line in capsys.readouterr().out.splitlines()]
    assert sum(map(str.__eq__, texts, expected)) >= 0.8 * len(PATHS)


def test_alternatives_are_those_of_torch(model, processor, reader):
    inputs = processor(images=PATHS[:4], return_tensors="pt")
    readings, expected = (one.recognise(**inputs, num_alternatives=2) for one in (reader, model))
    for reading, other in zip(readings, expected, strict=True):
        assert reading["text"] == other["text"] and len(reading["alternatives"]) == 2
        assert [one["text"] for one in reading["alternatives"]] == [one["text"] for one in other["alternatives"]]


def test_evaluation(exported, tmp_path, capsys):
    manifest = CHECKPOINT.parent / "samples" / "labels.jsonl"
    arguments = ["--runtime", "onnx", "--model", str(exported), "--output", str(tmp_path / "evaluation")]
    assert cli.main(["evaluate", str(manifest), *arguments]) == 0
    assert len((tmp_path / "evaluation" / "predictions.jsonl").read_text().splitlines()) == len(RECORDS)


def _edit_notes(path: Path, **changes: str) -> None:
    graph = onnx.load(path)
    notes = {entry.key: entry.value for entry in graph.metadata_props} | changes
    onnx.helper.set_model_props(graph, notes)
    onnx.save_model(graph, path)


def _raise_opset(path: Path) -> None:
    graph = onnx.load(path)
    graph.opset_import[0].version = 999
    onnx.save_model(graph, path)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda folder: (folder / "memory.onnx").unlink(), "no memory.onnx, so this is no ONNX export, or not all"),
        (lambda folder: shutil.rmtree(folder), "no spotter.onnx, so this is no ONNX export"),
        (lambda folder: (folder / "decoder.onnx").write_bytes(b"cut"), "decoder.onnx: cannot be loaded"),
        (
            lambda folder: (folder / "spotter.onnx").write_bytes((folder / "spotter.onnx").read_bytes()[:100_000]),
            "spotter.onnx: cannot be loaded",
        ),
        (lambda folder: _raise_opset(folder / "memory.onnx"), "or upgrade onnxruntime"),
        (lambda folder: _edit_notes(folder / "memory.onnx", mstr_hf_format="0"), "memory.onnx: not made by this vers"),
        (lambda folder: _edit_notes(folder / "memory.onnx", weights="0"), "its graphs come from different models"),
        (lambda folder: (folder / "prototype_bank.safetensors").unlink(), "prototype_bank.safetensors"),
        (lambda folder: (folder / LANGUAGE_MODEL).unlink(), f"no {LANGUAGE_MODEL}, so this is no ONNX export, or not"),
        (lambda folder: (folder / LANGUAGE_MODEL).write_bytes(b"cut"), "not the table of this model, or cut off"),
        (lambda folder: (folder / "config.json").unlink(), ""),
        (lambda folder: (folder / "tokenizer.json").write_text("{"), ""),
    ],
)
def test_damaged_exports_are_one_line(copied, capsys, damage, reason):
    damage(copied)
    assert cli.main(["read", str(PATHS[0]), "--runtime", "onnx", "--model", str(copied)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("mstr: ") and reason in err and str(copied) in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("grown", [False, True])
def test_another_bank_is_refused(copied, reader, grown):
    bank = reader.get_bank()
    if grown:
        other = bank.extend(bank.prototypes[:1], ["Ⴀ"], [0], ["Geor"], [["ka"]])
    else:
        other = PrototypeBank.from_metadata(bank.metadata(), bank.prototypes.flip(0))
    other.save_pretrained(copied)
    with pytest.raises(ExportError, match="its bank is not that of its model"):
        OnnxRefiner.from_pretrained(copied)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--runtime", "onnx"], "export a model with `mstr export FOLDER` and name it with --model FOLDER"),
        (["--runtime", "onnx", "--model", str(CHECKPOINT)], "make it with mstr export"),
        (["--runtime", "onnx", "--model", "FOLDER", "--device", "cuda"], "ONNX Runtime reads on the CPU"),
        (["--model", "FOLDER"], "is an ONNX export: read it with --runtime onnx"),
    ],
)
def test_wrong_options_are_one_line(exported, capsys, arguments, reason):
    arguments = [str(exported) if argument == "FOLDER" else argument for argument in arguments]
    assert cli.main(["read", str(PATHS[0]), *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("mstr: ") and reason in err and len(err.splitlines()) == 1


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_missing_extra_is_named(exported, tmp_path, capsys, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    if package == "onnxruntime":
        code = cli.main(["read", str(PATHS[0]), "--runtime", "onnx", "--model", str(exported)])
    else:
        code = cli.main(["export", str(tmp_path / "new")])
    assert code == 2
    err = capsys.readouterr().err
    assert package in err and "pip install 'mstr_hf[onnx]'" in err and len(err.splitlines()) == 1
