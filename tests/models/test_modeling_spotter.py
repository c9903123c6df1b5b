import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from mstr_hf.models.configuration_spotter import SpotterConfig
from mstr_hf.models.modeling_spotter import (
    TOKEN_OFFSET,
    SpotterModel,
    SpotterOutput,
    bank_directions,
    collapse_frames,
    logical_order,
)
from mstr_hf.models.prototype_bank import BankError, PrototypeBank
from mstr_hf.models.text import visual_order

# Letters of both directions, both kinds of numbers, marks, joiners, brackets and other neutrals.
ALPHABET = "abकسلمא12٣٤.-(%\u064e\u0301\u200d₹"


def tiny_bank(characters: str, dimensions: int = 24, seed: int = 0) -> PrototypeBank:
    count = len(characters)
    rows = F.normalize(torch.randn(count, dimensions, generator=torch.Generator().manual_seed(seed)), dim=-1)
    return PrototypeBank(rows, characters, [0] * count, ["Zyyy"] * count, [["en"]] * count)


DIRECTIONS = bank_directions(SpotterConfig(num_prototypes=len(ALPHABET), bank=tiny_bank(ALPHABET).metadata()))


def texts(output: SpotterOutput, bank: PrototypeBank) -> list[str]:
    ids = output.top_k_ids[..., 0].tolist()
    return ["".join(bank.characters[i - TOKEN_OFFSET] for i in row if i) for row in ids]


# -------------------- order


@given(st.lists(st.text(ALPHABET, max_size=12), min_size=1, max_size=6))
def test_logical_order_is_visual_order(words):
    length = max(map(len, words)) + 1
    directions = torch.zeros(len(words), length, dtype=torch.int8)
    for row, word in zip(directions, words, strict=True):
        for place, index in enumerate(visual_order(word)):
            row[place] = DIRECTIONS[ALPHABET.index(word[index])]
        row[len(word) :] = torch.randint(0, 3, (length - len(word),))  # padding may hold anything
    order = logical_order(directions, torch.tensor([len(word) for word in words]))
    for row, word in zip(order.tolist(), words, strict=True):
        visual = [word[index] for index in visual_order(word)]
        assert "".join(visual[place] for place in row[: len(word)]) == word
        assert row[len(word) :] == list(range(len(word), length))


# -------------------- frames to characters


def naive_steps(similarity, blank_similarity, frames, top_k, max_length):
    """What `collapse_frames` says of one image, one frame at a time."""
    runs: list[list[int]] = []
    previous = None
    for frame in range(frames):
        best = max(similarity[frame])
        current = similarity[frame].index(best) if best > blank_similarity[frame] else None
        if current is not None and current == previous:
            runs[-1].append(frame)
        elif current is not None:
            runs.append([frame])
        previous = current
    peaks = [max(run, key=lambda frame: (max(similarity[frame]), -frame)) for run in runs[:max_length]]
    visual = "".join(ALPHABET[similarity[frame].index(max(similarity[frame]))] for frame in peaks)
    steps = []
    for place in visual_order(visual):
        scores = similarity[peaks[place]]
        rows = sorted(range(len(scores)), key=lambda row: -scores[row])[:top_k]
        steps.append([(row + TOKEN_OFFSET, scores[row]) for row in rows])
    return steps


@st.composite
def similarities(draw):
    """Frames whose winner, a character or blank, and its height are drawn; all other cosines are distinct noise."""
    batch, frames = draw(st.integers(1, 3)), draw(st.integers(1, 9))
    rows = len(ALPHABET)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    noise = torch.rand(batch, frames, rows + 1, generator=generator) * 0.5 - 0.5
    favourites = draw(st.lists(st.integers(0, rows), min_size=1, max_size=3))
    for image in noise:
        for frame in image:
            frame[draw(st.sampled_from(favourites))] = draw(st.sampled_from([0.25, 0.5]))
    counts = draw(st.lists(st.integers(0, frames), min_size=batch, max_size=batch))
    return noise[..., :rows].contiguous(), noise[..., rows].contiguous(), counts


@given(similarities(), st.integers(1, 4), st.integers(1, 10))
def test_collapse_frames_by_hand(drawn, top_k, max_length):
    similarity, blank_similarity, counts = drawn
    frames = similarity.shape[1]
    frame_mask = torch.arange(frames) < torch.tensor(counts)[:, None]
    ids, scores, mask = collapse_frames(similarity, blank_similarity, frame_mask, DIRECTIONS, top_k, max_length)
    assert ids.shape == scores.shape == (len(counts), min(frames, max_length), top_k)
    for b, count in enumerate(counts):
        steps = naive_steps(similarity[b].tolist(), blank_similarity[b].tolist(), count, top_k, max_length)
        got = [list(zip(i, s, strict=True)) for i, s in zip(ids[b].tolist(), scores[b].tolist(), strict=True)]
        assert got[: len(steps)] == steps
        assert all(pair == (0, 0.0) for step in got[len(steps) :] for pair in step)
        assert mask[b].tolist() == [place < len(steps) for place in range(len(got))]


def test_blank_wins_where_cosines_are_equal():
    similarity, blank = torch.tensor([[[0.1, 0.5], [0.6, 0.1]]]), torch.tensor([[0.5, 0.5]])
    _, scores, mask = collapse_frames(similarity, blank, torch.ones(1, 2).bool(), torch.tensor([1, 1]), 1, 9)
    assert mask.tolist() == [[True, False]] and scores[0, 0, 0] == similarity[0, 1, 0]


def test_bank_of_fewer_rows_than_hypotheses():
    similarity, blank = torch.tensor([[[0.9, 0.1], [-0.5, -0.5]]]), torch.tensor([[0.0, 0.0]])
    ids, scores, _ = collapse_frames(similarity, blank, torch.ones(1, 2).bool(), torch.tensor([1, 1]), 4, 9)
    assert ids.tolist() == [[[TOKEN_OFFSET, TOKEN_OFFSET + 1, 0, 0], [0] * 4]]
    assert scores[0, 0].tolist() == pytest.approx([0.9, 0.1, -1, -1]) and scores[0, 1].tolist() == [0] * 4


# -------------------- scores


def make_scorer(characters: str, scale: float, temperature: float) -> SpotterModel:
    config = SpotterConfig(
        stem_channels=2,
        stage_channels=(2, 2, 2),
        stage_blocks=(0, 0),
        num_hidden_layers=0,
        num_attention_heads=1,
        projection_dim=24,
        num_prototypes=len(characters),
        score_temperature=temperature,
        top_k=1,
    )
    model = SpotterModel(config)
    model.set_bank(tiny_bank(characters), base=True)
    model.head.log_scale.data.fill_(math.log(scale))
    return model


def spotted(model: SpotterModel, similarity, blank_similarity, frame_mask) -> SpotterOutput:
    ids, scores, mask = collapse_frames(
        similarity, blank_similarity, frame_mask, model.head.directions, 1, model.config.max_length
    )
    return SpotterOutput(
        similarity=similarity,
        blank_similarity=blank_similarity,
        frame_mask=frame_mask,
        top_k_ids=ids,
        top_k_scores=scores,
        character_mask=mask,
    )


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_word_score_is_the_sum_over_all_paths(temperature):
    characters, scale = "aس1", 3.0
    model = make_scorer(characters, scale, temperature)
    generator = torch.Generator().manual_seed(0)
    similarity, blank_similarity = torch.rand(40, 5, 3, generator=generator), torch.rand(40, 5, generator=generator)
    counts = torch.arange(40) % 5 + 1
    frame_mask = torch.arange(5) < counts[:, None]
    output = spotted(model, similarity, blank_similarity, frame_mask)
    scores = model.word_scores(output)
    readings = texts(output, tiny_bank(characters))
    assert "" in readings and any("س" in word and len(word) > 2 for word in readings)
    assert any(a == b for word in readings for a, b in itertools.pairwise(word))
    chances = (scale / temperature * torch.cat([blank_similarity[..., None], similarity], -1)).softmax(-1)
    for b, reading in enumerate(readings):
        visual = [reading[index] for index in visual_order(reading)]
        total = 0.0
        for path in itertools.product(range(4), repeat=int(counts[b])):
            collapsed = [characters[c - 1] for c, _ in itertools.groupby(path) if c]
            if collapsed == visual:
                total += math.prod(chances[b, frame, c].item() for frame, c in enumerate(path))
        assert scores[b].item() == pytest.approx(total, rel=1e-4), reading


@given(st.lists(st.lists(st.integers(0, 3), min_size=6, max_size=6), min_size=1, max_size=5))
def test_scores_of_certain_readings_are_at_most_1(winners):
    model = make_scorer("abc", 100.0, 0.5)
    cosines = F.one_hot(torch.tensor(winners), 4) * 2.0 - 1
    output = spotted(model, cosines[..., 1:], cosines[..., 0], torch.ones(len(winners), 6).bool())
    scores = model.word_scores(output)
    assert (scores <= 1).all() and (scores > 0.999).all()


# -------------------- the whole model


def test_outputs_have_the_shapes_of_the_docstring(spotter, bank, images):
    output = spotter(**images)
    batch, _, _, width = images["pixel_values"].shape
    frames, rows, length = width // 2, len(bank), min(width // 2, 64)
    assert output.embeddings.shape == (batch, frames, 24)
    assert torch.allclose(output.embeddings.norm(dim=-1), torch.ones(batch, frames))
    assert output.similarity.shape == (batch, frames, rows) and output.blank_similarity.shape == (batch, frames)
    assert torch.allclose(output.similarity, output.embeddings @ bank.prototypes.t(), atol=1e-6)
    assert output.frame_mask.sum(1).tolist() == [int(mask.sum()) // 2 for mask in images["pixel_mask"]]
    assert output.top_k_ids.shape == output.top_k_scores.shape == (batch, length, 5)
    assert output.character_mask.shape == (batch, length)
    assert [tuple(level.shape) for level in output.feature_maps] == [
        (batch, channels, height, width // 4) for channels, height in ((8, 8), (12, 4), (16, 2))
    ]
    assert output.column_mask.shape == (batch, width // 4)
    assert output.loss is None
    assert any(texts(output, bank))  # the random weights read something, or much below would be empty


@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"image_height": 48, "column_width": 8, "frames_per_column": 4},
        {"image_height": 48, "merge_rows": True},
    ],
)
def test_padding_never_changes_a_reading(make_spotter, bank, images, shape):
    spotter = make_spotter(bank, **shape)
    column, height = spotter.config.column_width, spotter.config.image_height
    images = images | {"pixel_values": F.interpolate(images["pixel_values"], (height, images["pixel_mask"].shape[1]))}
    pixels = images["pixel_values"].clone()
    # whatever stands in the padding
    pixels[~images["pixel_mask"][:, None, None].expand_as(pixels)] = 5.0
    together = spotter(pixels, images["pixel_mask"])
    widths = images["pixel_mask"].sum(1).tolist()
    assert len(set(widths)) == len(widths)
    for b, width in enumerate(widths):
        alone = spotter(images["pixel_values"][b : b + 1, ..., :width])
        frames, steps = width // 2, min(width // 2, 64)
        assert torch.allclose(together.similarity[b, :frames], alone.similarity[0], atol=1e-5)
        assert torch.allclose(together.blank_similarity[b, :frames], alone.blank_similarity[0], atol=1e-5)
        assert torch.equal(together.top_k_ids[b, :steps], alone.top_k_ids[0])
        assert not together.character_mask[b, steps:].any()
        assert together.feature_maps[-1].shape[2] == (1 if shape.get("merge_rows") else height // 16)
        for level, own, step in zip(together.feature_maps, alone.feature_maps, (4, column, column), strict=True):
            assert own.shape[-1] == width // step
            assert torch.allclose(level[b, ..., : width // step], own[0], atol=1e-5)
            assert not level[b, ..., width // step :].any()
        score = spotter.word_scores(together)[b].item()
        assert score == pytest.approx(spotter.word_scores(alone).item(), rel=1e-3)


def test_padding_never_changes_the_loss(spotter, images, labels):
    frames = torch.randint(0, 2, (len(labels), images["pixel_mask"].shape[1] // 2)) * labels[:, :1]
    wider = {"pixel_values": F.pad(images["pixel_values"], (0, 32)), "pixel_mask": F.pad(images["pixel_mask"], (0, 32))}
    loss = spotter(**images, labels=labels, frame_labels=frames).loss
    longer = {"labels": F.pad(labels, (0, 3), value=-100), "frame_labels": F.pad(frames, (0, 16), value=7)}
    padded = spotter(**wider, **longer).loss
    assert torch.allclose(loss, padded, rtol=1e-4)


def test_loss_is_ctc_and_alignment(spotter, images, labels, bank):
    output = spotter(**images, labels=labels)
    logits = spotter.head.scale * torch.cat([output.blank_similarity[..., None], output.similarity], -1)
    log_probs = logits.log_softmax(-1)
    targets = (labels - TOKEN_OFFSET + 1).clamp_min(0)  # words from left to right
    lengths = (labels != -100).sum(1)
    ctc = F.ctc_loss(log_probs.transpose(0, 1), targets, output.frame_mask.sum(1), lengths)
    assert torch.allclose(output.loss, ctc)
    frame_labels = torch.full(output.frame_mask.shape, -100)
    frame_labels[0, :3] = torch.tensor([0, TOKEN_OFFSET + 4, 0])
    expected = -log_probs[0, 1, 5] / 2 - (log_probs[0, 0, 0] + log_probs[0, 2, 0]) / 4
    loss = spotter(**images, labels=labels, frame_labels=frame_labels).loss
    assert torch.allclose(loss, ctc + expected)


@pytest.mark.parametrize("wrong", [0, 1, TOKEN_OFFSET - 1, 10_000])
def test_labels_that_are_no_characters_are_refused(spotter, images, labels, wrong):
    spoilt = labels.clone()
    spoilt[0, 0] = wrong
    with pytest.raises(ValueError, match="leave start and end out"):
        spotter(**images, labels=spoilt)


def test_labels_of_right_to_left_words_are_put_in_the_order_of_the_frames(spotter, images, bank):
    def loss(text: str) -> float:
        ids = torch.tensor([[TOKEN_OFFSET + bank.row(character) for character in text]])
        return spotter(images["pixel_values"][:1], images["pixel_mask"][:1], labels=ids).loss.item()

    # With the direction of its rows taken away, the visual order of the word has the loss that the word had.
    word = "سلام12"
    in_order = loss(word)
    spotter.head.directions.zero_()
    assert loss("".join(word[index] for index in visual_order(word))) == pytest.approx(in_order)
    assert loss(word) != pytest.approx(in_order)


def test_language_mask(spotter, bank, images):
    masks = torch.stack([bank.language_mask([lang]) for lang in ("hi", "ar", "en", "ar")])
    output = spotter(**images, row_mask=masks)
    free = spotter(**images)
    assert (output.top_k_ids != free.top_k_ids).any()
    for b, mask in enumerate(masks):
        rows = output.top_k_ids[b][output.character_mask[b]] - TOKEN_OFFSET
        assert len(rows) and mask[rows].all()
        assert torch.equal(output.similarity[b][:, mask], free.similarity[b][:, mask])
        alone = spotter(**images, row_mask=mask)
        assert torch.equal(alone.top_k_ids[b], output.top_k_ids[b])


def test_overfits_a_few_images(spotter, bank, images, labels, words):
    optimizer = torch.optim.Adam(spotter.train().parameters(), lr=8e-3)
    losses = []
    for _ in range(100):
        optimizer.zero_grad()
        loss = spotter(**images, labels=labels).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]
    assert texts(spotter(**images), bank) == words


# -------------------- the bank


def test_no_weight_has_the_size_of_the_alphabet(spotter, bank, bank_of_three_times_the_size, images):
    mask = bank.language_mask(bank.all_languages)
    before = spotter(**images, row_mask=mask)
    shapes = {name: tensor.shape for name, tensor in spotter.state_dict().items()}
    scores = spotter.word_scores(before)
    spotter.set_bank(bank_of_three_times_the_size)
    after = spotter(**images, row_mask=bank_of_three_times_the_size.language_mask(bank.all_languages))
    assert torch.equal(after.similarity[..., : len(bank)], before.similarity)
    assert texts(after, bank) == texts(before, bank)
    assert torch.equal(after.top_k_ids, before.top_k_ids)
    assert torch.equal(after.top_k_scores, before.top_k_scores)
    assert torch.allclose(spotter.word_scores(after), scores, rtol=1e-3)
    grown = {name: tensor.shape for name, tensor in spotter.state_dict().items()}
    assert grown.pop("head.prototypes") == (3 * len(bank), 24)
    assert shapes.pop("head.prototypes") == (len(bank), 24)
    assert grown == shapes
    assert len(bank) not in itertools.chain(*shapes.values())
    # unmasked, the new rows are read too
    assert (spotter(**images).top_k_ids >= TOKEN_OFFSET + len(bank)).any()


def test_banks_that_do_not_fit_are_refused(spotter, bank):
    count = spotter.config.num_base_prototypes
    before = spotter.get_bank().digest()
    with pytest.raises(BankError, match="rows have 7 dimensions, this model retrieves among 24: use the bank"):
        spotter.set_bank(tiny_bank("abc", 7), base=True)
    moved = PrototypeBank.from_metadata(bank.metadata(), bank.prototypes.roll(1, 0))
    for other in (tiny_bank("abc"), moved):
        with pytest.raises(BankError, match=rf"first {count} rows are not those .* use its own bank, or an extension"):
            spotter.set_bank(other)
    assert spotter.get_bank().digest() == before == bank.digest()


def test_a_model_without_a_bank_says_so():
    with pytest.raises(BankError, match="has no prototype bank: give it one with set_bank"):
        SpotterModel(SpotterConfig(num_prototypes=3)).get_bank()


def test_the_bank_in_the_model_is_the_models_own(spotter, bank):
    rows = bank.prototypes.clone()
    given_bank = PrototypeBank.from_metadata(bank.metadata(), rows)
    spotter.set_bank(given_bank)
    rows.zero_()
    assert torch.equal(spotter.get_bank().prototypes, bank.prototypes)
    assert spotter.get_bank().metadata() == bank.metadata()
    assert not spotter.head.prototypes.requires_grad


# -------------------- saving, precision, speed


def test_save_and_load_is_bit_equal(spotter, bank, bank_of_three_times_the_size, images, tmp_path):
    for number, given_bank in enumerate((bank, bank_of_three_times_the_size)):
        spotter.set_bank(given_bank)
        spotter.save_pretrained(tmp_path / str(number))
        loaded = SpotterModel.from_pretrained(tmp_path / str(number))
        state = spotter.state_dict()
        assert loaded.state_dict().keys() == state.keys()
        assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.state_dict().items())
        assert torch.equal(loaded.head.directions, spotter.head.directions)
        for name, tensor in spotter(**images).items():
            if name != "feature_maps":
                assert torch.equal(loaded(**images)[name], tensor), name
        assert loaded.get_bank().digest() == given_bank.digest()
        loaded.set_bank(bank)


def test_bfloat16(spotter, bank, images, labels, tmp_path):
    spotter.save_pretrained(tmp_path)
    half = SpotterModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half.backbone.stem.conv.weight.dtype == torch.bfloat16
    # the bank stays what it is, and so does its digest
    assert half.head.prototypes.dtype == torch.float32
    assert half.get_bank().digest() == bank.digest()
    output = half(images["pixel_values"].bfloat16(), images["pixel_mask"], labels=labels)
    output.loss.backward()
    full = spotter(**images, labels=labels)
    assert output.loss.item() == pytest.approx(full.loss.item(), rel=0.05)
    assert (output.similarity - full.similarity)[full.frame_mask].abs().max() < 0.1
    assert (half.word_scores(output) <= 1).all()


def test_autocast_retrieves_in_full_precision(spotter, bank, images, labels):
    full = spotter(**images, labels=labels).loss
    with torch.autocast("cpu", torch.bfloat16):
        output = spotter(**images, labels=labels)
    assert torch.allclose(output.similarity, output.embeddings @ bank.prototypes.t(), atol=1e-6)
    output.loss.backward()
    assert output.loss.item() == pytest.approx(full.item(), rel=0.05)
    assert all(parameter.grad.isfinite().all() for parameter in spotter.parameters())


def test_attention_implementations_agree(spotter, images):
    readings = {}
    for name in ("sdpa", "eager"):
        spotter.set_attn_implementation(name)
        assert spotter.backbone.layers[0].attn.config._attn_implementation == name
        readings[name] = spotter(**images)
    mask = readings["sdpa"].frame_mask
    assert torch.allclose(readings["sdpa"].similarity[mask], readings["eager"].similarity[mask], atol=1e-5)


def test_gradient_checkpointing_gives_the_same_gradients(spotter, images, labels):
    # The model is in training mode with the statistics of eval mode, which otherwise move with each pass.
    def gradients() -> dict[str, torch.Tensor]:
        spotter.zero_grad()
        spotter.train()
        for module in spotter.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        spotter(**images, labels=labels).loss.backward()
        return {name: parameter.grad.clone() for name, parameter in spotter.named_parameters()}

    plain = gradients()
    spotter.gradient_checkpointing_enable()
    assert spotter.is_gradient_checkpointing
    assert all(torch.allclose(grad, plain[name], atol=1e-6) for name, grad in gradients().items())


def test_compiles_without_graph_breaks(spotter, images):
    torch._dynamo.reset()
    compiled = torch.compile(spotter, backend="eager", fullgraph=True)
    with torch.no_grad():
        assert torch.equal(compiled(**images).top_k_ids, spotter(**images).top_k_ids)


def test_size_and_work_of_the_standard_shape():
    model = SpotterModel(SpotterConfig(attn_implementation="eager")).eval()
    assert 1e6 < sum(parameter.numel() for parameter in model.parameters()) < 4e6
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model(torch.zeros(1, 1, 32, 128))
    assert 0.1e9 < counter.get_total_flops() / 2 < 0.4e9  # two operations are one multiplication and addition


# -------------------- training


def test_training_step_pays_for_no_reading(spotter, images, labels):
    output = spotter.train()(**images, labels=labels)
    assert output.loss.requires_grad
    assert output.top_k_ids is output.top_k_scores is output.character_mask is None
    assert spotter(**images).top_k_ids is not None
    assert spotter.eval()(**images, labels=labels).top_k_ids is not None


def test_low_rank_adapters(spotter, images, labels):
    peft = pytest.importorskip("peft", reason="missing: peft: pip install '.[test]'")
    adapted = peft.get_peft_model(
        spotter, peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj", "head.projection"], init_lora_weights=False)
    )
    trained = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert trained and all("lora_" in name for name in trained)
    frozen = {name: tensor.clone() for name, tensor in adapted.state_dict().items() if "lora_" not in name}
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = adapted(**images, labels=labels).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(torch.equal(tensor, frozen[name]) for name, tensor in adapted.state_dict().items() if name in frozen)
    with torch.no_grad():
        before = adapted(**images)
        merged = adapted.merge_and_unload()
        after = merged(**images)
    assert type(merged) is SpotterModel
    torch.testing.assert_close(after.similarity, before.similarity, atol=1e-5, rtol=1e-4)


# -------------------- precision, devices


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_bank_keeps_its_precision(spotter, bank, images, dtype):
    full = spotter(**images)
    half = spotter.to(dtype)
    assert half.backbone.norm.weight.dtype == dtype and half.head.prototypes.dtype == torch.float32
    assert half.get_bank().digest() == bank.digest()
    output = half(**images)  # images in full precision, as the processor makes them
    mask = output.frame_mask
    assert output.similarity.dtype == torch.float32
    assert (output.similarity - full.similarity)[mask].abs().max() < 0.1


@torch.no_grad()
@pytest.mark.parametrize("device_map", ["auto", "cpu", {"backbone": "cpu", "head": "cpu"}])
def test_device_map(spotter, images, tmp_path, device_map):
    spotter.save_pretrained(tmp_path)
    loaded = SpotterModel.from_pretrained(tmp_path, device_map=device_map)
    assert torch.equal(loaded(**images).similarity.cpu(), spotter(**images).similarity)


def test_checkpoints_that_do_not_fit_are_refused(spotter, tmp_path):
    for name, change, reason in (
        ("missing", {"head.blank": None}, "1 missing weights, such as head.blank"),
        ("unexpected", {"head.more": torch.ones(2)}, "1 unexpected weights, such as head.more"),
        ("mismatched", {"head.blank": torch.ones(3)}, "1 mismatched weights, such as head.blank"),
    ):
        state = {**spotter.state_dict(), **change}
        spotter.save_pretrained(
            tmp_path / name, state_dict={key: tensor for key, tensor in state.items() if tensor is not None}
        )
        with pytest.raises(ValueError, match=f"{name}: {reason}: the checkpoint is cut off or of another version"):
            SpotterModel.from_pretrained(tmp_path / name)
    _, report = SpotterModel.from_pretrained(tmp_path / "missing", output_loading_info=True)
    assert report["missing_keys"] == {"head.blank"}


def test_rows_that_do_not_match_their_digest_are_refused(spotter, tmp_path):
    spotter.head.prototypes[0] *= -1
    spotter.save_pretrained(tmp_path)
    with pytest.raises(BankError, match=r"rows of the bank in this model do not match their digest.*fetch it again"):
        SpotterModel.from_pretrained(tmp_path).get_bank()


def test_bank_is_checked_again_once_its_rows_have_changed(spotter):
    bank = spotter.get_bank()
    assert spotter.get_bank() is bank  # described once, whatever its size
    spotter.head.prototypes.neg_()
    with pytest.raises(BankError, match="do not match their digest"):
        spotter.get_bank()
    spotter.head.prototypes.neg_()
    assert spotter.get_bank().digest() == bank.digest()
