"""Measures how many images a second one CPU thread, or a GPU, trains on: these models, docTR's PARSeq and ViTSTR.

    python3 -m venv doctr && doctr/bin/pip install torch==2.13.0 python-doctr
    python scripts/benchmark_training.py --doctr doctr/bin/python [--device cuda]

Weights are random, images too, four times as wide as high (32 pixels for docTR's, as high as they take for these
models), and words of eight letters; all models know the same characters. A
step is forward, loss, backward, clipping and optimiser (Muon for these models, AdamW for docTR's), on a batch that is
there already. On a CPU, speeds are images a second of processor time, so that other work on the machine does not
count; on a GPU, of time. The last line is how fast one core draws batches: a worker on a core of its own lets no model
wait that is slower.
"""

import argparse
import json
import random
import subprocess
import time
from collections.abc import Callable
from typing import Any

import torch

HEIGHT, WIDTH = 32, 128
LETTERS = 8
WARM_UP = 1
PEERS = {"doctr PARSeq": "parseq", "doctr ViTSTR-small": "vitstr_small"}

Step = Callable[[], torch.Tensor]


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--doctr", metavar="PYTHON", help="interpreter of an environment that has python-doctr")
    parser.add_argument("--batch-size", type=int, default=64, metavar="N", help="default: 64")
    parser.add_argument("--steps", type=int, default=3, metavar="N", help="steps that are timed (default: 3)")
    parser.add_argument("--fonts", nargs="*", default=[], help="folders with fonts beside the system's")
    parser.add_argument("--device", default="cpu", help="cpu, or a GPU such as cuda:0 (default: cpu)")
    parser.add_argument("--peer", help=argparse.SUPPRESS)  # what this script is asked for in the other environment
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    size, device = (arguments.batch_size, arguments.steps), arguments.device
    if arguments.peer:
        function, characters = json.loads(arguments.peer)
        print(json.dumps(measure(*doctr_step(function, characters, arguments.batch_size, device), *size, device)))
        return

    from mstr_hf.hub.cache import CHECKPOINT
    from mstr_hf.models.prototype_bank import PrototypeBank

    bank = PrototypeBank.from_pretrained(CHECKPOINT)
    speeds = {}
    print("| | million parameters | fp32, images/s | bf16, images/s |\n| --- | --: | --: | --: |")
    for name in ("Spotter", "Refiner, Spotter frozen", "Refiner and Spotter together"):
        speeds[name] = measure(*own_step(name, bank, arguments.batch_size, device), *size, device, own_optimizer)
        print(row(name, speeds[name]), flush=True)
    for name, function in PEERS.items() if arguments.doctr else ():
        peer = json.dumps([function, "".join(bank.characters)])
        options = ["--peer", peer, "--batch-size", str(size[0]), "--steps", str(size[1]), "--device", device]
        result = subprocess.run([arguments.doctr, __file__, *options], stdout=subprocess.PIPE, text=True, check=True)
        speeds[name] = json.loads(result.stdout.splitlines()[-1])
        print(row(name, speeds[name]), flush=True)
    for line in ratios(speeds):
        print(line)
    print(f"\nbatches are drawn at {drawing_speed(bank, arguments.fonts, arguments.batch_size):.0f} images/s a core")


def row(name: str, speed: dict[str, float]) -> str:
    """A line of the table."""
    return f"| {name} | {speed['parameters']:.1f} | {speed['fp32']:.1f} | {speed['bf16']:.1f} |"


def ratios(speeds: dict[str, dict[str, float]]) -> list[str]:
    """Lines that say how many times as many images as each peer each of our models trains on."""
    peers = [name for name in speeds if name in PEERS]
    return [
        f"| {own} / {peer} | | {speeds[own]['fp32'] / speeds[peer]['fp32']:.2f} "
        f"| {speeds[own]['bf16'] / speeds[peer]['bf16']:.2f} |"
        for own in speeds
        for peer in peers
        if own not in PEERS
    ]


def adamw(model: Any, dtype: torch.dtype) -> torch.optim.Optimizer:
    """What docTR's models are trained with."""
    return torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad], lr=1e-4)


def own_optimizer(model: Any, dtype: torch.dtype) -> torch.optim.Optimizer:
    """What these models are trained with."""
    from mstr_hf.training.optimizer import Muon, parameter_groups

    return Muon(parameter_groups(model, 0.02), lr=1e-4, dtype=dtype)


def measure(
    model: Any,
    step: Step,
    images: int,
    steps: int,
    device: str,
    make_optimizer: Callable[..., torch.optim.Optimizer] = adamw,
) -> dict[str, float]:
    """Trains for some steps in either precision; returns images a second, and millions of parameters."""
    found = {"parameters": sum(parameter.numel() for parameter in model.parameters()) / 1e6}
    model.train()  # which freezes what is to be frozen
    for kind in ("fp32", "bf16"):
        optimizer = make_optimizer(model, torch.bfloat16 if kind == "bf16" else torch.float32)
        start = 0.0
        for number in range(WARM_UP + steps):
            if number == WARM_UP:
                start = clock(device)
            with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=kind == "bf16"):
                loss = step()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
            optimizer.zero_grad()
        found[kind] = images * steps / (clock(device) - start)
    return found


def clock(device: str) -> float:
    """Seconds: of processor time on a CPU, of time on a GPU, when it has done what it was told."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def own_step(name: str, bank: Any, batch_size: int, device: str) -> tuple[Any, Step]:
    """One of this package's models in the bundled checkpoint's size, as the trainers train it."""
    from transformers import AutoConfig

    from mstr_hf.hub.cache import CHECKPOINT
    from mstr_hf.models.modeling_refiner import RefinerModel
    from mstr_hf.vocabulary import OFFSET

    config = AutoConfig.from_pretrained(CHECKPOINT)
    config.freeze_spotter = "frozen" in name
    refiner = RefinerModel(config)
    refiner.set_bank(bank)
    model: Any = refiner.spotter if name == "Spotter" else refiner
    model.requires_grad_(True).train()
    model.set_attn_implementation("eager" if device == "cpu" else "sdpa")
    model.to(device, memory_format=torch.channels_last)
    height = config.spotter_config.image_height
    width = WIDTH * height // HEIGHT
    batch = {
        "pixel_values": torch.rand(batch_size, 1, height, width) * 2 - 1,
        "pixel_mask": torch.ones(batch_size, width, dtype=torch.bool),
        "labels": torch.randint(OFFSET, OFFSET + len(bank), (batch_size, LETTERS)),
    }
    batch = {name: tensor.to(device) for name, tensor in batch.items()}
    return model, lambda: model(**batch).loss


def doctr_step(function: str, vocabulary: str, batch_size: int, device: str) -> tuple[Any, Step]:
    """A recogniser of python-doctr, for colour images as it takes them."""
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        # Its wheels may hold operators for GPUs only. doctr imports it, but recognition needs none of them.
        operators = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    from doctr.models import recognition

    model = getattr(recognition, function)(pretrained=False, vocab=vocabulary).to(device)
    rng = random.Random(0)
    words = ["".join(rng.choices(vocabulary, k=LETTERS)) for _ in range(batch_size)]
    images = torch.rand(batch_size, 3, HEIGHT, WIDTH, device=device)
    return model, lambda: model(images, target=words)["loss"]


def drawing_speed(bank: Any, fonts: list[str], batch_size: int) -> float:
    """Images a second of batches of synthetic words, of all the bank's languages."""
    from transformers import AutoConfig

    from mstr_hf.hub.cache import CHECKPOINT
    from mstr_hf.training.arguments import WordArguments
    from mstr_hf.training.words import CHUNK, WordBatches, word_data

    height = AutoConfig.from_pretrained(CHECKPOINT).spotter_config.image_height
    data = word_data(WordArguments(fonts=fonts, eval_words=1), bank, height)
    batches = WordBatches(data.train, data.vocabulary, batch_size, 1, height)
    batches.chunk(0, 0)  # fonts that come for the first time are slow
    start = time.process_time()
    batches.chunk(0, 1)
    return CHUNK * batch_size / (time.process_time() - start)


if __name__ == "__main__":
    main()
