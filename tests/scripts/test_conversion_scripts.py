"""`kill_and_resume.py`, `benchmark_conversion.py` and `benchmark_synthesis.py`, on little data."""

import importlib.util
import random
import re
import sys
from pathlib import Path

import pytest

from mstr_hf.synthesis.words import WordsError, load_words

SCRIPTS = Path(__file__).parents[2] / "scripts"


def load(name, monkeypatch, *arguments):
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    # Processes find the functions that they run by the name of the module.
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    return module


def test_killed_runs_come_to_the_same_result(monkeypatch, capfd, fonts):
    try:
        load_words("en")
    except WordsError as error:
        pytest.skip(f"missing: {error}")
    monkeypatch.setattr("mstr_hf.synthesis.dataset.discover_fonts", lambda languages, folders: fonts)
    script = load("kill_and_resume", monkeypatch, "--kills", "3", "--records", "400")
    monkeypatch.setattr(script, "discover_fonts", lambda languages: fonts)
    script.main()
    lines = capfd.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["LMDB to Arrow", "Arrow to LMDB", "words", "training"]
    assert all(line.endswith("all the same as the undisturbed one") for line in lines)


def test_a_result_that_differs_is_noticed(monkeypatch, capfd, tmp_path):
    script = load("kill_and_resume", monkeypatch)
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


def test_synthesis_is_measured_beside_another_generator(monkeypatch, capsys, fonts, tmp_path):
    """Beside a stand-in for TRDG, which is not installed with this package."""
    try:
        load_words("en")
    except WordsError as error:
        pytest.skip(f"missing: {error}")
    generators = tmp_path / "trdg" / "generators.py"
    generators.parent.mkdir()
    generators.write_text(
        "print('a remark')\n"
        "def GeneratorFromStrings(strings, fonts, **options):\n"
        "    assert fonts and all(map(open, fonts))\n"
        "    yield from ((list(range(10_000)), word) for word in strings)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    script = load("benchmark_synthesis", monkeypatch, "--lang", "en", "--words", "50", "--trdg", sys.executable)
    monkeypatch.setattr(script, "discover_fonts", lambda languages, folders: fonts)
    script.main()
    line = capsys.readouterr().out
    assert re.fullmatch(r"en: \d+ words/s, TRDG \d+ words/s: [\d.]+ times as fast\n", line)
