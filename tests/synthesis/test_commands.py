import subprocess
from pathlib import Path

import pytest

from mstr_hf.cli import main
from mstr_hf.synthesis import fonts, words


@pytest.fixture(autouse=True)
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without fonts, with one word list of Telugu."""
    listing = tmp_path / "te.dic"
    listing.write_text("అమ్మ\nకృష్ణ\n", encoding="utf-8")
    monkeypatch.setenv("MSTR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(fonts, "_system_files", lambda: iter(()))
    monkeypatch.setattr(
        words,
        "_SOURCES",
        {"te": [words._file("te", "", listing)], "hi": [words._file("hi", "apt-get install it", tmp_path / "no")]},
    )
    words.load_words.cache_clear()
    yield
    words.load_words.cache_clear()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["synthesise", "out", "--lang", "te"], "no usable font for language 'te': install fonts"),
        (["synthesise", "out", "--lang", "te", "--preview"], "no usable font for language 'te': install fonts"),
        (["synthesise", "out", "--lang", "xx"], "no charset for language 'xx'"),
        (["synthesise", "out", "--lang", "te", "--fonts", "nowhere"], "font folder nowhere does not exist"),
        (["fonts", "nowhere", "--lang", "te"], "font folder nowhere does not exist"),
        (["words", "--lang", "hi"], "no word list of language 'hi' is installed: apt-get install it"),
    ],
)
def test_what_is_missing_is_named_in_one_line(capsys, arguments: list[str], message: str):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"mstr: {message}") and error.count("\n") == 1


def test_a_font_list_that_breaks_off_is_an_error_of_one_line(capsys, monkeypatch):
    monkeypatch.setattr(fonts, "_system_files", lambda: iter(subprocess.check_output(["false"])))
    for arguments in (["synthesise", "out", "--lang", "te"], ["fonts", "--lang", "te"]):
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert error.startswith("mstr: Command '['false']' returned") and error.count("\n") == 1


def test_fonts_are_reported(capsys):
    assert main(["fonts", "--lang", "te,hi"]) == 0
    assert "te: 0 families in 0 designs" in capsys.readouterr().out


def test_histogram_lists_each_character_of_the_charset(capsys):
    assert main(["words", "--lang", "te", "--count", "3000"]) == 0
    summary, *lines = capsys.readouterr().out.splitlines()
    assert summary.startswith(f"te: 2 listed words, {len(lines)} characters; in 3000 drawn words the rarest are ")
    rows = [line.split("\t") for line in lines]
    assert {row[2] for row in rows} == words.load_charset("te").characters
    counts = [int(row[3]) for row in rows]
    assert counts == sorted(counts, reverse=True)
    assert f"{rows[-1][2]} {counts[-1]}," in summary
