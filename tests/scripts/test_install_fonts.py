import os
import shutil
import subprocess
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "scripts" / "install_fonts.sh"


def run(tmp_path: Path, *arguments: str, tools: dict[str, str]) -> subprocess.CompletedProcess:
    """Runs the script with stand-ins for the system's package tools, which write their arguments to a log."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, body in tools.items():
        (folder / name).write_text(f'#!/bin/sh\necho {name} "$@" >> "{tmp_path}/log"\n{body}\n')
        (folder / name).chmod(0o755)
    for name in ("bash", "cat", "comm", "cp", "dirname", "mkdir", "sed", "sort"):
        (folder / name).symlink_to(shutil.which(name))
    environment = {"PATH": str(folder), "HOME": str(tmp_path), "LC_ALL": os.environ.get("LC_ALL", "C")}
    return subprocess.run([folder / "bash", SCRIPT, *arguments], env=environment, capture_output=True, text=True)


def test_debian_and_web_fonts_are_installed_and_what_is_unknown_is_named(tmp_path: Path):
    known = "echo fonts-noto-core; echo fonts-gargi; echo vim"
    tools = {"apt-get": "", "apt-cache": known, "npm": ""}
    result = run(tmp_path, "--web", str(tmp_path / "web"), "indic", tools=tools)
    assert result.returncode == 0, result.stderr
    log = (tmp_path / "log").read_text().splitlines()
    assert "apt-get install -y -q --no-install-recommends fonts-gargi fonts-noto-core" in log
    assert "fonts-aksharyogini2" in result.stderr and "vim" not in result.stderr
    assert any(line.startswith(f"npm install --prefix {tmp_path}/web ") for line in log)
    assert (tmp_path / "web" / "package.json").exists()
    assert f"--fonts {tmp_path}/web" in result.stdout


def test_lists_are_joined_line_by_line(tmp_path: Path):
    lists = [SCRIPT.parent / "fonts" / f"{name}.txt" for name in ("greek", "korean")]
    names = sorted(name for path in lists for name in path.read_text().split())
    tools = {"apt-get": "", "apt-cache": "; ".join(f"echo {name}" for name in names)}
    result = run(tmp_path, "greek", "korean", tools=tools)
    assert "package lists, left out" not in result.stderr
    assert f"apt-get install -y -q --no-install-recommends {' '.join(names)}" in (tmp_path / "log").read_text()


def test_it_says_what_it_leaves_out(tmp_path: Path):
    result = run(tmp_path, tools={})
    assert result.returncode == 0
    assert "no apt-get here" in result.stderr and "no npm here" in result.stderr


def test_an_unknown_list_is_named(tmp_path: Path):
    result = run(tmp_path, "klingon", tools={})
    assert result.returncode == 2
    assert "no list of fonts for klingon: use one of arabic greek hebrew indic korean latin thai" in result.stderr
