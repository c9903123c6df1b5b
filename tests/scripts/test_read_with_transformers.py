import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

SCRIPT = Path(__file__).parents[2] / "scripts" / "read_with_transformers.py"


@pytest.mark.parametrize("package", [True, False])
def test_reads_with_and_without_the_package(tiny_checkpoint, tmp_path, package):
    Image.new("L", (90, 32), 200).save(tmp_path / "word.png")
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / "mstr_hf.py").write_text("raise ImportError('not installed')")
    done = subprocess.run(
        [sys.executable, SCRIPT, "word.png", "--model", tiny_checkpoint, *(["--package"] if package else [])],
        cwd=tmp_path,
        env=os.environ
        | {"PYTHONPATH": str(SCRIPT.parents[1] if package else hidden), "HF_HOME": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    path, _, score = done.stdout.removesuffix("\n").split("\t")
    assert path == "word.png" and 0 <= float(score) <= 1
    assert "not installed" not in done.stderr
