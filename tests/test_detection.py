import json
import sys

import numpy as np
import pytest
from PIL import Image, ImageDraw

from mstr_hf import cli, detection
from mstr_hf.data.manifest import read_manifest
from mstr_hf.hub.cache import CHECKPOINT

SAMPLES = {record.path.stem: record for record in read_manifest(CHECKPOINT.parent / "samples" / "labels.jsonl")}
SIZE = (760, 420)


def rectangle(left: float, top: float, right: float, bottom: float) -> np.ndarray:
    return np.array([[left, top], [right, top], [right, bottom], [left, bottom]], float)


def line(words: list[str], gap: int = 16) -> tuple[Image.Image, list[tuple[int, int]]]:
    """Words in a row as a picture, and where each begins and ends."""
    picture = Image.new("RGB", (700, 60), "white")
    pen = ImageDraw.Draw(picture)
    ends, x = [], 10
    for word in words:
        pen.text((x, 8), word, fill="black", font_size=36)
        ends.append((x, x := x + round(pen.textlength(word, font_size=36))))
        x += gap
    return picture.crop((0, 0, x, 60)), ends


@pytest.mark.parametrize("inverted", [False, True])
def test_line_is_cut_at_the_gaps_between_words(inverted):
    picture, ends = line(["Fresh", "fish", "&", "chips"])
    if inverted:
        picture = picture.point(lambda value: 255 - value)
    words = detection.split_line(picture, rectangle(0, 0, *picture.size))
    assert len(words) == 4
    for (left, right), word in zip(ends, words, strict=True):
        assert word[0, 0] <= left and word[1, 0] >= right - 4 and word[2, 1] == 60
    assert words[0][1, 0] == words[1][0, 0]


def test_single_words_and_empty_boxes_stay_whole():
    picture, _ = line(["Bakery"])
    box = rectangle(0, 0, *picture.size)
    for image in (picture, Image.new("RGB", picture.size, "grey")):
        [word] = detection.split_line(image, box)
        assert np.array_equal(word, box)


def test_slanted_box_is_cut_out_upright():
    picture, _ = line(["Bakery"])
    page = Image.new("RGB", (500, 400), "white")
    page.paste(picture, (150, 150))
    turned = page.rotate(20, Image.Resampling.BICUBIC, fillcolor="white")
    angle = np.deg2rad(20)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    corners = rectangle(150, 150, 150 + picture.width, 210)
    middle = np.array([250, 200])
    crop = detection.cut_out(turned, (corners - middle) @ turn + middle)
    assert abs(crop.width - picture.width) <= 1 and abs(crop.height - 60) <= 1
    difference = np.asarray(crop.resize(picture.size), float) - np.asarray(picture, float)
    assert np.abs(difference).mean() < 12  # upside down or mirrored it is above 40


def test_lines_are_read_from_above_in_the_direction_of_their_words():
    boxes = [rectangle(x, y, x + 80, y + 30) for x, y in [(200, 12), (0, 0), (100, 6), (0, 100), (100, 95), (200, 102)]]
    scripts = ["Latn", "Latn", "Deva", "Zyyy", "Arab", "Arab"]
    assert detection.reading_order(boxes, scripts) == [(0, 1), (0, 2), (0, 0), (1, 5), (1, 4), (1, 3)]
    assert detection.reading_order([], []) == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[]", "line 2"),
        ('{"path": "a.png"}', "line 2: KeyError('boxes')"),
        ('{"path": "a.png", "boxes": [[1, 2, 3]]}', "no box: [1, 2, 3]"),
        ('{"path": "a.png", "boxes": [[1, 2, 1, 5]]}', "not above bottom: [1, 2, 1, 5]"),
        ('{"path": "a.png", "boxes": [[9, 2, 1, 5]]}', "not above bottom: [9, 2, 1, 5]"),
        ('{"path": "a.png", "boxes": [[[1, 2], [1, 2], [1, 5], [1, 5]]]}', "no box: [[1, 2]"),
    ],
)
def test_wrong_boxes_are_named(tmp_path, text, said):
    (tmp_path / "boxes.jsonl").write_text('{"path": "b.png", "boxes": []}\n' + text)
    with pytest.raises(ValueError) as error:
        detection.read_boxes(tmp_path / "boxes.jsonl")
    assert said in str(error.value) and len(str(error.value).splitlines()) == 1


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A page of bundled samples in two lines, with the box of each and the right order."""
    placed = [("en_1", 60, 40), ("hi_1", 330, 52), ("ta_1", 560, 44), ("ar_2", 430, 260), ("ar_1", 120, 250)]
    picture = Image.new("RGB", SIZE, (214, 208, 190))
    boxes = []
    for name, left, top in placed:
        with Image.open(SAMPLES[name].path) as sample:
            scale = 64 / sample.height
            sample = sample.resize((round(sample.width * scale), 64))
            picture.paste(sample, (left, top))
            boxes.append([left, top, left + sample.width, top + 64])
    folder = tmp_path_factory.mktemp("page")
    picture.save(folder / "page.png")
    record = {"path": "page.png", "boxes": boxes[::-1]}
    (folder / "boxes.jsonl").write_text(json.dumps(record))
    return folder, boxes


def test_photographs_keep_what_their_mode_says(tmp_path):
    ink = np.full((40, 60), 200, np.uint8)
    ink[10:30, 20:40] = 0
    Image.merge("LA", [Image.new("L", (60, 40)), Image.fromarray(255 - ink)]).save(tmp_path / "clear.png")
    Image.fromarray(ink.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    for name in ("clear.png", "deep.png"):
        photograph = np.asarray(detection.open_photograph(tmp_path / name))
        assert photograph.shape == (40, 60, 3) and photograph[0, 0, 0] > photograph[20, 30, 0] + 150


def test_slivers_are_not_searched_and_end_nothing(page, capsys, monkeypatch):
    pytest.importorskip("rapidocr")
    folder, _ = page
    Image.new("RGB", (2500, 3)).save(folder / "thin.png")
    code, words, err = read(capsys, folder / "thin.png", folder / "page.png", "--detect")
    assert code == 1 and words and {word["path"] for word in words} == {str(folder / "page.png")}
    said = "2500 x 3 pixels: give an image with no side over 20 times as long as the other"
    assert err == f"{folder / 'thin.png'}: {said}\n"

    def stumble(picture):
        raise RuntimeError("of its\nown")

    detector = detection.Detector()
    monkeypatch.setattr(detector, "_detect", stumble)
    with pytest.raises(ValueError, match=r"words cannot be looked for \(of its own\)"):
        detector.find(Image.new("RGB", (60, 40)))


def read(capsys, *arguments) -> tuple[int, list[dict], str]:
    code = cli.main(["read", "--json", *map(str, arguments)])
    out, err = capsys.readouterr()
    return code, [json.loads(text) for text in out.splitlines()], err


def test_boxes_of_a_file_are_read_in_order_and_drawn(page, capsys):
    folder, boxes = page
    (folder / "none.png").write_bytes((folder / "page.png").read_bytes())
    (folder / "broken.png").write_bytes(b"no image")
    images = [folder / f"{name}.png" for name in ("page", "none", "broken")]
    code, words, err = read(capsys, *images, "--boxes", folder / "boxes.jsonl", "--draw", folder / "drawn")
    assert code == 1 and [word["line"] for word in words] == [0, 0, 0, 1, 1]
    assert [word["box"] for word in words] == [rectangle(*box).tolist() for box in boxes]
    assert [word["script"] for word in words] == ["Latn", "Deva", "Taml", "Arab", "Arab"]
    none, broken = err.splitlines()
    assert none == f"{folder / 'none.png'}: no words in {folder / 'boxes.jsonl'}"
    assert broken.startswith(f"{folder / 'broken.png'}: cannot be read")
    drawn = np.asarray(Image.open(folder / "drawn" / "0001_page.png"), int)
    before = np.asarray(Image.open(folder / "page.png"), int)
    changed = np.abs(drawn - before).max(2) > 0
    left, top, right, bottom = boxes[0]
    assert changed[top, left:right].all() and not changed[top + 20 : bottom - 20, left + 20 : right - 20].any()


def test_boxes_outside_of_a_photograph_leave_the_others_to_be_read(page, capsys):
    folder, boxes = page
    images = [folder / "page.png", folder / "far.png", folder / "huge.png"]
    for image in images[1:]:
        image.write_bytes(images[0].read_bytes())
    records = [{"path": "page.png", "boxes": boxes}, {"path": "far.png", "boxes": [[1e4, 1e4, 2e4, 2e4]]}]
    records.append({"path": "huge.png", "boxes": [boxes[0], [0, 0, 1e300, 10]]})
    (folder / "some.jsonl").write_text("\ufeff" + "\n".join(map(json.dumps, records)), encoding="utf-8")
    code, words, err = read(capsys, *images, "--boxes", folder / "some.jsonl")
    assert code == 1 and len(words) == len(boxes)
    far, huge = err.splitlines()
    assert far.startswith(f"{images[1]}: the box [[10000.0") and far.endswith("lies outside of the photograph")
    assert huge.startswith(f"{images[2]}: the box ") and huge.endswith("is larger than the photograph")


def test_words_are_found(page, capsys):
    pytest.importorskip("rapidocr", reason="missing: rapidocr: pip install '.[detect]'")
    folder, boxes = page
    code, words, _ = read(capsys, folder / "page.png", "--detect")
    assert code == 0
    middles = [np.mean(word["box"], 0) for word in words]
    for (left, top, right, bottom), middle in zip(boxes, middles, strict=True):
        assert left < middle[0] < right and top < middle[1] < bottom
    assert [word["script"] for word in words] == ["Latn", "Deva", "Taml", "Arab", "Arab"]

    Image.new("RGB", (200, 200), "white").save(folder / "blank.png")
    code, _, err = read(capsys, folder / "blank.png", "--detect")
    assert (code, err) == (2, f"{folder / 'blank.png'}: no words found\n")


def test_missing_extra_and_idle_options_are_one_line(page, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "rapidocr", None)
    code, _, err = read(capsys, page[0] / "page.png", "--detect")
    assert code == 2 and "pip install 'mstr_hf[detect]'" in err and len(err.splitlines()) == 1
    code, _, err = read(capsys, page[0] / "page.png", "--draw", "x")
    assert code == 2 and err.startswith("mstr: --draw: ")
    code, _, err = read(capsys, page[0] / "page.png", "--detect", "--boxes", page[0] / "boxes.jsonl")
    assert code == 2 and err.startswith("mstr: --detect: ")
