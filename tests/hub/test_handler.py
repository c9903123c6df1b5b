import base64
import io
import json
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import requests
from huggingface_hub import InferenceClient
from PIL import Image

from mstr_hf.hub.cache import CHECKPOINT
from mstr_hf.hub.handler import MAX_IMAGES, EndpointHandler

SAMPLES = sorted((CHECKPOINT.parent / "samples").glob("*.jpg"))
GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "refiner-6lang.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def handler(tiny_checkpoint) -> EndpointHandler:
    return EndpointHandler(str(tiny_checkpoint))


def png(width: int = 60, height: int = 32, mode: str = "L") -> bytes:
    file = io.BytesIO()
    Image.linear_gradient("L").resize((width, height)).convert(mode).save(file, "PNG")
    return file.getvalue()


def test_image_bytes_and_base64_are_read_alike(handler):
    content = png()
    encoded = base64.b64encode(content).decode()
    forms = [content, encoded, base64.encodebytes(content).decode(), Image.open(io.BytesIO(content))]
    readings = [handler({"inputs": form}) for form in forms]
    assert all(reading == readings[0] for reading in readings)
    [reading] = readings[0]
    assert reading.keys() == {"generated_text", "score", "script", "characters", "alternatives", "spotter_text"}


def test_batch_and_parameters_reach_the_model(handler):
    parameters = {"languages": ["hi"], "num_alternatives": 2}
    readings = handler({"inputs": [png(60), png(200, mode="RGBA")], "parameters": parameters})
    assert len(readings) == 2 and all(len(reading["alternatives"]) == 2 for reading in readings)
    bank = handler.model.get_bank()
    allowed = {char for char, users in zip(bank.characters, bank.languages, strict=True) if "hi" in users}
    assert all(character["char"] in allowed for reading in readings for character in reading["characters"])


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        ({}, "NoneType is no image"),
        ({"inputs": []}, "0 images: send 1 to 64"),
        ({"inputs": [b""] * (MAX_IMAGES + 1)}, "65 images"),
        ({"inputs": "https://example.org/word.png"}, "URLs and paths are not fetched"),
        ({"inputs": "/etc/passwd"}, "URLs and paths are not fetched"),
        ({"inputs": {"url": "x"}}, "dict is no image"),
        ({"inputs": [png(), b"no image"]}, "image 2: cannot be read"),
        ({"inputs": png()[:60]}, "cannot be read"),
        ({"inputs": png(900, 32)}, "more than 20 times as wide"),
        ({"inputs": Image.new("1", (5001, 5000))}, "image 1: 5001x5000 is too large"),
        ({"inputs": png(), "parameters": []}, "send an object"),
        ({"inputs": png(), "parameters": {"beams": 2}}, "unknown beams: there are languages"),
        ({"inputs": png(), "parameters": {"languages": ["hi", "xx"]}}, "send a list of some of en, hi"),
        ({"inputs": png(), "parameters": {"languages": "hi"}}, "send a list"),
        ({"inputs": png(), "parameters": {"num_alternatives": 11}}, "whole number from 0 to 10"),
        ({"inputs": png(), "parameters": {"num_alternatives": True}}, "whole number from 0 to 10"),
    ],
)
def test_bad_requests_are_one_line(handler, request_, said):
    with pytest.raises(ValueError) as error:
        handler(request_)
    assert said in str(error.value) and len(str(error.value).splitlines()) == 1


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory):
    """URL of the bundled checkpoint behind the emulator of Inference Endpoints."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    log = tmp_path_factory.mktemp("endpoint") / "log"
    command = [sys.executable, Path(__file__).with_name("endpoint_emulator.py"), CHECKPOINT, str(port)]
    with log.open("w") as output, subprocess.Popen(command, stdout=output, stderr=output, cwd=log.parent) as server:
        url = f"http://127.0.0.1:{port}"
        try:
            while True:
                assert server.poll() is None, log.read_text()
                try:
                    requests.get(f"{url}/health")
                    break
                except requests.ConnectionError:
                    time.sleep(0.1)
            yield url
        finally:
            server.terminate()


def test_inference_client_reads_the_samples(endpoint, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    client = InferenceClient(model=endpoint)
    for sample in SAMPLES[::4]:
        assert client.image_to_text(sample).generated_text == GOLDEN[sample.name]["text"]


def test_endpoint_answers_batches_and_bad_requests(endpoint):
    inputs = [base64.b64encode(sample.read_bytes()).decode() for sample in SAMPLES[:3]]
    answer = requests.post(endpoint, json={"inputs": inputs, "parameters": {"num_alternatives": 2}})
    assert answer.status_code == 200 and len(answer.json()) == 3
    assert all(len(reading["characters"][0]["alternatives"]) == 2 for reading in answer.json())
    for content, kind in ((b"no image", "image/png"), (b"{}", "application/json"), (b"{", "application/json")):
        assert requests.post(endpoint, data=content, headers={"Content-Type": kind}).status_code == 400
    answer = requests.post(endpoint, json={"inputs": "http://127.0.0.1/word.png"})
    assert answer.status_code == 400 and "URLs and paths are not fetched" in answer.json()["error"]
