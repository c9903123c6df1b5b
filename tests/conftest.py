import json
import os
import re
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from mstr_hf.synthesis.fonts import FontIndex

# Tests run offline; the Hub's library reads this when it is imported.
os.environ["HF_HUB_OFFLINE"] = "1"

# A deadline for each example would make property tests fail on a busy machine.
settings.register_profile("mstr", deadline=None)
settings.load_profile("mstr")


@pytest.fixture
def tiny_refiner():
    """A small Refiner with random weights, calibrated at random, that knows the letters of en and hi."""
    import torch

    from mstr_hf import (
        PrototypeBank,
        RefinerModel,
        SpotterConfig,
        SpotterModel,
        build_vocabulary,
        load_charsets,
    )
    from mstr_hf.models.modeling_spotter import random_unit_rows

    torch.manual_seed(0)
    vocabulary = build_vocabulary(load_charsets(["en", "hi"]))
    bank = PrototypeBank(
        random_unit_rows(len(vocabulary.rows), 16),
        [row.character for row in vocabulary.rows],
        [row.subtype for row in vocabulary.rows],
        [row.script for row in vocabulary.rows],
        [row.languages for row in vocabulary.rows],
        vocabulary.joiners,
    )
    shape = {
        "stem_channels": 8,
        "stage_channels": (8, 16, 32),
        "intermediate_size": 32,
        "num_hidden_layers": 1,
    }
    spotter = SpotterModel(
        SpotterConfig(**shape, projection_dim=16, num_prototypes=len(bank), score_temperature=1.3)
    )
    spotter.set_bank(bank, base=True)
    refiner = RefinerModel.from_spotter(spotter).eval()
    refiner.config.score_temperature = 1.7
    return refiner


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    return _fail_if_tool_is_missing((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    return _fail_if_tool_is_missing((yield))


def _fail_if_tool_is_missing(report):
    """Fails what was skipped with a reason "missing: ..." where all tools must be there, as in CI."""
    if os.environ.get("MSTR_REQUIRE_TOOLS") and report.skipped and isinstance(report.longrepr, tuple):
        reason = report.longrepr[2].removeprefix("Skipped: ")
        if reason.startswith("missing:"):
            report.outcome = "failed"
            report.longrepr = f"{reason} (MSTR_REQUIRE_TOOLS is set: install it)"
    return report


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory) -> Path:
    """Folder of a small Refiner for English and Hindi with random weights, laid out as its Hub repository."""
    import torch

    from mstr_hf import (
        PrototypeBank,
        RefinerModel,
        SpotterConfig,
        SpotterModel,
        build_vocabulary,
        load_charsets,
    )
    from mstr_hf.hub.publish import assemble

    torch.manual_seed(0)
    vocabulary = build_vocabulary(load_charsets(["en", "hi"]))
    bank = PrototypeBank(
        torch.nn.functional.normalize(torch.randn(len(vocabulary.rows), 16), dim=-1),
        [row.character for row in vocabulary.rows],
        [row.subtype for row in vocabulary.rows],
        [row.script for row in vocabulary.rows],
        [row.languages for row in vocabulary.rows],
        vocabulary.joiners,
    )
    spotter = SpotterModel(
        SpotterConfig(
            stem_channels=8,
            stage_channels=(8, 16, 16),
            intermediate_size=16,
            projection_dim=16,
            num_hidden_layers=1,
        )
    )
    spotter.set_bank(bank, base=True)
    folder = tmp_path_factory.mktemp("checkpoint")
    assemble(RefinerModel.from_spotter(spotter).eval(), folder)
    return folder


@pytest.fixture(scope="session")
def fonts(tmp_path_factory) -> "FontIndex":
    """Faces of English, Hindi and Arabic in a few of the system's fonts, which are indexed at once."""
    from mstr_hf.synthesis import fonts

    names = r"/(DejaVu|Liberation|Lohit-Dev|NotoS(ans|erif)Devanagari-|Noto(Naskh|Sans)Arabic-|Amiri-)[^/]*$"
    files = [path for path in fonts._system_files() if re.search(names, path)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MSTR_CACHE", str(tmp_path_factory.mktemp("fonts")))
        patch.setattr(fonts, "_system_files", lambda: iter(files))
        index = fonts.discover_fonts(["en", "hi", "ar"])
    if not all(index.by_language[lang] and index.faces(lang, "heldout") for lang in ("en", "hi", "ar")):
        pytest.skip(
            "missing: fonts: apt-get install fonts-dejavu-core fonts-liberation fonts-lohit-deva fonts-noto-core "
            "fonts-hosny-amiri"
        )
    return index


@pytest.fixture(scope="session")
def run_in_two_processes():
    """Runs a test module as a script in two new processes of one group: a fork of this one might hang."""

    def run(module: str, folder: Path, *arguments: str, fails: bool = False) -> None:
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
        command = [*launch, module, folder, *arguments]
        root = str(Path(__file__).parents[1])
        environment = {**os.environ, "PYTHONPATH": root, "ACCELERATE_USE_CPU": "yes", "OMP_NUM_THREADS": "1"}
        result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
        assert bool(result.returncode) == fails, result.stderr[-3000:]

    return run


@pytest.fixture(scope="session")
def labelled(tmp_path_factory) -> Path:
    """Manifest of 20 English and 10 Arabic pictures; labels are numbered in their own digits."""
    import numpy as np
    from PIL import Image

    folder = tmp_path_factory.mktemp("labelled")
    rng = np.random.default_rng(0)
    with open(folder / "labels.jsonl", "w", encoding="utf-8") as file:
        for number in range(30):
            lang = "en" if number < 20 else "ar"
            text = f"{number:02}"
            if lang == "ar":
                text = "".join(chr(0x660 + int(digit)) for digit in text)
            name = f"{number}.png"
            Image.fromarray(rng.integers(0, 256, (32, 64), np.uint8)).save(folder / name)
            entry = {"id": f"word-{number}", "path_rel": name, "filename": name, "gt_text": text, "lang": lang}
            file.write(json.dumps(entry | {"dataset": "test"}) + "\n")
    return folder / "labels.jsonl"
