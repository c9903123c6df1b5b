import json

import pytest
from huggingface_hub.errors import StrictDataclassError

from mstr_hf import MCLIPConfig, RefinerConfig, SpotterConfig
from mstr_hf.models.configuration_refiner import RefinerDecoderConfig


@pytest.mark.parametrize(
    ("config", "fields", "reason"),
    [
        (SpotterConfig, {"stem_chanels": 8}, "SpotterConfig has no field stem_chanels: did you mean stem_channels?"),
        (SpotterConfig, {"abc": 8}, "SpotterConfig has no field abc: leave it out, or install the version that wrote"),
        # transformers drops parameters of generation in silence
        (SpotterConfig, {"num_beams": 4}, "SpotterConfig has no field num_beams: "),
        (RefinerConfig, {"gate_treshold": 1}, "RefinerConfig has no field gate_treshold: did you mean gate_threshold?"),
        (RefinerConfig, {"spotter_config": {"topk": 3}}, "SpotterConfig has no field topk: did you mean top_k?"),
        (MCLIPConfig, {"hidden": 3}, "MCLIPConfig has no field hidden: "),
        (SpotterConfig, {"top_k": "5"}, "Field 'top_k' expected int, got str"),
        (SpotterConfig, {"top_k": 5.0}, "Field 'top_k' expected int, got float"),
        (SpotterConfig, {"top_k": True}, "Field 'top_k' expected int, got bool"),
        (SpotterConfig, {"top_k": 0}, "top_k is 0: give 1 or more"),
        (SpotterConfig, {"stage_channels": ["a", 8, 8]}, "Field 'stage_channels' with value ['a', 8, 8]"),
        (SpotterConfig, {"stage_channels": [8, 8]}, "stage_channels takes 3 numbers and stage_blocks 2"),
        (SpotterConfig, {"stage_channels": [8, 0, 8]}, "stage_channels is [8, 0, 8]: give 1 or more"),
        (SpotterConfig, {"image_height": 40}, "image_height 40 is not a multiple of 16"),
        (SpotterConfig, {"column_width": 6}, "column_width 6: give 4 or 8"),
        (SpotterConfig, {"num_attention_heads": 5}, "is not a multiple of num_attention_heads 5"),
        (SpotterConfig, {"hidden_act": "gelou"}, "hidden_act is 'gelou': give a name that transformers knows"),
        (SpotterConfig, {"score_temperature": float("nan")}, "score_temperature is nan: give a number above 0"),
        (SpotterConfig, {"bank": {"characters": "a"}}, "bank has no subtypes, scripts, languages, joiners"),
        (RefinerConfig, {"freeze_spotter": "no"}, "Field 'freeze_spotter' expected bool, got str"),
        (RefinerConfig, {"vote_temperature": 0}, "vote_temperature is 0: give a number above 0"),
        (RefinerConfig, {"num_views": 0}, "num_views is 0: give 1 or more"),
        (RefinerConfig, {"gate_threshold": -0.5}, "gate_threshold is -0.5: give 0 or more"),
        (RefinerConfig, {"spotter_config": 5}, "Field 'spotter_config' with value 5"),
        (RefinerDecoderConfig, {"hidden_size": 10}, "hidden_size 10 is not a multiple of num_attention_heads 4"),
        (RefinerDecoderConfig, {"hidden_size": 9, "num_attention_heads": 3}, "hidden_size 9 is odd"),
        (MCLIPConfig, {"image_channels": []}, "image_channels is empty"),
        (MCLIPConfig, {"logit_scale_init": 0}, "logit_scale_init is 0: give a number above 0"),
    ],
)
def test_unknown_fields_and_wrong_values_are_refused(config, fields, reason):
    with pytest.raises((TypeError, StrictDataclassError)) as error:
        config(**fields)
    assert reason in str(error.value)


def test_rows_that_the_bank_does_not_describe_are_refused(bank):
    assert SpotterConfig(bank=bank.metadata(), num_prototypes=len(bank)).bank
    with pytest.raises(StrictDataclassError, match=f"bank describes {len(bank)} rows, num_prototypes is 7"):
        SpotterConfig(bank=bank.metadata(), num_prototypes=7)


def test_attributes_that_are_no_fields_are_not_saved(tmp_path):
    config = SpotterConfig()
    with pytest.raises(StrictDataclassError, match="expected int"):
        config.top_k = "3"
    config.topk = 3
    with pytest.raises((TypeError, StrictDataclassError), match="SpotterConfig has no field topk: did you mean top_k"):
        config.save_pretrained(tmp_path)


def test_typing_error_in_a_saved_configuration_is_named(tmp_path):
    RefinerConfig().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace('"top_k"', '"top_n"'))
    with pytest.raises(TypeError, match="SpotterConfig has no field top_n: did you mean top_k"):
        RefinerConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize("config", [SpotterConfig, RefinerConfig, MCLIPConfig])
def test_what_transformers_adds_is_known(config, tmp_path):
    made = config(name_or_path="a", num_labels=3, attn_implementation="eager", output_attentions=False)
    made.auto_map = {"AutoConfig": "a.B"}
    made.save_pretrained(tmp_path)
    made.name_or_path = ""  # is not saved
    assert config.from_pretrained(tmp_path).to_diff_dict() == made.to_diff_dict()
    assert json.loads((tmp_path / "config.json").read_text())["auto_map"] == {"AutoConfig": "a.B"}
