import os
import re
import shutil
from collections import Counter
from pathlib import Path

import pytest
from fontTools import subset
from fontTools.ttLib import TTFont

from mstr_hf.synthesis import fonts
from mstr_hf.synthesis.fonts import Face, FontIndex, _plain_font, covers, discover_fonts, hb_font
from mstr_hf.synthesis.rendering import FontStyle

# Debian package, file
LOHIT = ("fonts-lohit-deva", "Lohit-Devanagari.ttf")
NOTO = ("fonts-noto-core", "NotoSansDevanagari-Regular.ttf")
NOTO_UI = ("fonts-noto-ui-core", "NotoSansDevanagariUI-Regular.ttf")
FREE = ("fonts-freefont-ttf", "FreeSans.ttf")
DEJAVU = ("fonts-dejavu-core", "DejaVuSans.ttf")
NASKH = ("fonts-noto-core", "NotoNaskhArabic-Regular.ttf")

SYSTEM_FILES = {Path(path).name: path for path in fonts._system_files()}


def font_file(font: tuple[str, str]) -> Path:
    package, name = font
    if name not in SYSTEM_FILES:
        pytest.skip(f"missing: {name}: apt-get install {package}")
    return Path(SYSTEM_FILES[name])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, the only one where fonts are looked for."""
    monkeypatch.setenv("MSTR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(fonts, "_system_files", lambda: iter(()))
    (tmp_path / "fonts").mkdir()
    return tmp_path / "fonts"


def faces(index: FontIndex, lang: str) -> list[Face]:
    return index.faces(lang, "train") + index.faces(lang, "heldout")


def remap(source: Path, target: Path, mapping: dict[str, str]) -> None:
    """Copies a font in which the characters of ``mapping`` are drawn as others ("" as an empty glyph)."""
    font = TTFont(source)
    cmap = font.getBestCmap()
    glyphs = {ord(new): cmap[ord(old or " ")] for new, old in mapping.items()}
    for table in font["cmap"].tables:
        if table.isUnicode():
            table.cmap.update(glyphs)
    font.save(target)


def test_coverage_is_decided_by_shaping(folder: Path):
    shutil.copy(font_file(NOTO), folder)
    (face,) = faces(discover_fonts(["hi"], [folder]), "hi")
    assert covers(face, "क्षत्रिय")
    assert covers(face, "हिन्दी १२")
    assert not covers(face, "ி")
    assert not covers(face, "السلام")
    # a vowel sign without a letter gets a dotted circle
    assert not covers(face, "ि")
    assert covers(face, "\u25cc\u093f")
    # Whatever has been drawn with the face before: of empty glyphs, HarfBuzz says another size if they are bold.
    FontStyle(bold=0.05).apply(hb_font(face))
    assert _plain_font(face).synthetic_bold[:2] == (0.0, 0.0)


def test_faces_that_only_have_the_letters_are_refused(folder: Path):
    for font in (FREE, LOHIT, DEJAVU):
        shutil.copy(font_file(font), folder)
    index = discover_fonts(["hi", "en"], [folder])
    assert {face.family for face in faces(index, "hi")} == {"Lohit Devanagari"}
    assert index.refused["hi"] == {"FreeSans": "breaks conjuncts"}
    assert {"FreeSans", "DejaVu Sans"} <= {face.family for face in faces(index, "en")}


def test_conjuncts_that_fall_apart_are_refused(folder: Path):
    font = TTFont(font_file(NOTO))
    del font["GSUB"]
    font.save(folder / "unshaped.ttf")
    index = discover_fonts(["hi"], [folder])
    assert set(index.refused["hi"].values()) == {"conjuncts fall apart"}
    with pytest.raises(ValueError, match="no usable font for language 'hi'"):
        index.faces("hi")


@pytest.mark.parametrize(
    ("mapping", "reason"),
    [
        ({c.lower(): c for c in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"}, "both cases drawn alike"),
        (dict(zip("cosvwxz", "!#%&+/=", strict=True)), "pictures in place of letters"),
        (dict.fromkeys("ABCDEFGHIJKLM", ""), "letters without outlines"),
    ],
)
def test_other_shapes_than_latin_letters_are_refused(folder: Path, mapping: dict[str, str], reason: str):
    remap(font_file(DEJAVU), folder / "other.ttf", mapping)
    assert discover_fonts(["en"], [folder]).refused["en"] == {"DejaVu Sans": reason}


@pytest.mark.parametrize(("lang", "capitals"), [("ru", "АБЕР"), ("el", "ΑΓΔΕΖΗΛΜΝΠΡΣΩ")])
def test_small_capitals_are_refused_in_every_cased_script(folder: Path, lang: str, capitals: str):
    shutil.copy(font_file(DEJAVU), folder)
    assert not discover_fonts([lang], [folder]).refused[lang]
    remap(font_file(DEJAVU), folder / DEJAVU[1], {capital.lower(): capital for capital in capitals})
    assert set(discover_fonts([lang], [folder]).refused[lang].values()) == {"both cases drawn alike"}


def test_a_font_without_one_capital_is_looked_at_too(folder: Path):
    # Delta is in every Greek comparison of cases, but in none of the sample words.
    font = TTFont(font_file(DEJAVU))
    for table in font["cmap"].tables:
        table.cmap.pop(ord("Δ"), None)
    font.save(folder / "no-delta.ttf")
    (face,) = faces(discover_fonts(["el"], [folder]), "el")
    assert covers(face, "αδ") and not covers(face, "Δ")


def test_blank_letters_and_borrowed_digits_are_not_covered(folder: Path):
    digits = dict(zip("٠١٢٣٤٥٦٧٨٩", "0123456789", strict=True))
    remap(font_file(NASKH), folder / "naskh.ttf", digits | {"ز": ""})
    (face,) = faces(discover_fonts(["ar"], [folder]), "ar")
    assert covers(face, "سلام") and covers(face, "52")
    assert not covers(face, "٥٢")
    assert not covers(face, "ز")


def test_clones_stay_together_and_the_split_does_not_change(folder: Path):
    for font in (LOHIT, NOTO, NOTO_UI):
        shutil.copy(font_file(font), folder)
    index = discover_fonts(["hi"], [folder])
    group = {face.family: face.group for face in faces(index, "hi")}
    assert group["Noto Sans Devanagari"] == group["Noto Sans Devanagari UI"] != group["Lohit Devanagari"]
    assert discover_fonts(["hi"], [folder]) == index


def test_renamed_font_is_recognised_by_its_outlines():
    outlines = {"Arial": "1", "Liberation": "1", "Noto Sans Tamil": "2", "Noto Sans Tamil UI": "3"}
    groups = fonts._design_groups(
        {"family": name, "signature": outline} for name, outline in outlines.items()
    )
    assert groups == {"arial": "arial", "liberation": "arial", "notosans": "notosans"}


def test_a_tenth_is_held_out_and_at_least_one_design():
    many = fonts._heldout_groups(Counter({f"family {number}": 2 for number in range(1000)}))
    assert 70 < len(many) < 130
    assert len(fonts._heldout_groups(Counter({f"family {number}": 2 for number in range(6)}))) >= 1
    # the stay of a family does not depend on what else is installed
    fewer = fonts._heldout_groups(Counter({f"family {number}": 2 for number in range(500)}))
    assert fewer == many & {f"family {number}" for number in range(500)}
    assert "large" not in fonts._heldout_groups(Counter({"large": 90, "small": 1, "other": 1}))
    # of two one is, of one none
    assert fonts._heldout_groups(Counter({"large": 3, "small": 2})) == {"small"}
    assert len(fonts._heldout_groups(Counter({"one": 2, "other": 2}))) == 1
    assert not fonts._heldout_groups(Counter({"one": 2}))


def test_index_is_read_from_the_cache_until_a_file_changes(folder: Path, monkeypatch: pytest.MonkeyPatch):
    shutil.copy(font_file(LOHIT), folder)
    first = discover_fonts(["hi"], [folder])
    scanned = []
    scan = fonts._scan_file
    monkeypatch.setattr(fonts, "_scan_file", lambda *arguments: scanned.append(arguments) or scan(*arguments))
    assert discover_fonts(["hi"], [folder]) == first and not scanned
    os.utime(folder / LOHIT[1], (1, 1))
    assert discover_fonts(["hi"], [folder]) == first and len(scanned) == 1


def test_web_font_subsets_are_joined(folder: Path):
    files = folder / "noto-test" / "files"
    files.mkdir(parents=True)
    for name, font, text in (
        ("devanagari", NOTO, "".join(map(chr, range(0x900, 0x980))) + "\u25cc\u200c\u200d "),
        ("latin", DEJAVU, "".join(map(chr, range(32, 127)))),
        ("latin-ext", DEJAVU, "ĀāĂă"),
    ):
        options = subset.Options(flavor="woff2", layout_features=["*"])
        opened = subset.load_font(font_file(font), options)
        opened["head"].unitsPerEm = 1000
        cut = subset.Subsetter(options)
        cut.populate(text=text)
        cut.subset(opened)
        subset.save_font(opened, files / f"noto-test-{name}-400-normal.woff2", options)
    (face,) = faces(discover_fonts(["hi"], [folder]), "hi")
    assert covers(face, "क्षत्रिय 12, A")
    assert not covers(face, "Ā")
    converted = Path(face.path)
    stamp = converted.stat().st_mtime_ns
    discover_fonts(["hi"], [folder])
    assert converted.stat().st_mtime_ns == stamp


def test_report_names_families_licences_lacks_and_refusals(folder: Path):
    for font in (FREE, LOHIT):
        shutil.copy(font_file(font), folder)
    report = discover_fonts(["hi"], [folder]).report().splitlines()
    assert report[0] == "hi: 1 families in 1 designs, 1 faces, 0 of them variable"
    assert "    to train with: 1 families in 1 designs, 1 faces, 0 of them variable" in report
    assert "    held out: 0 families in 0 designs, 0 faces, 0 of them variable" in report
    assert "    licences of the faces: 1 OFL" in report
    assert any(re.match("    characters that half .* lack: .*′ \\(U\\+2032\\)", line) for line in report)
    assert "    1 refused, breaks conjuncts: FreeSans" in report


@pytest.mark.parametrize(
    ("text", "licence"),
    [
        ("Copyright 2011\nThis Font Software is licensed under the SIL Open Font License", "OFL"),
        ("http://www.gnu.org/copyleft/gpl.html", "GPL"),
        ("All rights reserved.\nAsk us.", "All rights reserved."),
        ("", ""),
    ],
)
def test_licences_are_known_by_their_own_words(text: str, licence: str):
    assert fonts._licence(text) == licence


def test_files_are_opened_once_for_all_languages(folder: Path, monkeypatch: pytest.MonkeyPatch):
    shutil.copy(font_file(NOTO), folder)
    opened = []
    scan = fonts._scan_file
    monkeypatch.setattr(fonts, "_scan_file", lambda *arguments: opened.append(arguments) or scan(*arguments))
    together = discover_fonts(["hi", "en", "ar"], [folder])
    assert len(opened) == 1
    # a language that comes later is looked for alone
    discover_fonts(["hi", "ta"], [folder])
    assert [[charset.lang for charset in charsets] for _, charsets in opened] == [["hi", "en", "ar"], ["ta"]]
    assert together.by_language["hi"] and not together.by_language["ar"]


def test_missing_folder_is_named(folder: Path):
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        discover_fonts(["hi"], [folder / "nowhere"])


def test_unknown_split_is_named():
    with pytest.raises(ValueError, match="unknown font split 'test'"):
        FontIndex({}, {}, {}).faces("hi", "test")
