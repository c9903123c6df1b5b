"""`benchmark.py`, on a few images and our own systems."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from mstr_hf.hub.cache import CHECKPOINT
from mstr_hf.synthesis.words import WordsError

SCRIPT = Path(__file__).parents[2] / "scripts" / "benchmark.py"


def run(*arguments):
    return subprocess.run([sys.executable, SCRIPT, *map(str, arguments)], capture_output=True, text=True, timeout=600)


def test_tables_of_our_own_systems(tmp_path, tiny_checkpoint):
    options = ["--images", CHECKPOINT.parent / "samples", "--output", tmp_path, "--model", tiny_checkpoint, "--quick"]
    options += ["--systems", "mstr;mstr, Spotter alone;docTR parseq"]
    result = run(*options, "--python", f"docTR={tmp_path / 'python'}")
    assert result.returncode == 2 and "docTR" in result.stderr  # there is no such Python
    result = run(*options, "--model", tmp_path / "nowhere")
    assert result.returncode == 1 and "`mstr read` fails: " in result.stderr and "nowhere" in result.stderr
    result = run(*options)
    assert result.returncode == 0, result.stderr[-2000:]
    report = json.loads((tmp_path / "benchmark.json").read_text())
    assert report["images"] == {"count": 24, "mean_characters": report["images"]["mean_characters"], "labelled": True}
    rows = {(row["system"], row["batch_size"]): row for row in report["rows"] if not row["system"].startswith("docTR")}
    assert set(rows) == {(name, size) for name in ("mstr", "mstr, Spotter alone") for size in (1, 64)}
    for row in rows.values():
        for kind in ("seconds", "cpu", "seconds_ratio", "cpu_ratio"):
            assert 0 < row[kind]["min"] <= row[kind]["median"] <= row[kind]["max"]
        assert len(row["rounds"]) == report["rounds"] and row["memory"] > 1e7 and row["start_seconds"] > 0
    assert rows["mstr", 1]["seconds_ratio"]["max"] == 1
    assert set(report["accuracy"]) >= {"mstr", "mstr, Spotter alone"}
    assert all(0 <= share <= 1 for share in report["accuracy"].values()) and report["start"]["min"] > 0
    table = (tmp_path / "benchmark.md").read_text()
    assert sum(line.startswith("| mstr") for line in table.splitlines()) == 4
    assert ("docTR parseq" in report["missing"]) == ("docTR parseq left out: no package doctr" in table)
    with Image.open(tmp_path / "benchmark.png") as picture:
        assert picture.width > 1000


@pytest.fixture
def benchmark(monkeypatch):
    spec = importlib.util.spec_from_file_location("benchmark", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "benchmark", module)
    spec.loader.exec_module(module)
    return module


class FakeWorker:
    """Takes `seconds` a word; its process ends after so many reads."""

    load_seconds = 1.0

    def __init__(self, name, seconds, error=None, reads=10**6):
        self.name, self._seconds, self._error, self._left = name, seconds, error, reads

    def read(self, paths, batch_size):
        self._left -= 1
        if self._left < 0:
            raise self._error("its process ended")
        return {"seconds": self._seconds * len(paths), "cpu": self._seconds * len(paths), "memory": 1e8}


def measured(benchmark, *workers):
    options = SimpleNamespace(batch_sizes=[1, 64], rounds=3, seconds=0.1)
    missing = {}
    rows = benchmark.measure(list(workers), 1, options, ["a.png", "b.png"], missing)
    return {(row["system"], row["batch_size"]): row for row in rows}, missing


def test_ratios_are_to_our_default_alone(benchmark):
    rows, missing = measured(benchmark, FakeWorker("mstr", 0.01), FakeWorker("Tesseract", 0.03))
    assert rows["Tesseract", 64]["seconds_ratio"]["median"] == pytest.approx(3) and not missing
    rows, _ = measured(benchmark, FakeWorker("Tesseract", 0.03))
    assert rows["Tesseract", 1]["seconds_ratio"] is None


def test_a_system_that_fails_is_named_and_the_rest_is_measured(benchmark):
    dies = FakeWorker("Tesseract", 0.03, benchmark.Missing, reads=6)  # in the first round, in the second batch size
    rows, missing = measured(benchmark, FakeWorker("mstr", 0.01), dies)
    assert missing == {"Tesseract": "its process ended"}
    assert len(rows["mstr", 64]["rounds"]) == 3 and len(rows["Tesseract", 1]["rounds"]) == 1
    assert ("Tesseract", 64) not in rows
    dies = FakeWorker("mstr", 0.01, benchmark.Missing, reads=6)
    rows, _ = measured(benchmark, dies, FakeWorker("Tesseract", 0.03))
    assert rows["Tesseract", 1]["seconds_ratio"]["max"] == pytest.approx(3) and len(rows["Tesseract", 1]["rounds"]) == 3
    dies = FakeWorker("mstr", 0.01, benchmark.Missing, reads=0)
    assert measured(benchmark, dies) == ({}, {"mstr": "its process ended"})


def test_a_batch_of_ours_that_would_take_too_long_leaves_the_others(benchmark):
    rows, _ = measured(benchmark, FakeWorker("mstr", 1.0), FakeWorker("Tesseract", 0.03))
    assert "left_out" in rows["mstr", 64] and rows["Tesseract", 64]["seconds_ratio"] is None


def test_words_are_drawn_where_no_images_are_named(benchmark, tmp_path, monkeypatch, fonts):
    monkeypatch.setattr(benchmark, "LANGUAGES", ["en"])
    monkeypatch.setattr(benchmark, "DRAWN_WORDS", 3)
    monkeypatch.setattr("mstr_hf.synthesis.fonts.discover_fonts", lambda languages, folders: fonts)
    try:
        benchmark.draw_words(tmp_path / "words", [])
    except WordsError as error:
        pytest.skip(f"missing: {error}")
    records = [json.loads(line) for line in (tmp_path / "words" / "labels.jsonl").read_text().splitlines()]
    assert sorted(tmp_path / "words" / record["filename"] for record in records) == sorted(
        map(Path, benchmark.image_files(tmp_path / "words"))
    )
    assert len(records) == 3 and all(record["gt_text"] for record in records)
    monkeypatch.setattr(benchmark, "DRAWN_WORDS", 9)
    benchmark.draw_words(tmp_path / "words", [])
    assert len(benchmark.image_files(tmp_path / "words")) == 3  # there already


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--images", "."], "--output FOLDER is needed"),
        (["--output", "out", "--images", "nowhere"], "nowhere: name a folder"),
        (["--systems", "mstr;other"], "no system 'other'"),
        (["--batch_sizes", "1,0"], "above 0"),
    ],
)
def test_wrong_usage_is_named(tmp_path, monkeypatch, arguments, reason):
    monkeypatch.chdir(tmp_path)
    result = run(*arguments)
    assert result.returncode == 2 and reason in result.stderr


def test_growth_and_the_work_of_each_part(tmp_path, tiny_checkpoint):
    result = run("--scaling", "--quick", "--output", tmp_path, "--model", tiny_checkpoint)
    assert result.returncode == 0, result.stderr[-2000:]
    report = json.loads((tmp_path / "scaling.json").read_text())
    assert [list(map(int, table)) for table in report["tables"].values()] == [
        [1, 4, 16, 64],
        [2, 8, 64],
        [2, 8, 64],
        [1, 2],
        [500, 10_000],
    ]
    parts = report["roofline"]["parts"]
    assert list(parts)[:3] == ["backbone", "head", "bank product"] and len(parts) == 6
    assert all(part["mflop"] >= 0 and part["ms"] > 0 and part["mbyte"] > 0 for part in parts.values())
    assert "| decoder step |" in (tmp_path / "scaling.md").read_text()
