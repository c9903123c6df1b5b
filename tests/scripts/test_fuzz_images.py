import importlib.util
import random
from pathlib import Path

import pytest

from mstr_hf.models.image_processing_mstr import load_image

PATH = Path(__file__).parents[2] / "scripts" / "fuzz_images.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location(PATH.stem, PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_images_are_whole_until_they_are_mutated(script):
    kept = 0
    for number in range(30):
        rng = random.Random(number)
        data = script.draw(rng)
        assert load_image(data).width >= 1
        kept += script.mutate(data, rng) == data
    assert kept < 3


def test_damaged_images_are_loaded_or_refused(script):
    refused = 0
    for number in range(60):
        rng = random.Random(number)
        try:
            load_image(script.mutate(script.draw(rng), rng), "the word")
        except ValueError as error:
            assert str(error).startswith("the word: ") and len(str(error).splitlines()) == 1
            refused += 1
    assert 0 < refused < 60
