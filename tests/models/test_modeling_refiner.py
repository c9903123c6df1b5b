import copy
import dataclasses
import itertools
import math
import unicodedata

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModel, DynamicCache, EncoderDecoderCache, StaticCache
from transformers.utils import logging

import mstr_hf  # noqa: F401 (registers the Auto classes)
from mstr_hf.models.configuration_refiner import RefinerConfig, RefinerLanguageConfig
from mstr_hf.models.language_model import NOTHING, LanguageModel
from mstr_hf.models.layers import additive_mask
from mstr_hf.models.modeling_refiner import BOS, EOS, RefinerModel
from mstr_hf.models.modeling_spotter import IGNORED, TOKEN_OFFSET, SpotterModel
from mstr_hf.models.prototype_bank import BankError, PrototypeBank
from mstr_hf.models.text import normalise
from mstr_hf.models.views import LEAD
from mstr_hf.training.optimizer import parameter_groups

DECODER = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}


def make_refiner(spotter: SpotterModel, **settings) -> RefinerModel:
    torch.manual_seed(2)
    model = RefinerModel(RefinerConfig(spotter_config=spotter.config.to_dict(), text_config=DECODER, **settings))
    model.spotter.load_state_dict(spotter.state_dict())
    return model.eval()


@pytest.fixture
def refiner(spotter, shake) -> RefinerModel:
    """A small Refiner with random weights around the small Spotter."""
    model = make_refiner(spotter)
    shake(model.layers)
    return model


@pytest.fixture(scope="module")
def trained(make_spotter, bank, images, labels) -> RefinerModel:
    """A small Refiner that has learned the words, around a Spotter that has learned nothing."""
    model = make_refiner(make_spotter(bank)).train()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        model(**images, labels=labels).loss.backward()
        optimizer.step()
    return model.eval()


def ids_of(bank: PrototypeBank, text: str) -> list[int]:
    return [TOKEN_OFFSET + bank.row(character) for character in normalise(text, bank.joiners)]


# -------------------- decoding


@torch.no_grad()
def test_teacher_forcing_equals_generation_step_by_step(refiner, images):
    steps = refiner.generate(
        **images, max_new_tokens=12, do_sample=False, return_dict_in_generate=True, output_logits=True
    )
    labels = steps.sequences[:, 1:]
    assert len(set(labels.flatten().tolist())) > 3  # more than the same character again and again
    logits = refiner(**images, labels=labels.masked_fill(labels == EOS, IGNORED), use_cache=False).logits
    assert torch.allclose(logits[:, :12], torch.stack(steps.logits, 1), atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("beams", [1, 3])
def test_cache_changes_nothing(refiner, images, beams):
    settings = {"max_new_tokens": 10, "num_beams": beams, "num_return_sequences": beams, "do_sample": False}
    cached = refiner.generate(**images, **settings, use_cache=True)
    assert cached.shape[0] == beams * len(images["pixel_values"])
    assert torch.equal(cached, refiner.generate(**images, **settings, use_cache=False))


@torch.no_grad()
def test_static_cache_changes_nothing(refiner, images):
    settings = {"max_new_tokens": 10, "do_sample": False}
    static = refiner.generate(**images, **settings, cache_implementation="static", disable_compile=True)
    assert len(set(static.flatten().tolist())) > 3
    assert torch.equal(static, refiner.generate(**images, **settings))


@torch.no_grad()
def test_padding_never_changes_what_is_decoded(refiner, images, labels):
    pixels = images["pixel_values"].clone()
    pixels[~images["pixel_mask"][:, None, None].expand_as(pixels)] = 5.0
    logits = refiner(pixels, images["pixel_mask"], labels=labels).logits
    for b, width in enumerate(images["pixel_mask"].sum(1).tolist()):
        alone = refiner(images["pixel_values"][b : b + 1, ..., :width], labels=labels[b : b + 1]).logits
        assert torch.allclose(logits[b], alone[0], atol=1e-4)


@torch.no_grad()
def test_decoder_sees_the_past_only(refiner, images, labels):
    logits = refiner(**images, labels=labels).logits
    changed = labels.clone()
    changed[:, 1] = TOKEN_OFFSET
    other = refiner(**images, labels=changed).logits
    assert torch.allclose(logits[:, :2], other[:, :2], atol=1e-5)
    assert not torch.allclose(logits[:, 2], other[:, 2], atol=1e-2)


@torch.no_grad()
def test_loss_is_the_cross_entropy_of_characters_and_end(refiner, images, labels):
    output = refiner(**images, labels=labels)
    log_probs = output.logits.log_softmax(-1)
    total, count = 0.0, 0
    for row, word in zip(log_probs, labels.tolist(), strict=True):
        targets = [*(i for i in word if i != IGNORED), EOS]
        total -= sum(row[place, target].item() for place, target in enumerate(targets))
        count += len(targets)
    assert output.loss.item() == pytest.approx(total / count, rel=1e-4)
    inputs = F.pad(labels.masked_fill(labels == IGNORED, 0), (1, 0), value=BOS)
    assert torch.equal(refiner(**images, decoder_input_ids=inputs).logits, output.logits)


@torch.no_grad()
def test_only_the_end_and_characters_can_be_read(refiner, images, labels, bank):
    chances = refiner(**images, labels=labels).logits.softmax(-1)
    assert chances.shape[-1] == TOKEN_OFFSET + len(bank) == refiner.config.text_config.vocab_size
    assert chances[..., :EOS].max() == chances[..., EOS + 1 : TOKEN_OFFSET].max() == 0
    assert chances[..., EOS].min() > 0 and chances[..., TOKEN_OFFSET:].min() > 0


@torch.no_grad()
def test_beams_find_the_best_words(make_spotter, shake, images):
    count = 6
    rows = F.normalize(torch.randn(count, 24, generator=torch.Generator().manual_seed(3)), dim=-1)
    bank = PrototypeBank(rows, "abcdef", [0] * count, ["Latn"] * count, [["en"]] * count)
    model = make_refiner(make_spotter(bank), logit_scale_init=3.0)
    shake(model.layers)
    pixels = images["pixel_values"][:1]
    # All words of up to two characters; the longest need no end.
    scores = {}
    for length in range(3):
        for word in itertools.product(range(TOKEN_OFFSET, TOKEN_OFFSET + count), repeat=length):
            log_probs = model(pixels, labels=torch.tensor([word], dtype=torch.long)).logits[0].log_softmax(-1)
            targets = word if length == 2 else (*word, EOS)
            scores[targets] = sum(log_probs[i, t].item() for i, t in enumerate(targets)) / len(targets)
    best = sorted(scores, key=scores.__getitem__, reverse=True)[:5]
    assert len({word[0] for word in best}) > 1
    found = model.generate(
        pixel_values=pixels,
        max_new_tokens=2,
        num_beams=8,
        num_return_sequences=5,
        do_sample=False,
        return_dict_in_generate=True,
        output_scores=True,
    )
    assert [tuple(token for token in row if token) for row in found.sequences[:, 1:].tolist()] == best
    assert found.sequences_scores.tolist() == pytest.approx([scores[word] for word in best], abs=1e-4)


# -------------------- reading


def check_reading(reading: dict, bank: PrototypeBank, num_alternatives: int) -> None:
    """What the contract says of any reading."""
    assert set(reading) == {"text", "score", "script", "characters", "alternatives", "spotter_text"}
    texts = [reading["text"], *(other["text"] for other in reading["alternatives"])]
    assert len(set(texts)) == len(texts) <= num_alternatives + 1
    for text in (*texts, reading["spotter_text"]):
        assert isinstance(text, str) and text == unicodedata.normalize("NFC", text)
    scores = [reading["score"], *(other["score"] for other in reading["alternatives"])]
    assert scores == sorted(scores, reverse=True)
    assert reading["script"] in {*bank.scripts, "Zyyy"}
    characters = reading["characters"]
    spelt = "".join(character["char"] for character in characters)
    assert normalise(spelt, bank.joiners) == normalise(reading["text"], bank.joiners)
    for character in characters:
        assert set(character) == {"char", "score", "alternatives"}
        others = [other["char"] for other in character["alternatives"]]
        assert len(others) <= num_alternatives and len({character["char"], *others}) == 1 + len(others)
        assert all(set(other) == {"char", "score"} for other in character["alternatives"])
        assert set(others) <= set(bank.characters)
        own = [other["score"] for other in character["alternatives"]]
        assert own == sorted(own, reverse=True)
        scores += [character["score"], *own]
        assert sum([character["score"], *own]) <= 1 + 1e-5
    assert all(type(score) is float and 0 <= score <= 1 for score in scores)
    assert len(characters) <= 64


@pytest.mark.parametrize("threshold", [0.0, 2.0])
@pytest.mark.parametrize("num_alternatives", [0, 3])
@pytest.mark.parametrize("which", ["refiner", "trained"])
def test_readings_keep_the_contract(request, bank, images, which, num_alternatives, threshold):
    model = request.getfixturevalue(which)
    readings = model.recognise(**images, num_alternatives=num_alternatives, gate_threshold=threshold)
    assert len(readings) == len(images["pixel_values"])
    for reading in readings:
        check_reading(reading, bank, num_alternatives)
    if num_alternatives:
        assert all(reading["alternatives"] for reading in readings)
        assert all(c["alternatives"] for reading in readings for c in reading["characters"])


@torch.no_grad()
def test_scores_are_the_models_probabilities(trained, bank, images, words):
    trained.config.score_temperature = 1.7
    readings = trained.recognise(**images, num_alternatives=2, gate_threshold=2.0)
    trained.config.score_temperature = 1.0
    assert [reading["text"] for reading in readings] == words
    assert [reading["script"] for reading in readings] == ["Latn", "Latn", "Latn", "Zyyy"]
    for b, reading in enumerate(readings):
        for candidate in (reading, *reading["alternatives"]):
            ids = ids_of(bank, candidate["text"])
            image = {name: tensor[b : b + 1] for name, tensor in images.items()}
            chances = (trained(**image, labels=torch.tensor([ids])).logits[0] / 1.7).softmax(-1)
            each = [chances[place, target].item() for place, target in enumerate([*ids, EOS])]
            assert candidate["score"] == pytest.approx(math.prod(each), rel=1e-3)
            if candidate is reading:
                assert [c["score"] for c in reading["characters"]] == pytest.approx(each[:-1], rel=1e-3)


def test_greedy_and_beams_agree_where_the_model_is_sure(trained, images, words):
    for number in (0, 1, 4):
        readings = trained.recognise(**images, num_alternatives=number, gate_threshold=2.0)
        assert [reading["text"] for reading in readings] == words
        assert min(reading["score"] for reading in readings) > 0.5


def test_gate_lets_sure_words_pass(trained, images, words):
    spotted = trained.encoder.spot(**images)
    scores = trained.spotter.word_scores(spotted).detach()
    passed = trained.recognise(**images, gate_threshold=0.0)
    assert [reading["text"] for reading in passed] == [reading["spotter_text"] for reading in passed] != words
    assert [reading["score"] for reading in passed] == pytest.approx(scores.tolist())
    refined = trained.recognise(**images, gate_threshold=2.0)
    assert [reading["text"] for reading in refined] == words
    assert [reading["spotter_text"] for reading in refined] == [reading["spotter_text"] for reading in passed]
    between = scores.median().item()
    mixed = trained.recognise(**images, gate_threshold=between)
    assert len({between, *scores.tolist()}) == len(words)
    for reading, score, first, second in zip(mixed, scores.tolist(), passed, refined, strict=True):
        expected = first if score >= between else second
        assert reading["text"] == expected["text"]
        assert reading["score"] == pytest.approx(expected["score"], rel=1e-4)
    # the config's threshold counts where none is given
    trained.config.gate_threshold = 0.0
    assert trained.recognise(**images) == passed
    trained.config.gate_threshold = 1.0


@pytest.mark.parametrize("num_alternatives", [0, 2])
def test_words_below_the_gate_are_read_from_several_views(trained, bank, images, num_alternatives):
    scores = trained.spotter.word_scores(trained.encoder.spot(**images)).detach()
    settings = {"gate_threshold": scores.median().item(), "num_alternatives": num_alternatives}
    once, voted = (trained.recognise(**images, **settings, num_views=number) for number in (1, 4))
    unsure = (scores < settings["gate_threshold"]).tolist()
    assert len(set(unsure)) == 2
    for first, reading, below in zip(once, voted, unsure, strict=True):
        check_reading(reading, bank, num_alternatives)
        assert reading["spotter_text"] == first["spotter_text"]
        assert (reading == first) != (below and first["score"] <= LEAD)  # else one view decides
    trained.config.num_views = 4
    assert trained.recognise(**images, **settings) == voted
    trained.config.num_views = 1


@pytest.mark.parametrize("num_alternatives", [0, 3])
@pytest.mark.parametrize("threshold", [0.0, 2.0])
def test_languages_constrain_all_that_is_read(trained, bank, images, num_alternatives, threshold):
    mask = bank.language_mask(["ar"])
    allowed = {character for character, ok in zip(bank.characters, mask.tolist(), strict=True) if ok}
    readings = trained.recognise(
        **images, languages=["ar"], num_alternatives=num_alternatives, gate_threshold=threshold
    )
    assert any(reading["text"] for reading in readings)
    for reading in readings:
        check_reading(reading, bank, num_alternatives)
        for text in (reading["text"], reading["spotter_text"], *(other["text"] for other in reading["alternatives"])):
            assert allowed.issuperset(normalise(text, bank.joiners))
        assert allowed.issuperset(other["char"] for c in reading["characters"] for other in c["alternatives"])
        assert reading["script"] in ("Arab", "Zyyy")
    with pytest.raises(ValueError, match="unknown language xx: this bank has en, hi, ar"):
        trained.recognise(**images, languages=["ar", "xx"])


def test_images_are_read_the_same_alone_and_together(trained, images):
    together = trained.recognise(**images, num_alternatives=2)
    for b, width in enumerate(images["pixel_mask"].sum(1).tolist()):
        (alone,) = trained.recognise(images["pixel_values"][b : b + 1, ..., :width], num_alternatives=2)
        assert alone["text"] == together[b]["text"] and alone["spotter_text"] == together[b]["spotter_text"]
        assert alone["score"] == pytest.approx(together[b]["score"], rel=1e-2)


# -------------------- the bank


def test_no_weight_has_the_size_of_the_alphabet(trained, bank, bank_of_three_times_the_size, images, words, tmp_path):
    trained.save_pretrained(tmp_path)
    model = RefinerModel.from_pretrained(tmp_path)
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    before = model.recognise(**images, languages=bank.all_languages, gate_threshold=2.0)
    model.set_bank(bank_of_three_times_the_size)
    after = model.recognise(**images, languages=bank.all_languages, gate_threshold=2.0)
    for old, new in zip(before, after, strict=True):
        assert new["text"] == old["text"] and new["spotter_text"] == old["spotter_text"]
        assert new["score"] == pytest.approx(old["score"], rel=1e-4)
    assert [reading["text"] for reading in after] == words
    assert model.config.text_config.vocab_size == TOKEN_OFFSET + 3 * len(bank)
    grown = {name: tensor.shape for name, tensor in model.state_dict().items()}
    name = "encoder.spotter.head.prototypes"
    assert grown.pop(name) == (3 * len(bank), 24) and shapes.pop(name) == (len(bank), 24)
    assert grown == shapes and len(bank) not in itertools.chain(*shapes.values())
    with pytest.raises(BankError, match="not those that this model was trained with"):
        model.set_bank(PrototypeBank.from_metadata(bank.metadata(), -bank.prototypes))


# -------------------- training


def test_frozen_spotter_stays_as_it_is(refiner, images, labels):
    refiner.train()
    before = {name: tensor.clone() for name, tensor in refiner.state_dict().items()}
    optimizer = torch.optim.AdamW(parameter_groups(refiner, 0.5), lr=1e-2)
    for _ in range(3):
        refiner(**images, labels=labels).loss.backward()
        optimizer.step()
    assert not refiner.spotter.training and refiner.layers[0].training
    for name, tensor in refiner.state_dict().items():
        same = torch.equal(tensor, before[name])
        assert same == name.startswith("encoder.spotter."), name


def test_from_spotter_is_ready_for_the_optimiser(spotter):
    model = RefinerModel.from_spotter(spotter)
    state = spotter.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.spotter.state_dict().items())
    assert torch.equal(model.spotter.head.directions, spotter.head.directions)
    trained = sum(parameter.numel() for group in parameter_groups(model, 0.1) for parameter in group["params"])
    own = sum(p.numel() for name, p in model.named_parameters() if not name.startswith("encoder.spotter."))
    assert trained == own


def test_spotter_that_is_not_frozen_is_trained(spotter, images, labels):
    model = make_refiner(spotter, freeze_spotter=False).train()
    model(**images, labels=labels).loss.backward()
    assert model.spotter.training
    for name in ("backbone.stem.conv.weight", "backbone.layers.0.attn.q_proj.weight", "head.projection.weight"):
        assert model.spotter.get_parameter(name).grad.abs().sum() > 0, name


def test_trained_together_the_loss_is_the_sum_of_both(spotter, images, labels):
    model = make_refiner(spotter, freeze_spotter=False).train()
    together = model(**images, labels=labels).loss
    alone = model.spotter(**images, labels=labels)
    assert alone.top_k_ids is None  # which the loss alone can do without
    memory = model.encoder.remember(model.spotter.read_frames(alone))
    memory.loss = None
    assert torch.allclose(together, alone.loss + model(labels=labels, encoder_outputs=memory).loss, atol=1e-5)
    assert model.eval()(**images, labels=labels).loss < together  # in evaluation the Refiner's alone


def test_gradient_checkpointing_gives_the_same_gradients(refiner, images, labels):
    def gradients() -> dict[str, torch.Tensor]:
        refiner.zero_grad()
        refiner.train()(**images, labels=labels).loss.backward()
        return {name: p.grad.clone() for name, p in refiner.named_parameters() if p.requires_grad}

    plain = gradients()
    refiner.gradient_checkpointing_enable()
    assert all(torch.allclose(grad, plain[name], atol=1e-6) for name, grad in gradients().items())


# -------------------- saving, precision


def test_save_and_load_through_the_auto_class_is_bit_equal(trained, images, tmp_path):
    trained.config.score_temperature = 1.3
    trained.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert type(loaded) is RefinerModel and not loaded.training
    state = trained.state_dict()
    assert loaded.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.state_dict().items())
    assert loaded.recognise(**images, num_alternatives=2) == trained.recognise(**images, num_alternatives=2)
    assert loaded.config.score_temperature == 1.3
    assert loaded.get_bank().digest() == trained.get_bank().digest()
    trained.config.score_temperature = 1.0


@torch.no_grad()
def test_attention_implementations_agree(refiner, images, labels, monkeypatch):
    warnings = []
    monkeypatch.setattr(logging.get_logger("transformers.modeling_utils"), "warning", warnings.append)
    logits = {}
    for name in ("sdpa", "eager"):
        refiner.set_attn_implementation(name)
        assert refiner.layers[0].cross_attn.config._attn_implementation == name
        assert refiner.spotter.config._attn_implementation == name
        logits[name] = refiner(**images, labels=labels).logits
    assert torch.allclose(logits["sdpa"], logits["eager"], atol=1e-4)
    assert not warnings
    with pytest.raises(ValueError, match="nonsense"):
        refiner.set_attn_implementation("nonsense")


def test_autocast_compares_with_the_bank_in_full_precision(refiner, images, labels):
    full = refiner(**images, labels=labels)
    with torch.autocast("cpu", torch.bfloat16):
        output = refiner(**images, labels=labels)
    assert output.logits.dtype == torch.float32
    # bfloat16 could tell only a few hundred values apart
    assert len(output.logits[..., TOKEN_OFFSET:].unique()) > 0.9 * output.logits[..., TOKEN_OFFSET:].numel()
    output.loss.backward()
    assert output.loss.item() == pytest.approx(full.loss.item(), rel=0.05)


def test_bfloat16_reads(trained, bank, images, words, tmp_path):
    trained.save_pretrained(tmp_path)
    half = AutoModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half.layers[0].mlp.fc1.weight.dtype == torch.bfloat16
    assert half.get_bank().digest() == bank.digest()
    readings = half.recognise(images["pixel_values"].bfloat16(), images["pixel_mask"], num_alternatives=1)
    for reading in readings:
        check_reading(reading, bank, 1)
    assert sum(reading["text"] == word for reading, word in zip(readings, words, strict=True)) >= 3


@torch.no_grad()
def test_float16_reads(trained, bank, images, words, tmp_path):
    trained.save_pretrained(tmp_path)
    half = AutoModel.from_pretrained(tmp_path, dtype=torch.float16)
    readings = half.recognise(**images, num_alternatives=1)
    for reading in readings:
        check_reading(reading, bank, 1)
    assert sum(reading["text"] == word for reading, word in zip(readings, words, strict=True)) >= 3


@torch.no_grad()
@pytest.mark.parametrize("device_map", ["auto", {"": "cpu"}])
def test_device_map(trained, images, tmp_path, device_map):
    trained.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path, device_map=device_map)
    # Weights that wait elsewhere are attended with in another order of sums.
    for reading, expected in zip(loaded.recognise(**images), trained.recognise(**images), strict=True):
        assert reading["text"] == expected["text"]
        assert reading["score"] == pytest.approx(expected["score"], rel=1e-4)


# -------------------- in transformers' habit


@torch.no_grad()
def test_images_alone_are_read(trained, bank, images, words):
    expected = trained.recognise(**images)
    output = trained(**images)
    texts = ["".join(bank.characters[i - TOKEN_OFFSET] for i in row if i) for row in output.sequences.tolist()]
    assert texts == words == [reading["text"] for reading in expected]
    assert output.sequences_scores.tolist() == pytest.approx([reading["score"] for reading in expected])
    mask = bank.language_mask(["ar"])
    arabic = trained(**images, row_mask=mask).sequences
    assert mask[arabic[arabic > 0] - TOKEN_OFFSET].all()
    assert arabic.shape[0] == len(words)
    # Also by generate, with a mask for all images, and beams.
    for beams in (1, 2):
        found = trained.generate(**images, row_mask=mask, num_beams=beams, num_return_sequences=beams)
        assert mask[found[found >= TOKEN_OFFSET] - TOKEN_OFFSET].all() and len(found) == beams * len(words)


@torch.no_grad()
def test_hidden_states_and_attentions(refiner, images, labels):
    refiner.set_attn_implementation("eager")
    plain = refiner(**images, labels=labels)
    assert not {"decoder_hidden_states", "decoder_attentions", "cross_attentions", "encoder_attentions"} & plain.keys()
    output = refiner(**images, labels=labels, output_attentions=True, output_hidden_states=True)
    steps, memory = labels.shape[1] + 1, output.memory_mask.shape[1]
    layers = len(refiner.layers)
    assert len(output.decoder_hidden_states) == layers + 1
    assert len(output.decoder_attentions) == len(output.cross_attentions) == layers
    assert output.decoder_attentions[0].shape[2:] == (steps, steps)
    assert output.cross_attentions[0].shape[2:] == (steps, memory)
    assert output.cross_attentions[0].masked_select(~output.memory_mask[:, None, None]).max() == 0
    spotter = refiner.spotter(**images, output_attentions=True, output_hidden_states=True)
    assert all(map(torch.equal, output.encoder_hidden_states, spotter.hidden_states))
    assert all(map(torch.equal, output.encoder_attentions, spotter.attentions))
    generated = refiner.generate(**images, max_new_tokens=3, output_attentions=True, return_dict_in_generate=True)
    assert generated.cross_attentions[0][0].shape[-1] == memory


@torch.no_grad()
@pytest.mark.parametrize("static", [False, True])
def test_decoding_step_compiles_without_graph_breaks(refiner, images, labels, static):
    encoder_outputs = refiner.encoder(**images)
    ids = torch.full((len(labels), 1), BOS)

    def caches():
        if not static:
            return None
        size = {"max_cache_len": 8}
        own = StaticCache(config=refiner.config.text_config, **size)
        cross = StaticCache(
            config=refiner.config.text_config, max_cache_len=encoder_outputs.last_hidden_state.shape[1]
        )
        return EncoderDecoderCache(own, cross)

    torch._dynamo.reset()
    compiled = torch.compile(refiner, backend="eager", fullgraph=True)
    call = {"decoder_input_ids": ids, "encoder_outputs": encoder_outputs}
    expected = refiner(**call, past_key_values=caches()).logits
    torch.testing.assert_close(compiled(**call, past_key_values=caches()).logits, expected)


def test_bank_of_fewer_rows_than_hypotheses_is_read_and_trained(make_spotter, images):
    rows = F.normalize(torch.randn(3, 24, generator=torch.Generator().manual_seed(3)), dim=-1)
    bank = PrototypeBank(rows, "abc", [0] * 3, ["Latn"] * 3, [["en"]] * 3)
    model = make_refiner(make_spotter(bank))
    assert model.config.spotter_config.top_k > len(bank)
    for reading in model.recognise(**images, num_alternatives=2, gate_threshold=2.0):
        check_reading(reading, bank, 2)
    labels = torch.full((len(images["pixel_values"]), 1), TOKEN_OFFSET)
    assert model.train()(**images, labels=labels).loss.isfinite()


# -------------------- the language model


def table(bank: PrototypeBank, size: int = 500) -> LanguageModel:
    """A table of nothing: every letter is unknown."""
    config = RefinerLanguageConfig(num_ngrams=size, num_rows=len(bank), rows_digest=bank.charset_digest)
    model = LanguageModel(config)
    model.keys = torch.arange(size, dtype=torch.int32)
    return model


def test_readings_do_without_a_language_model_of_no_weight(trained, bank, images):
    before = trained.recognise(**images, gate_threshold=2.0)
    model = copy.deepcopy(trained)
    model.set_language_model(table(bank))
    model.config.language_weight = 0.0
    assert model.recognise(**images, gate_threshold=2.0) == before
    model.config.language_weight, model.config.language_bonus = 50.0, 0.0
    # A letter costs 400 nats, a sign 100: no letter is worth it.
    texts = [reading["text"] for reading in model.recognise(**images, gate_threshold=2.0)]
    assert not any(map(str.isalpha, "".join(texts))) and any(any(map(str.isalpha, one["text"])) for one in before)
    model.set_language_model(None)
    assert model.config.language_config is None and model.recognise(**images, gate_threshold=2.0) == before


def test_a_language_model_stays_with_the_rows_that_it_was_made_for(trained, bank, images):
    model = copy.deepcopy(trained)
    model.set_language_model(table(bank))
    row = torch.nn.functional.normalize(torch.randn(1, bank.prototypes.shape[1]), dim=-1)
    longer = bank.extend(row, ["\u0416"], [0], ["Cyrl"], [["en"]])
    model.set_bank(longer)
    classes = model._prior(model.get_bank()).classes
    assert model.language_model is not None and classes[-1] == NOTHING and len(classes) == 2 + len(bank)
    assert classes[1 + bank.row("a")] == 1 + bank.row("a")
    other = dataclasses.replace(bank, characters=list(reversed(bank.characters)))
    model.set_bank(other, base=True)
    assert model.language_model is None and model.config.language_config is None


def test_beams_of_a_word_share_its_memory(refiner):
    layer = refiner.layers[0].cross_attn
    states, memory = torch.randn(6, 1, layer.q_proj.in_features), torch.randn(2, 5, layer.q_proj.in_features)
    mask = additive_mask(torch.tensor([[True] * 5, [True, True, True, False, False]]), torch.float32)
    for cache in (DynamicCache(), None):
        shared = layer(states, memory, mask, cache)[0]
        apart = layer(states, memory.repeat_interleave(3, 0), mask.repeat_interleave(3, 0), cache)[0]
        assert torch.allclose(shared, apart, atol=1e-5)
