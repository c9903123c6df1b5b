import json
import shutil
from collections import Counter

import datasets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mstr_hf.charsets import load_charsets
from mstr_hf.synthesis import dataset
from mstr_hf.synthesis.synthetic_words import WordSynthesiser
from mstr_hf.training.sources import HELD_OUT, LAP, RealWord, RealWords, WordMixture, language_shares, shuffled
from mstr_hf.vocabulary import build_vocabulary


@settings(max_examples=25)
@given(st.integers(1, 300), st.text(max_size=3))
def test_shuffling_is_a_permutation(count, key):
    assert sorted(shuffled(place, count, key) for place in range(count)) == list(range(count))


def test_shuffles_differ_and_leave_no_order():
    first, second = ([shuffled(place, 1000, key) for place in range(1000)] for key in ("a", "b"))
    assert sum(a == b for a, b in zip(first, second, strict=True)) < 20
    for order in (first, second):
        assert abs(np.corrcoef(order, range(1000))[0, 1]) < 0.1
        assert abs(np.corrcoef(order[1:], order[:-1])[0, 1]) < 0.1
        assert len(Counter(np.diff(order))) > 300


class Source:
    """Words that tell where they are from."""

    def __init__(self, name: str):
        self.name = name

    def word(self, seed: int, index: int, lang: str) -> RealWord:
        return RealWord(np.zeros((1, 1), np.uint8), f"{self.name}{index}", lang)


def test_mixture_keeps_shares_and_leaves_no_word_out():
    mixture = WordMixture([(Source("a"), "en", 6), (Source("b"), "en", 3), (Source("b"), "hi", 1e-9)])
    words = [mixture.word(5, index) for index in range(2 * LAP)]
    counts = Counter((word.text[0], word.lang) for word in words)
    assert counts["a", "en"] == pytest.approx(2 * LAP * 2 / 3, abs=4)
    assert counts["b", "hi"] == 2  # however small, its turn comes
    assert sum(counts.values()) == 2 * LAP
    for name, lang in counts:
        indices = sorted(int(word.text[1:]) for word in words if (word.text[0], word.lang) == (name, lang))
        assert indices == list(range(counts[name, lang]))
    assert [word.text for word in words[:20]] != [mixture.word(6, index).text for index in range(20)]
    assert mixture.word(5, 1234).text == words[1234].text


def test_temperature_lifts_small_languages():
    amounts = {"en": 900.0, "te": 100.0}
    assert language_shares(amounts, 1) == pytest.approx({"en": 0.9, "te": 0.1})
    assert language_shares(amounts, 2) == pytest.approx({"en": 0.75, "te": 0.25})
    assert language_shares(amounts, 1e9) == pytest.approx({"en": 0.5, "te": 0.5})


def test_every_picture_comes_round_before_any_comes_again(labelled, vocabulary):
    words = RealWords([labelled], vocabulary)
    assert len(words) == 30 and {lang: len(rows) for lang, rows in words.rows.items()} == {"ar": 10, "en": 20}
    laps = [[words.word(3, index, "en").text for index in range(20 * lap, 20 * lap + 20)] for lap in (0, 1)]
    assert sorted(laps[0]) == sorted(laps[1]) == [f"{number:02}" for number in range(20)]
    assert laps[0] != laps[1]
    word = words.word(3, 0, "ar")
    assert word.image.shape == (32, 64) and word.lang == "ar" and word.centres is None


def test_degradation_is_a_function_of_the_position(labelled, vocabulary):
    plain, worn = (RealWords([labelled], vocabulary, severity).word(0, 7, "en") for severity in (0, 0.9))
    again = RealWords([labelled], vocabulary, 0.9).word(0, 7, "en")
    assert plain.text == worn.text and np.array_equal(worn.image, again.image)
    assert plain.image.shape != worn.image.shape or not np.array_equal(plain.image, worn.image)


def test_arrow_folders_hold_the_same_words(labelled, vocabulary, tmp_path):
    entries = [json.loads(line) for line in labelled.read_text().splitlines()]
    features = datasets.Features(
        {name: datasets.Value("string") for name in ("id", "text", "label", "lang", "dataset")}
        | {"image": datasets.Image()}
    )
    for split, part in (("train", entries[5:]), ("validation", entries[:5])):
        rows = {
            "id": [entry["id"] for entry in part],
            "text": [entry["gt_text"] for entry in part],
            "label": [entry["gt_text"] for entry in part],
            "lang": [entry["lang"] for entry in part],
            "dataset": ["test"] * len(part),
            "image": [
                {"bytes": (labelled.parent / entry["path_rel"]).read_bytes(), "path": None} for entry in part
            ],
        }
        datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / split)
    # What the library keeps of its own functions is not more data.
    datasets.load_from_disk(tmp_path / "train").map(lambda row: row | {"label": "x"}, load_from_cache_file=False)
    assert list((tmp_path / "train").glob("cache-*.arrow"))
    arrow = RealWords([tmp_path], vocabulary)
    assert len(arrow) == 25 and len(RealWords([tmp_path], vocabulary, split="validation")) == 5
    both = RealWords([labelled, tmp_path / "train"], vocabulary)
    assert len(both) == 55
    manifest = {word.text: word.image for word in RealWords([labelled], vocabulary).some(99)}
    for word in arrow.some(99):
        assert np.array_equal(word.image, manifest[word.text])


def test_drawn_words_keep_their_places_and_are_not_worn_twice(
    fonts, synthesiser, labelled, vocabulary, tmp_path, monkeypatch
):
    monkeypatch.setattr(dataset, "discover_fonts", lambda *args: fonts)
    dataset.synthesise(tmp_path / "drawn", ["en", "ar"], 4, num_proc=1)
    words = RealWords([tmp_path / "drawn"], vocabulary, severity=0.9)
    drawn = WordSynthesiser(fonts, synthesiser.sources, joiners=vocabulary.joiners)
    for lang in ("en", "ar"):
        seed = dataset.part_seed(0, "train", lang)
        expected = {word.text: word for word in (drawn.word(seed, index, lang) for index in range(4))}
        found = [words.word(0, index, lang) for index in range(4)]
        assert {word.text for word in found} == set(expected)
        for word in found:
            assert np.array_equal(word.image, expected[word.text].image)
            assert np.allclose(word.centres, expected[word.text].centres, atol=1e-6)
    # Beside photographs, which have no places.
    both = RealWords([labelled, tmp_path / "drawn"], vocabulary)
    assert len(both) == 38 and sum(word.centres is not None for word in both.some(99)) == 8


def test_labels_outside_the_vocabulary_are_named_and_the_rest_is_kept(labelled):
    english = build_vocabulary(load_charsets(["en"]))
    words = RealWords([labelled], english)
    assert list(words.rows) == ["en"] and len(words) == 20
    complaint = words.complaint()
    assert "10 words left out (characters outside the bank), such as word-20" in complaint
    assert "ar needs '٢' U+0662 x" in complaint and "scripts/extend_prototype_bank.py" in complaint


def test_split_keeps_one_in_ten_of_each_language_for_validation(labelled, vocabulary):
    train, heldout = RealWords([labelled], vocabulary).split()
    assert {lang: len(rows) for lang, rows in heldout.rows.items()} == {"ar": 1, "en": 20 // HELD_OUT}
    for lang, rows in train.rows.items():
        assert not set(rows) & set(heldout.rows[lang])
    assert len(train) + len(heldout) == 30


def test_a_damaged_picture_is_named_and_passed_over(labelled, vocabulary, tmp_path, capsys):
    folder = tmp_path / "damaged"
    shutil.copytree(labelled.parent, folder)
    (folder / "4.png").write_bytes(b"no picture")
    words = RealWords([folder / "labels.jsonl"], vocabulary)
    texts = [words.word(0, index, "en").text for index in range(20)]
    assert "04" not in texts and len(set(texts)) == 19
    assert len(words.some(99)) == 29
    errors = capsys.readouterr().err
    assert errors.count("4.png: cannot be read") == 1


def test_a_split_that_is_not_there_is_not_taken_from_another(vocabulary, tmp_path):
    (tmp_path / "train").mkdir()
    with pytest.raises(ValueError, match=r"no split validation: name the folder to take for it, such as .*/train"):
        RealWords([tmp_path], vocabulary, split="validation")


def test_paths_without_words_are_refused(vocabulary, tmp_path):
    with pytest.raises(ValueError, match=r"no .arrow files in it: convert your data with `mstr convert`"):
        RealWords([tmp_path], vocabulary)
    datasets.Dataset.from_dict({"id": ["a"]}).save_to_disk(tmp_path / "other")
    with pytest.raises(ValueError, match="no column image, label, lang: convert"):
        RealWords([tmp_path / "other"], vocabulary)
