import numpy as np
import pytest
import torch
from torch.nn import functional as F

from mstr_hf import MCLIPConfig, MCLIPModel, MSTRImageProcessor, MSTRProcessor, PrototypeBank
from mstr_hf.charsets import load_charset, load_charsets
from mstr_hf.models.modeling_spotter import random_unit_rows
from mstr_hf.synthesis.characters import CharacterSynthesiser
from mstr_hf.synthesis.synthetic_words import SyntheticWord
from mstr_hf.training.bank_rows import (
    GAP_STRIDE,
    check_space,
    extend_bank,
    extended_vocabulary,
    image_rows,
    prompt_rows,
    spotter_rows,
)
from mstr_hf.training.mclip import text_rows
from mstr_hf.vocabulary import OFFSET, Vocabulary, build_vocabulary


def make_bank(vocabulary: Vocabulary, prototypes: torch.Tensor) -> PrototypeBank:
    rows = vocabulary.rows
    return PrototypeBank(
        prototypes,
        [row.character for row in rows],
        [row.subtype for row in rows],
        [row.script for row in rows],
        [row.languages for row in rows],
        vocabulary.joiners,
        "first",
    )


def random_bank(*langs: str) -> PrototypeBank:
    vocabulary = build_vocabulary(load_charsets(langs))
    return make_bank(vocabulary, random_unit_rows(len(vocabulary.rows), 16))


def make_mclip(characters: int) -> MCLIPModel:
    torch.manual_seed(0)
    config = MCLIPConfig(
        vocab_size=OFFSET + characters,
        num_rows=characters,
        projection_dim=16,
        hidden_size=16,
        num_attention_heads=2,
        num_hidden_layers=1,
        intermediate_size=16,
        image_channels=(4, 8),
    )
    return MCLIPModel(config).eval()


@pytest.mark.parametrize(("old", "new"), [(("en", "ta"), "kn"), (("en", "hi"), "bn"), (("en", "hi"), "mr")])
def test_bank_gains_a_language_and_keeps_its_rows(old, new):
    bank = random_bank(*old)
    vocabulary = extended_vocabulary(bank, load_charset(new))
    count = len(vocabulary.rows) - len(bank)
    assert count == len(load_charset(new).characters - set(bank.characters)) > 0
    rows = torch.randn(count, 16, generator=torch.Generator().manual_seed(1))
    extended = extend_bank(bank, vocabulary, rows, "test")
    assert extended.digest(len(bank)) == bank.digest()
    assert torch.equal(extended.prototypes[: len(bank)], bank.prototypes)
    assert torch.equal(extended.prototypes[len(bank) :], F.normalize(rows, dim=-1))
    # Bank, vocabulary and tokens agree, down to scripts, users and joiners.
    again = make_bank(vocabulary, extended.prototypes)
    assert extended.characters == again.characters and extended.scripts == again.scripts
    assert [tuple(users) for users in extended.languages] == [tuple(users) for users in again.languages]
    assert extended.joiners == vocabulary.joiners == "\u200c\u200d"
    assert extended.all_languages == [*old, new]
    assert extended.mclip_revision == f"first; {new}: test"


def test_languages_are_added_one_after_the_other():
    # Greek shares combining marks with English, which come before the signs that all languages share.
    bank = random_bank("en", "hi")
    for new in ("el", "kn", "ru", "as"):
        vocabulary = extended_vocabulary(bank, load_charset(new))
        bank = extend_bank(bank, vocabulary, torch.randn(len(vocabulary.rows) - len(bank), 16), "test")
    assert bank.all_languages == ["en", "hi", "el", "kn", "ru", "as"]
    assert Vocabulary.from_bank(bank).languages == ("en", "hi", "el", "kn", "ru", "as")


def test_refuses_a_language_that_is_there_and_other_charsets():
    bank = random_bank("en", "hi")
    with pytest.raises(ValueError, match="has language hi already"):
        extended_vocabulary(bank, load_charset("hi"))
    bank.characters = ["Ω", *bank.characters[1:]]
    with pytest.raises(ValueError, match="not those of its languages' charsets"):
        extended_vocabulary(bank, load_charset("bn"))


def test_spotter_rows_are_fitted_to_its_frames(tiny_refiner):
    spotter = tiny_refiner.spotter
    bank = spotter.get_bank()
    vocabulary = extended_vocabulary(bank, load_charset("bn"))
    processor = MSTRProcessor(MSTRImageProcessor(), vocabulary.tokenizer())
    pixels = np.random.default_rng(0)

    def word(text: str, width: int, centres: list[float] | None) -> SyntheticWord:
        image = pixels.integers(0, 256, (32, width), np.uint8)
        return SyntheticWord(image, text, "bn", "font", None if centres is None else np.array(centres))

    words = [word("ক", 200, [0.5]), word("aকখ", 96, [0.2, 0.5, 0.8]), word("গ", 64, None)]
    rows, counts = spotter_rows(spotter, processor, vocabulary, words)
    places = {vocabulary.rows[len(bank) + index].character: index for index, count in enumerate(counts) if count}
    assert {character: counts[place] for character, place in places.items()} == {"ক": 2, "খ": 1}
    assert rows.norm(dim=-1).round().sum() == 2

    frames, blanks, characters = [], [], []
    for item in words[:2]:
        with torch.no_grad():
            output = spotter(**processor(images=[item.image], return_tensors="pt"))
        count = int(output.frame_mask.sum())
        middles = (item.centres * count).astype(int)
        for character, middle in zip(item.text, middles, strict=True):
            best = min(range(middle - 1, middle + 2), key=lambda place: output.blank_similarity[0, place].item())
            frames.append(output.embeddings[0, best])
            blanks.append(output.blank_similarity[0, best])
            characters.append(character)
        gaps = [place for place in range(count) if min(abs(middles - place)) > 1][::GAP_STRIDE]
        frames += list(output.embeddings[0, gaps])
        blanks += list(output.blank_similarity[0, gaps])
        characters += [""] * len(gaps)

    def loss(new: torch.Tensor) -> torch.Tensor:
        """Cross-entropy at the Spotter's scale, over the bank, the two new rows and blank."""
        known = torch.cat([bank.prototypes, new[[places["ক"], places["খ"]]]])
        cosines = torch.cat([torch.stack(frames) @ known.t(), torch.stack(blanks)[:, None]], -1)
        own = {"a": vocabulary.encode("a")[0] - OFFSET, "ক": len(bank), "খ": len(bank) + 1, "": len(bank) + 2}
        targets = torch.tensor([own[character] for character in characters])
        return torch.nn.functional.cross_entropy(spotter.head.scale * cosines, targets)

    means = rows.clone()
    for character, place in places.items():
        own = [frame for frame, other in zip(frames, characters, strict=True) if other == character]
        means[place] = torch.nn.functional.normalize(torch.stack(own).mean(0), dim=-1)
    assert loss(rows) < loss(means) - 0.01
    for seed in range(5):
        noise = torch.randn(rows.shape, generator=torch.Generator().manual_seed(seed))
        assert loss(rows) < loss(torch.nn.functional.normalize(rows + 0.02 * noise, dim=-1))

    nothing, counts = spotter_rows(spotter, processor, vocabulary, words[2:])
    assert not nothing.any() and not any(counts)

    # What an old character looks like is none of a new one's.
    alike = SyntheticWord(words[0].image, "a", "en", "font", words[0].centres)
    away, _ = spotter_rows(spotter, processor, vocabulary, [*words, *[alike] * 5])
    assert frames[0] @ away[places["ক"]] < frames[0] @ rows[places["ক"]] - 0.01


def test_image_rows_are_mean_embeddings_of_renderings(fonts):
    bank = random_bank("en")
    vocabulary = extended_vocabulary(bank, load_charset("ar"))
    first = len(bank)
    mclip = make_mclip(first)
    characters = CharacterSynthesiser(fonts, vocabulary.rows, {"ar": load_charset("ar").letters})
    characters.drawable = [pair for pair in characters.drawable if pair[0] % 5]  # as if some were in no font
    rows, counts = image_rows(mclip, vocabulary, first, characters, 3, 7)
    drawn = {row for row, _ in characters.drawable if row >= first}
    assert {first + index for index, count in enumerate(counts) if count} == drawn and set(counts) == {0, 3}
    assert torch.equal(rows.norm(dim=-1) > 0.5, torch.tensor(counts) > 0)
    row = max(drawn)
    images = np.stack([characters.crop(row, "ar", 7, index).image for index in range(3)])
    with torch.no_grad():
        embeds = mclip.get_image_features(torch.tensor(images)[:, None] / 127.5 - 1)
    assert torch.allclose(rows[row - first], F.normalize(embeds.mean(0), dim=-1), atol=1e-5)


def test_prompt_rows_need_an_mclip_that_was_tuned():
    bank = random_bank("en", "hi")
    vocabulary = extended_vocabulary(bank, load_charset("mr"))
    with pytest.raises(ValueError, match=f"tuned on {len(bank)} characters.*--rows image"):
        prompt_rows(make_mclip(len(bank)), vocabulary, len(bank))
    mclip = make_mclip(len(vocabulary.rows))
    rows = prompt_rows(mclip, vocabulary, len(bank))
    with torch.no_grad():
        assert torch.equal(rows, text_rows(mclip, vocabulary)[len(bank) :])


def test_refuses_an_mclip_of_another_space():
    vocabulary = build_vocabulary(load_charsets(["en", "hi"]))
    mclip = make_mclip(len(vocabulary.rows) + 5)
    with torch.no_grad():
        check_space(mclip, vocabulary, make_bank(vocabulary, text_rows(mclip, vocabulary)))
    with pytest.raises(ValueError, match=r"has another space than the bank \(mean cosine"):
        check_space(mclip, vocabulary, random_bank("en", "hi"))
    narrow = random_bank("en", "hi")
    narrow.prototypes = narrow.prototypes[:, :8]
    with pytest.raises(ValueError, match="name one that made the bank"):
        check_space(mclip, vocabulary, narrow)
