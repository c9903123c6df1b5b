"""The command `mstr convert`."""

import json

import datasets
import pytest

from mstr_hf import cli

from .conftest import encode


@pytest.fixture
def run(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        code = cli.main(["convert", *map(str, arguments)])
        out, err = capsys.readouterr()
        return code, out.splitlines(), [line for line in err.splitlines() if line.startswith(("mstr", "1 rejects"))]

    return run


def test_there_and_back(run, tmp_path, make_lmdb):
    values = {"image-000000001": encode(), "label-000000001": "word", "num-samples": "1"}
    make_lmdb(tmp_path / "LMDB/en/val_lmdb", values)
    assert run("lmdb", "LMDB", "arrow", "--processes", 1) == (
        0,
        ["validation/en: 1 records = 1 rows + 0 rejects"],
        [],
    )
    assert run("arrow", "arrow", "back") == (0, ["en/val_lmdb: 1 records"], [])
    assert run("arrow", "arrow", "back") == (2, [], ["mstr: back: is there already; choose another folder"])


def test_rejects_are_exit_code_1_and_a_missing_language_2(run, tmp_path, make_lmdb):
    values = {f"image-{number:09d}": encode() for number in (1, 2)} | {"label-000000001": "word", "num-samples": "2"}
    make_lmdb(tmp_path / "a", values)
    code, _, err = run("lmdb", "a", "arrow")
    assert code == 2
    assert err == [f"mstr: {tmp_path / 'a'}: a single LMDB does not tell its language; give one, such as --lang bn"]
    code, out, err = run("lmdb", "a", "arrow", "--lang", "en", "--dataset", "signs")
    assert (code, err) == (1, ["1 rejects: arrow/rejects.jsonl"])
    assert out == ["train/en: 2 records = 1 rows + 1 rejects (1 missing key)"]
    assert datasets.load_from_disk("arrow")["train"][0]["dataset"] == "signs"


def test_collections_become_manifests_and_shards(run, tmp_path):
    (tmp_path / "words").mkdir()
    (tmp_path / "words/a.jpg").write_bytes(encode())
    (tmp_path / "words/gt.txt").write_text("a.jpg\ta", "utf-8")
    (tmp_path / "words/labels.json").write_text(json.dumps({"a.jpg": "a"}), "utf-8")
    assert run("gt", "words/gt.txt", "1", "--lang", "en") == (0, ["1: 1 records = 1 rows + 0 rejects"], [])
    assert run("labels", "words", "2", "--lang", "en")[0] == 0
    assert run("manifest", "1/manifest.jsonl", "3", "--split", "val")[:2] == (
        0,
        ["val/en: 1 records = 1 rows + 0 rejects"],
    )
    assert run("dataset", "3", "4", "--split", "val")[0] == 0
    assert (tmp_path / "4/images/val-000000000.jpg").read_bytes() == encode()
    assert run("manifest", "nothing.jsonl", "5") == (
        2,
        [],
        ["mstr: [Errno 2] No such file or directory: 'nothing.jsonl'"],
    )


def test_words_that_a_collection_sets_aside_are_no_failure(run, tmp_path):
    (tmp_path / "photographs").mkdir()
    (tmp_path / "photographs/a.jpg").write_bytes(encode(size=(60, 40)))
    lines = ["1,1,30,1,30,20,1,20,Latin,word", "1,1,30,1,30,20,1,20,Latin,###"]
    (tmp_path / "photographs/gt_a.txt").write_text("\n".join(lines), "utf-8")
    assert run("mlt", "photographs", "1") == (
        0,
        ["1: 2 records = 1 rows + 1 rejects (1 marked as illegible)"],
        ["1 rejects: 1/rejects.jsonl"],
    )
    assert run("icdar", "photographs", "2", "--lang", "en")[0] == 0
    with pytest.raises(SystemExit) as exit_:
        run("icdar", "photographs", "3")
    assert exit_.value.code == 2
