"""What mCLIP trains on and is judged by: character batches, the text side as bank rows, retrieval."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader

from mstr_hf.charsets import load_charsets
from mstr_hf.models.configuration_mclip import MCLIPConfig
from mstr_hf.models.modeling_mclip import MCLIPModel
from mstr_hf.models.prototype_bank import PrototypeBank
from mstr_hf.models.tokenization_mstr import MSTRTokenizer
from mstr_hf.synthesis.characters import FRAME_HEIGHT, FRAME_WIDTH, CharacterSynthesiser, SyntheticCharacter
from mstr_hf.synthesis.stream import SyntheticStream
from mstr_hf.vocabulary import OFFSET, Vocabulary, build_vocabulary

from .lookalikes import look_alike
from .sources import RealWords, WordMixture
from .trainer import Batch, Sample, begin_worker, to_device

KINDS = ("letters", "diacritics", "digits", "punctuation")
"""Names of the subtypes, in the order of their ids."""

# Pictures in TensorBoard.
SAMPLES = 32
# What a mixture calls the part that is drawn.
_DRAWN = "drawn"


class CharacterBatches:
    """Batches of crops and prompts; batch n is a function of the seed and n alone.

    Args:
        characters: Gives the crops.
        vocabulary: Prompts and subtypes.
        model: Knows the margins.
        batch_size: Crops a batch.
        bank: The bank whose space is to be learned; its rows are the first of the vocabulary.
    """

    def __init__(
        self,
        characters: CharacterSynthesiser | CharacterMixture,
        vocabulary: Vocabulary,
        model: MCLIPModel,
        batch_size: int,
        bank: PrototypeBank | None = None,
    ):
        self.characters = characters
        tokenizer = vocabulary.tokenizer()
        self.prompts = {(row, lang): tokenizer(prompt)["input_ids"] for row, lang, prompt in vocabulary.prompts()}
        self.subtypes = [row.subtype for row in vocabulary.rows]
        self.margins = {lang: model.margin(lang) for lang in vocabulary.languages}
        self.batch_size = batch_size
        self.prototypes: np.ndarray | None = None
        if bank is not None:
            new = len(vocabulary.rows) - len(bank)
            self.prototypes = np.pad(bank.prototypes.float().numpy(force=True), ((0, new), (0, 0)))

    def batch(self, seed: int, number: int) -> dict[str, np.ndarray]:
        """One batch: `pixel_values` uint8 `[B, 1, 40, 48]`, `input_ids` `[B, 3]`, and `[B]` what the losses need."""
        indices = range(number * self.batch_size, (number + 1) * self.batch_size)
        crops = [self.characters.character(seed, index) for index in indices]
        rows = np.array([crop.row for crop in crops])
        batch = {
            "pixel_values": np.stack([crop.image for crop in crops])[:, None],
            "input_ids": np.array([self.prompts[crop.row, crop.lang] for crop in crops]),
            "rows": rows,
            "subtypes": np.array([self.subtypes[crop.row] for crop in crops]),
            "margins": np.array([self.margins[crop.lang] for crop in crops], np.float32),
        }
        return batch if self.prototypes is None else batch | {"prototypes": self.prototypes[rows]}


class CharacterMixture:
    """Drawn characters and labelled pictures of single characters, mixed by weight.

    A picture of another size than a crop's is fitted into it. What a language does not use comes under one that does.

    Args:
        drawn: Draws characters.
        labelled: The pictures.
        vocabulary: Rows of the characters.
        labelled_share: Share of the pictures, more than 0, and 1 at most.
    """

    def __init__(self, drawn: CharacterSynthesiser, labelled: RealWords, vocabulary: Vocabulary, labelled_share: float):
        self.drawn, self.labelled = drawn, labelled
        self.vocabulary = vocabulary
        self._rows = {row.character: index for index, row in enumerate(vocabulary.rows)}
        parts = [(self, lang, labelled_share * len(rows) / len(labelled)) for lang, rows in labelled.rows.items()]
        if labelled_share < 1:
            parts.append((self, _DRAWN, 1 - labelled_share))
        self._mixture = WordMixture(parts)  # type: ignore[arg-type]  # it mixes whatever sources give

    def character(self, seed: int, index: int) -> SyntheticCharacter:
        """The crop at a position of the endless sequence."""
        return self._mixture.word(seed, index)  # type: ignore[return-value]

    def word(self, seed: int, index: int, lang: str) -> SyntheticCharacter:
        """The crop at a position of the sequence of one of the parts."""
        if lang == _DRAWN:
            return self.drawn.character(seed, index)
        picture = self.labelled.word(seed, index, lang)
        row = self._rows[picture.text]
        known = self.vocabulary.rows[row].languages
        return SyntheticCharacter(_fitted(picture.image), row, lang if lang in known else known[0])


def _fitted(image: np.ndarray) -> np.ndarray:
    """A picture in the middle of a crop `[40, 48]`, its rim drawn out to the crop's."""
    height, width = image.shape
    scale = min(FRAME_HEIGHT / height, FRAME_WIDTH / width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    if size[::-1] != image.shape:
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    above, before = (FRAME_HEIGHT - size[1]) // 2, (FRAME_WIDTH - size[0]) // 2
    rest = FRAME_HEIGHT - size[1] - above, FRAME_WIDTH - size[0] - before
    return np.pad(image, ((above, rest[0]), (before, rest[1])), mode="edge")


def character_batches(
    characters: CharacterSynthesiser | CharacterMixture,
    vocabulary: Vocabulary,
    model: MCLIPModel,
    batch_size: int,
    seed: int,
    num_workers: int,
    first: int,
    process: int,
    processes: int,
    bank: PrototypeBank | None = None,
) -> Iterator[Batch]:
    """Endless batches of one training process from a given one on (see `Trainer` and `CharacterBatches`)."""
    draw = CharacterBatches(characters, vocabulary, model, batch_size, bank).batch
    batches = SyntheticStream(draw, seed, first * processes, process, processes)
    prefetch = 4 if num_workers else None
    # Arrays go through pipes; tensors would go through shared memory, of which containers may have little.
    loader = DataLoader(
        batches,
        batch_size=None,
        num_workers=num_workers,
        prefetch_factor=prefetch,
        collate_fn=_as_it_is,  # type: ignore[arg-type]  # without batching it is given what the dataset yields
        worker_init_fn=begin_worker,
    )
    for batch in loader:
        yield {name: torch.from_numpy(array) for name, array in batch.items()}


def _as_it_is(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return batch


def grown(model: MCLIPModel, vocabulary: Vocabulary) -> MCLIPModel:
    """A trained mCLIP with room for the further characters of a larger vocabulary, whose embeddings are new."""
    config = cast(MCLIPConfig, copy.deepcopy(model.config))
    config.vocab_size, config.num_rows = OFFSET + len(vocabulary.rows), len(vocabulary.rows)
    larger = MCLIPModel(config)
    trained = model.state_dict()
    for name, values in larger.state_dict().items():
        old = trained[name]
        (values[: len(old)] if old.ndim else values).copy_(old)
    return larger


def check_places(mclip: str, vocabulary: Vocabulary) -> None:
    """Refuses an mCLIP, by its folder, whose languages and characters have other ids than in a vocabulary.

    Raises:
        ValueError: If some have.
    """
    ids = vocabulary.tokenizer().get_vocab()
    for token, index in MSTRTokenizer.from_pretrained(mclip).get_vocab().items():
        if not token.startswith("<reserved_") and ids.get(token) != index:
            raise ValueError(
                f"the mCLIP {mclip} has {token!r} at another place than languages {','.join(vocabulary.languages)}: "
                "begin with its languages, in its order"
            )


def vocabulary_of(mclip: str) -> Vocabulary:
    """The vocabulary of a trained mCLIP, by its folder: that of its languages, in its order.

    Raises:
        ValueError: If the charsets are others than those that it was trained on.
    """
    tokens = MSTRTokenizer.from_pretrained(mclip).get_vocab()
    places = sorted((place, token) for token, place in tokens.items() if token.startswith("<lang="))
    vocabulary = build_vocabulary(load_charsets([token[len("<lang=") : -1] for _, token in places]))
    check_places(mclip, vocabulary)
    return vocabulary


def text_rows(model: MCLIPModel, vocabulary: Vocabulary) -> torch.Tensor:
    """Bank rows `[N, D]`: the normalised mean of a character's text embeddings over the languages that use it."""
    tokenizer = vocabulary.tokenizer()
    rows, _, prompts = zip(*vocabulary.prompts(), strict=True)
    input_ids = torch.tensor(tokenizer(list(prompts))["input_ids"], device=model.device)
    embeds = model.get_text_features(input_ids)
    sums = torch.zeros(len(vocabulary.rows), embeds.shape[1], device=embeds.device)
    sums.index_add_(0, torch.tensor(rows, device=embeds.device), embeds)
    return torch.nn.functional.normalize(sums, dim=-1)


def text_bank(model: MCLIPModel, vocabulary: Vocabulary, revision: str = "") -> PrototypeBank:
    """The prototype bank of an mCLIP, in eval mode; `revision` says which one it is."""
    with torch.no_grad():
        prototypes = text_rows(model, vocabulary)
    return PrototypeBank(
        prototypes,
        [row.character for row in vocabulary.rows],
        [row.subtype for row in vocabulary.rows],
        [row.script for row in vocabulary.rows],
        [row.languages for row in vocabulary.rows],
        vocabulary.joiners,
        revision,
    )


@dataclass(frozen=True)
class Retrieval:
    """What the nearest bank row of each of some crops is.

    Attributes:
        languages: Language of each crop.
        rows: True rows, `[n]`.
        found: Nearest rows of all, `[n]`.
        found_in_language: Nearest rows of those that the crop's language uses, `[n]`.
        vocabulary: The rows' characters.
    """

    languages: Sequence[str]
    rows: np.ndarray
    found: np.ndarray
    found_in_language: np.ndarray
    vocabulary: Vocabulary

    def top1(
        self, within: bool, kind: int | None = None, lang: str | None = None, lookalikes: bool = False
    ) -> float | None:
        """Share of crops that find their own row.

        Args:
            within: Look within the crop's language rather than among all rows.
            kind: Subtype of the characters that count; all of them where left out.
            lang: Language of the crops that count.
            lookalikes: Let a row that looks alike (see `lookalikes`) pass for the right one.

        Returns:
            The share, None if no crop counts.
        """
        characters = self.vocabulary.rows
        found = self.found_in_language if within else self.found
        hits = [
            row == nearest or (lookalikes and look_alike(characters[row].character, characters[nearest].character))
            for row, nearest, language in zip(self.rows, found, self.languages, strict=True)
            if kind in (None, characters[row].subtype) and lang in (None, language)
        ]
        return float(np.mean(hits)) if hits else None

    def figures(self) -> dict[str, float]:
        """Top-1 among all rows and within the language, over all crops, by kind of character and by language."""
        figures = {"top1": self.top1(False), "top1_in_language": self.top1(True)}
        for kind, name in enumerate(KINDS):
            figures[f"top1_{name}"] = self.top1(False, kind)
            figures[f"top1_{name}_in_language"] = self.top1(True, kind)
        figures |= {f"top1_{lang}": self.top1(False, lang=lang) for lang in self.vocabulary.languages}
        return {name: round(value, 4) for name, value in figures.items() if value is not None}

    def table(self) -> str:
        """Top-1 in per cent by language and kind: right, and right or a look-alike in brackets."""
        lines = ["| | crops | " + " | ".join(f"{name}, {scope}" for name in KINDS for scope in ("own", "all")) + " |"]
        lines.append("| --- | --: |" + " --: |" * 2 * len(KINDS))
        for lang in [*self.vocabulary.languages, None]:
            cells = []
            for kind in range(len(KINDS)):
                for within in (True, False):
                    shares = [self.top1(within, kind, lang, alike) for alike in (False, True)]
                    strict, loose = (f"{100 * share:.1f}" if share is not None else "-" for share in shares)
                    cells.append(f"{strict} ({loose})" if strict != "-" else "-")
            count = sum(lang in (None, language) for language in self.languages)
            lines.append(f"| {lang or 'all'} | {count} | {' | '.join(cells)} |")
        return "\n".join(lines)


def retrieve(model: MCLIPModel, vocabulary: Vocabulary, crops: Sequence[SyntheticCharacter]) -> Retrieval:
    """Looks crops up among the rows that the text tower makes.

    Args:
        model: The model, in eval mode.
        vocabulary: Characters of the rows.
        crops: Crops in fonts that training never sees.
    """
    bank = text_rows(model, vocabulary)
    images = torch.from_numpy(np.stack([crop.image for crop in crops])[:, None])
    parts = [to_device({"pixel_values": part}, bank.device)["pixel_values"] for part in images.split(256)]
    similarity = torch.cat([model.get_image_features(part) for part in parts]) @ bank.t()
    masks = {lang: torch.tensor(vocabulary.language_mask([lang])) for lang in vocabulary.languages}
    allowed = torch.stack([masks[crop.lang] for crop in crops]).to(bank.device)
    return Retrieval(
        [crop.lang for crop in crops],
        np.array([crop.row for crop in crops]),
        similarity.argmax(1).numpy(force=True),
        similarity.masked_fill(~allowed, -2).argmax(1).numpy(force=True),
        vocabulary,
    )


def retrieval_figures(
    model: MCLIPModel, vocabulary: Vocabulary, crops: Sequence[SyntheticCharacter]
) -> dict[str, float]:
    """Figures of an evaluation: retrieval, how near the rows are to each other, and the logit scale."""
    bank = text_rows(model, vocabulary)
    near = (bank @ bank.t()).fill_diagonal_(-1).max(1).values
    more = {"nearest_row_mean": near.mean(), "nearest_row_max": near.max(), "logit_scale": model.logit_scale.exp()}
    figures = retrieve(model, vocabulary, crops).figures()
    return figures | {name: round(float(value), 4) for name, value in more.items()}


def retrieval_samples(model: MCLIPModel, vocabulary: Vocabulary, crops: Sequence[SyntheticCharacter]) -> list[Sample]:
    """Some crops with the character that each is taken for."""
    found = retrieve(model, vocabulary, crops[:SAMPLES])
    characters = [row.character for row in vocabulary.rows]
    return [
        Sample(crop.image, characters[row], characters[nearest])
        for crop, row, nearest in zip(crops, found.rows, found.found, strict=False)
    ]
