"""`benchmark.py`, on a few images and our own systems."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from mstr_hf.hub.cache import CHECKPOINT

SCRIPT = Path(__file__).parents[2] / "scripts" / "benchmark.py"


def run(*arguments):
    return subprocess.run([sys.executable, SCRIPT, *map(str, arguments)], capture_output=True, text=True, timeout=600)


def test_tables_of_our_own_systems(tmp_path, tiny_checkpoint):
    options = ["--images", CHECKPOINT.parent / "samples", "--output", tmp_path, "--model", tiny_checkpoint, "--quick"]
    options += ["--systems", "mstr;mstr, Spotter alone;docTR parseq"]
    result = run(*options, "--python", f"docTR={tmp_path / 'python'}")
    assert result.returncode == 2 and "docTR" in result.stderr  # there is no such Python
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
    table = (tmp_path / "benchmark.md").read_text()
    assert sum(line.startswith("| mstr") for line in table.splitlines()) == 4
    assert ("docTR parseq" in report["missing"]) == ("docTR parseq left out: no package doctr" in table)
    with Image.open(tmp_path / "benchmark.png") as picture:
        assert picture.width > 1000


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
