import json
import math
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import distributed, nn

from mstr_hf.models.configuration_spotter import SpotterConfig
from mstr_hf.models.modeling_refiner import RefinerModel
from mstr_hf.models.modeling_spotter import TOKEN_OFFSET, SpotterModel, SpotterOutput
from mstr_hf.training import trainer as trainer_module
from mstr_hf.training.trainer import Batch, Trainer, TrainingArguments, learning_rate_factor, parameter_groups

SPOTTER = {
    "stem_channels": 4,
    "stage_channels": (4, 4, 8),
    "stage_blocks": (1, 0),
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 8,
    "projection_dim": 8,
    "num_prototypes": 20,
}


@pytest.fixture(autouse=True)
def _own_signal_handler() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


class NoisySpotter(SpotterModel):
    """Draws random numbers as it is trained, as dropout does."""

    def forward(self, pixel_values: torch.Tensor, **inputs: torch.Tensor) -> SpotterOutput:
        return super().forward(pixel_values + 0.1 * torch.randn_like(pixel_values), **inputs)


def make_spotter() -> SpotterModel:
    torch.manual_seed(3)
    return NoisySpotter(SpotterConfig(**SPOTTER))


def batch(number: int) -> Batch:
    generator = torch.Generator().manual_seed(number)
    return {
        "pixel_values": torch.randn(4, 1, 32, 32, generator=generator),
        "labels": TOKEN_OFFSET + torch.randint(0, 20, (4, 3), generator=generator),
    }


def batches(first: int, process: int, processes: int) -> Iterator[Batch]:
    number = first
    while True:
        yield batch(number * processes + process)
        number += 1


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the trainer catches it."""


def killed_at(step: int):
    def until_killed(first: int, process: int, processes: int) -> Iterator[Batch]:
        for number, item in enumerate(batches(first, process, processes), first):
            if number == step:
                raise Killed
            yield item

    return until_killed


def arguments(folder: Path, **settings) -> TrainingArguments:
    steps = {"max_steps": 6, "save_steps": 3, "log_steps": 1, "warmup_steps": 2, "learning_rate": 1e-2}
    return TrainingArguments(output_dir=str(folder), **{**steps, **settings})


def log(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def losses(folder: Path) -> dict[int, float]:
    return {entry["step"]: entry["loss"] for entry in log(folder) if "loss" in entry}


def checkpoints(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("checkpoint-*"))


def optimizer_state(folder: Path, checkpoint: str) -> dict:
    return torch.load(folder / checkpoint / "training_state.pt", weights_only=True)["optimizer"]["state"]


def assert_same_weights(first: nn.Module, second: nn.Module) -> None:
    state = second.state_dict()
    assert first.state_dict().keys() == state.keys()
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, state[name]), name


@pytest.fixture(scope="module")
def straight(tmp_path_factory) -> tuple[Path, SpotterModel]:
    """Folder and model of six steps without an interruption."""
    folder = tmp_path_factory.mktemp("straight")
    return folder, Trainer(arguments(folder), make_spotter(), batches).train()


# -------------------- parts


def test_learning_rate_rises_to_its_peak_and_falls_to_nothing():
    factors = [learning_rate_factor(step, 4, 12) for step in range(13)]
    assert factors[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert factors[4:] == sorted(factors[4:], reverse=True) and len(set(factors[4:])) == 9
    assert factors[8] == pytest.approx(0.5) and factors[6] == pytest.approx(0.5 + 0.5 * math.cos(math.pi / 4))
    assert factors[12] == pytest.approx(0) and learning_rate_factor(99, 4, 12) == pytest.approx(0)
    assert learning_rate_factor(0, 0, 5) == 1.0


def test_parameter_groups():
    model = make_spotter()
    model.backbone.stem.requires_grad_(False)
    groups = parameter_groups(model, 0.3, {"backbone.": 0.1, "backbone.layers.": 7.0, "head.projection.": 2.0})
    names = {parameter: name for name, parameter in model.named_parameters()}
    assert len({(group["rate"], group["weight_decay"]) for group in groups}) == len(groups)
    listed = [parameter for group in groups for parameter in group["params"]]
    assert {names[p] for p in listed} == {n for n in names.values() if not n.startswith("backbone.stem.")}
    assert len(listed) == len(set(listed))
    for group in groups:
        for parameter in group["params"]:
            name = names[parameter]
            assert group["weight_decay"] == (0.3 if parameter.ndim >= 2 else 0.0), name
            # the first prefix that fits counts
            rate = 0.1 if name.startswith("backbone.") else 2.0 if name.startswith("head.projection.") else 1.0
            assert group["rate"] == rate, name
    assert {group["rate"] for group in parameter_groups(model, 0.3)} == {1.0}


def test_schedule_and_rates_reach_the_optimiser(tmp_path, monkeypatch):
    trainer = Trainer(
        arguments(tmp_path, learning_rate=0.5, weight_decay=0.1), make_spotter(), batches, rates={"head.": 0.1}
    )
    seen = []
    optimizer, step = trainer.optimizer, trainer.optimizer.step
    monkeypatch.setattr(
        optimizer, "step", lambda: seen.append({g["rate"]: g["lr"] for g in optimizer.param_groups}) or step()
    )
    trainer.train()
    factors = [learning_rate_factor(number, 2, 6) for number in range(6)]
    assert [rates[1.0] for rates in seen] == pytest.approx([0.5 * factor for factor in factors])
    assert [rates[0.1] for rates in seen] == pytest.approx([0.05 * factor for factor in factors])


def test_gradients_are_clipped(tmp_path, monkeypatch):
    trainer = Trainer(arguments(tmp_path, max_steps=1, max_grad_norm=1e-3), make_spotter(), batches)
    norms = []
    step = trainer.optimizer.step

    def measured_step() -> None:
        grads = [p.grad for p in trainer.model.parameters() if p.grad is not None]
        norms.append(torch.stack([grad.norm() for grad in grads]).norm().item())
        step()

    monkeypatch.setattr(trainer.optimizer, "step", measured_step)
    trainer.train()
    assert norms == [pytest.approx(1e-3, rel=1e-2)]


# -------------------- the loop


def test_training_lowers_the_loss_and_leaves_a_model(tmp_path):
    def same(first: int, process: int, processes: int) -> Iterator[Batch]:
        while True:
            yield batch(0)

    # words that fit on three frames apart
    model = Trainer(arguments(tmp_path, max_steps=30), make_spotter(), same).train()
    values = losses(tmp_path)
    assert list(values) == list(range(1, 31)) and values[30] < 0.7 * values[1]
    assert_same_weights(SpotterModel.from_pretrained(tmp_path / "final"), model)
    start = log(tmp_path)[0]
    assert start["event"] == "start" and start["step"] == 0 and start["processes"] == 1
    assert start["parameters"] == sum(p.numel() for p in model.parameters())
    assert {"images_per_s", "data_wait", "eta_min"} <= log(tmp_path)[1].keys()


def test_log_line_is_the_mean_since_the_last(tmp_path, straight):
    Trainer(arguments(tmp_path, log_steps=3), make_spotter(), batches).train()
    each = losses(straight[0])
    assert losses(tmp_path) == pytest.approx(
        {3: sum(each[s] for s in (1, 2, 3)) / 3, 6: sum(each[s] for s in (4, 5, 6)) / 3}, abs=2e-4
    )


def test_best_checkpoint_is_by_the_metric(tmp_path):
    figures = iter([0.2, 0.7, 0.4])
    weights = []

    def evaluate(model: SpotterModel) -> dict[str, float]:
        assert not model.training and not torch.is_grad_enabled()
        weights.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return {"wrr": next(figures), "other": 1.0}

    trainer = Trainer(arguments(tmp_path, eval_steps=2), make_spotter(), batches, evaluate)
    assert trainer.train().training
    best = SpotterModel.from_pretrained(tmp_path / "best").state_dict()
    assert all(torch.equal(tensor, best[name]) for name, tensor in weights[1].items())
    assert [(e["step"], e["wrr"]) for e in log(tmp_path) if "wrr" in e] == [(2, 0.2), (4, 0.7), (6, 0.4)]


def test_last_step_is_evaluated(tmp_path):
    Trainer(arguments(tmp_path, max_steps=3, eval_steps=2), make_spotter(), batches, lambda model: {"wrr": 0.5}).train()
    assert [e["step"] for e in log(tmp_path) if "wrr" in e] == [2, 3]


# -------------------- stopping and going on


@pytest.mark.parametrize("killed", [3, 5])
def test_killed_run_goes_on_bit_for_bit(tmp_path, straight, killed):
    folder, expected = straight
    with pytest.raises(Killed):
        Trainer(arguments(tmp_path), make_spotter(), killed_at(killed)).train()
    assert checkpoints(tmp_path) == ["checkpoint-00000003"] and not (tmp_path / "final").exists()
    stranger = NoisySpotter(SpotterConfig(**SPOTTER))  # whatever the weights were before
    model = Trainer(arguments(tmp_path, resume=True), stranger, batches).train()
    assert_same_weights(model, expected)
    assert losses(tmp_path) == losses(folder)
    resumed, whole = (optimizer_state(path, "checkpoint-00000006") for path in (tmp_path, folder))
    assert resumed.keys() == whole.keys()
    for index, moments in whole.items():
        assert all(torch.equal(resumed[index][name], tensor) for name, tensor in moments.items())


def test_best_figure_outlives_a_kill(tmp_path):
    with pytest.raises(Killed):
        Trainer(arguments(tmp_path, eval_steps=2), make_spotter(), killed_at(4), lambda model: {"wrr": 0.9}).train()
    written = (tmp_path / "best" / "model.safetensors").stat().st_mtime_ns
    worse = Trainer(arguments(tmp_path, eval_steps=2, resume=True), make_spotter(), batches, lambda model: {"wrr": 0.8})
    worse.train()
    assert (tmp_path / "best" / "model.safetensors").stat().st_mtime_ns == written and worse.best == 0.9


def test_sigterm_saves_and_stops(tmp_path, straight):
    def terminated(first: int, process: int, processes: int) -> Iterator[Batch]:
        for number, item in enumerate(batches(first, process, processes), first):
            if number == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            yield item

    Trainer(arguments(tmp_path), make_spotter(), terminated).train()
    assert checkpoints(tmp_path) == ["checkpoint-00000002"] and not (tmp_path / "final").exists()
    model = Trainer(arguments(tmp_path, resume=True), make_spotter(), batches).train()
    assert_same_weights(model, straight[1])


def test_half_written_checkpoint_is_ignored(tmp_path, straight, monkeypatch):
    save = torch.save

    def killed_while_saving(state, path) -> None:
        if state["step"] == 6:
            Path(path).write_bytes(b"half")
            raise Killed
        save(state, path)

    monkeypatch.setattr(trainer_module.torch, "save", killed_while_saving)
    with pytest.raises(Killed):
        Trainer(arguments(tmp_path), make_spotter(), batches).train()
    assert (tmp_path / "partial" / "training_state.pt").exists()
    assert checkpoints(tmp_path) == ["checkpoint-00000003"]
    monkeypatch.undo()
    model = Trainer(arguments(tmp_path, resume=True), make_spotter(), batches).train()
    assert_same_weights(model, straight[1])
    assert checkpoints(tmp_path) == ["checkpoint-00000003", "checkpoint-00000006"]
    assert not (tmp_path / "partial").exists()


def test_resuming_without_a_checkpoint_is_an_error(tmp_path):
    (tmp_path / "partial").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no checkpoint in .*: leave --resume out"):
        Trainer(arguments(tmp_path, resume=True), make_spotter(), batches)


def test_resuming_a_finished_run_changes_nothing(tmp_path, straight):
    Trainer(arguments(tmp_path), make_spotter(), batches).train()
    model = Trainer(arguments(tmp_path, resume=True), make_spotter(), batches).train()
    assert_same_weights(model, straight[1])
    assert list(losses(tmp_path)) == list(range(1, 7))


def test_only_the_newest_checkpoints_are_kept(tmp_path):
    Trainer(arguments(tmp_path, save_steps=1, save_total_limit=2), make_spotter(), batches).train()
    assert checkpoints(tmp_path) == ["checkpoint-00000005", "checkpoint-00000006"]


# -------------------- several processes


def train_refiner(folder: Path) -> None:
    """What each of the two processes does."""
    read = []

    def noted(first: int, process: int, processes: int) -> Iterator[Batch]:
        for number, item in enumerate(batches(first, process, processes)):
            read.append((processes, first + number * processes + process))
            yield item

    model = RefinerModel.from_spotter(make_spotter())
    trained = Trainer(arguments(folder, max_steps=3, save_steps=2), model, noted).train()
    weights = {name: tensor for name, tensor in trained.state_dict().items() if tensor.is_floating_point()}
    torch.save({"read": read, "weights": weights}, folder / f"{distributed.get_rank()}.pt")


def test_two_processes_train_one_refiner(tmp_path, run_in_two_processes):
    run_in_two_processes(__file__, tmp_path)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert first["read"] == [(2, 0), (2, 2), (2, 4)] and second["read"] == [(2, 1), (2, 3), (2, 5)]
    assert all(torch.equal(tensor, second["weights"][name]) for name, tensor in first["weights"].items())
    assert checkpoints(tmp_path) == ["checkpoint-00000002", "checkpoint-00000003"]
    assert log(tmp_path)[0]["processes"] == 2 and list(losses(tmp_path)) == [1, 2, 3]
    final = RefinerModel.from_pretrained(tmp_path / "final").state_dict()
    assert all(torch.equal(tensor, final[name]) for name, tensor in first["weights"].items())

    def both(first: int, process: int, processes: int) -> Iterator[Batch]:
        for number in range(3):
            pair = [batch(2 * number), batch(2 * number + 1)]
            yield {name: torch.cat([item[name] for item in pair]) for name in pair[0]}

    one = arguments(tmp_path / "one", max_steps=3)
    alone = Trainer(one, RefinerModel.from_spotter(make_spotter()), both).train()
    start = RefinerModel.from_spotter(make_spotter()).state_dict()
    for name, tensor in alone.state_dict().items():
        # attention does not depend on the bias of keys: its gradient is rounding noise
        if tensor.is_floating_point() and not name.endswith("k_proj.bias"):
            moved = (final[name] - start[name]).norm()
            assert (final[name] - tensor).norm() <= 0.05 * moved + 1e-6, name
            assert (moved > 0) == (not name.startswith("encoder.spotter.")), name


if __name__ == "__main__":
    train_refiner(Path(sys.argv[1]))
