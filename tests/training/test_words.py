import shutil
from collections import Counter
from itertools import islice, pairwise
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from mstr_hf.charsets import load_charsets
from mstr_hf.models.configuration_spotter import SpotterConfig
from mstr_hf.models.image_processing_mstr import MAX_RATIO, MSTRImageProcessor
from mstr_hf.models.prototype_bank import PrototypeBank
from mstr_hf.models.text import visual_order
from mstr_hf.synthesis.synthetic_words import SyntheticWord
from mstr_hf.training.arguments import WordArguments
from mstr_hf.training.trainer import to_device
from mstr_hf.training.words import (
    CHUNK,
    HEIGHT,
    WordBatches,
    collate,
    frame_labels,
    model_pixels,
    readable,
    reading_accuracy,
    reading_samples,
    spotter_readings,
    word_batches,
    word_data,
)
from mstr_hf.vocabulary import Vocabulary, build_vocabulary

IGNORED = -100
SIZE = 4


def take(stream, start: int, stop: int) -> list[dict[str, torch.Tensor]]:
    return list(islice(stream, start, stop))


def assert_same(first: list, second: list) -> None:
    assert len(first) == len(second) > 0
    for one, two in zip(first, second, strict=True):
        assert one.keys() == two.keys()
        assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())


@pytest.fixture(scope="module")
def batches(synthesiser, vocabulary) -> list[dict[str, torch.Tensor]]:
    """The first batches of a training process that is alone."""
    return take(word_batches(synthesiser, vocabulary, SIZE, 0, 0, 0, 0, 1, HEIGHT), 0, 2 * CHUNK + 3)


# -------------------- the endless sequence


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_do_not_change_the_sequence(synthesiser, vocabulary, batches, workers):
    stream = word_batches(synthesiser, vocabulary, SIZE, 0, workers, 0, 0, 1, HEIGHT)
    assert_same(take(stream, 0, 2 * CHUNK + 3), batches)


@pytest.mark.parametrize("first", [3, CHUNK, CHUNK + 5])
def test_a_run_that_goes_on_reads_what_comes_next(synthesiser, vocabulary, batches, first):
    stream = word_batches(synthesiser, vocabulary, SIZE, 0, 0, first, 0, 1, HEIGHT)
    assert_same(take(stream, 0, 5), batches[first : first + 5])


def test_processes_share_the_sequence(synthesiser, vocabulary):
    def words(batches: list) -> list[tuple]:
        return sorted(tuple(row) for batch in batches for row in batch["labels"].tolist())

    chunks = WordBatches(synthesiser, vocabulary, SIZE, 2, HEIGHT)
    each = [
        take(word_batches(synthesiser, vocabulary, SIZE, 0, workers, 0, rank, 2, HEIGHT), 0, 2 * CHUNK)
        for rank, workers in ((0, 0), (1, 2))
    ]
    for rank in (0, 1):
        for lap in (0, 1):
            own = each[rank][lap * CHUNK : (lap + 1) * CHUNK]
            assert words(own) == words(chunks.chunk(0, 2 * lap + rank))
        later = take(word_batches(synthesiser, vocabulary, SIZE, 0, 0, CHUNK + 2, rank, 2, HEIGHT), 0, 2)
        assert_same(later, each[rank][CHUNK + 2 : CHUNK + 4])
    # wide batches come at the same step in both, since each waits for the other
    orders = [np.argsort([batch["pixel_values"].shape[-1] for batch in own[:CHUNK]], kind="stable") for own in each]
    assert np.abs(np.argsort(orders[0]) - np.argsort(orders[1])).max() <= 2


class Noting:
    """A simulator that says what it was asked with."""

    def with_prefixes(self, batch, seed):
        return {**batch, "prefix": {"seed": torch.tensor(seed)}}


@pytest.mark.parametrize("workers", [0, 1])
def test_workers_simulate_readings_with_a_seed_for_each_batch_of_each_process(synthesiser, vocabulary, workers):
    for process in (0, 1):
        stream = word_batches(synthesiser, vocabulary, SIZE, 5, workers, 3, process, 2, HEIGHT, simulator=Noting())
        seeds = [batch["prefix"]["seed"].tolist() for batch in islice(stream, CHUNK)]
        assert seeds == [[5, number, process] for number in range(3, 3 + CHUNK)]


def test_seeds_differ(synthesiser, vocabulary, batches):
    other = take(word_batches(synthesiser, vocabulary, SIZE, 1, 0, 0, 0, 1, HEIGHT), 0, 2)
    assert not torch.equal(other[0]["pixel_values"], batches[0]["pixel_values"])


def test_batches_hold_words_of_like_width(batches):
    chunk = batches[:CHUNK]
    assert all(len(batch["pixel_values"]) == SIZE for batch in chunk)
    widths = sorted([sorted(batch["pixel_mask"].sum(1).tolist()) for batch in chunk])
    assert all(narrow[-1] <= wide[0] for narrow, wide in pairwise(widths))
    assert [batch["pixel_mask"].shape[1] for batch in chunk] != sorted(batch["pixel_mask"].shape[1] for batch in chunk)
    assert max(map(max, widths)) <= 192 and all(width % 8 == 0 for row in widths for width in row)


@pytest.mark.parametrize("height", [32, 48])
def test_words_that_are_too_wide_give_way_to_others(synthesiser, vocabulary, height):
    narrow = WordBatches(synthesiser, vocabulary, SIZE, 1, height, max_width=64).chunk(0, 0)
    assert len(narrow) == CHUNK and all(len(batch["labels"]) == SIZE for batch in narrow)
    assert all(batch["pixel_values"].shape[2] == height for batch in narrow)
    widest = max(batch["pixel_mask"].shape[1] for batch in narrow)
    assert 48 * height / 32 < widest <= 64 * height / 32  # pixels of max_width are those at height 32
    with pytest.raises(ValueError, match="none of 100 words is at most 4 pixels wide at height 32: raise max_width"):
        WordBatches(synthesiser, vocabulary, SIZE, 1, HEIGHT, max_width=4).chunk(0, 0)


# -------------------- batches


def make_word(text: str, width: int, lang: str = "en", centres: bool = True) -> SyntheticWord:
    rng = np.random.default_rng(width)
    where = (np.arange(len(text)) + 0.5) / len(text) if centres else None
    return SyntheticWord(rng.integers(0, 256, (32, width), np.uint8), text, lang, "", where)


def test_collate(vocabulary):
    words = [make_word("Go", 40), make_word("سلام12", 96, "ar"), make_word("abc", 64, centres=False)]
    batch = collate([(word.image, word) for word in words], vocabulary)
    assert {name: tuple(tensor.shape) for name, tensor in batch.items()} == {
        "pixel_values": (3, 1, 32, 96),
        "pixel_mask": (3, 96),
        "labels": (3, 6),
        "frame_labels": (3, 48),
    }
    assert batch["pixel_mask"].sum(1).tolist() == [40, 96, 64]
    assert batch["pixel_values"].dtype == torch.uint8
    pixels = to_device(batch, "cpu")["pixel_values"]
    for b, word in enumerate(words):
        width = word.image.shape[1]
        image = pixels[b, 0]
        assert torch.allclose(image[:, :width], torch.from_numpy(word.image).float() / 127.5 - 1, atol=1e-6)
        assert batch["pixel_mask"][b, :width].all() and not image[:, width:].any()
        ids = [i for i in batch["labels"][b].tolist() if i != IGNORED]
        assert vocabulary.decode(ids) == word.text and batch["labels"][b, len(ids) :].eq(IGNORED).all()
        frames = batch["frame_labels"][b].tolist()
        assert set(frames[width // 2 :]) <= {IGNORED}
        shown = vocabulary.decode(i for i in frames if i > 0)
        # frames run from left to right, in both directions of writing
        visual = "".join(word.text[index] for index in visual_order(word.text))
        assert shown == (visual if word.centres is not None else "")
        assert (0 in frames) == (word.centres is not None)


@pytest.mark.parametrize("height", [32, 48])
def test_resizing_is_the_image_processors(height):
    processor = MSTRImageProcessor(size={"height": height, "width": MAX_RATIO * height})
    for shape in ((32, 32), (20, 90), (77, 300), (120, 31), (9, 33), (60, 1000), (32, 640)):
        image = np.random.default_rng(shape[1]).integers(0, 256, shape, np.uint8)
        resized = model_pixels(image, height)
        expected = processor([image], return_tensors="pt")
        width = int(expected["pixel_mask"].sum())
        assert resized.shape == (height, width)
        assert torch.allclose(
            torch.from_numpy(resized / 127.5 - 1).float(), expected["pixel_values"][0, 0, :, :width], atol=1e-5
        )


@given(st.text("ab", max_size=10), st.integers(1, 24))
def test_readable_means_that_ctc_has_a_path(text, width):
    frames = width // 2
    if not frames:
        return
    log_probs = torch.zeros(frames, 1, 3).log_softmax(-1)
    target = torch.tensor([["ab".index(character) + 1 for character in text]], dtype=torch.long)
    loss = F.ctc_loss(log_probs, target, [frames], [len(text)], reduction="none")
    assert readable(text, width) == bool(torch.isfinite(loss))


# -------------------- frame labels


@st.composite
def placed_characters(draw):
    count = draw(st.integers(0, 8))
    ids = draw(st.lists(st.integers(128, 131), min_size=count, max_size=count))
    frames = draw(st.integers(1, 40))
    centres = sorted(draw(st.lists(st.floats(-3, frames + 3), min_size=count, max_size=count)))
    return ids, np.array(centres), frames


@given(placed_characters())
def test_frame_labels(drawn):
    ids, centres, count = drawn
    frames = frame_labels(ids, centres, count).tolist()
    assert len(frames) == count and set(frames) <= {IGNORED, 0, *ids}
    places = [frame for frame, token in enumerate(frames) if token > 0]
    if not places and ids:
        # only where the end is too crowded
        assert set(frames) == {IGNORED}
        assert (len(ids) > 1 and 2 * len(ids) > count) or centres[-1] > count - len(ids) - 1
        return
    assert [frames[place] for place in places] == ids
    gaps = np.diff(places)
    assert all(gap >= (2 if a == b else 1) for gap, a, b in zip(gaps, ids, ids[1:], strict=False))
    # blanks everywhere but beside a character
    beside = {place + step for place in places for step in (-1, 1)} - set(places)
    assert all(frames[frame] == (IGNORED if frame in beside else 0) for frame in set(range(count)) - set(places))
    for place, centre in zip(places, centres, strict=True):
        assert place >= int(max(centre, 0))


@given(st.lists(st.integers(128, 140), min_size=1, max_size=8))
def test_frame_labels_with_room_are_at_the_centres(ids):
    centres = 3.0 * np.arange(len(ids)) + 1.7
    frames = frame_labels(ids, centres, 3 * len(ids) + 3)
    assert [frames[int(centre)] for centre in centres] == ids


# -------------------- what is trained on, and how it is judged


def bank_of(vocabulary: Vocabulary, characters: slice = slice(None)) -> PrototypeBank:
    rows = vocabulary.rows[characters]
    return PrototypeBank(
        F.normalize(torch.ones(len(rows), 4), dim=-1),
        [row.character for row in rows],
        [row.subtype for row in rows],
        [row.script for row in rows],
        [row.languages for row in rows],
    )


def test_options_that_do_not_fit_the_bank_are_refused():
    vocabulary = build_vocabulary(load_charsets(["en", "hi"]))
    bank = bank_of(vocabulary)
    for options, message in (
        ({"language_weights": "en=1,xx=2"}, "language_weights: unknown 'xx': use en, hi"),
        ({"language_weights": "en:1"}, "language_weights: 'en:1' is not like a=1,b=2"),
        ({"language_weights": "en"}, "language_weights: 'en' is not like a=1,b=2"),
        ({"synthetic_share": 0.5}, "synthetic_share 0.5: give 0 to 1, and 1 .or nothing. without data"),
        ({"language_temperature": 0.0}, "language_temperature 0.0: give a number above 0"),
    ):
        with pytest.raises(ValueError, match=message):
            word_data(WordArguments(**options), bank, HEIGHT)
    with pytest.raises(ValueError, match="the charset of en has characters that the bank lacks, such as 'A'"):
        word_data(WordArguments(), bank_of(vocabulary, slice(1, None)), HEIGHT)


def test_labelled_pictures_are_mixed_with_synthetic_words(labelled, vocabulary, synthesiser, monkeypatch):
    drawn = []

    def synthesisers(args, bank, vocabulary):
        drawn.append(args.fonts)
        return synthesiser, synthesiser

    monkeypatch.setattr("mstr_hf.training.words.synthesisers", synthesisers)
    args = WordArguments(data=[str(labelled)], synthetic_share=0.25, fonts=["f"])
    data = word_data(args, bank_of(vocabulary), HEIGHT)
    assert drawn == [["f"]] and data.summary.startswith("75% of 27 labelled pictures (ar 9, en 18); 25% synthetic")
    words = [data.train.word(0, index) for index in range(60)]
    real = [word for word in words if hasattr(word, "family") is False]
    assert 30 <= len(real) <= 57
    assert len(data.heldout) == 3 and not {word.text for word in real} & {word.text for word in data.heldout}


def test_sources_of_pictures_have_weights(labelled, vocabulary, tmp_path):
    folder = tmp_path / "more=1"  # a path may have the sign too
    shutil.copytree(labelled.parent, folder)
    other = folder / labelled.name
    bank = bank_of(vocabulary)
    data = word_data(WordArguments(data=[f"{labelled}=3", f"{other}=1"]), bank, HEIGHT)
    one, two = (f"{path.parent.name}/{path.name}" for path in (labelled, other))
    assert data.summary == (
        f"75% of 27 labelled pictures of {one} (ar 9, en 18); 25% of 27 labelled pictures of {two} (ar 9, en 18)"
    )
    shares = Counter()
    for (source, _, _), count in zip(data.train.parts, data.train.counts, strict=True):
        shares[source.table[0]["image"]["path"].startswith(str(folder))] += count
    assert shares == {False: 750, True: 250}
    assert len(data.heldout) == 6
    few = word_data(WordArguments(data=[f"{labelled}=3", f"{other}=1"], eval_words=1), bank, HEIGHT).heldout
    assert [word.lang for word in few] == ["ar", "en"]
    with pytest.raises(ValueError, match="give each path a weight, as in photographs=3, or none"):
        word_data(WordArguments(data=[f"{labelled}=3", str(other)]), bank, HEIGHT)
    for wrong in ("0", "-1", "much", "nan"):
        with pytest.raises(ValueError, match=f"'{wrong}' no weight: give a number above 0"):
            word_data(WordArguments(data=[f"{labelled}={wrong}"]), bank, HEIGHT)
    assert len(word_data(WordArguments(data=[str(labelled), str(other)]), bank, HEIGHT).train.parts) == 2


def test_each_source_validates_with_its_own_split_or_a_tenth(labelled, vocabulary, tmp_path):
    for split, numbers in (("train", range(10)), ("validation", (10, 11))):
        rows = {
            "id": [f"{split}-{number}" for number in numbers],
            "image": [{"bytes": (labelled.parent / f"{number}.png").read_bytes(), "path": None} for number in numbers],
            "label": [f"{number:02}" for number in numbers],
            "lang": ["en" for _ in numbers],
        }
        kinds = {name: datasets.Value("string") for name in ("id", "label", "lang")} | {"image": datasets.Image()}
        table = datasets.Dataset.from_dict(rows, features=datasets.Features(kinds))
        table.save_to_disk(tmp_path / "arrow" / split)
    arguments = WordArguments(data=[f"{labelled}=1", f"{tmp_path / 'arrow'}=1"])
    data = word_data(arguments, bank_of(vocabulary), HEIGHT)
    # A tenth of 30 pictures, and the two of the split.
    assert [word.lang for word in data.heldout] == ["ar", "en", "en", "en", "en"]
    assert {"10", "11"} <= {word.text for word in data.heldout}
    assert "50% of 10 labelled pictures of arrow (en 10)" in data.summary


def test_pictures_alone_need_no_fonts_and_two_are_enough_to_learn_by_heart(labelled, vocabulary):
    data = word_data(WordArguments(data=[str(labelled)]), bank_of(vocabulary), HEIGHT)
    assert data.summary == "100% of 27 labelled pictures (ar 9, en 18)" and data.warning == ""
    data = word_data(WordArguments(data=[str(labelled)], overfit_images=2), bank_of(vocabulary), HEIGHT)
    trained = {data.train.word(0, index).text for index in range(50)}
    assert trained == {word.text for word in data.heldout} and len(trained) == 2
    with pytest.raises(ValueError, match=r"no label can be used: .*characters outside the bank.*ar needs"):
        few = bank_of(build_vocabulary(load_charsets(["hi"])), slice(0, 5))
        word_data(WordArguments(data=[str(labelled)]), few, HEIGHT)


def test_nothing_to_validate_with_is_refused(labelled, vocabulary):
    with pytest.raises(ValueError, match="no words to validate with: give eval_words of 1 or more"):
        word_data(WordArguments(data=[str(labelled)], eval_words=0), bank_of(vocabulary), HEIGHT)
    with pytest.raises(ValueError, match="overfit_images 99: only 27 different words fit"):
        word_data(WordArguments(data=[str(labelled)], overfit_images=99), bank_of(vocabulary), HEIGHT)


def test_pictures_that_are_too_wide_are_named_once_a_language(labelled, vocabulary, capsys):
    words = word_data(WordArguments(data=[str(labelled)]), bank_of(vocabulary), HEIGHT).train
    widths = [model_pixels(words.word(0, index).image, HEIGHT).shape[1] for index in range(27)]
    batches = WordBatches(words, vocabulary, 3, 1, HEIGHT, max_width=sorted(widths)[3])
    batches.chunk(0, 0)
    errors = capsys.readouterr().err
    assert errors.count("left out: pictures of language en that are wider than max_width") == 1


def test_accuracy_is_by_language_and_their_mean(vocabulary):
    texts = [("one", "en"), ("two", "en"), ("three", "en"), ("four", "en"), ("سلام", "ar"), ("خبز", "ar")]
    words = [make_word(text, 40 + 8 * place, lang) for place, (text, lang) in enumerate(texts)]
    readings = iter(["one", "tWo", "three", "fou", "سلام", "خبز"])  # words are read from the narrowest on

    class Reader:
        device = "cpu"
        config = SpotterConfig()

        def __call__(self, pixel_values: torch.Tensor, pixel_mask: torch.Tensor) -> SimpleNamespace:
            assert pixel_values.dtype == torch.float32
            assert pixel_mask.sum(1).tolist() == [40, 48, 56, 64, 72, 80]
            ids = [torch.tensor(vocabulary.encode(next(readings))) for _ in pixel_values]
            return SimpleNamespace(top_k_ids=torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)[..., None])

    figures = reading_accuracy(Reader(), words[::-1], vocabulary)
    assert figures == {"wrr_ar": 1.0, "wrr_en": 0.5, "wrr": 0.75}
    readings = iter(["one", "tWo", "three", "fou", "سلام", "خبز"])
    samples = reading_samples(spotter_readings, Reader(), words, vocabulary)
    assert [(sample.truth, sample.reading) for sample in samples][1:4] == [
        ("two", "tWo"),
        ("three", "three"),
        ("four", "fou"),
    ]
