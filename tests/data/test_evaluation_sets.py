import io
import json

import datasets
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mstr_hf.data.arrow import Reject
from mstr_hf.data.evaluation_sets import (
    Word,
    _photographed_word,
    import_dataset,
    import_gt,
    import_icdar,
    import_labels,
    import_mlt,
    rectify,
    write_evaluation_set,
)
from mstr_hf.data.manifest import read_manifest

from .conftest import encode


def texts(folder):
    return {record.id: record.text for record in read_manifest(folder / "manifest.jsonl")}


def rejects(folder):
    lines = (folder / "rejects.jsonl").read_text(encoding="utf-8").splitlines()
    return {reject["id"]: (reject["reason"], reject["detail"]) for reject in map(json.loads, lines)}


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "signs"
    (folder / "images").mkdir(parents=True)
    (folder / "a.jpg").write_bytes(encode(seed=1))
    (folder / "images/b, c.png").write_bytes(encode(format="PNG", seed=2))
    (folder / "broken.jpg").write_bytes(encode()[:-100])
    (tmp_path / "outside.png").write_bytes(encode(format="PNG"))
    (folder / "link.png").symlink_to(tmp_path / "outside.png")
    return folder


def gt(folder, content, encoding="utf-8"):
    (folder / "gt.txt").write_bytes(content.encode(encoding))
    return folder / "gt.txt"


def test_gt_with_tabs(folder, tmp_path):
    file = gt(folder, 'a.jpg\t"a, \u2028b"\r\n\nimages/b, c.png\t नमस्ते \nimages/../a.jpg\tsecond\n', "utf-8-sig")
    totals = import_gt(file, tmp_path / "output", "hi")
    assert str(totals) == "3 records = 3 rows + 0 rejects"
    assert texts(tmp_path / "output") == {
        "a.jpg": '"a, \u2028b"',
        "images/b, c.png": " नमस्ते ",
        "images/../a.jpg": "second",
    }
    record = read_manifest(tmp_path / "output/manifest.jsonl")[1]
    assert record.path == tmp_path / "output/images/images/b, c.png"
    assert record.path.read_bytes() == encode(format="PNG", seed=2)
    assert (record.lang, record.dataset, record.photo) == ("hi", "signs", None)


def test_a_name_with_and_one_without_a_suffix_are_two_images(folder, tmp_path):
    (folder / "1").write_bytes(encode(seed=3))
    (folder / "1.jpg").write_bytes(encode(seed=4))
    for number, order in enumerate(("1\tone\n1.jpg\ttwo\n", "1.jpg\ttwo\n1\tone\n")):
        output = tmp_path / f"output{number}"
        assert str(import_gt(gt(folder, order), output, "hi")) == "2 records = 2 rows + 0 rejects"
        images = {record.text: record.path.read_bytes() for record in read_manifest(output / "manifest.jsonl")}
        assert images == {"one": encode(seed=3), "two": encode(seed=4)}


def test_gt_with_commas_and_quotes(folder, tmp_path):
    for name in "bcde":
        (folder / f"{name}.jpg").write_bytes(encode())
    content = r"""a.jpg, "JOINT"
b.jpg,a,b "c"
c.jpg, "say \"hi\" \\ now"
d.jpg, "one ""two"", three"
e.jpg,"
"""
    import_gt(gt(folder, content), tmp_path / "output", "en", "words")
    assert texts(tmp_path / "output") == {
        "a.jpg": "JOINT",
        "b.jpg": 'a,b "c"',
        "c.jpg": 'say "hi" \\ now',
        "d.jpg": 'one "two", three',
        "e.jpg": '"',
    }
    assert read_manifest(tmp_path / "output/manifest.jsonl")[0].dataset == "words"


def test_gt_names_what_it_leaves_out(folder, tmp_path):
    lines = [
        "a.jpg\tgood",
        "a.jpg",
        "a.jpg\tagain",
        "../outside.png\tword",
        "link.png\tword",
        f"{tmp_path}/outside.png\tword",
        "nothing.jpg\tword",
        "images\tword",
        "null\0.jpg\tword",
        "broken.jpg\tword",
        "images/b, c.png\t ",
    ]
    totals = import_gt(gt(folder, "\n".join(lines)), tmp_path / "output", "en")
    assert (totals.records, totals.rows) == (11, 1)
    assert {id: reason for id, (reason, _) in rejects(tmp_path / "output").items()} == {
        "gt.txt:2": "no label",
        "a.jpg": "listed twice",
        "../outside.png": "path outside the folder",
        "link.png": "path outside the folder",
        f"{tmp_path}/outside.png": "path outside the folder",
        "nothing.jpg": "missing image",
        "images": "missing image",
        "null\0.jpg": "missing image",
        "broken.jpg": "undecodable image",
        "images/b, c.png": "empty label",
    }


def test_a_path_through_a_link_does_not_lead_out_of_the_set(folder, tmp_path):
    """`link/../..` is two folders up from where the link points to, not from where it lies."""
    (folder / "deep/deeper").mkdir(parents=True)
    (folder / "turn").symlink_to(folder / "deep/deeper")
    import_gt(gt(folder, "turn/../../a.jpg\tword"), tmp_path / "out" / "put", "en")
    assert [path.name for path in (tmp_path / "out").rglob("*.jpg")] == ["a.jpg"]
    assert (tmp_path / "out/put/images/a.jpg").is_file()


def test_gt_that_is_none_is_refused(folder, tmp_path):
    for content, message in ((b"\xff\t", r"gt\.txt: not UTF-8 at byte 0"), (b"\n", "no words to import.*nothing")):
        (folder / "gt.txt").write_bytes(content)
        with pytest.raises(ValueError, match=message):
            import_gt(folder / "gt.txt", tmp_path / "output", "en")
    with pytest.raises(ValueError, match=r"no words to import \(2 missing image\)"):
        import_gt(gt(folder, "x,a\ny,b"), tmp_path / "output", "en")
    with pytest.raises(ValueError, match="signs: is there already"):
        import_gt(gt(folder, "a.jpg,a"), folder, "en")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["outside.png", "signs"]


def test_labels_beside_or_above_images(folder, tmp_path):
    labels = '{"a.jpg": "one", "b, c.png": "two", "a.jpg": "three", "x.png": 5, "../outside.png": "x", "d": "\\ud800"}'
    (folder / "labels.json").write_text(labels, encoding="utf-8")
    (folder / "images/d").write_bytes(encode())
    totals = import_labels(folder, tmp_path / "output", "en")
    assert (totals.records, totals.rows) == (6, 2)
    assert texts(tmp_path / "output") == {"a.jpg": "one", "b, c.png": "two"}
    assert {id: reason for id, (reason, _) in rejects(tmp_path / "output").items()} == {
        "a.jpg": "listed twice",
        "x.png": "no label",
        "../outside.png": "path outside the folder",
        "d": "not in UTF-8",
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"a":\n x}', r"labels\.json:2: not JSON"),
        ('["a"]', r"labels\.json: not an object; write"),
        ("{}", "no words to import"),
    ],
)
def test_labels_that_are_none_are_refused(folder, tmp_path, content, message):
    (folder / "labels.json").write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        import_labels(folder, tmp_path / "output", "en")


@pytest.fixture
def photographs(tmp_path):
    """Photographs of 60x40 in which the word, 20x10, is white with one black column, the third."""
    root = tmp_path / "ICDAR"
    (root / "images").mkdir(parents=True)
    (root / "gt").mkdir()
    for name, mode in (("img_1.png", "RGB"), ("img_2.png", "L"), ("img_3.png", "RGB")):
        photograph = Image.new("L", (60, 40), 90)
        photograph.paste(255, (10, 20, 30, 30))
        photograph.paste(0, (12, 20, 13, 30))
        photograph.convert(mode).save(root / "images" / name)
    return root


def test_icdar(photographs, tmp_path, caplog):
    box = "10,20,30,20,30,30,10,30"
    (photographs / "gt/gt_img_1.txt").write_text(
        f"\ufeff{box},Joint, 5\r\n{box},###\r\n{box}, \r\n10,20,30,word\r\n1,2,3,4,5,6,7,x,word\r\n"
        "10,20,30,30,30,20,10,30,bow\r\n70,20,90,20,90,30,70,30,out\r\nnan,20,30,20,30,30,10,30,nan\r\n"
        "1e300,20,30,20,30,30,10,30,far\r\n",
        encoding="utf-8",
    )
    (photographs / "gt/img_2.txt").write_text(f"{box},grey\n", encoding="utf-8")
    (photographs / "gt/gt_img_9.txt").write_text(f"{box},nothing\n{box},to see\n", encoding="utf-8")
    (photographs / "gt/gt_bad.txt").write_bytes(b"\xff")
    totals = import_icdar(photographs, tmp_path / "output", "en")
    assert (totals.records, totals.rows) == (13, 2)
    records = read_manifest(tmp_path / "output/manifest.jsonl")
    assert [(record.id, record.text, record.photo, record.dataset) for record in records] == [
        ("img_1_0001", "Joint, 5", "img_1", "ICDAR"),
        ("img_2_0001", "grey", "img_2", "ICDAR"),
    ]
    for record, mode in zip(records, ("RGB", "L"), strict=True):
        crop = Image.open(record.path)
        assert (crop.mode, crop.size) == (mode, (20, 10))
        expected = np.full((10, 20), 255)
        expected[:, 2] = 0
        assert (np.asarray(crop.convert("L")) == expected).all()
    assert {id: reason for id, (reason, _) in rejects(tmp_path / "output").items()} == {
        "gt_bad.txt": "text file not in UTF-8",
        "img_1_0002": "marked as illegible",
        "img_1_0003": "empty label",
        "img_1_0004": "malformed line",
        "img_1_0005": "malformed line",
        "img_1_0006": "unusable quadrilateral",
        "img_1_0007": "unusable quadrilateral",
        "img_1_0008": "unusable quadrilateral",
        "img_1_0009": "unusable quadrilateral",
        "img_9_0001": "photograph missing or damaged",
        "img_9_0002": "photograph missing or damaged",
    }
    assert "1 photographs without a text file, such as img_3" in caplog.text


def test_mlt(photographs, tmp_path):
    box = "10,20,30,20,30,30,10,30"
    lines = [f"{box},{line}" for line in ("Bangla,বাংলা", "Latin,a,b", "Symbols,5", "Klingon,x", "Hindi,###", "Latin")]
    (photographs / "gt/gt_img_1.txt").write_text("\n".join(lines), encoding="utf-8")
    import_mlt(photographs, tmp_path / "output")
    records = read_manifest(tmp_path / "output/manifest.jsonl")
    assert [(record.text, record.lang) for record in records] == [("বাংলা", "bn"), ("a,b", "en"), ("5", "zxx")]
    found = rejects(tmp_path / "output")
    assert [found[f"img_1_000{n}"][0] for n in (4, 5, 6)] == ["unknown script", "marked as illegible", "unknown script"]


def test_two_photographs_of_one_name_are_not_mixed_up(photographs, tmp_path):
    (photographs / "img_1.jpg").write_bytes(encode())
    for number in (1, 2):
        (photographs / f"gt_img_{number}.txt").write_text("10,20,30,20,30,30,10,30,a", encoding="utf-8")
    import_icdar(photographs, tmp_path / "output", "en")
    assert list(texts(tmp_path / "output")) == ["img_2_0001"]
    assert "2 photographs named img_1" in rejects(tmp_path / "output")["img_1_0001"][1]


def test_a_word_in_perspective_becomes_straight():
    """A chessboard, drawn through the inverse of the mapping, comes out as a chessboard."""
    quad = np.array([[20, 30], [100, 10], [110, 60], [25, 70]], float)
    board = np.kron(np.indices((2, 4)).sum(0) % 2, np.ones((20, 20))) * 255
    drawn = Image.fromarray(board.astype(np.uint8)).transform(
        (140, 90), Image.Transform.PERSPECTIVE, _coefficients(quad, 80, 40), Image.Resampling.BICUBIC
    )
    word = rectify(np.asarray(drawn), quad)
    assert word.shape == (46, 84)
    straight = np.asarray(Image.fromarray(word).resize((80, 40)), float)
    assert np.abs(straight - board).mean() < 15
    turned = rectify(np.asarray(drawn), quad[[0, 3, 2, 1]])
    assert (turned == word).all()


def _coefficients(quad, width, height):
    """Of Pillow's mapping from the photograph to a word of this size."""
    rows, values = [], []
    for (x, y), (u, v) in zip(quad, [(0, 0), (width, 0), (width, height), (0, height)], strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        values += [u, v]
    return np.linalg.solve(rows, values)


@given(st.lists(st.floats(-50, 120) | st.sampled_from([np.nan, np.inf, 1e300, 0.0]), min_size=8, max_size=8))
def test_any_quadrilateral_is_cut_out_or_refused(numbers):
    photograph = np.zeros((40, 60), np.uint8)
    try:
        word = rectify(photograph, np.array(numbers).reshape(4, 2))
    except ValueError:
        return
    assert word.size and not word.any()


@given(st.lists(st.integers(0, 500), max_size=9), st.text(max_size=9), st.sampled_from(["", "Latin,", ","]))
def test_any_line_is_a_word_or_a_reject(numbers, text, script):
    line = "".join(f"{number}," for number in numbers) + script + text
    for lang in (None, "en"):
        outcome = _photographed_word(np.zeros((400, 400), np.uint8), "a", "a_1", line, lang)
        assert isinstance(outcome, (Word, Reject))


def test_data_sets_of_the_library(tmp_path):
    image = {"bytes": encode("CMYK"), "path": None}
    columns = {
        "picture": [image, image, {"bytes": b"", "path": "nothing.png"}, image, None],
        "label": ["a", "b", "c", None, "e"],
        "lang": ["en", "hi", "hi", "hi", "hi"],
        "number": [1, 2, 3, 4, 5],
    }
    features = datasets.Features(
        {
            "picture": datasets.Image(),
            "label": datasets.Value("string"),
            "lang": datasets.Value("string"),
            "number": datasets.Value("int64"),
        }
    )
    made = datasets.Dataset.from_dict(columns, features=features)
    datasets.DatasetDict({"test": made}).save_to_disk(tmp_path / "words")
    source = str(tmp_path / "words")
    names = {"image_column": "picture", "text_column": "label"}
    totals = import_dataset(source, tmp_path / "output", **names)
    assert (totals.records, totals.rows) == (5, 2)
    records = read_manifest(tmp_path / "output/manifest.jsonl")
    assert [(record.id, record.text, record.lang) for record in records] == [
        ("test-000000000", "a", "en"),
        ("test-000000001", "b", "hi"),
    ]
    assert records[0].path.name == "test-000000000.jpg"
    assert records[0].path.read_bytes() == encode("CMYK")
    assert {reason for reason, _ in rejects(tmp_path / "output").values()} == {
        "missing image",
        "no label",
        "undecodable image",
    }
    import_dataset(source, tmp_path / "told", lang="ta", **names)
    assert {record.lang for record in read_manifest(tmp_path / "told/manifest.jsonl")} == {"ta"}

    def refuse(message, source=source, **options):
        with pytest.raises(ValueError, match=message):
            import_dataset(source, tmp_path / "refused", **options)

    refuse("words: no column image, text; it has picture, label, lang, number")
    refuse(
        "column number is .*int64.*, not of images", **(names | {"image_column": "number"})
    )
    refuse("words: cannot be loaded by datasets, split train", split="train", **names)
    refuse("cannot be loaded by datasets, split test", source=str(tmp_path / "nothing"))
    made.remove_columns("lang").save_to_disk(tmp_path / "bare")
    refuse("no column lang; .* or give a language for all rows", source=str(tmp_path / "bare"), **names)


def test_files_that_the_library_loads(tmp_path):
    """A Parquet file with the images as plain bytes."""
    made = datasets.Dataset.from_dict({"image": [encode(format="PNG")], "text": ["word"]})
    (tmp_path / "hub").mkdir()
    made.to_parquet(tmp_path / "hub/test-00000-of-00001.parquet")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
        import_dataset(str(tmp_path / "hub"), tmp_path / "output", "en")
    assert Image.open(io.BytesIO((tmp_path / "output/images/test-000000000.png").read_bytes())).size == (40, 16)


def test_a_killed_import_starts_again(tmp_path):
    """What it leaves is in a hidden folder, which is thrown away."""
    (tmp_path / ".output.partial/images").mkdir(parents=True)
    (tmp_path / ".output.partial/images/old.png").touch()
    write_evaluation_set(tmp_path / "output", [Word("a", "a.jpg", encode(), "a", "en")], "set")
    assert sorted(path.name for path in tmp_path.rglob("*")) == [
        "a.jpg",
        "images",
        "manifest.jsonl",
        "output",
        "rejects.jsonl",
    ]
