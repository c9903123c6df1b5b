import contextlib
import itertools
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from mstr_hf.hub.publish import PublishError
from mstr_hf.models.configuration_spotter import SpotterConfig
from mstr_hf.models.modeling_refiner import RefinerModel
from mstr_hf.models.modeling_spotter import TOKEN_OFFSET, SpotterModel, SpotterOutput
from mstr_hf.training import trainer as trainer_module
from mstr_hf.training.arguments import TrainingArguments, WordArguments
from mstr_hf.training.trainer import (
    Batch,
    Sample,
    Trainer,
    begin_worker,
    learning_rate_factor,
    to_device,
)

ROOT = Path(__file__).parents[2]

SPOTTER = {
    "stem_channels": 4,
    "stage_channels": (4, 4, 16),
    "stage_blocks": (1, 0),
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "projection_dim": 16,
    "num_prototypes": 20,
}


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


def optimizer_state(folder: Path, checkpoint: str) -> dict[str, torch.Tensor]:
    return {
        name: tensor
        for path in (folder / checkpoint).glob("optimizer-*.safetensors")
        for name, tensor in load_file(path).items()
    }


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


def test_statistics_stay_where_they_are_to_be_frozen(tmp_path):
    model = make_spotter()
    before = {name: buffer.clone() for name, buffer in model.named_buffers() if "running" in name}
    weight = model.backbone.stem.norm.weight.detach().clone()
    seen = []

    def evaluate(model: SpotterModel) -> dict[str, float]:
        seen.append(model.backbone.stem.norm.training)
        return {"wrr": 0.0}

    settings = arguments(tmp_path, eval_steps=2)
    trained = Trainer(settings, model, batches, evaluate, freeze_statistics=True).train()
    assert before and seen == [False] * 3
    for name, buffer in trained.named_buffers():
        assert "running" not in name or torch.equal(buffer, before[name]), name
    assert trained.training and not torch.equal(trained.backbone.stem.norm.weight, weight)
    # Else they follow the batches.
    followed = Trainer(arguments(tmp_path / "followed"), make_spotter(), batches).train()
    assert not torch.equal(followed.backbone.stem.norm.running_mean, before["backbone.stem.norm.running_mean"])


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
    assert resumed.keys() == whole.keys() and len(whole) > 3
    assert all(torch.equal(resumed[name], tensor) for name, tensor in whole.items())


def test_another_optimizer_is_refused(tmp_path):
    with pytest.raises(Killed):
        Trainer(arguments(tmp_path, optimizer="muon"), make_spotter(), killed_at(4)).train()
    with pytest.raises(ValueError, match="is of a run with optimizer muon: go on with that, or name another"):
        Trainer(arguments(tmp_path, optimizer="adamw", resume=True), make_spotter(), batches)


def test_best_figure_outlives_a_kill(tmp_path):
    with pytest.raises(Killed):
        Trainer(arguments(tmp_path, eval_steps=2), make_spotter(), killed_at(4), lambda model: {"wrr": 0.9}).train()
    written = (tmp_path / "best" / "model.safetensors").stat().st_mtime_ns
    worse = Trainer(arguments(tmp_path, eval_steps=2, resume=True), make_spotter(), batches, lambda model: {"wrr": 0.8})
    worse.train()
    assert (tmp_path / "best" / "model.safetensors").stat().st_mtime_ns == written and worse.best == 0.9


def test_log_line_of_a_resumed_run_is_the_mean_of_all_its_steps(tmp_path, straight):
    with pytest.raises(Killed):
        Trainer(arguments(tmp_path, log_steps=4), make_spotter(), killed_at(3)).train()
    Trainer(arguments(tmp_path, log_steps=4, resume=True), make_spotter(), batches).train()
    each = losses(straight[0])
    assert losses(tmp_path)[4] == pytest.approx(sum(each[s] for s in (1, 2, 3, 4)) / 4, abs=2e-4)


def terminated(first: int, process: int, processes: int) -> Iterator[Batch]:
    for number, item in enumerate(batches(first, process, processes), first):
        if number == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        yield item


def test_sigterm_saves_and_stops(tmp_path, straight):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as stop:
        Trainer(arguments(tmp_path), make_spotter(), terminated).train()
    assert stop.value.code == 143 and signal.getsignal(signal.SIGTERM) is before
    assert checkpoints(tmp_path) == ["checkpoint-00000002"] and not (tmp_path / "final").exists()
    model = Trainer(arguments(tmp_path, resume=True), make_spotter(), batches).train()
    assert_same_weights(model, straight[1])


def noisy_evaluation(wish: Callable[[int], None] = lambda count: None) -> Callable[[SpotterModel], dict[str, float]]:
    """An evaluation that draws random numbers; `wish` is called with how many came before it."""
    counts = itertools.count()

    def evaluate(model: SpotterModel) -> dict[str, float]:
        wish(next(counts))
        return {"wrr": torch.rand(()).item()}

    return evaluate


def evaluations(folder: Path) -> dict[int, float]:
    return {entry["step"]: entry["wrr"] for entry in log(folder) if "wrr" in entry}


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory) -> tuple[Path, SpotterModel]:
    """Folder and model of six steps with an evaluation after each, without an interruption."""
    folder = tmp_path_factory.mktemp("evaluated")
    return folder, Trainer(arguments(folder, eval_steps=1), make_spotter(), batches, noisy_evaluation()).train()


def assert_goes_on_as(evaluated: tuple[Path, SpotterModel], folder: Path) -> None:
    whole, expected = evaluated
    args = arguments(folder, eval_steps=1, resume=True)
    trainer = Trainer(args, make_spotter(), batches, noisy_evaluation())
    assert_same_weights(trainer.train(), expected)
    assert losses(folder) == losses(whole) and len(evaluations(whole)) == 6
    assert trainer.history == [(step, {"wrr": wrr}) for step, wrr in evaluations(whole).items()]
    assert_same_weights(*(SpotterModel.from_pretrained(path / "best") for path in (folder, whole)))


@pytest.mark.parametrize(("count", "checkpoint"), [(1, 2), (2, 3)], ids=["between checkpoints", "at a checkpoint"])
def test_sigterm_in_an_evaluation_stops_after_it(tmp_path, evaluated, count, checkpoint):
    def wish(before: int) -> None:
        if before == count:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SystemExit) as stop:
        Trainer(arguments(tmp_path, eval_steps=1), make_spotter(), batches, noisy_evaluation(wish)).train()
    assert stop.value.code == 143 and checkpoints(tmp_path) == [f"checkpoint-{checkpoint:08d}"]
    assert len(evaluations(tmp_path)) == count + 1  # it was made to its end
    assert_goes_on_as(evaluated, tmp_path)


@pytest.mark.parametrize(("count", "checkpoint"), [(2, 3), (5, 6)], ids=["on the way", "at the end"])
def test_a_kill_in_an_evaluation_loses_no_step(tmp_path, evaluated, count, checkpoint):
    def wish(before: int) -> None:
        if before == count:
            raise Killed

    with pytest.raises(Killed):
        Trainer(arguments(tmp_path, eval_steps=1), make_spotter(), batches, noisy_evaluation(wish)).train()
    assert checkpoints(tmp_path)[-1] == f"checkpoint-{checkpoint:08d}"
    assert_goes_on_as(evaluated, tmp_path)


def test_who_is_told_to_stop_makes_no_evaluation_before(tmp_path, evaluated):
    with pytest.raises(SystemExit):
        Trainer(arguments(tmp_path, eval_steps=1), make_spotter(), terminated, noisy_evaluation()).train()
    assert checkpoints(tmp_path) == ["checkpoint-00000002"] and list(evaluations(tmp_path)) == [1]
    assert_goes_on_as(evaluated, tmp_path)


def test_time_limit_saves_and_leaves_in_peace(tmp_path, straight):
    with pytest.raises(SystemExit) as stop:
        Trainer(arguments(tmp_path, time_limit=1e-6), make_spotter(), batches).train()
    assert stop.value.code == 0 and checkpoints(tmp_path) == ["checkpoint-00000001"]
    model = Trainer(arguments(tmp_path, resume=True, time_limit=1e6), make_spotter(), batches).train()
    assert_same_weights(model, straight[1])


@pytest.mark.parametrize("file", ["optimizer", "rng", "model"])
def test_half_written_checkpoint_is_ignored(tmp_path, straight, monkeypatch, file):
    """Killed while it writes one of the checkpoint's files."""
    owner, name = {
        "optimizer": (trainer_module, "save_file"),
        "rng": (torch, "save"),
        "model": (SpotterModel, "save_pretrained"),
    }[file]
    save = getattr(owner, name)
    count = 0

    def killed_while_saving(*args, **kwargs) -> None:
        nonlocal count
        count += 1
        if count == 2:
            (tmp_path / "partial" / "half").write_bytes(b"half")
            raise Killed
        save(*args, **kwargs)

    monkeypatch.setattr(owner, name, killed_while_saving)
    with pytest.raises(Killed):
        Trainer(arguments(tmp_path), make_spotter(), batches).train()
    assert (tmp_path / "partial" / "half").exists()
    assert checkpoints(tmp_path) == ["checkpoint-00000003"]
    monkeypatch.undo()
    model = Trainer(arguments(tmp_path, resume=True), make_spotter(), batches).train()
    assert_same_weights(model, straight[1])
    assert checkpoints(tmp_path) == ["checkpoint-00000003", "checkpoint-00000006"]
    assert not (tmp_path / "partial").exists() and not (tmp_path / "checkpoint-00000006" / "half").exists()


def test_another_runs_folder_is_refused_unless_it_goes_on(tmp_path):
    Trainer(arguments(tmp_path), make_spotter(), batches).train()
    with pytest.raises(FileExistsError, match=r"holds checkpoint-00000006: add --resume to go on, or name another"):
        Trainer(arguments(tmp_path), make_spotter(), batches)


def test_resuming_without_a_checkpoint_begins(tmp_path, straight, capsys):
    (tmp_path / "partial").mkdir()
    model = Trainer(arguments(tmp_path, resume=True), make_spotter(), batches).train()
    assert_same_weights(model, straight[1])
    assert f"no checkpoint in {tmp_path}: this run starts at the beginning" in capsys.readouterr().out


def test_resuming_says_which_options_have_changed(tmp_path, capsys):
    with pytest.raises(Killed):
        Trainer(arguments(tmp_path), make_spotter(), killed_at(4)).train()
    Trainer(arguments(tmp_path, resume=True, learning_rate=0.5, num_workers=3), make_spotter(), batches).train()
    assert "not the run that the checkpoint is from: learning_rate 0.01 -> 0.5\n" in capsys.readouterr().out


def test_resuming_says_which_further_options_have_changed(tmp_path, capsys):
    def options(severity: float) -> list[WordArguments]:
        return [WordArguments(severity=severity)]

    with pytest.raises(Killed):
        Trainer(arguments(tmp_path), make_spotter(), killed_at(4), options=options(0.5)).train()
    Trainer(arguments(tmp_path, resume=True), make_spotter(), batches, options=options(0.9)).train()
    assert "not the run that the checkpoint is from: severity 0.5 -> 0.9\n" in capsys.readouterr().out
    again = Trainer(arguments(tmp_path, resume=True), make_spotter(), batches, options=options(0.9))
    again.train()
    assert "not the run" not in capsys.readouterr().out
    assert again.changes == [(3, "severity", 0.5, 0.9)]


def test_optimiser_is_saved_in_files_that_are_not_too_large(tmp_path, straight, monkeypatch):
    monkeypatch.setattr(trainer_module, "MAX_FILE_SIZE", 3000)
    with pytest.raises(Killed):
        Trainer(arguments(tmp_path), make_spotter(), killed_at(4)).train()
    files = list((tmp_path / "checkpoint-00000003").glob("*.safetensors"))
    assert len(files) > 4 and all(path.stat().st_size < 9000 for path in files)
    model = Trainer(arguments(tmp_path, resume=True), make_spotter(), batches).train()
    assert_same_weights(model, straight[1])


def test_best_model_survives_a_kill_in_the_moment_of_its_replacement(tmp_path):
    Trainer(arguments(tmp_path, eval_steps=6), make_spotter(), batches, lambda model: {"wrr": 0.5}).train()
    (tmp_path / "best").rename(tmp_path / "best.old")
    Trainer(arguments(tmp_path, resume=True), make_spotter(), batches)
    assert (tmp_path / "best" / "model.safetensors").exists()


def test_a_loss_that_is_no_number_ends_the_run_and_keeps_the_checkpoint(tmp_path):
    def poisoned(first: int, process: int, processes: int) -> Iterator[Batch]:
        for number, item in enumerate(batches(first, process, processes), first):
            if number == 4:
                item["pixel_values"] = item["pixel_values"] * math.nan
            yield item

    with pytest.raises(FloatingPointError, match="no number any more at step 5: go on from the newest checkpoint"):
        Trainer(arguments(tmp_path), make_spotter(), poisoned).train()
    assert checkpoints(tmp_path) == ["checkpoint-00000003"] and not (tmp_path / "final").exists()


def test_a_gradient_that_is_no_number_is_never_saved(tmp_path):
    """At a step that saves: its loss is still a number, its weights are none any more."""
    model = make_spotter()
    calls = 0

    def spoilt(gradient: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return gradient * (math.nan if calls == 6 else 1)

    model.head.blank.register_hook(spoilt)
    with pytest.raises(FloatingPointError, match="the loss or its gradient is no number any more at step 6"):
        Trainer(arguments(tmp_path), model, batches).train()
    assert checkpoints(tmp_path) == ["checkpoint-00000003"] and not (tmp_path / "final").exists()


def test_resuming_a_finished_run_changes_nothing(tmp_path, straight):
    Trainer(arguments(tmp_path), make_spotter(), batches).train()
    model = Trainer(arguments(tmp_path, resume=True), make_spotter(), batches).train()
    assert_same_weights(model, straight[1])
    assert list(losses(tmp_path)) == list(range(1, 7))


def test_only_the_newest_checkpoints_are_kept(tmp_path):
    Trainer(arguments(tmp_path, save_steps=1, save_total_limit=2), make_spotter(), batches).train()
    assert checkpoints(tmp_path) == ["checkpoint-00000005", "checkpoint-00000006"]


# -------------------- fine-tuning


def scores(*values: float):
    figures = iter(values)
    return lambda model: {"wrr": next(figures)}


@pytest.mark.parametrize(("end", "warned"), [(0.4, True), (0.6, False)])
def test_fine_tuning_says_when_it_ends_worse_than_it_began(tmp_path, capsys, end, warned):
    model = make_spotter()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    args = arguments(tmp_path, max_steps=2, eval_steps=9)
    trainer = Trainer(args, model, batches, scores(0.5, end), evaluate_first=True)
    trainer.train()
    assert trainer.worse == warned
    output = capsys.readouterr().out
    assert ("WARNING: wrr ended at 0.4000, worse than the 0.5000 it started with" in output) == warned
    best = SpotterModel.from_pretrained(tmp_path / "best").state_dict()
    kept = all(torch.equal(tensor, best[name]) for name, tensor in before.items())
    assert kept == warned


def test_fine_tuning_names_languages_that_the_mean_hides(tmp_path, capsys):
    figures = iter([{"wrr_en": 0.5, "wrr_hi": 0.5, "wrr_bn": 0.5, "wrr": 0.5},
                    {"wrr_en": 0.9, "wrr_hi": 0.47, "wrr_bn": 0.48, "wrr": 0.6}])  # fmt: skip
    args = arguments(tmp_path, max_steps=2, eval_steps=9)
    trainer = Trainer(args, make_spotter(), batches, lambda model: next(figures), evaluate_first=True)
    trainer.train()
    assert not trainer.worse
    assert "WARNING: more than 2 points below the start: wrr_hi 0.5000 -> 0.4700\n" in capsys.readouterr().out
    assert log(tmp_path)[-1] == {"event": "languages worse", "fallen": ["wrr_hi"]}


# -------------------- what is said


def test_a_run_that_could_not_be_uploaded_does_not_begin(tmp_path, monkeypatch):
    monkeypatch.setattr("mstr_hf.hub.publish.is_offline_mode", lambda: False)
    monkeypatch.setattr("mstr_hf.hub.publish.get_token", lambda: None)
    with pytest.raises(PublishError, match="wants a token: make one"):
        Trainer(arguments(tmp_path / "run", push_to_hub="me/mine"), make_spotter(), batches)
    assert not (tmp_path / "run").exists()


def test_samples_and_figures_reach_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugin_util import markdown_to_safe_html

    image = np.arange(32 * 40, dtype=np.uint8).reshape(32, 40)
    samples = [Sample(image, "right", "right"), Sample(image[:, :20], "यह", "वह"), Sample(image, "a|b", "a\\|")]
    args = arguments(tmp_path, eval_steps=3)
    Trainer(args, make_spotter(), batches, lambda model: {"wrr": 0.5}, samples=lambda model: samples).train()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3, 4, 5, 6]
    assert [event.value for event in events.Scalars("validation/wrr")] == [0.5, 0.5]
    assert {"train/images_per_s", "train/data_wait", "train/learning_rate"} <= set(events.Tags()["scalars"])
    assert (events.Images("samples")[0].width, events.Images("samples")[0].height) == (40, 3 * 34)
    (text, _) = events.Tensors("samples/text_summary")
    table = text.tensor_proto.string_val[0].decode()
    assert "| 1 | right | right |" in table and "| 2 | यह | **वह** |" in table
    assert "<td>a&#124;b</td>\n<td><strong>a\\&#124;</strong></td>" in markdown_to_safe_html(table)


def test_pictures_travel_as_bytes():
    pixels = torch.tensor([[[[0, 255, 51, 7]]]], dtype=torch.uint8)
    mask = torch.tensor([[True, True, True, False]])
    moved = to_device({"pixel_values": pixels, "pixel_mask": mask, "prefix": {"ids": torch.ones(2)}}, "cpu")
    assert torch.allclose(moved["pixel_values"], torch.tensor([[[[-1, 1, -0.6, 0]]]]), atol=1e-6)
    assert moved["prefix"]["ids"].tolist() == [1, 1]


# -------------------- accumulation


def test_accumulated_batches_equal_one_large_batch(tmp_path):
    """Without batch statistics, which each pass has of its own."""

    def halves(first: int, process: int, processes: int) -> Iterator[Batch]:
        for number in range(first, 99):
            yield {name: tensor[2 * (number % 2) :][:2] for name, tensor in batch(number // 2).items()}

    class Frozen(SpotterModel):
        def train(self, mode: bool = True) -> SpotterModel:
            return super().train(False)

    def trained(folder: str, source, **settings) -> SpotterModel:
        torch.manual_seed(3)
        args = arguments(tmp_path / folder, max_steps=2, **settings)
        return Trainer(args, Frozen(SpotterConfig(**SPOTTER)), source).train()

    whole = trained("whole", batches).state_dict()
    parts = trained("parts", halves, gradient_accumulation_steps=2).state_dict()
    for name, tensor in whole.items():
        if tensor.is_floating_point() and not name.endswith("k_proj.bias"):
            assert torch.allclose(parts[name], tensor, atol=1e-3), name
    assert losses(tmp_path / "parts") == pytest.approx(losses(tmp_path / "whole"), rel=1e-3)


@pytest.fixture
def fresh_accelerate():
    """The precision of a process is settled once."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def test_bfloat16_keeps_the_weights_in_float32(tmp_path, fresh_accelerate):
    model = Trainer(arguments(tmp_path, bf16=True), make_spotter(), batches).train()
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    assert log(tmp_path)[0]["precision"] == "bf16" and losses(tmp_path)[6] < losses(tmp_path)[1]


# -------------------- several processes


def train_refiner(folder: Path, mode: str) -> None:
    """What each of the two processes does."""
    read = []
    rank = int(os.environ["RANK"])

    def noted(first: int, process: int, processes: int) -> Iterator[Batch]:
        for number, item in enumerate(batches(first, process, processes), first):
            if mode == "killed" and number == 2 and process == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            if mode == "terminated" and number == 2 and process == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            read.append((processes, number * processes + process))
            yield item

    def terminate(model: RefinerModel) -> dict[str, float]:
        os.kill(os.getpid(), signal.SIGTERM)
        return {"wrr": 0.5}

    model = RefinerModel.from_spotter(make_spotter())
    steps = {"max_steps": 40 if "terminated" in mode else 3, "save_steps": 2, "eval_steps": 3}
    evaluate = terminate if mode == "terminated in evaluation" else None
    trained = Trainer(arguments(folder, **steps, resume=mode == "resumed"), model, noted, evaluate).train()
    weights = {name: tensor for name, tensor in trained.state_dict().items() if tensor.is_floating_point()}
    torch.save({"read": read, "weights": weights, "random": torch.rand(1)}, folder / f"{rank}.pt")


@pytest.fixture(scope="module")
def two(tmp_path_factory, run_in_two_processes) -> Path:
    """Folder of three steps that two processes have trained without an interruption."""
    folder = tmp_path_factory.mktemp("two")
    run_in_two_processes(__file__, folder, "straight")
    return folder


def test_two_processes_train_one_refiner(tmp_path, two):
    first, second = (torch.load(two / f"{rank}.pt") for rank in (0, 1))
    assert first["read"] == [(2, 0), (2, 2), (2, 4)] and second["read"] == [(2, 1), (2, 3), (2, 5)]
    assert all(torch.equal(tensor, second["weights"][name]) for name, tensor in first["weights"].items())
    assert first["random"] != second["random"]
    assert checkpoints(two) == ["checkpoint-00000002", "checkpoint-00000003"]
    assert log(two)[0]["processes"] == 2 and list(losses(two)) == [1, 2, 3]
    final = RefinerModel.from_pretrained(two / "final").state_dict()
    assert all(torch.equal(tensor, final[name]) for name, tensor in first["weights"].items())

    def both(first: int, process: int, processes: int) -> Iterator[Batch]:
        for number in range(3):
            pair = [batch(2 * number), batch(2 * number + 1)]
            yield {name: torch.cat([item[name] for item in pair]) for name in pair[0]}

    one = arguments(tmp_path, max_steps=3)
    alone = Trainer(one, RefinerModel.from_spotter(make_spotter()), both).train()
    assert losses(tmp_path) == pytest.approx(losses(two), rel=1e-3)  # the mean over processes
    start = RefinerModel.from_spotter(make_spotter()).state_dict()
    for name, tensor in alone.state_dict().items():
        # attention does not depend on the bias of keys: its gradient is rounding noise
        if tensor.is_floating_point() and not name.endswith("k_proj.bias"):
            moved = (final[name] - start[name]).norm()
            assert (final[name] - tensor).norm() <= 0.05 * moved + 1e-6, name
            assert (moved > 0) == (not name.startswith("encoder.spotter.")), name


def test_two_processes_go_on_after_one_was_killed(tmp_path, two, run_in_two_processes):
    run_in_two_processes(__file__, tmp_path, "killed", fails=True)
    assert checkpoints(tmp_path) == ["checkpoint-00000002"] and not (tmp_path / "final").exists()
    run_in_two_processes(__file__, tmp_path, "resumed")
    for rank in (0, 1):
        resumed, whole = (torch.load(folder / f"{rank}.pt") for folder in (tmp_path, two))
        assert resumed["read"] == whole["read"][2:] and resumed["random"] == whole["random"]
        for name, tensor in whole["weights"].items():
            assert torch.allclose(resumed["weights"][name], tensor, atol=1e-6), name
    assert losses(tmp_path) == pytest.approx(losses(two), rel=1e-5)


def test_all_processes_stop_when_one_is_told_to(tmp_path, run_in_two_processes):
    run_in_two_processes(__file__, tmp_path, "terminated", fails=True)
    # They agree on it every eight steps.
    assert checkpoints(tmp_path) == ["checkpoint-00000006", "checkpoint-00000008"]
    assert log(tmp_path)[-1]["event"] == "stop" and not (tmp_path / "final").exists()


def test_all_processes_stop_after_an_evaluation_in_which_one_was_told_to(tmp_path, run_in_two_processes):
    run_in_two_processes(__file__, tmp_path, "terminated in evaluation", fails=True)
    assert checkpoints(tmp_path) == ["checkpoint-00000002", "checkpoint-00000003"]
    assert log(tmp_path)[-1]["event"] == "stop" and not (tmp_path / "final").exists()


@pytest.mark.parametrize("by_file", [False, True], ids=["option", "config file"])
def test_a_launch_that_started_too_few_processes_is_refused(tmp_path, by_file):
    config = tmp_path / "accelerate.yaml"
    config.write_text(
        "compute_environment: LOCAL_MACHINE\ndistributed_type: 'NO'\nnum_machines: 1\nnum_processes: 2\nuse_cpu: true\n"
        "mixed_precision: 'no'\nmachine_rank: 0\n"
    )
    options = ["--config_file", config] if by_file else ["--cpu", "--num_processes", "2"]
    (tmp_path / "run.py").write_text(
        "from pathlib import Path\n"
        "from test_trainer import *\n"
        f"Trainer(arguments(Path({str(tmp_path / 'run')!r})), make_spotter(), batches).train()\n"
    )
    launch = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", *options]
    environment = {**os.environ, "PYTHONPATH": f"{Path(__file__).parent}:{ROOT}", "OMP_NUM_THREADS": "1"}
    result = subprocess.run([*launch, tmp_path / "run.py"], env=environment, capture_output=True, text=True)
    assert result.returncode
    assert "1 process started, but the launcher was asked for 2: add --multi_gpu" in result.stderr
    assert not (tmp_path / "run").exists()


@contextlib.contextmanager
def at_second_step(command: list, environment: dict[str, str]) -> Iterator[subprocess.Popen]:
    """A training in a process group of its own, once its second step is logged; none of it is left behind."""
    job = subprocess.Popen(command, env=environment, start_new_session=True, stdout=subprocess.PIPE, text=True)
    try:
        assert any(line.startswith("step 2 ") for line in job.stdout)
        yield job
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(job.pid, signal.SIGKILL)


@pytest.mark.skipif(sys.platform != "linux", reason="missing: Linux, whose processes learn that their parent died")
def test_a_single_process_saves_when_its_launcher_is_told_to_stop(tmp_path):
    (tmp_path / "run.py").write_text(
        "from pathlib import Path\n"
        "from test_trainer import *\n"
        f"args = arguments(Path({str(tmp_path / 'run')!r}), max_steps=100_000, log_steps=1)\n"
        "Trainer(args, make_spotter(), batches).train()\n"
    )
    launch = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--cpu", "--num_processes", "1"]
    environment = {**os.environ, "PYTHONPATH": f"{Path(__file__).parent}:{ROOT}", "OMP_NUM_THREADS": "1"}
    command = [*launch, tmp_path / "run.py"]
    with at_second_step(command, environment) as job:
        os.kill(job.pid, signal.SIGTERM)
        rest = job.stdout.read()  # up to the end of the trainer, which has the pipe too
    assert "told to stop: saved at step " in rest and checkpoints(tmp_path / "run")


class FromWorkers(IterableDataset):
    def __iter__(self) -> Iterator[Batch]:
        begin_worker()
        yield from batches(0, 0, 1)


def train_with_workers(folder: Path) -> None:
    def loaded(first: int, process: int, processes: int) -> Iterator[Batch]:
        yield from DataLoader(FromWorkers(), batch_size=None, num_workers=1)

    Trainer(arguments(folder, max_steps=100_000, log_steps=1), make_spotter(), loaded).train()


def test_sigterm_to_all_processes_of_a_job_saves_too(tmp_path):
    """As schedulers and `timeout` send it: to the workers that prepare batches as well."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "yes", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, tmp_path, "workers"]
    with at_second_step(command, environment) as job:
        os.killpg(job.pid, signal.SIGTERM)
        rest = job.stdout.read()
        assert job.wait(60) == 143, rest
    assert "told to stop: saved at step " in rest
    (step,) = {entry["step"] for entry in log(tmp_path) if entry.get("event") == "stop"}
    assert checkpoints(tmp_path)[-1] == f"checkpoint-{step:08d}"


if __name__ == "__main__":
    if sys.argv[2] == "workers":
        train_with_workers(Path(sys.argv[1]))
    else:
        train_refiner(Path(sys.argv[1]), sys.argv[2])
