import random
from collections.abc import Iterator

import torch
from torch.nn import functional as F

from mstr_hf.models.configuration_spotter import SpotterConfig
from mstr_hf.models.modeling_spotter import SpotterModel
from mstr_hf.models.prototype_bank import PrototypeBank
from mstr_hf.training.trainer import Batch, Trainer, TrainingArguments
from mstr_hf.training.words import HEIGHT, collate, model_pixels, reading_accuracy


def test_spotter_learns_32_words_of_two_directions(synthesiser, vocabulary, tmp_path):
    words = []
    counts = {"en": 22, "ar": 10}
    for lang, count in counts.items():
        drawn = (synthesiser.word(0, index, lang) for index in range(10_000))
        short = (word for word in drawn if 2 <= len(word.text) <= 6)
        words += [next(short) for _ in range(count)]
    rows = vocabulary.rows
    bank = PrototypeBank(
        F.normalize(torch.randn(len(rows), 64, generator=torch.Generator().manual_seed(0)), dim=-1),
        [row.character for row in rows],
        [row.subtype for row in rows],
        [row.script for row in rows],
        [row.languages for row in rows],
    )
    torch.manual_seed(0)
    config = SpotterConfig(
        stem_channels=16,
        stage_channels=(24, 32, 64),
        stage_blocks=(1, 1),
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=128,
        projection_dim=64,
        num_prototypes=len(bank),
    )
    model = SpotterModel(config)
    model.set_bank(bank, base=True)
    items = sorted(((model_pixels(word.image, HEIGHT), word) for word in words), key=lambda item: item[0].shape[1])
    parts = [collate(items[:16], vocabulary), collate(items[16:], vocabulary)]

    def batches(first: int, process: int, processes: int) -> Iterator[Batch]:
        rng = random.Random(0)
        while True:
            yield from rng.sample(parts, len(parts))

    args = TrainingArguments(
        str(tmp_path), max_steps=300, learning_rate=3e-3, warmup_steps=10, log_steps=40, save_steps=1000
    )
    Trainer(args, model, batches).train().eval()
    with torch.no_grad():
        figures = reading_accuracy(model, words, vocabulary)
    assert sum(figures[f"wrr_{lang}"] * count for lang, count in counts.items()) >= 0.9 * 32, figures
