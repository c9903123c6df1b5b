"""`kill_conversion.py` and `benchmark_conversion.py`, on little data."""

import importlib.util
import random
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"


def load(name, monkeypatch, *arguments):
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    # Processes find the functions that they run by the name of the module.
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    return module


def test_killed_conversions_come_to_the_same_result(monkeypatch, capfd):
    load("kill_conversion", monkeypatch, "--kills", "3", "--records", "400").main()
    lines = capfd.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["LMDB to Arrow", "Arrow to LMDB"]
    assert all(line.endswith("all the same as the undisturbed one") for line in lines)


def test_a_result_that_differs_is_noticed(monkeypatch, capfd, tmp_path):
    script = load("kill_conversion", monkeypatch)
    (tmp_path / "right").mkdir()
    (tmp_path / "right/file").write_text("right")

    def way(folder):
        folder.mkdir(exist_ok=True)
        (folder / "file").write_text("wrong")

    with pytest.raises(SystemExit) as exit_:
        script.report("a way", [way], tmp_path / "right", script.contents, 1, random.Random(0))
    assert exit_.value.code == 1
    assert "a way: result 0 differs" in capfd.readouterr().out


def test_benchmark_prints_each_way(monkeypatch, capsys, tmp_path):
    load("benchmark_conversion", monkeypatch, "--records", "40", "--folder", str(tmp_path)).main()
    out = capsys.readouterr().out
    assert out.count(" rows/s ") == 6 and out.count(" records/s ") == 6
    assert list(tmp_path.iterdir()) == []


def test_memory_counts_a_process_and_its_children(monkeypatch):
    import psutil

    sizes = load("benchmark_conversion", monkeypatch).memory(psutil.Process())
    assert 0 < sizes["of the largest process"] <= sizes["of all, added up"]
