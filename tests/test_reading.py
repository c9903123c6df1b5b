"""Many images, read in batches that are prepared in threads."""

import threading
import time

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModel, AutoProcessor

from mstr_hf import reading
from mstr_hf.reading import like_widths, read_images, reading_dtype, visible_files


def test_hidden_files_and_folders_are_passed_over(tmp_path):
    for name in ("b.png", "a/c.png", ".d.png", ".thumbnails/b.png", "a/.cache/e/f.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert visible_files(tmp_path) == [tmp_path / "a/c.png", tmp_path / "b.png"]


@pytest.fixture(scope="module")
def loaded(tiny_checkpoint):
    return AutoModel.from_pretrained(tiny_checkpoint).eval(), AutoProcessor.from_pretrained(tiny_checkpoint)


@pytest.fixture(params=[1, 2])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_order_and_readings_do_not_depend_on_batches(loaded, tmp_path, monkeypatch, threads):
    monkeypatch.setattr(reading, "_WINDOW", 3)
    rng = np.random.default_rng(0)
    sources = []
    for number in range(15):
        picture = Image.fromarray(rng.integers(0, 256, (32, int(rng.integers(20, 200))), np.uint8))
        path = tmp_path / f"{number}.png"
        picture.save(path)
        sources.append(path if number % 2 else picture)
    (tmp_path / "4.png").write_text("no image")
    sources[4] = tmp_path / "4.png"
    together = list(read_images(*loaded, sources, 2))
    assert len(together) == 15
    assert isinstance(together[4], ValueError) and "4.png" in str(together[4])
    for source, result in zip(sources, together, strict=True):
        (alone,) = read_images(*loaded, [source], 1)
        if not isinstance(result, ValueError):
            assert (alone["text"], alone["spotter_text"]) == (result["text"], result["spotter_text"])


def test_batches_side_by_side_share_the_threads(loaded, monkeypatch, threads):
    model, processor = loaded
    at_once, shares, lock = [0], [], threading.Lock()

    def recognise(pixel_values, **others):
        with lock:
            at_once.append(at_once[-1] + 1)
        shares.append(torch.get_num_threads())
        time.sleep(0.2)
        with lock:
            at_once.append(at_once[-1] - 1)
        return [{"text": ""}] * len(pixel_values)

    monkeypatch.setattr(model, "recognise", recognise)
    images = [Image.new("L", (60, 32), 200)] * 12
    assert len(list(read_images(model, processor, images, 4))) == 12
    beside = min(threads, 3)
    assert max(at_once) == beside and set(shares) == {threads // beside}
    assert torch.get_num_threads() == threads


def test_a_batch_without_a_readable_image_is_not_read(loaded, tmp_path):
    (tmp_path / "a.png").write_text("no image")
    results = list(read_images(*loaded, [tmp_path / "a.png"] * 3, 2))
    assert [type(result) for result in results] == [ValueError] * 3
    assert list(read_images(*loaded, [], 2)) == []


def test_batches_are_of_like_widths():
    assert like_widths([3.0, 1.0, 1.2, 9.0, 2.9, 0.2, 1.4], 4) == [[5, 1, 2, 6], [4, 0], [3]]
    assert like_widths([2.0] * 5, 2) == [[0, 1], [2, 3], [4]]
    assert like_widths([], 2) == []


@pytest.mark.parametrize(
    ("device", "capabilities", "dtype"),
    [
        ("cpu", {"avx512_bf16": True}, torch.bfloat16),
        ("cpu", {"avx512_bf16": False}, torch.float32),
        ("cpu", {}, torch.float32),
        ("cuda:0", {"avx512_bf16": True}, torch.float32),
    ],
)
def test_reads_in_bfloat16_where_the_processor_computes_in_it(device, capabilities, dtype, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert reading_dtype(device) == dtype


def test_an_older_pytorch_reads_in_float32(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert reading_dtype("cpu") == torch.float32
