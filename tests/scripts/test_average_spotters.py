"""Averages real, tiny Spotters."""

import copy
import dataclasses
import importlib.util
from pathlib import Path

import pytest
import torch

PATH = Path(__file__).parents[2] / "scripts" / "average_spotters.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("average_spotters", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def spotters(tiny_refiner):
    first, second = tiny_refiner.spotter, type(tiny_refiner.spotter)(copy.deepcopy(tiny_refiner.spotter.config))
    second.load_state_dict(first.state_dict())
    with torch.no_grad():
        for parameter in second.parameters():
            parameter += 1
    return first, second


def test_weights_are_the_mean_and_the_bank_stays_as_it_is(script, spotters):
    first, second = spotters
    before = {name: tensor.clone() for name, tensor in first.state_dict().items()}
    averaged = script.average(first, second, 0.6)
    blank, other = before["head.blank"], second.state_dict()["head.blank"]
    torch.testing.assert_close(averaged.head.blank, 0.4 * blank + 0.6 * other)
    assert torch.equal(averaged.head.prototypes, before["head.prototypes"])
    averaged.set_bank(averaged.get_bank())


def test_other_banks_are_refused(script, spotters):
    first, second = spotters
    bank = second.get_bank()
    second.set_bank(dataclasses.replace(bank, prototypes=bank.prototypes.flip(0)), base=True)
    with pytest.raises(ValueError, match="different banks"):
        script.average(first, second, 0.5)
