"""What mCLIP trains on and is judged by: character batches, the text side as bank rows, retrieval."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from mstr_hf.models.modeling_mclip import MCLIPModel
from mstr_hf.synthesis.characters import CharacterSynthesiser, SyntheticCharacter
from mstr_hf.vocabulary import Vocabulary

from .trainer import Batch


class CharacterBatches(IterableDataset):
    """Endless batches of crops and prompts; batch n is a function of the seed and n alone."""

    def __init__(
        self,
        characters: CharacterSynthesiser,
        vocabulary: Vocabulary,
        model: MCLIPModel,
        batch_size: int,
        seed: int,
        first: int,
        step: int,
    ):
        self.characters = characters
        tokenizer = vocabulary.tokenizer()
        self.prompts = {
            (row, lang): tokenizer(prompt)["input_ids"] for row, lang, prompt in vocabulary.prompts()
        }
        self.subtypes = [row.subtype for row in vocabulary.rows]
        self.margins = {lang: model.margin(lang) for lang in vocabulary.languages}
        self.batch_size, self.seed, self.first, self.step = batch_size, seed, first, step

    def __iter__(self) -> Iterator[Batch]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        number = self.first + worker * self.step
        while True:
            indices = range(number * self.batch_size, (number + 1) * self.batch_size)
            crops = [self.characters.character(self.seed, index) for index in indices]
            yield {
                "pixel_values": to_pixels(np.stack([crop.image for crop in crops])),
                "input_ids": torch.tensor([self.prompts[crop.row, crop.lang] for crop in crops]),
                "rows": torch.tensor([crop.row for crop in crops]),
                "subtypes": torch.tensor([self.subtypes[crop.row] for crop in crops]),
                "margins": torch.tensor([self.margins[crop.lang] for crop in crops]),
            }
            number += self.step * workers


def to_pixels(images: np.ndarray) -> torch.Tensor:
    """uint8 `[B, H, W]` to float `[B, 1, H, W]` in -1 to 1."""
    return torch.from_numpy(images)[:, None].float() / 127.5 - 1


def retrieval(model: MCLIPModel, vocabulary: Vocabulary, crops: Sequence[SyntheticCharacter]) -> dict[str, float]:
    """Top-1 retrieval of held-out crops: over all rows, within the language, and by kind of character."""
    bank = text_rows(model, vocabulary)
    images = to_pixels(np.stack([crop.image for crop in crops])).to(bank.device)
    embeds = torch.cat([model.get_image_features(part) for part in images.split(256)])
    similarity = embeds @ bank.t()
    rows = torch.tensor([crop.row for crop in crops], device=bank.device)
    hits = similarity.argmax(1) == rows
    masks = {lang: torch.tensor(vocabulary.language_mask([lang]), device=bank.device) for lang in vocabulary.languages}
    allowed = torch.stack([masks[crop.lang] for crop in crops])
    own = similarity.masked_fill(~allowed, -2).argmax(1) == rows
    marks = torch.tensor([vocabulary.rows[crop.row].subtype == 1 for crop in crops], device=bank.device)
    near = (bank @ bank.t()).fill_diagonal_(-1).max(1).values
    figures = {
        "top1": hits.float().mean(),
        "top1_in_language": own.float().mean(),
        "top1_marks": own[marks].float().mean(),
        "top1_others": own[~marks].float().mean(),
        "nearest_row_mean": near.mean(),
        "nearest_row_max": near.max(),
        "logit_scale": model.logit_scale.exp(),
    }
    return {name: round(float(value), 4) for name, value in figures.items()}


def text_rows(model: MCLIPModel, vocabulary: Vocabulary) -> torch.Tensor:
    """Bank rows `[N, D]`: the normalised mean of a character's text embeddings over the languages that use it."""
    tokenizer = vocabulary.tokenizer()
    rows, _, prompts = zip(*vocabulary.prompts(), strict=True)
    input_ids = torch.tensor(tokenizer(list(prompts))["input_ids"], device=model.device)
    embeds = model.get_text_features(input_ids)
    sums = torch.zeros(len(vocabulary.rows), embeds.shape[1], device=embeds.device)
    sums.index_add_(0, torch.tensor(rows, device=embeds.device), embeds)
    return torch.nn.functional.normalize(sums, dim=-1)
