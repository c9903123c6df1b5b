"""The metrics as modules of the library `evaluate`."""

import http.server
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import evaluate
import pytest
from huggingface_hub import ModelCard

import mstr_hf.evaluation

FOLDER = Path(mstr_hf.evaluation.__file__).parent
MODULES = ["wrr", "crr", "ned", "script_accuracy", "calibration"]

PREDICTIONS = ["Cafe", "दुकान", "24", "தமிழ"]
REFERENCES = ["Café", "दुकान", "24", "தமிழ்"]


@pytest.fixture(autouse=True, scope="module")
def modules_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = str(tmp_path_factory.mktemp("modules"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate.config, "HF_MODULES_CACHE", folder)
        patch.setattr(sys, "path", [folder, *sys.path])
        yield


def load(module: str) -> evaluate.Metric:
    return evaluate.load(str(FOLDER / module))


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        ("wrr", {"wrr": 0.5, "wrr_case_insensitive": 0.5, "wrr_alphanumeric": 0.75, "wrr_without_joiners": 0.5}),
        # Distances 1, 0, 0 and 1 over 5, 5, 2 and 5 code points, and over 4, 3, 2 and 3 clusters.
        (
            "crr",
            {
                "crr": 15 / 17,
                "crr_per_word": (0.8 + 1 + 1 + 0.8) / 4,
                "crr_graphemes": 10 / 12,
                "crr_without_joiners": 15 / 17,
            },
        ),
        ("ned", {"ned": 0.1, "one_minus_ned": 0.9}),
        ("script_accuracy", {"script_accuracy": 1}),
    ],
)
def test_modules_score_readings(module: str, expected: dict[str, float]) -> None:
    assert load(module).compute(predictions=PREDICTIONS, references=REFERENCES) == pytest.approx(expected)


def test_calibration_scores_confidences() -> None:
    figures = load("calibration").compute(predictions=[0.75, 0.75, 0.2], references=[1, 0, 0])
    assert figures == pytest.approx({"calibration": (0.5 + 0.2) / 3})
    coarse = load("calibration").compute(predictions=[0.75, 0.75, 0.25], references=[1, 0, 0], num_bins=1)
    assert coarse == pytest.approx({"calibration": 0.25})


def test_batches_add_up_and_photographs_give_intervals() -> None:
    metric = load("wrr")
    metric.add_batch(predictions=["a", "b"], references=["a", "x"])
    metric.add_batch(predictions=["c", "d"], references=["c", "d"])
    metric.add(prediction="e", reference="y")
    figures = metric.compute(photos=["p", "p", "q", None, None])
    assert figures["wrr"] == pytest.approx(3 / 5)
    assert figures["wrr_low"] < 3 / 5 < figures["wrr_high"]


@pytest.mark.parametrize("module", MODULES)
def test_modules_are_documented(module: str) -> None:
    metric = load(module)
    assert metric.description and "photos" in metric.inputs_description and "@" in metric.citation
    card = ModelCard.load(FOLDER / module / "README.md")
    assert card.data["license"] == "apache-2.0" and {"evaluate", "metric"} <= set(card.data["tags"])
    names = re.findall(r"^- `(\w+)`: ", card.text, re.M)
    if module == "calibration":
        assert names == list(metric.compute(predictions=[0.5], references=[1]))
    else:
        assert names == list(metric.compute(predictions=["a"], references=["a"]))
    needed = {line.partition(">=")[0] for line in (FOLDER / module / "requirements.txt").read_text().split()}
    assert needed == {"evaluate", "numpy", "rapidfuzz", "regex"}


@pytest.mark.parametrize("module", MODULES)
def test_examples_on_the_cards_hold(module: str) -> None:
    text = (FOLDER / module / "README.md").read_text(encoding="utf-8")
    call, promised = re.search(r"^(metric\.compute\(.*\))\n# (\{.*\})$", text, re.M).groups()
    result = eval(call, {"metric": load(module)})
    assert {name: round(value, 3) for name, value in result.items()} == json.loads(promised)
    examples = re.search(r">>> (metric\..*)\n\s+(.*)", load(module).inputs_description).groups()
    assert eval(examples[0], {"metric": load(module)}) == float(examples[1])


def test_modules_load_by_their_hub_name_without_the_package(tmp_path: Path) -> None:
    """A Hub on this machine, and a process that cannot import the package."""

    class Hub(http.server.SimpleHTTPRequestHandler):
        def translate_path(self, path: str) -> str:
            match = re.fullmatch(r"/spaces/mstr/(\w+)/resolve/main/(\w+\.py)", path)
            return str(FOLDER / match[1] / match[2]) if match else str(tmp_path / "missing")

        def log_message(self, *arguments: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    code = """
        import sys
        sys.modules["mstr_hf"] = None
        import evaluate
        metric = evaluate.load("mstr/crr", revision="main")
        print(metric.compute(predictions=["हिन्दि"], references=["हिन्दी"])["crr_graphemes"])
    """
    environment = {
        **{name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"},
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HOME": str(tmp_path / "home"),
        "PYTHONPATH": "",
    }
    script = "\n".join(line.strip() for line in code.splitlines())
    try:
        result = subprocess.run(
            [sys.executable, "-c", script], env=environment, capture_output=True, text=True, cwd=tmp_path
        )
    finally:
        server.shutdown()
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stdout.strip() == "0.5"


def test_files_that_a_module_uploads_are_whole() -> None:
    """Links are followed, as `upload_folder` does."""
    for module in MODULES:
        names = {path.name: path.read_bytes() for path in (FOLDER / module).iterdir() if path.is_file()}
        assert names.keys() == {f"{module}.py", "README.md", "requirements.txt", "metrics.py", "text.py"}
        assert names["metrics.py"] == (FOLDER / "metrics.py").read_bytes()
        assert names["text.py"] == (FOLDER.parent / "models" / "text.py").read_bytes()
        assert not any(b"mstr_hf" in line for line in names[f"{module}.py"].splitlines() if b"import " in line)
