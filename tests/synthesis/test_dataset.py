import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import datasets
import numpy as np
import pytest

from mstr_hf.charsets import load_charset, load_charsets
from mstr_hf.synthesis import dataset, fonts, words
from mstr_hf.synthesis.characters import CharacterSynthesiser
from mstr_hf.synthesis.dataset import synthesise
from mstr_hf.synthesis.synthetic_words import WordSynthesiser
from mstr_hf.vocabulary import build_vocabulary

LISTS = {"en": "house\nstreet\nopen\n", "hi": "सड़क\nदुकान\nक्षत्रिय\n"}


def install(folder: Path) -> None:
    """Makes small word lists and a few system fonts all that there is."""
    for lang, words_of_language in LISTS.items():
        listing = folder / f"{lang}.txt"
        if not listing.exists():
            listing.write_text(words_of_language, encoding="utf-8")
        words._SOURCES[lang] = [words._file(lang, "", listing)]
    files = [path for path in fonts._system_files() if "/Lohit-Dev" in path or "/NotoSansDevanagari-" in path]
    latin = [path for path in fonts._system_files() if "/DejaVuS" in path or "/Liberation" in path]
    fonts._system_files = lambda: iter(files + latin)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("synthesis")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MSTR_CACHE", str(folder / "cache"))
        patch.setattr(words, "_SOURCES", dict(words._SOURCES))
        patch.setattr(fonts, "_system_files", fonts._system_files)
        words.load_words.cache_clear()
        install(folder)
        index = fonts.discover_fonts(["en", "hi"])
        if not all(index.by_language[lang] and index.faces(lang, "heldout") for lang in ("en", "hi")):
            pytest.skip(
                "missing: fonts: apt-get install fonts-dejavu-core fonts-liberation fonts-lohit-deva fonts-noto-core"
            )
        yield folder
    words.load_words.cache_clear()


def shards(output: Path) -> dict[str, bytes]:
    return {str(path.relative_to(output)): path.read_bytes() for path in output.rglob("*") if path.is_file()}


def test_words_are_the_same_from_any_number_of_processes(folder: Path):
    arguments = {"train": 9, "validation": 4, "seed": 3, "records_per_shard": 3}
    totals = synthesise(folder / "one", ["en", "hi"], num_proc=1, **arguments)
    assert {part: total.rows for part, total in totals.items()} == {
        "train/en": 9,
        "train/hi": 9,
        "validation/en": 4,
        "validation/hi": 4,
    }
    synthesise(folder / "three", ["en", "hi"], num_proc=3, **arguments)
    assert shards(folder / "one") == shards(folder / "three")
    synthesise(folder / "other", ["en", "hi"], num_proc=1, **{**arguments, "seed": 4})
    assert shards(folder / "one")["train/hi-00000-of-00003.arrow"] not in shards(folder / "other").values()


def test_rows_are_the_words_of_the_synthesiser(folder: Path):
    synthesise(folder / "rows", ["en", "hi"], 4, 3, num_proc=1)
    loaded = datasets.load_from_disk(str(folder / "rows"))
    index = fonts.discover_fonts(["en", "hi"])
    sources = {lang: words.load_words(lang) for lang in ("en", "hi")}
    vocabulary = build_vocabulary(load_charsets(["en", "hi"]))
    for split, part in (("train", "train"), ("validation", "heldout")):
        synthesiser = WordSynthesiser(index, sources, split=part, joiners=vocabulary.joiners)
        rows = [row for row in loaded[split] if row["lang"] == "hi"]
        assert len(rows) == {"train": 4, "validation": 3}[split]
        for number, row in enumerate(rows):
            word = synthesiser.word(dataset.part_seed(0, split, "hi"), number, "hi")
            assert np.array_equal(np.asarray(row["image"]), word.image)
            assert row["label"] == word.text == vocabulary.validate(row["text"])
            assert np.allclose(row["centres"], word.centres, atol=1e-6)
    assert len({row["id"] for split in loaded.values() for row in split}) == 14


def test_characters_have_their_prompts_and_all_are_there(folder: Path):
    vocabulary = build_vocabulary(load_charsets(["hi"]))
    rows = vocabulary.rows
    turns = CharacterSynthesiser(fonts.discover_fonts(["hi"]), rows, {"hi": load_charset("hi").letters}).turns
    synthesise(folder / "characters", ["hi"], len(turns), characters=True, num_proc=1)
    loaded = datasets.load_from_disk(str(folder / "characters"))["train"]
    subtypes = {row.character: row.subtype for row in rows}
    for row in loaded:
        assert row["prompt"] == f"<lang=hi> <type={subtypes[row['label']]}> <char={row['label']}>"
        assert row["subtype"] == subtypes[row["label"]] and row["lang"] == "hi"
        assert row["label"] == vocabulary.validate(row["text"])
        assert row["image"].size == (48, 40)
    assert loaded.features["subtype"].names == ["letter", "diacritic", "digit", "punctuation"]
    drawn = set(loaded["label"])
    assert drawn == {rows[row].character for row in turns} and set(load_charset("hi").letters) <= drawn
    assert set(load_charset("hi").diacritics) <= drawn


def test_a_killed_run_goes_on_to_the_same_result(folder: Path):
    whole, killed = folder / "whole", folder / "killed"
    arguments = {"train": 400, "seed": 1, "num_proc": 2, "records_per_shard": 20}
    synthesise(whole, ["hi"], **arguments)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, __file__, str(folder), json.dumps({"output": str(killed), **arguments})]
    process = subprocess.Popen(command, env=environment, start_new_session=True)
    try:
        while len(list(killed.glob("train/*.arrow"))) < 2:
            assert process.poll() is None, "ended before it was killed"
            time.sleep(0.005)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert not (killed / "dataset_dict.json").exists()
    left = {path.name: path.stat().st_mtime_ns for path in killed.glob("train/*.arrow")}
    synthesise(killed, ["hi"], **arguments)
    assert shards(killed) == shards(whole)
    # what was finished is not made again
    assert all((killed / "train" / name).stat().st_mtime_ns == stamp for name, stamp in left.items())


def test_other_ingredients_do_not_go_on_with_a_data_set(folder: Path):
    synthesise(folder / "settled", ["en"], 2, num_proc=1)
    with pytest.raises(ValueError, match="made with another seed"):
        synthesise(folder / "settled", ["en"], 2, num_proc=1, seed=1)
    more = folder / "more fonts"
    more.mkdir()
    shutil.copy(next(path for path in fonts._system_files() if "DejaVuSans.ttf" in path), more / "again.ttf")
    with pytest.raises(ValueError, match="made with another fonts"):
        synthesise(folder / "settled", ["en"], 2, num_proc=1, fonts=[more])


if __name__ == "__main__":
    install(Path(sys.argv[1]))
    synthesise(languages=["hi"], **json.loads(sys.argv[2]))
