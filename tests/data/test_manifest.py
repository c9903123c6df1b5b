import json
from pathlib import Path

import datasets
import pytest

from mstr_hf.data.manifest import Record, convert_manifest, read_manifest

from .conftest import encode

ENTRY = {
    "id": "a1",
    "path_rel": "images/a.png",
    "filename": "a.png",
    "gt_text": "नमस्ते",
    "lang": "hi",
    "dataset": "signs",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "set" / "images").mkdir(parents=True)
    for place in ("set/images/a.png", "set/images/b.png", "outside.png"):
        (tmp_path / place).write_bytes(b"")
    return tmp_path / "set"


def write(folder: Path, content: str) -> Path:
    manifest = folder / "words.jsonl"
    manifest.write_text(content, encoding="utf-8")
    return manifest


def test_lines_and_array_give_the_same_records(folder: Path) -> None:
    entries = [ENTRY, ENTRY | {"id": "b1", "path_rel": "images/b.png", "photo": "p7", "extra": 3}]
    expected = [
        Record("a1", folder / "images/a.png", "नमस्ते", "hi", "signs"),
        Record("b1", folder / "images/b.png", "नमस्ते", "hi", "signs", "p7"),
    ]
    lines = "\n\n".join(json.dumps(entry) for entry in entries) + "\n"
    assert read_manifest(write(folder, lines)) == expected
    assert read_manifest(write(folder, "\n " + json.dumps(entries, indent=2))) == expected


def test_line_separators_inside_a_string_and_a_byte_order_mark_are_read(folder: Path) -> None:
    entry = ENTRY | {"gt_text": "two\u2028lines"}
    manifest = write(folder, "\ufeff" + json.dumps(entry, ensure_ascii=False))
    assert [record.text for record in read_manifest(manifest)] == ["two\u2028lines"]


@pytest.mark.parametrize("path_rel", ["../outside.png", "images/../../outside.png", "{absolute}", "link.png"])
def test_a_path_that_leaves_the_folder_is_refused(folder: Path, path_rel: str) -> None:
    outside = folder.parent / "outside.png"
    (folder / "link.png").symlink_to(outside)
    entry = ENTRY | {"path_rel": path_rel.format(absolute=outside)}
    with pytest.raises(ValueError, match=r"words\.jsonl:1: field 'path_rel'.*leaves.*put it inside"):
        read_manifest(write(folder, json.dumps(entry)))


def test_a_path_that_turns_back_inside_the_folder_is_read(folder: Path) -> None:
    entry = ENTRY | {"path_rel": "images/../images/a.png"}
    assert len(read_manifest(write(folder, json.dumps(entry)))) == 1


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"gt_text": None}, r":2: field 'gt_text' is None; write a non-empty string"),
        ({"lang": " "}, r":2: field 'lang' is ' '; write"),
        ({"id": 7}, r":2: field 'id' is 7; write"),
        ({"photo": 7}, r":2: field 'photo' is 7; write a string or leave it out"),
        ({"id": "a1"}, r":2: field 'id': 'a1' is there already; give"),
        ({"path_rel": "images/c.png"}, r":2: field 'path_rel': no file .*c\.png; correct"),
    ],
)
def test_a_bad_field_is_named_with_its_line(folder: Path, entry: dict, message: str) -> None:
    lines = json.dumps(ENTRY) + "\n" + json.dumps(ENTRY | {"id": "b1"} | entry)
    with pytest.raises(ValueError, match=r"words\.jsonl" + message):
        read_manifest(write(folder, lines))


@pytest.mark.parametrize("field", sorted(ENTRY))
def test_a_missing_field_is_named_with_its_item(folder: Path, field: str) -> None:
    entry = {key: value for key, value in ENTRY.items() if key != field}
    with pytest.raises(
        ValueError, match=rf"words\.jsonl: item 1: field '{field}' is missing; write an object with id, "
    ):
        read_manifest(write(folder, json.dumps([entry])))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r": no records; write"),
        ("[]", r": no records; write"),
        ('{"id": ', r":1: not JSON"),
        ('[\n{"id": 1},\n]', r":3: not JSON"),
        ('"word"', r":1: field 'id' is missing; write an object"),
    ],
)
def test_what_is_no_manifest_is_refused(folder: Path, content: str, message: str) -> None:
    with pytest.raises(ValueError, match=r"words\.jsonl" + message):
        read_manifest(write(folder, content))


def test_an_unreadable_encoding_is_refused(folder: Path) -> None:
    (folder / "words.jsonl").write_bytes(b'{"id": "\xff"}')
    with pytest.raises(ValueError, match=r"words\.jsonl: not UTF-8 at byte 8; save it as UTF-8"):
        read_manifest(folder / "words.jsonl")


def test_a_manifest_becomes_arrow_shards(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    (folder / "images").mkdir(parents=True)
    for name in "ab":
        (folder / f"images/{name}.png").write_bytes(encode(format="PNG"))
    entries = [ENTRY, ENTRY | {"id": "b1", "path_rel": "images/b.png", "lang": "ml", "gt_text": "ก"}]
    manifest = write(folder, json.dumps(entries))
    totals = convert_manifest(manifest, tmp_path / "output")
    assert [str(total) for total in totals.values()] == [
        "1 records = 1 rows + 0 rejects",
        "1 records = 0 rows + 1 rejects (1 characters outside the charsets)",
    ]
    rows = datasets.load_from_disk(tmp_path / "output")["test"].cast_column("image", datasets.Image(decode=False))
    assert list(rows) == [
        {
            "id": "a1",
            "image": {"bytes": encode(format="PNG"), "path": None},
            "text": "नमस्ते",
            "label": "नमस्ते",
            "lang": "hi",
            "dataset": "signs",
        }
    ]
    write(folder, json.dumps(entries[:1]))
    with pytest.raises(ValueError, match="made with another manifest, parts"):
        convert_manifest(manifest, tmp_path / "output")
    assert list(convert_manifest(manifest, tmp_path / "more", split="validation")) == ["validation/hi"]
