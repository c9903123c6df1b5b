import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mstr_hf import cli
from mstr_hf.evaluation import run as evaluation
from mstr_hf.evaluation.run import EvaluationError, evaluate
from mstr_hf.hub.card import results_table

FILES = {"predictions.jsonl", "metrics.json", "report.md", "report.html"}


@pytest.fixture
def run(fake_processor, manifests, tmp_path):
    def run(model, *peers: str, files=manifests, output="out", **options) -> tuple[dict, Path]:
        folder = tmp_path / output
        return evaluate(model, fake_processor, "fake", files, folder, peers, **options), folder

    return run


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]


def test_metrics_hold_each_reader_language_and_manifest(run, fake_model, fake_peer):
    report, folder = run(fake_model(), "my_readers:Fake")
    assert {path.name for path in folder.iterdir()} == FILES | {"journal"}
    assert json.loads((folder / "metrics.json").read_text(encoding="utf-8")) == report
    assert report["skipped"] == {"kn": 1} and report["unreadable"] == []
    assert report["peers"] == [{"name": "Fake", "version": "2", "variants": {"en": "seeing"}}]

    rows = {(row["split"], row["words"]): row for row in report["rows"]}
    assert {key: row["n"] for key, row in rows.items()} == {
        ("dev", "en"): 2,
        ("dev", "hi"): 1,
        ("dev", "all"): 3,
        ("report", "hi"): 1,
        ("report", "all"): 1,
        ("together", "en"): 2,
        ("together", "hi"): 2,
        ("together", "all"): 4,
    }

    def value(split: str, words: str, reader: str, metric: str) -> float:
        return rows[split, words]["readers"][reader][metric]["value"]

    assert value("dev", "en", "Spotter", "wrr") == 0.5
    assert value("dev", "en", "Refiner", "wrr") == 0.5
    assert value("dev", "en", "Refiner", "wrr_alphanumeric") == 1
    assert value("dev", "en", "Fake", "wrr") == 0.5
    assert value("report", "hi", "Spotter", "crr") == pytest.approx(2 / 3, abs=1e-6)
    assert value("together", "all", "Refiner", "wrr") == 0.75
    assert value("together", "all", "Refiner", "script_accuracy") == 1
    # Three of four readings are right, each with a confidence of 0.75.
    assert value("together", "all", "Refiner", "calibration") == 0
    assert (rows["together", "all"]["mended"], rows["together", "all"]["broken"]) == (2, 1)
    # The peer reads no Hindi, so it has no figure where Hindi counts.
    assert value("together", "hi", "Fake", "wrr") is value("together", "all", "Fake", "wrr") is None
    assert [(row["words"], row["n"]) for row in report["datasets"]] == [("of en", 2), ("of hi", 2)]
    assert [(row["words"], row["n"]) for row in report["scripts"]] == [("Deva", 2), ("Latn", 2)]
    assert [(row["words"], row["n"]) for row in report["lengths"]] == [("1-3", 2), ("4-6", 2)]
    assert "| Hindi | 2 | 100.0 |" in results_table(report)


def test_predictions_are_in_the_order_of_the_manifests(run, fake_model, fake_peer):
    _, folder = run(fake_model(), "my_readers:Fake", batch_size=2)
    words = lines(folder)
    assert [(word["split"], word["id"]) for word in words] == [
        ("dev", "dev90.png"),
        ("dev", "dev40.png"),
        ("dev", "dev70.png"),
        ("report", "report60.png"),
    ]
    assert words[0] == {
        "split": "dev",
        "id": "dev90.png",
        "image": "dev90.png",
        "lang": "en",
        "dataset": "of en",
        "photo": "en",
        "reference": "Cafe",
        "reading": "cafe",
        "confidence": 0.75,
        "script": "Latn",
        "characters": [{"char": char, "score": 0.9} for char in "cafe"],
        # What the search for alternatives finds, but for the reading itself.
        "alternatives": [{"text": "efac", "score": 0.75}, {"text": "x", "score": 0.1}, {"text": "y", "score": 0.1}],
        "spotter": "Cafe",
        "peers": {"Fake": "Cale"},
    }
    assert words[2]["peers"] == {"Fake": None}


def test_no_alternatives_on_request(run, fake_model):
    _, folder = run(fake_model(), num_alternatives=0)
    assert [word["alternatives"] for word in lines(folder)] == [[]] * 4


def test_a_stopped_evaluation_reads_only_what_is_left(run, fake_model, fake_peer):
    stopped = fake_model(last=1)
    with pytest.raises(KeyboardInterrupt):
        run(stopped, "my_readers:Fake", batch_size=2)
    assert stopped.read == [40, 60]
    resumed = fake_model()
    report, folder = run(resumed, "my_readers:Fake", batch_size=2)
    assert resumed.read == [70, 90]
    calls = len(fake_peer.calls)
    again = fake_model()
    assert run(again, "my_readers:Fake", batch_size=2)[0] == report
    assert again.read == [] and len(fake_peer.calls) == calls == 2
    assert run(fake_model(), "my_readers:Fake", batch_size=2, output="whole")[0] == report
    assert (folder / "predictions.jsonl").read_bytes() == (
        folder.parent / "whole" / "predictions.jsonl"
    ).read_bytes()


def test_a_line_that_was_cut_off_is_read_again(run, fake_model):
    report, folder = run(fake_model(), batch_size=2)
    journal = folder / "journal" / "model" / "0.jsonl"
    journal.write_bytes(journal.read_bytes()[:-20])
    model = fake_model()
    assert run(model, batch_size=2)[0] == report
    assert model.read == [70, 90]
    assert run(fake_model(), batch_size=2)[0] == report


def test_a_line_that_was_cut_off_within_a_character_is_read_again(run, fake_model):
    report, folder = run(fake_model(), batch_size=2)
    journal = folder / "journal" / "model" / "0.jsonl"
    whole = journal.read_bytes()
    journal.write_bytes(whole[: whole.rindex("नमक".encode()) + 1])
    assert run(fake_model(), batch_size=2)[0] == report


def test_an_image_that_was_replaced_is_read_again(run, fake_model, fake_peer, manifests):
    run(fake_model(), "my_readers:Fake", batch_size=1)
    assert len(fake_peer.calls) == 2  # once a variant
    image = manifests[0].parent / "dev40.png"
    Image.open(image).convert("RGBA").save(image)  # another file, as wide as before and so read alike
    model = fake_model()
    run(model, "my_readers:Fake", batch_size=1)
    assert model.read == [40] and len(fake_peer.calls) == 4


def test_images_may_be_named_by_absolute_paths_within_the_folder(run, fake_model, manifests, monkeypatch):
    for manifest in manifests:
        folder = manifest.parent
        entries = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]
        changed = [entry | {"path_rel": str((folder / entry["path_rel"]).resolve())} for entry in entries]
        manifest.write_text("\n".join(map(json.dumps, changed)), encoding="utf-8")
    monkeypatch.chdir(manifests[0].parent)
    _, folder = run(fake_model(), files=[Path(os.path.relpath(manifest)) for manifest in manifests])
    assert all((manifests[0].parent / word["image"]).exists() for word in lines(folder) if word["split"] == "dev")
    assert not any(os.path.isabs(word["image"]) for word in lines(folder))


def test_a_folder_keeps_to_one_evaluation(run, fake_model, manifests):
    run(fake_model())
    with pytest.raises(EvaluationError, match="another batch_size: name another folder, or delete it"):
        run(fake_model(), batch_size=2)
    changed = fake_model()
    changed.state_dict = lambda: {}
    with pytest.raises(EvaluationError, match="another model"):
        run(changed)
    with pytest.raises(EvaluationError, match="another manifests"):
        run(fake_model(), files=manifests[:1])


def test_other_code_is_another_evaluation(run, fake_model, monkeypatch):
    run(fake_model())
    monkeypatch.setattr(evaluation, "_code_digest", lambda: "changed")
    with pytest.raises(EvaluationError, match="another code: name another folder"):
        run(fake_model())


def test_an_image_that_cannot_be_read_is_named_and_left_out(run, fake_model, manifests):
    (manifests[0].parent / "dev70.png").write_bytes(b"no image")
    report, folder = run(fake_model())
    (entry,) = report["unreadable"]
    assert (entry["split"], entry["id"]) == ("dev", "dev70.png") and "not in an image format" in entry["reason"]
    assert report["rows"][-1]["n"] == 3 == len(lines(folder))
    assert "Left out, not readable: dev70.png." in (folder / "report.md").read_text(encoding="utf-8")


def test_an_image_that_was_mended_is_read_when_the_command_is_given_again(run, fake_model, manifests):
    file = manifests[0].parent / "dev70.png"
    whole = file.read_bytes()
    file.write_bytes(b"no image")
    run(fake_model(), batch_size=2)
    file.write_bytes(whole)
    model = fake_model()
    report, folder = run(model, batch_size=2)
    assert report["unreadable"] == [] and len(lines(folder)) == 4
    assert 70 in model.read and len(model.read) < 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda files: [files[0], files[0]], "two manifests are called dev: rename one"),
        (lambda files: [files[0].with_name("none.jsonl")], "No such file or directory"),
        (lambda files: [files[0].rename(files[0].with_name("together.jsonl"))], "stands for all of them: rename it"),
    ],
)
def test_wrong_manifests_are_refused(run, fake_model, manifests, change, message):
    with pytest.raises(EvaluationError, match=message):
        run(fake_model(), files=change(manifests))


@pytest.mark.parametrize("invisible", ["\\u00ad", "\\u200d"])
def test_labels_without_ink_are_refused(run, fake_model, manifests, invisible):
    text = manifests[0].read_text(encoding="utf-8").replace('"Shop"', f'"{invisible}"')
    manifests[0].write_text(text, encoding="utf-8")
    with pytest.raises(EvaluationError, match=r"dev40\.png: field 'gt_text': no character with ink; leave it out"):
        run(fake_model())


def test_languages_that_the_model_lacks_leave_nothing(run, fake_model, manifests):
    text = manifests[1].read_text(encoding="utf-8")
    manifests[1].write_text(text.replace('"lang": "hi"', '"lang": "mr"'), encoding="utf-8")
    with pytest.raises(EvaluationError, match=r"no image in a language of this model \(en, hi\)"):
        run(fake_model(), files=manifests[1:])


@pytest.fixture(scope="module")
def noise(tmp_path_factory) -> Path:
    """A manifest of noise of many widths."""
    folder = tmp_path_factory.mktemp("noise")
    generator = np.random.default_rng(0)
    with (folder / "noise.jsonl").open("w", encoding="utf-8") as file:
        for number in range(11):
            name = f"{number}.png"
            pixels = generator.integers(0, 256, (40, 40 + 30 * (number * 7 % 11)), np.uint8)
            Image.fromarray(pixels).save(folder / name)
            entry = {"id": name, "path_rel": name, "filename": name, "gt_text": "abc", "lang": "en", "dataset": "d"}
            file.write(json.dumps(entry) + "\n")
    return folder / "noise.jsonl"


def test_two_processes_give_the_same_files_as_one(noise, tiny_checkpoint, tmp_path):
    options = [noise, "--model", tiny_checkpoint, "--batch-size", "2", "--device", "cpu", "--alternatives", "1"]

    def command(output: str) -> list[str]:
        return list(map(str, ["mstr_hf.cli", "evaluate", *options, "--output", tmp_path / output]))

    # As many threads in one process as in each of two: sums are then made in the same order.
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(cli.__file__).parents[1]),
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
    }
    alone = subprocess.run([sys.executable, "-m", *command("one")], env=environment, cwd=tmp_path, timeout=1200)
    assert alone.returncode == 0
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    result = subprocess.run(
        [*launch, "--main_process_port", "0", "-m", *command("two")],
        env=environment,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=1200,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    shares = [len((tmp_path / "two/journal/model" / f"{process}.jsonl").read_text().split()) for process in (0, 1)]
    assert all(shares)  # both took part
    for name in FILES:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name


def test_command_names_what_is_missing(noise, tiny_checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("shutil.which", lambda name: None)
    (noise.parent / "broken.png").write_bytes(b"")
    entry = json.loads(noise.read_text().splitlines()[0]) | {"id": "b", "path_rel": "broken.png"}
    manifest = noise.parent / "broken.jsonl"
    manifest.write_text(noise.read_text().splitlines()[0] + "\n" + json.dumps(entry), encoding="utf-8")
    command = ["evaluate", str(manifest), "--model", str(tiny_checkpoint), "--output", str(tmp_path / "out")]
    assert cli.main([*command, "--peers", "tesseract", "--alternatives", "0"]) == 1
    printed = capsys.readouterr()
    assert "tesseract skipped: no program tesseract; install tesseract-ocr" in printed.err
    assert "broken.png: cannot be read" in printed.err
    assert printed.out.startswith("# Evaluation of ") and printed.out.endswith("report.html\n")
    assert cli.main([*command, "--peers", "ghost"]) == 2
    assert "mstr: no peer 'ghost'; use tesseract, rapidocr or MODULE:CLASS" in capsys.readouterr().err
