import itertools
import json
import multiprocessing
import os
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path

import datasets
import pyarrow as pa
import pytest
from filelock import FileLock

from mstr_hf.data.arrow import FEATURES, Part, Reject, Row, write_dataset

PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108000000003a7e9b55"
    "0000000a49444154789c63680000008200815cd3f0f30000000049454e44ae426082"
)


@dataclass(frozen=True)
class Numbers:
    """Every fifth record is a reject; at record `deadly` the process is killed if `trap` is there."""

    trap: Path | None = None
    deadly: int = -1
    image: bytes = PNG

    def __call__(self, start, stop):
        for number in range(start, stop):
            if number == self.deadly and self.trap and self.trap.exists():
                self.trap.unlink()
                os.kill(os.getpid(), signal.SIGKILL)
            if number % 5 == 0:
                yield Reject(f"hi/{number}", "empty label", "label '': no characters")
            else:
                yield Row(f"hi/{number}", self.image, f"a {number}", f"a{number}", "hi", "numbers")


def write(folder, source=None, num_proc=1, settings=None, total=23):
    parts = [Part("train", "hi", total, source or Numbers()), Part("validation", "hi", 4, Numbers())]
    return write_dataset(folder, parts, settings or {"seed": 1}, num_proc, records_per_shard=5)


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed") / "new" / "folder"
    write(folder)
    return folder


def test_schema_is_that_of_the_library(undisturbed):
    columns = {name: datasets.Value("string") for name in FEATURES} | {"image": datasets.Image()}
    assert schema(undisturbed).equals(datasets.Features(columns).arrow_schema, check_metadata=True)


def schema(folder):
    with pa.OSFile(str(next((folder / "train").glob("*.arrow")))) as file:
        return pa.ipc.open_stream(file).schema


def test_columns_of_ones_own(tmp_path):
    features = {name: FEATURES[name] for name in ("id", "image")}
    features["kind"] = {"names": ["odd", "even"], "_type": "ClassLabel"}

    def source(start, stop):
        return [(str(number), PNG, number % 2) for number in range(start, stop)]

    write_dataset(tmp_path, [Part("train", "a", 3, source)], {}, num_proc=1, features=features)
    loaded = datasets.load_from_disk(tmp_path)["train"]
    assert loaded.features == datasets.Features(
        {"id": datasets.Value("string"), "image": datasets.Image(), "kind": datasets.ClassLabel(names=["odd", "even"])}
    )
    assert schema(tmp_path).equals(loaded.features.arrow_schema, check_metadata=True)
    assert loaded["kind"] == [0, 1, 0] and loaded[1]["image"].size == (1, 1)


def test_every_record_is_a_row_or_a_reject(tmp_path):
    totals = write(tmp_path)
    assert str(totals["train/hi"]) == "23 records = 18 rows + 5 rejects (5 empty label)"
    assert str(totals["validation/hi"]) == "4 records = 3 rows + 1 rejects (1 empty label)"
    rejects = [json.loads(line) for line in (tmp_path / "rejects.jsonl").read_text("utf-8").splitlines()]
    assert [reject["id"] for reject in rejects] == ["hi/0", "hi/5", "hi/10", "hi/15", "hi/20", "hi/0"]
    assert rejects[0] == {"id": "hi/0", "reason": "empty label", "detail": "label '': no characters"}
    provenance = json.loads((tmp_path / "provenance.json").read_text("utf-8"))
    assert provenance["settings"]["seed"] == 1
    assert provenance["totals"]["train/hi"] == {"records": 23, "rows": 18, "rejects": {"empty label": 5}}
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".")]


def test_loads_from_disk(undisturbed):
    loaded = datasets.load_from_disk(undisturbed)
    assert {split: rows.num_rows for split, rows in loaded.items()} == {"train": 18, "validation": 3}
    assert datasets.load_from_disk(undisturbed / "validation")["id"] == ["hi/1", "hi/2", "hi/3"]
    row = loaded["train"][17]
    assert row.pop("image").size == (1, 1)
    assert row == {"id": "hi/22", "text": "a 22", "label": "a22", "lang": "hi", "dataset": "numbers"}
    plain = loaded["train"].cast_column("image", datasets.Image(decode=False))
    assert plain[0]["image"] == {"bytes": PNG, "path": None}


@pytest.mark.parametrize("configuration", [None, "hi"])
def test_loads_by_the_library(undisturbed, tmp_path, configuration):
    loaded = datasets.load_dataset(str(undisturbed), configuration, cache_dir=str(tmp_path))
    assert {split: rows.num_rows for split, rows in loaded.items()} == {"train": 18, "validation": 3}
    assert loaded["train"][0]["image"].size == (1, 1)


def test_streams_by_the_library(undisturbed):
    rows = datasets.load_dataset(str(undisturbed), split="train", streaming=True)
    assert [row["label"] for row in rows][:5] == ["a1", "a2", "a3", "a4", "a6"]


def test_a_shard_of_rejects_only_and_batches_of_large_images(tmp_path):
    large = Numbers(image=bytes(6 << 20))
    parts = [Part("train", "none", 1, Numbers()), Part("train", "large", 6, large)]
    assert write_dataset(tmp_path, parts, {})["train/none"].rows == 0
    assert datasets.load_from_disk(tmp_path)["train"].num_rows == 4
    with pa.OSFile(str(tmp_path / "train/large-00000-of-00001.arrow")) as file:
        batches = pa.ipc.open_stream(file)
        assert [batch.num_rows for batch in batches] == [3, 1]


def test_result_is_the_same_with_several_processes(undisturbed, tmp_path):
    write(tmp_path, num_proc=3)
    assert contents(tmp_path) == contents(undisturbed)


@pytest.mark.parametrize("deadly", [0, 4, 12, 22])
def test_killed_run_goes_on(undisturbed, tmp_path, deadly):
    source = Numbers(tmp_path / "trap", deadly)
    source.trap.touch()
    run = multiprocessing.get_context("fork").Process(target=write, args=(tmp_path / "output", source))
    run.start()
    run.join()
    assert run.exitcode == -signal.SIGKILL
    assert any(path.name.startswith(".hi-") for path in (tmp_path / "output").rglob("*"))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "output").rglob("hi-*.arrow")}
    assert len(before) == deadly // 5
    write(tmp_path / "output", source)
    assert contents(tmp_path / "output") == contents(undisturbed)
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_killed_before_any_of_its_files_is_there(undisturbed, tmp_path, monkeypatch):
    """Killed when the first file is about to get its name, then at the second one, and so on to the end."""
    replace, rmtree = Path.replace, shutil.rmtree
    steps = len(contents(undisturbed)) + 7  # the rejects of six shards, and the provenance comes twice

    def write_until(step, folder):
        count = itertools.count()

        def next_step(do, *arguments):
            if next(count) == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return do(*arguments)

        monkeypatch.setattr(Path, "replace", lambda *arguments: next_step(replace, *arguments))
        monkeypatch.setattr(shutil, "rmtree", lambda *arguments, **_: next_step(rmtree, *arguments))
        write(folder)

    for step in range(steps + 2):
        folder = tmp_path / str(step)
        run = multiprocessing.get_context("fork").Process(target=write_until, args=(step, folder))
        run.start()
        run.join()
        assert run.exitcode == (-signal.SIGKILL if step <= steps else 0)
        write(folder)
        assert contents(folder) == contents(undisturbed)


def test_killed_process_of_several_is_an_error_and_goes_on(undisturbed, tmp_path):
    source = Numbers(tmp_path / "trap", 12)
    source.trap.touch()
    with pytest.raises(RuntimeError, match=r"a process was killed .*; run again"):
        write(tmp_path / "output", source, num_proc=2)
    write(tmp_path / "output", source, num_proc=2)
    assert contents(tmp_path / "output") == contents(undisturbed)


def test_shard_that_is_not_whole_is_written_again(undisturbed, tmp_path):
    source = Numbers(tmp_path / "trap", 22)
    source.trap.touch()
    with pytest.raises(RuntimeError):
        write(tmp_path / "output", source, num_proc=2)
    shard = tmp_path / "output/train/hi-00001-of-00005.arrow"
    shard.write_bytes(shard.read_bytes()[:-50])
    (tmp_path / "output/.progress/train/hi-00002-of-00005.arrow.rejects").write_bytes(b"")
    write(tmp_path / "output", source)
    assert contents(tmp_path / "output") == contents(undisturbed)


def test_finished_data_set_is_left_alone(tmp_path):
    first = write(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    assert write(tmp_path) == first
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}


def test_other_settings_and_other_folders_are_refused(tmp_path):
    write(tmp_path / "output")
    with pytest.raises(ValueError, match=r"output: holds a data set .* another seed; choose another folder"):
        write(tmp_path / "output", settings={"seed": 2})
    with pytest.raises(ValueError, match=r"output: holds a data set .* another parts; choose"):
        write(tmp_path / "output", total=24)
    with pytest.raises(ValueError, match="is not empty and holds no data set"):
        write(tmp_path)
    with pytest.raises(ValueError, match="is not empty and holds no data set"):
        write(tmp_path / "output" / "rejects.jsonl")


def test_folder_of_another_run_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("mstr_hf.data.arrow._LOCK_SECONDS", 0)
    with pytest.raises(ZeroDivisionError):
        write(tmp_path, Broken())
    with (
        FileLock(tmp_path / ".progress" / "lock"),
        pytest.raises(ValueError, match="another run is writing here; wait"),
    ):
        write(tmp_path)


@pytest.mark.parametrize("outcomes", [0, 4, 6])
def test_source_must_give_one_outcome_a_record(tmp_path, outcomes):
    def source(start, stop):
        return [Reject("a", "b", "c")] * outcomes

    with pytest.raises(RuntimeError, match=rf"train/hi: {outcomes} outcomes of records 0 to 5; give one each"):
        write(tmp_path, source)
    assert not list(tmp_path.rglob("*hi-*"))


def test_errors_of_a_source_come_out_of_any_process(tmp_path):
    for num_proc in (1, 2):
        with pytest.raises(ZeroDivisionError):
            write(tmp_path, Broken(), num_proc=num_proc)


class Broken:
    def __call__(self, start, stop):
        yield 1 / 0


def test_parts_must_have_names_of_their_own_and_records(tmp_path):
    part = Part("train", "hi", 1, Numbers())
    for parts, message in (
        ([], "parts missing: give one or more"),
        ([part, part], "parts train/hi, train/hi: give"),
        ([Part("train", "../x", 1, Numbers())], "train/../x: split and language name files"),
        ([Part("a/b", "hi", 1, Numbers())], "a/b/hi: split and language name files"),
        ([Part("train", "hi", 0, Numbers())], "train/hi: no records"),
    ):
        with pytest.raises(ValueError, match=message):
            write_dataset(tmp_path, parts, {})
    assert not list(tmp_path.iterdir())
