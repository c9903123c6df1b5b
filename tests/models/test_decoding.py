"""The greedy decoding of `recognise` against transformers' `generate` and a pass with teacher forcing."""

import pytest
import torch
from transformers import AutoModel, AutoProcessor

import mstr_hf
from mstr_hf.data.manifest import read_manifest
from mstr_hf.hub.cache import CHECKPOINT
from mstr_hf.models.modeling_refiner import EOS
from mstr_hf.models.modeling_spotter import IGNORED, TOKEN_OFFSET


@pytest.fixture(scope="module")
def bundled():
    """The Refiner alone, greedy."""
    model = AutoModel.from_pretrained(CHECKPOINT).eval()
    model.set_language_model(None)
    model.config.beam_width = 1
    return model


@pytest.fixture(scope="module")
def samples():
    processor = AutoProcessor.from_pretrained(CHECKPOINT)
    records = read_manifest(CHECKPOINT.parent / "samples" / "labels.jsonl")
    return dict(processor(images=[record.path for record in records], return_tensors="pt"))


@torch.no_grad()
def generated(model, inputs, languages=None) -> list[tuple[str, float, list[float]]]:
    """Text, score and the characters' scores of each word, one at a time, by `generate`."""
    bank = model.get_bank()
    row_mask = None if languages is None else bank.language_mask(languages)
    results = []
    for b in range(len(inputs["pixel_values"])):
        image = {name: tensor[b : b + 1] for name, tensor in inputs.items()}
        length = model.config.spotter_config.max_length
        options = {"max_new_tokens": length + 1, "forced_eos_token_id": EOS, "do_sample": False}
        ids = model.generate(**image, row_mask=None if row_mask is None else row_mask[None], **options)[0, 1:].tolist()
        ids = ids[: ids.index(EOS)]
        labels = torch.tensor([ids or [IGNORED]])
        logits = model(**image, labels=labels, row_mask=row_mask).logits[0]
        log_probs = (logits / model.config.score_temperature).log_softmax(-1)
        chances = [log_probs[place, token].exp().item() for place, token in enumerate([*ids, EOS])]
        text = mstr_hf.display("".join(bank.characters[i - TOKEN_OFFSET] for i in ids))
        results.append((text, torch.tensor(chances).prod().item(), chances[:-1]))
    return results


def check(readings, expected) -> None:
    for reading, (text, score, chances) in zip(readings, expected, strict=True):
        assert reading["text"] == text
        assert reading["score"] == pytest.approx(score, rel=2e-3, abs=1e-6)
        assert [c["score"] for c in reading["characters"]] == pytest.approx(chances, abs=1e-3)


@pytest.mark.parametrize("languages", [None, ["en"], ["hi", "ar"]])
def test_samples_are_read_as_generate_reads_them(bundled, samples, languages):
    readings = bundled.recognise(**samples, languages=languages, gate_threshold=2.0, num_views=1)
    assert len({len(reading["characters"]) for reading in readings}) > 3  # words leave the batch at different steps
    check(readings, generated(bundled, samples, languages))


def test_gate_chooses_between_both_stages_readings(bundled, samples):
    spotted = bundled.recognise(**samples, gate_threshold=0.0, num_views=1)
    refined = bundled.recognise(**samples, gate_threshold=2.0, num_views=1)
    scores = sorted(reading["score"] for reading in spotted)
    for threshold in (scores[3] + 1e-4, scores[12] + 1e-5, scores[-1]):
        expected = [
            first if first["score"] >= threshold else second for first, second in zip(spotted, refined, strict=True)
        ]
        assert any(reading is first for reading, first in zip(expected, spotted, strict=True))
        assert any(reading is second for reading, second in zip(expected, refined, strict=True))
        readings = bundled.recognise(**samples, gate_threshold=threshold, num_views=1)
        for reading, other in zip(readings, expected, strict=True):
            assert (reading["text"], reading["spotter_text"]) == (other["text"], other["spotter_text"])
            assert reading["score"] == pytest.approx(other["score"], rel=1e-3)


@pytest.mark.parametrize("length", [1, 3, 64])
def test_longest_word_is_ended(tiny_refiner, length):
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in tiny_refiner.layers.parameters():  # untrained, so that few words end by themselves
            parameter.add_(0.3 * torch.randn_like(parameter))
    tiny_refiner.config.spotter_config.max_length = length
    inputs = {"pixel_values": torch.randn(3, 1, 32, 64), "pixel_mask": torch.ones(3, 64, dtype=torch.bool)}
    readings = tiny_refiner.recognise(**inputs, gate_threshold=2.0, num_views=1)
    assert max(len(reading["characters"]) for reading in readings) == length
    check(readings, generated(tiny_refiner, inputs))


def test_adapters_on_projections_of_the_memory_count(tiny_refiner):
    peft = pytest.importorskip("peft")
    inputs = {"pixel_values": torch.randn(3, 1, 32, 64), "pixel_mask": torch.ones(3, 64, dtype=torch.bool)}
    targets = r"layers\.\d+\.cross_attn\.(k_proj|v_proj)"
    adapted = peft.get_peft_model(tiny_refiner, peft.LoraConfig(target_modules=targets, init_lora_weights=False))
    adapted.eval()
    readings = adapted.base_model.model.recognise(**inputs, gate_threshold=2.0, num_views=1)
    with_adapter = generated(adapted.base_model.model, inputs)
    check(readings, with_adapter)
    with adapted.disable_adapter():
        assert generated(adapted.base_model.model, inputs) != with_adapter
