"""Publishing and loading over HTTP, with an unmodified huggingface_hub, whose settings are read at its import."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModel, AutoProcessor

import mstr_hf
from mstr_hf.hub.cache import CHECKPOINT, repository_files

from .loopback_hub import READER, TOKEN, LoopbackHub

SAMPLES = sorted((CHECKPOINT.parent / "samples").glob("*.jpg"))
MODEL = ("model", "mstr/refiner-6lang")

PUBLISH = """
import json, os, shutil, sys
from pathlib import Path
from huggingface_hub import HfApi
import datasets
from mstr_hf.hub.publish import PublishError, push

checkpoint, scratch, writer, reader = sys.argv[1:]
scratch = Path(scratch)
done = {}

def attempt(name, folder, *args, **options):
    try:
        done[name] = push(folder, *args, **{"token": writer, **options})
    except PublishError as error:
        done[name] = str(error)

folder = scratch / "refiner"
shutil.copytree(checkpoint, folder)
model = (folder, "mstr/refiner-6lang")
attempt("no token", *model, token=None)
attempt("bad token", *model, token="hf_nobody")
attempt("reader", *model, token=reader)
attempt("first", *model, commit_message="First")
attempt("again", *model)
card = folder / "README.md"
text = card.read_text()
card.write_text(text.replace("license: apache-2.0", "license: 7"))
attempt("bad card", *model)
card.write_text(text + "\\nOne line more.\\n")
attempt("changed card", *model)
HfApi(token=writer).upload_file(path_or_fileobj=b"mine", path_in_repo="notes.txt", repo_id=model[1])
newer = HfApi(token=writer).repo_info(model[1]).sha
(folder / "extra.txt").write_text("x")
attempt("newer", *model)
attempt("on top of it", *model, parent_commit=newer)

for number in (1, 2):
    shards = scratch / "shards"
    shutil.rmtree(shards, ignore_errors=True)
    words = datasets.Dataset.from_dict({"text": ["one", "two", "three"][:number + 1]})
    for index in range(3 - number):
        part = words.shard(3 - number, index)
        part.to_parquet(shards / "data" / f"train-{index:05}-of-{3 - number:05}.parquet")
    attempt(f"shards {number}", shards, "mstr/words", repo_type="dataset", private=True)
loaded = datasets.load_dataset("mstr/words", split="train", token=writer)
done["words"] = loaded["text"][:]

metric = scratch / "metric"
metric.mkdir()
(metric / "README.md").write_text("---\\ntitle: Exact\\nsdk: static\\n---\\n")
(metric / "exact.py").write_text('''
import datasets
import evaluate
class Exact(evaluate.Metric):
    def _info(self):
        features = datasets.Features({"predictions": datasets.Value("string"), "references": datasets.Value("string")})
        return evaluate.MetricInfo(description="", citation="", features=features)
    def _compute(self, predictions, references):
        return {"exact": sum(map(str.__eq__, predictions, references)) / len(references)}
''')
attempt("metric", metric, "mstr/exact", repo_type="space")
import evaluate
done["exact"] = evaluate.load("mstr/exact").compute(predictions=["a", "b"], references=["a", "c"])["exact"]

bank = scratch / "bank"
bank.mkdir()
shutil.copy(folder / "prototype_bank.safetensors", bank)
attempt("bank", bank, "mstr/bank")
HfApi(token=writer).create_tag("mstr/bank", tag="v1")
from mstr_hf import PrototypeBank
done["bank digest"] = PrototypeBank.from_pretrained("mstr/bank", revision="v1").digest()
done["bank offline"] = PrototypeBank.from_pretrained("mstr/bank", revision="v1", local_files_only=True).digest()
try:
    PrototypeBank.from_pretrained("mstr/bank", revision="v9")
except OSError as error:
    done["no bank"] = str(error)

attempt("nothing", scratch / "gone", "mstr/x")
attempt("bad name", bank, "mstr/a/b")

# The Hub fails in several ways, one after the other.
import time
import requests
from huggingface_hub import constants
waits = []
time.sleep = waits.append
folder = scratch / "trouble"
folder.mkdir()

def trouble(name, *faults):
    for pattern, status, times, after in faults:
        fault = {"pattern": pattern, "status": status, "times": times, "after": after}
        requests.post(f"{constants.ENDPOINT}/fail", json=fault)
    (folder / "file.txt").write_text(name)
    attempt(name, folder, "mstr/trouble")

trouble("waited out", ("preupload", 503, 1, False), ("commit/main", 500, 1, True))
done["waits"] = waits[:]
trouble("down", ("whoami", 502, 3, False))
trouble("cut off", ("whoami", 0, 3, False))
trouble("raced", ("commit/main", 412, 1, False))
constants.HF_HUB_OFFLINE = True
trouble("offline")
constants.HF_HUB_OFFLINE = False
trouble("well again")
done["file"] = (folder / "file.txt").read_text()
print(json.dumps(done))
"""

LOAD = """
import json, sys
sys.modules["mstr_hf"] = None
from transformers import AutoModel, AutoProcessor, pipeline
from transformers.utils import logging
logging.disable_progress_bar()
name, revisions, *images = sys.argv[1:]
readings = []
for revision in revisions.split(","):
    load = {"pretrained_model_name_or_path": name, "revision": revision, "trust_remote_code": True}
    model = AutoModel.from_pretrained(**load).eval()
    processor = AutoProcessor.from_pretrained(**load)
    inputs = processor(images=images, return_tensors="pt")
    readings.append(model.recognise(**inputs, num_alternatives=1))
    reader = pipeline("image-to-text", model=name, revision=revision, trust_remote_code=True)
    piped = [reading["text"] for reading in reader(images, num_alternatives=1)]
    assert piped == [reading["text"] for reading in readings[-1]], piped
print(json.dumps(readings))
"""


def run(script: str, *arguments: Any, home: Path, **environment: str) -> Any:
    """Runs a script in a process of its own and returns what it prints as JSON."""
    keep = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    own = {"HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "PYTHONPATH": str(Path(mstr_hf.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        env=keep | own | environment,
        cwd=home,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def hub():
    with LoopbackHub() as hub:
        yield hub


@pytest.fixture(scope="module")
def published(hub, tmp_path_factory) -> dict[str, Any]:
    home = tmp_path_factory.mktemp("publisher")
    return run(PUBLISH, CHECKPOINT, tmp_path_factory.mktemp("scratch"), TOKEN, READER, home=home, HF_ENDPOINT=hub.url)


def test_first_push_is_one_commit_of_the_whole_folder(hub, published):
    _, first, *_ = hub.repos[MODEL].commits
    assert published["first"] == f"{hub.url}/mstr/refiner-6lang/commit/{first.sha}"
    assert first.message == "First" and set(first.changed) == set(repository_files(CHECKPOINT))
    for name, path in repository_files(CHECKPOINT).items():
        assert first.files[name] == path.read_bytes()
    assert {"handler.py", "LICENSE", "samples/bn_1.jpg", "prototype_bank.safetensors"} <= set(first.changed)


def test_what_has_not_changed_is_not_pushed_again(hub, published):
    _, _, second, foreign, last = hub.repos[MODEL].commits
    assert published["again"] == published["first"]
    assert second.changed == ["README.md"] and foreign.changed == ["notes.txt"] and last.changed == ["extra.txt"]
    uploads = [request for request in hub.requests if request.startswith("PUT /lfs/")]
    assert len(set(uploads)) == len(uploads)


def test_tokens_are_checked_before_anything_is_written(hub, published):
    assert published["no token"].startswith(f"{hub.url} wants a token: make one that may write at {hub.url}/settings")
    assert published["bad token"].startswith(f"{hub.url} refuses the token: ")
    assert published["reader"].startswith("the token may not write to mstr/refiner-6lang (You don't have the rights")


def test_newer_revision_on_the_hub_is_not_overwritten(hub, published):
    _, _, second, foreign, last = hub.repos[MODEL].commits
    assert published["newer"].startswith("mstr/refiner-6lang has a newer revision on the Hub, " + foreign.sha)
    assert second.sha in published["newer"] and "parent commit" in published["newer"]
    assert published["on top of it"].endswith(last.sha)
    assert last.files["notes.txt"] == b"mine"


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("bad card", '"license" must be a str'),
        ("nothing", "no such folder"),
        ("bad name", "mstr/a/b"),
    ],
)
def test_other_mistakes_are_one_line(published, case, said):
    assert said in published[case] and len(published[case].splitlines()) == 1


def test_shards_of_an_earlier_push_go(hub, published):
    repo = hub.repos["dataset", "mstr/words"]
    assert repo.private and published["words"] == ["one", "two", "three"]
    assert [name for name in repo.commits[-1].files if name.endswith("parquet")] == [
        "data/train-00000-of-00001.parquet"
    ]


def test_metric_is_loaded_by_its_name(published):
    assert published["exact"] == 0.5


def test_bank_is_loaded_by_its_name_and_tag(published):
    digest = mstr_hf.PrototypeBank.from_pretrained(CHECKPOINT).digest()
    assert published["bank digest"] == published["bank offline"] == digest
    assert "v9" in published["no bank"]


def test_readings_without_the_package_equal_the_local_ones(hub, published, tmp_path):
    first = hub.repos[MODEL].commits[1].sha
    served, pinned = run(LOAD, MODEL[1], f"main,{first}", *SAMPLES, home=tmp_path, HF_ENDPOINT=hub.url)
    inputs = AutoProcessor.from_pretrained(CHECKPOINT)(images=SAMPLES, return_tensors="pt")
    local = AutoModel.from_pretrained(CHECKPOINT).eval().recognise(**inputs, num_alternatives=1)
    assert served == pinned == json.loads(json.dumps(local))
    assert any(f"/resolve/{first}/" in request for request in hub.requests)

    # What is in the cache is read offline, and nobody is asked.
    asked = len(hub.requests)
    offline = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "1"}
    assert run(LOAD, MODEL[1], "main", *SAMPLES, home=tmp_path, **offline) == [served]
    assert len(hub.requests) == asked


def test_trouble_is_waited_out_or_explained(hub, published):
    _, first, last = hub.repos["model", "mstr/trouble"].commits
    # The answer to the first commit was lost: it is found, not made twice.
    assert published["waited out"].endswith(first.sha) and published["waits"] == [1.0, 1]
    assert "answers 502 (out of order): nothing was changed, push again later" in published["down"]
    assert published["cut off"].startswith(f"cannot reach {hub.url} (")
    assert "has a newer revision on the Hub" in published["raced"]
    assert published["offline"] == "HF_HUB_OFFLINE is set: unset it to publish"
    assert published["well again"].endswith(last.sha) and published["file"] == "well again"
    for name in ("down", "cut off", "raced"):
        assert len(published[name].splitlines()) == 1
