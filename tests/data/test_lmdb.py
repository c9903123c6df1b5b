import json
import multiprocessing
import os
import signal

import datasets
import lmdb
import pytest

from mstr_hf.data import lmdb as lmdb_module
from mstr_hf.data.lmdb import convert_arrow, convert_lmdb

from .conftest import encode


def words(*records, count=None):
    """Keys and values of an LMDB; a record is a label, or an image and a label, with None for a missing key."""
    values = {}
    for number, record in enumerate(records, 1):
        image, label = record if isinstance(record, tuple) else (encode(seed=number), record)
        values |= {f"image-{number:09d}": image} if image is not None else {}
        values |= {f"label-{number:09d}": label} if label is not None else {}
    return values | {"num-samples": str(len(records) if count is None else count)}


def read_lmdb(path):
    with lmdb.open(str(path), readonly=True, lock=False) as env, env.begin() as transaction:
        return {key.decode(): value for key, value in transaction.cursor()}


def rejects(folder):
    lines = (folder / "rejects.jsonl").read_text(encoding="utf-8").splitlines()
    return {reject.pop("id"): reject for reject in map(json.loads, lines)}


def rows(folder, split="train"):
    loaded = datasets.load_from_disk(folder)[split].cast_column("image", datasets.Image(decode=False))
    return [row | {"image": row["image"]["bytes"]} for row in loaded]


@pytest.fixture
def tree(tmp_path, make_lmdb):
    root = tmp_path / "LMDB"
    make_lmdb(root / "hi/train_lmdb", words("नमस्ते", "क\u094d\u200dष", "क़", "two words"))
    make_lmdb(root / "hi/val_lmdb", words("भारत"))
    make_lmdb(root / "bn/train_lmdb", words("বাংলা", "\u09cb"))
    return root


def test_tree_becomes_splits_and_languages(tree, tmp_path):
    totals = convert_lmdb(tree, tmp_path / "output")
    assert {name: total.rows for name, total in totals.items()} == {
        "train/bn": 2,
        "train/hi": 4,
        "validation/hi": 1,
    }
    train = rows(tmp_path / "output")
    assert [row["text"] for row in train] == ["বাংলা", "\u09cb", "नमस्ते", "क\u094d\u200dष", "क़", "two words"]
    assert [row["label"] for row in train[1:6:2]] == ["\u09c7\u09be", "क\u094d\u200dष", "twowords"]
    assert [row["lang"] for row in train] == ["bn"] * 2 + ["hi"] * 4
    assert train[3] == {
        "id": "LMDB/hi/train_lmdb/000000002",
        "image": encode(seed=2),
        "text": "क\u094d\u200dष",
        "label": "क\u094d\u200dष",
        "lang": "hi",
        "dataset": "LMDB",
    }
    assert rows(tmp_path / "output", "validation")[0]["id"] == "LMDB/hi/val_lmdb/000000001"


def test_unfit_records_are_named_and_the_rest_is_kept(tmp_path, make_lmdb):
    sixteen_bit, cmyk = encode("I;16", "PNG"), encode("CMYK")
    records = [
        (sixteen_bit, "sixteen"),
        (cmyk, "cmyk"),
        (encode(), None),
        (None, "image"),
        (b"no image", "word"),
        (cmyk[:-100], "cut"),
        "",
        "ก",
        (encode(), b"\xff\xfe"),
        "x" * 65,
        "last",
    ]
    source = make_lmdb(tmp_path / "photos", words(*records))
    totals = convert_lmdb(source, tmp_path / "output", lang="en", dataset="signs")
    assert str(totals["train/en"]) == (
        "11 records = 3 rows + 8 rejects (1 characters outside the charsets, 1 empty label, 1 label not in UTF-8, "
        "1 label too long, 2 missing key, 2 undecodable image)"
    )
    assert [row["image"] for row in rows(tmp_path / "output")] == [sixteen_bit, cmyk, encode(seed=11)]
    assert datasets.load_from_disk(tmp_path / "output")["train"][1]["image"].mode == "CMYK"
    found = rejects(tmp_path / "output")
    assert list(found) == [f"signs/{number:09d}" for number in range(3, 11)]
    assert found["signs/000000003"] == {"reason": "missing key", "detail": "no label-000000003"}
    assert found["signs/000000004"] == {"reason": "missing key", "detail": "no image-000000004"}
    assert "'ก' (U+0E01)" in found["signs/000000008"]["detail"]
    assert found["signs/000000009"] == {"reason": "label not in UTF-8", "detail": r"label b'\xff\xfe'"}


@pytest.mark.parametrize(
    ("count", "records", "missing", "warning"),
    [
        ("3", 3, 0, ""),
        ("5", 5, 2, ""),
        ("2", 3, 0, "num-samples is 2; took the records beyond it too, 3 in all"),
        ("800", 3, 0, "num-samples is b'800'; took all 3 records there are instead"),
        ("-1", 3, 0, "num-samples is b'-1'; took all 3"),
        ("three", 3, 0, "num-samples is b'three'; took all 3"),
        (None, 3, 0, "num-samples is None; took all 3"),
    ],
)
def test_wrong_counts_lose_nothing(tmp_path, make_lmdb, caplog, count, records, missing, warning):
    values = words("a", "b", "c", count=count or "")
    if count is None:
        del values["num-samples"]
    total = convert_lmdb(make_lmdb(tmp_path / "a", values), tmp_path / "output", "en")["train/en"]
    assert (total.records, total.rows, total.rejects["missing key"]) == (records, 3, missing)
    assert len(caplog.messages) == bool(warning)
    assert warning in caplog.text


def test_numbers_from_zero_and_foreign_keys(tmp_path, make_lmdb):
    values = {"image-000000000": encode(), "label-000000000": "zero", **words("one", count=2)}
    values |= {"image-1": "x", "image-x": "x", "label-000000001-font": "x", "label-9": "x", "zzz": "x"}
    convert_lmdb(make_lmdb(tmp_path / "a", values), tmp_path / "output", "en")
    assert [(row["id"], row["text"]) for row in rows(tmp_path / "output")] == [
        ("a/000000000", "zero"),
        ("a/000000001", "one"),
    ]


def test_single_file_is_read(tmp_path, make_lmdb):
    folder = make_lmdb(tmp_path / "folder", words("a"))
    (folder / "data.mdb").rename(tmp_path / "words.mdb")
    convert_lmdb(tmp_path / "words.mdb", tmp_path / "output", "en")
    assert [row["dataset"] for row in rows(tmp_path / "output")] == ["words.mdb"]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_truncated_lmdb_is_refused(tmp_path, make_lmdb, share):
    source = make_lmdb(tmp_path / "a", words(*["word"] * 30))
    size = (source / "data.mdb").stat().st_size
    os.truncate(source / "data.mdb", int(size * share))
    with pytest.raises(ValueError, match=r"a(/data.mdb)?: (truncated, \d+ of \d+ bytes|not an LMDB.*); copy it again"):
        convert_lmdb(source, tmp_path / "output", "en")
    assert not (tmp_path / "output").exists()


def test_what_is_no_lmdb_or_not_in_place_is_refused(tree, tmp_path, make_lmdb):
    output = tmp_path / "output"

    def refuse(source, message, lang=None):
        with pytest.raises(ValueError, match=message):
            convert_lmdb(source, output, lang)
        assert not output.exists()

    refuse(tmp_path / "nothing", "nothing: no LMDB here; name a folder")
    refuse(tree / "hi/val_lmdb", "val_lmdb: a single LMDB does not tell its language; give one")
    refuse(tree, "LMDB: holds no data.mdb; --lang is for a single LMDB", "hi")
    refuse(tree / "hi/val_lmdb", "no charset for language 'xx': use ar, as", "xx")
    refuse(make_lmdb(tmp_path / "empty", {"num-samples": "0"}), "empty: no records; keys must be like image-0", "en")
    make_lmdb(tree / "hi/more_lmdb", words("a"))
    refuse(tree, r"hi/more_lmdb: not at LANG/\{train_lmdb,val_lmdb,test_lmdb\}")


def test_other_source_does_not_go_on_with_a_data_set(tmp_path, make_lmdb):
    convert_lmdb(make_lmdb(tmp_path / "1/a", words("a")), tmp_path / "output", "en")
    again = make_lmdb(tmp_path / "2/a", words("a"))
    convert_lmdb(again, tmp_path / "output", "en")
    with lmdb.open(str(again)) as env, env.begin(write=True) as transaction:
        transaction.put(b"label-000000001", b"b")
    with pytest.raises(ValueError, match="made with another lmdb"):
        convert_lmdb(again, tmp_path / "output", "en")


def test_there_and_back_is_lossless(tree, tmp_path):
    convert_lmdb(tree, tmp_path / "arrow")
    assert convert_arrow(tmp_path / "arrow", tmp_path / "back") == {
        "bn/train_lmdb": 2,
        "hi/train_lmdb": 4,
        "hi/val_lmdb": 1,
    }
    for name in ("bn/train_lmdb", "hi/train_lmdb", "hi/val_lmdb"):
        assert read_lmdb(tmp_path / "back" / name) == read_lmdb(tree / name)
    convert_lmdb(tmp_path / "back", tmp_path / "again", dataset="LMDB")
    for split in ("train", "validation"):
        assert rows(tmp_path / "again", split) == rows(tmp_path / "arrow", split)
    assert sorted(path.name for path in (tmp_path / "back").iterdir()) == ["bn", "hi"]


def test_back_from_any_data_set_on_disk(tmp_path):
    columns = {"image": [encode(), encode(seed=1)], "text": ["b", "a"], "lang": ["hi", "en"], "more": [1, 2]}
    columns["image"] = [{"bytes": image, "path": None} for image in columns["image"]]
    features = datasets.Features(
        {name: datasets.Value("string") for name in ("text", "lang")}
        | {"more": datasets.Value("int64"), "image": datasets.Image()}
    )
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(tmp_path / "arrow")
    assert convert_arrow(tmp_path / "arrow", tmp_path / "back") == {"hi/train_lmdb": 1, "en/train_lmdb": 1}
    assert read_lmdb(tmp_path / "back/en/train_lmdb") == {
        "image-000000001": encode(seed=1),
        "label-000000001": b"a",
        "num-samples": b"1",
    }
    datasets.Dataset.from_dict({"image": columns["image"], "lang": ["../x"] * 2, "text": ["a"] * 2}).save_to_disk(
        tmp_path / "bad"
    )
    with pytest.raises(ValueError, match=r"lang '\.\./x' of split train cannot name a folder"):
        convert_arrow(tmp_path / "bad", tmp_path / "worse")
    with pytest.raises(ValueError, match="back: is there already"):
        convert_arrow(tmp_path / "arrow", tmp_path / "back")
    with pytest.raises(ValueError, match=r"nothing: datasets\.load_from_disk cannot load it"):
        convert_arrow(tmp_path / "nothing", tmp_path / "new")
    datasets.Dataset.from_dict({"lang": ["en"]}).save_to_disk(tmp_path / "columns")
    with pytest.raises(ValueError, match="columns: split train has no column image, text"):
        convert_arrow(tmp_path / "columns", tmp_path / "new")


def test_map_grows_and_a_killed_way_back_goes_on(tmp_path, make_lmdb, monkeypatch):
    """Killed after some batches; the map of the LMDB is too small at first."""
    monkeypatch.setattr(lmdb_module, "_MAP_SIZE", 1 << 16)
    monkeypatch.setattr(lmdb_module, "_BATCH", 10)
    source = make_lmdb(tmp_path / "LMDB/en/train_lmdb", words(*(f"word{number}" for number in range(95))))
    convert_lmdb(tmp_path / "LMDB", tmp_path / "arrow")

    write = lmdb_module._Writer.write
    firsts = []

    def deadly(self, first, records):
        if first > 50:
            os.kill(os.getpid(), signal.SIGKILL)
        write(self, first, records)

    def watched(self, first, records):
        if first + len(records) - 1 > self._written:
            firsts.append(first)
        write(self, first, records)

    with monkeypatch.context() as patch:
        patch.setattr(lmdb_module._Writer, "write", deadly)
        run = multiprocessing.get_context("fork").Process(
            target=convert_arrow, args=(tmp_path / "arrow", tmp_path / "back")
        )
        run.start()
        run.join()
    assert run.exitcode == -signal.SIGKILL
    assert not (tmp_path / "back").exists()
    monkeypatch.setattr(lmdb_module._Writer, "write", watched)
    assert convert_arrow(tmp_path / "arrow", tmp_path / "back") == {"en/train_lmdb": 95}
    assert firsts[0] == 51
    assert read_lmdb(tmp_path / "back/en/train_lmdb") == read_lmdb(source)
