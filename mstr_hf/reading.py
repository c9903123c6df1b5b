"""Any number of images, read in batches of like widths that are decoded while the model reads those before."""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import torch
from PIL import Image

from mstr_hf.models.image_processing_mstr import load_image

Reading: TypeAlias = dict[str, Any]

_WINDOW = 16  # batches that are sorted by width together; their readings come out together
# Batches that are read side by side on a processor, each with its share of the threads: most operations are too small
# for several threads. Each takes memory, and Python itself runs in one thread at a time.
MOST_BESIDE = 8


def visible_files(folder: Path) -> list[Path]:
    """All files of a folder and of those in it, sorted; not hidden ones, nor what lies in hidden folders."""
    found = (path for path in folder.rglob("[!.]*") if path.is_file())
    return sorted(
        path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


def reading_dtype(device: str) -> torch.dtype:
    """What to load a model in: bfloat16 on processors that compute in it, which takes a third of the time off, or else
    float32.

    Args:
        device: Where the model reads, such as `cpu` or `cuda:0`.
    """
    # Older versions of PyTorch do not say.
    capabilities: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return torch.bfloat16 if device == "cpu" and capabilities.get("avx512_bf16") else torch.float32


def read_images(
    model: Any, processor: Any, sources: Sequence[Path | Image.Image], batch_size: int, **options: Any
) -> Iterator[Reading | ValueError]:
    """Yields the reading of each image in the order given, or the reason why there is none.

    Args:
        model: What has `recognise`, such as a `RefinerModel`.
        processor: Its processor.
        sources: Paths or PIL images.
        batch_size: Images a batch.
        **options: Those of `recognise`.
    """
    window = _WINDOW * batch_size
    threads = torch.get_num_threads()  # torch knows this process's share of the processors
    on_cpu = isinstance(model, torch.nn.Module) and next(model.parameters()).device.type == "cpu"

    def read(prepared: tuple[list[ValueError | None], Any]) -> list[Reading | ValueError]:
        outcomes, inputs = prepared
        readings = iter(model.recognise(**inputs.to(model.device), **options) if inputs else ())
        return [outcome or next(readings) for outcome in outcomes]

    def prepare(images: Sequence[Path | Image.Image]) -> tuple[list[ValueError | None], Any]:
        return _prepare(processor, images)

    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(sources), window):
            part = sources[start : start + window]
            # The widest first: the last ones, beside which nothing else is left to do, take the least time.
            batches = like_widths([width_ratio(source) for source in part], batch_size)[::-1]
            images = ([part[index] for index in batch] for batch in batches)
            done: Iterator[list[Reading | ValueError]]
            beside = min(threads, len(batches), MOST_BESIDE) if on_cpu else 1
            if beside > 1:
                with _intra_op_threads(threads // beside):
                    jobs = (pool.submit(lambda some: read(prepare(some)), some) for some in images)
                    done = iter(list(_ahead(jobs, beside - 1)))
            else:
                # Pillow lets go of Python's lock while it decodes and resizes.
                done = map(read, _ahead((pool.submit(prepare, some) for some in images), threads))
            results: dict[int, Reading | ValueError] = {}
            for batch, found in zip(batches, done, strict=True):
                results.update(zip(batch, found, strict=True))
            yield from (results[index] for index in range(len(part)))


@contextmanager
def _intra_op_threads(count: int) -> Iterator[None]:
    """Has threads that begin meanwhile compute with so many threads of their own."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def like_widths(ratios: Sequence[float], batch_size: int) -> list[list[int]]:
    """Indices of images in batches of like widths, since a batch is as wide as its widest image.

    Args:
        ratios: Width / height of each image.
        batch_size: Images a batch, at most.

    Returns:
        Batches, narrow ones first. One that is not full ends where an image is wider by half than its first.
    """
    batches: list[list[int]] = []
    for index in sorted(range(len(ratios)), key=ratios.__getitem__):
        last = batches[-1] if batches else []
        if not last or len(last) == batch_size or ratios[index] > 1.5 * max(1, ratios[last[0]]):
            batches.append([])
        batches[-1].append(index)
    return batches


def width_ratio(source: Path | Image.Image) -> float:
    """Returns width / height as the file's header has them, 0 if it cannot be read."""
    if isinstance(source, Image.Image):
        return source.width / source.height if source.height else 0
    try:
        with Image.open(source) as image:
            return image.width / image.height
    except Exception:  # What is wrong, `load_image` will say.
        return 0


def _ahead(jobs: Iterator[Future], count: int) -> Iterator[Any]:
    """Yields the results of jobs, which are started `count` ahead."""
    started: deque[Future] = deque()
    for job in jobs:
        started.append(job)
        if len(started) > count:
            yield started.popleft().result()
    while started:
        yield started.popleft().result()


def _prepare(processor: Any, sources: Sequence[Path | Image.Image]) -> tuple[list[ValueError | None], Any]:
    """What is wrong with each image, if anything, and the model's inputs of the others, if there are any."""
    outcomes: list[ValueError | None] = []
    images = []
    for source in sources:
        try:
            images.append(load_image(source))
            outcomes.append(None)
        except ValueError as error:
            outcomes.append(error)
    return outcomes, processor(images=images, return_tensors="pt") if images else None
