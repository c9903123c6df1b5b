import importlib.util
import json
import shutil
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from PIL import Image, ImageDraw, ImageFont

from mstr_hf.data.manifest import Record, read_manifest

SCRIPT = Path(__file__).parents[2] / "scripts" / "evaluate_real_words.py"

# Split, image width, language, reference, and what the Spotter, the Refiner and Tesseract read.
WORDS = [
    ("dev", 90, "en", "Cafe", "Cafe", "cafe", "Cale"),
    ("dev", 40, "en", "Shop", "Shap", "Shop", "Shop"),
    ("dev", 70, "hi", "नमक", "नमक", "नमक", "नम\u200dक"),
    ("report", 60, "hi", "दूध", "दूघ", "दूध", "दूध"),
    ("report", 50, "kn", "ಹಾಲು", "", "", ""),
]


class FakeProcessor:
    """Hands images on; knows two languages."""

    tokenizer = SimpleNamespace(get_vocab=lambda: {"<lang=hi>": 9, "<pad>": 0, "<lang=en>": 8, "a": 128})

    def __call__(self, images: list[Image.Image], return_tensors: str) -> dict:
        return {"pixel_values": images}

    def batch_decode(self, ids: torch.Tensor, skip_special_tokens: bool) -> list[str]:
        assert skip_special_tokens
        return ["".join(chr(code) for code in row if code) for row in ids.tolist()]


class FakeSpotter:
    """Knows a word by the width of its image; its ids are code points, 0 is padding."""

    def eval(self) -> "FakeSpotter":
        return self

    def __call__(self, pixel_values: list[Image.Image]) -> SimpleNamespace:
        texts = {width: text for _, width, _, _, text, _, _ in WORDS}
        best = [[ord(character) for character in texts[image.width].ljust(9, "\0")] for image in pixel_values]
        return SimpleNamespace(top_k_ids=torch.tensor([[[code, 7] for code in row] for row in best]))


class FakeModel:
    """Knows a word by the width of its image."""

    spotter = FakeSpotter()

    def eval(self) -> "FakeModel":
        return self

    def recognise(self, pixel_values: list[Image.Image]) -> list[dict]:
        by_width = {width: (spotter, refiner) for _, width, _, _, spotter, refiner, _ in WORDS}
        texts = [by_width[image.width] for image in pixel_values]
        return [{"spotter_text": spotter, "text": refiner} for spotter, refiner in texts]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("evaluate_real_words", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "BATCH_SIZE", 2)
    monkeypatch.setattr(module.AutoModel, "from_pretrained", lambda folder: FakeModel())
    monkeypatch.setattr(module.AutoProcessor, "from_pretrained", lambda folder: FakeProcessor())
    return module


@pytest.fixture
def manifests(tmp_path: Path) -> list[str]:
    for split, width, lang, text, *_ in WORDS:
        name = f"{split}{width}.png"
        image = Image.new("RGB", (width, 32), "white")
        ImageDraw.Draw(image).text((4, 4), text, "black", ImageFont.load_default(18))
        image.save(tmp_path / name)
        entry = {
            "id": name,
            "path_rel": name,
            "filename": name,
            "gt_text": text,
            "lang": lang,
            "dataset": "d",
        }
        with (tmp_path / f"{split}.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry | {"photo": lang}) + "\n")
    return [str(tmp_path / "dev.jsonl"), str(tmp_path / "report.jsonl")]


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Readings of Tesseract in all modes; only mode 8 reads anything."""
    codes = {"en": "eng", "hi": "hin", "kn": "kan"}
    readings = {
        f"{split}{width}.png {codes[lang]} {mode}": text if mode == 8 else ""
        for split, width, lang, _, _, _, text in WORDS
        for mode in (7, 8, 13)
    }
    file = tmp_path / "tesseract.json"
    file.write_text(json.dumps(readings), encoding="utf-8")
    return file


def run(script: ModuleType, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["evaluate_real_words.py", *arguments, "--model", "folder"])
    script.main()


def test_the_report_holds_each_reader_language_and_split(
    script: ModuleType, manifests: list[str], cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script.shutil, "which", lambda name: name)
    output = tmp_path / "report.json"
    run(
        script,
        monkeypatch,
        *manifests,
        "--tesseract",
        "--tesseract-cache",
        str(cache),
        "--output",
        str(output),
    )
    report = json.loads(output.read_text(encoding="utf-8"))

    assert report["skipped"] == {"kn": 1}
    assert report["tesseract_modes"] == {"en": 8, "hi": 8}
    rows = {(row["split"], row["words"]): row for row in report["rows"]}
    assert {key: row["n"] for key, row in rows.items()} == {
        ("dev", "en"): 2,
        ("dev", "hi"): 1,
        ("dev", "all"): 3,
        ("report", "hi"): 1,
        ("report", "all"): 1,
        ("together", "en"): 2,
        ("together", "hi"): 2,
        ("together", "all"): 4,
    }

    def value(split: str, words: str, reader: str, metric: str) -> float:
        return rows[split, words]["readers"][reader][metric]["value"]

    assert value("dev", "en", "Spotter", "wrr") == 0.5
    assert value("dev", "en", "Refiner", "wrr") == 0.5
    assert value("dev", "en", "Refiner", "wrr_alphanumeric") == 1
    assert value("report", "hi", "Spotter", "wrr") == 0
    assert value("report", "hi", "Spotter", "crr") == pytest.approx(2 / 3)
    assert value("together", "hi", "Tesseract", "wrr") == 0.5
    assert value("together", "hi", "Tesseract", "wrr_without_joiners") == 1
    assert value("together", "all", "Refiner", "wrr") == 0.75
    assert value("together", "all", "Refiner", "script_accuracy") == 1
    assert (rows["together", "all"]["mended"], rows["together", "all"]["broken"]) == (2, 1)


def test_the_table_says_the_same(
    script: ModuleType,
    manifests: list[str],
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(script.shutil, "which", lambda name: name)
    output = tmp_path / "report.md"
    run(
        script,
        monkeypatch,
        *manifests,
        "--tesseract",
        "--tesseract-cache",
        str(cache),
        "--output",
        str(output),
    )
    text = output.read_text(encoding="utf-8")
    assert capsys.readouterr().out == text
    table = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")
    ]
    assert len({len(line) for line in table}) == 1
    lines = {(line[0], line[1]): line for line in table}
    assert lines["split", "words"][3:6] == ["Spotter WRR", "Spotter CRR", "Spotter script"]
    # One photograph a language, so that there is no interval.
    assert lines["together", "en"][2:] == (["2"] + ["50.0", "87.5", "100.0"] * 3 + ["1 / 1"])
    assert lines["dev", "en, case-insensitive alphanumeric"][6] == "100.0"
    assert lines["dev", "hi, joiners dropped"][9:11] == ["100.0", "100.0"]
    assert ("report", "hi, joiners dropped") not in lines
    assert "Skipped, no language of this model: kn 1." in text
    assert "Tesseract's page segmentation mode: en 8, hi 8;" in text


@pytest.mark.parametrize("model", [FakeModel, FakeSpotter])
def test_the_spotter_alone(
    script: ModuleType,
    manifests: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    model: type,
) -> None:
    monkeypatch.setattr(script.AutoModel, "from_pretrained", lambda folder: model())
    run(script, monkeypatch, manifests[0], "--spotter-only")
    text = capsys.readouterr().out
    assert "| dev | en | 2 | 50.0 | 87.5 | 100.0 |" in text
    assert "| dev | hi | 1 | 100.0 | 100.0 | 100.0 |" in text
    assert "Refiner" not in text
    assert "Tesseract" not in text
    assert "together" not in text


def test_refusals_name_the_mend(
    script: ModuleType,
    manifests: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(script.shutil, "which", lambda name: None)
    for arguments, message in [
        ([manifests[0], manifests[0]], "two manifests of one name; rename one"),
        ([manifests[0], "--tesseract"], "install tesseract-ocr"),
        (["missing.jsonl"], "No such file or directory: 'missing.jsonl'"),
    ]:
        with pytest.raises(SystemExit) as stop:
            run(script, monkeypatch, *arguments)
        assert stop.value.code == 2
        assert message in capsys.readouterr().err


@pytest.mark.skipif(not shutil.which("tesseract"), reason="missing: tesseract")
def test_tesseract_reads_and_its_readings_are_kept(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = Image.new("RGB", (220, 70), "white")
    ImageDraw.Draw(image).text((20, 10), "Harbour", "black", ImageFont.load_default(40))
    image.save(tmp_path / "word.png")
    record = Record("w1", tmp_path / "word.png", "Harbour", "en", "d")
    kept = tmp_path / "kept.json"
    texts, modes = script.read_with_tesseract([record], kept)
    assert texts == ["Harbour"]
    assert modes["en"] in (7, 8, 13)
    assert set(json.loads(kept.read_text(encoding="utf-8"))) == {"w1 eng 7", "w1 eng 8", "w1 eng 13"}

    monkeypatch.setattr(script, "tesseract", lambda *_: pytest.fail("read again"))
    assert script.read_with_tesseract([record], kept) == (texts, modes)


@pytest.mark.skipif(not shutil.which("tesseract"), reason="missing: tesseract")
def test_a_language_that_tesseract_lacks_is_named(script: ModuleType, manifests: list[str]) -> None:
    image = read_manifest(manifests[0])[0].path
    with pytest.raises(
        RuntimeError, match=r"dev90\.png: tesseract failed .*is tesseract-ocr-xyz installed\?"
    ):
        script.tesseract(image, "xyz", 8)
