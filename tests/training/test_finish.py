import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoProcessor

from mstr_hf.hub import publish
from mstr_hf.models.configuration_spotter import SpotterConfig
from mstr_hf.models.modeling_spotter import TOKEN_OFFSET, SpotterModel
from mstr_hf.models.prototype_bank import PrototypeBank
from mstr_hf.training.arguments import TrainingArguments
from mstr_hf.training.finish import finish
from mstr_hf.training.trainer import Batch, Trainer
from mstr_hf.vocabulary import Vocabulary


@dataclass
class Options:
    """As those of the scripts."""

    bank: str = ""
    data: list[str] = field(default_factory=list)


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it."""


def batches(first: int, process: int, processes: int) -> Iterator[Batch]:
    generator = torch.Generator().manual_seed(first)
    while True:
        pixels = torch.randn(4, 1, 32, 32, generator=generator)
        yield {"pixel_values": pixels, "labels": TOKEN_OFFSET + torch.randint(0, 20, (4, 3), generator=generator)}


def trained(folder: Path, vocabulary: Vocabulary, options: Options | None = None, **settings) -> Trainer:
    """A Spotter after two steps, of which the first has made the better one."""
    rows = vocabulary.rows
    torch.manual_seed(0)
    config = SpotterConfig(
        stem_channels=4,
        stage_channels=(4, 4, 16),
        stage_blocks=(1, 0),
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        projection_dim=16,
        num_prototypes=len(rows),
    )
    model = SpotterModel(config)
    model.set_bank(
        PrototypeBank(
            F.normalize(torch.randn(len(rows), 16), dim=-1),
            [row.character for row in rows],
            [row.subtype for row in rows],
            [row.script for row in rows],
            [row.languages for row in rows],
        ),
        base=True,
    )
    args = TrainingArguments(str(folder), **{"max_steps": 2, "save_steps": 1, "eval_steps": 1, **settings})
    figures = iter([0.5, 0.25])
    trainer = Trainer(args, model, batches, lambda model: {"wrr": next(figures)}, options=[options or Options()])
    trainer.train()
    return trainer


def card(folder: Path) -> str:
    return (folder / "README.md").read_text(encoding="utf-8")


def test_both_models_are_whole_and_say_which_they_are(tmp_path, vocabulary):
    trainer = trained(tmp_path / "run", vocabulary)
    best = SpotterModel.from_pretrained(tmp_path / "run" / "best").state_dict()
    finish(trainer, vocabulary, "noise")
    final = tmp_path / "run" / "final"
    for folder in (final, final.with_name("best")):
        assert AutoProcessor.from_pretrained(folder).image_processor.size["height"] == 32
        assert "# run\n" in card(folder) and "| data | noise |" in card(folder)
        assert "| wrr | 0.2500 | 0.5000 |" in card(folder)
        assert f"rows, digest {trainer.bare.get_bank().digest()} |" in card(folder)
        assert f", torch {torch.__version__}, transformers " in card(folder) and "| software | mstr_hf " in card(folder)
        assert "changed on resuming" not in card(folder)
    assert "| | at the end (these weights) | at step 1 (best) |" in card(final)
    assert "| | at the end | at step 1 (best, these weights) |" in card(final.with_name("best"))
    finished = SpotterModel.from_pretrained(final.with_name("best")).state_dict()
    assert all(torch.equal(tensor, finished[name]) for name, tensor in best.items())
    assert sorted(path.name for path in final.parent.glob("best*")) == ["best"]


def test_a_kill_while_the_best_model_is_completed_leaves_it_whole(tmp_path, vocabulary, monkeypatch):
    trainer = trained(tmp_path, vocabulary)
    expected = SpotterModel.from_pretrained(tmp_path / "best").state_dict()
    assemble = publish.assemble

    def killed(model: SpotterModel, folder: Path, *args) -> None:
        assemble(model, folder, *args)
        if folder != tmp_path / "final":
            (folder / "model.safetensors").write_bytes(b"half")
            raise Killed

    monkeypatch.setattr(publish, "assemble", killed)
    with pytest.raises(Killed):
        finish(trainer, vocabulary, "noise")
    monkeypatch.undo()
    finish(trainer, vocabulary, "noise")
    best = SpotterModel.from_pretrained(tmp_path / "best").state_dict()
    assert all(torch.equal(tensor, best[name]) for name, tensor in expected.items())


@pytest.mark.parametrize(
    ("value", "named"),
    [
        ("runs/spotter/best", "spotter"),
        ("{home}/runs/spotter/final", "spotter"),
        ("runs/bank", "bank"),
        ("mstr/refiner-6lang", "mstr/refiner-6lang"),
        ("words/labels.jsonl", "labels.jsonl"),
        ("{home}/elsewhere", "elsewhere"),
        ("/elsewhere", "elsewhere"),
        ("~/elsewhere", "elsewhere"),
    ],
)
def test_cards_call_checkpoints_by_their_names_and_tell_no_paths(tmp_path, vocabulary, monkeypatch, value, named):
    monkeypatch.chdir(tmp_path)
    for folder in ("runs/spotter/best", "runs/spotter/final", "runs/bank", "words"):
        Path(folder).mkdir(parents=True)
    Path("words/labels.jsonl").touch()
    value = value.format(home=tmp_path)
    trainer = trained(tmp_path / "run", vocabulary, Options(value, [value, "b"]))
    finish(trainer, vocabulary, "noise")
    assert f"\nbank: {named}\ndata:\n- {named}\n- b\n" in card(tmp_path / "run" / "final")
    assert str(tmp_path) not in card(tmp_path / "run" / "final")


def test_cards_tell_which_options_a_resumption_changed(tmp_path, vocabulary):
    folder = tmp_path / "run"
    trained(folder, vocabulary, Options(f"{tmp_path}/a"))
    trained(folder, vocabulary, Options(f"{tmp_path}/b"), max_steps=3, resume=True)
    trainer = trained(folder, vocabulary, Options(f"{tmp_path}/b"), max_steps=3, seed=1, resume=True)
    finish(trainer, vocabulary, "noise")
    for text in (card(folder / "final"), card(folder / "best")):
        changes = "max_steps 2 -> 3 (step 2), bank a -> b (step 2), seed 0 -> 1 (step 3)"
        assert f"| options changed on resuming | {changes} |" in text
        assert str(tmp_path) not in text


def test_a_failed_upload_leaves_a_complete_run_and_says_how_to_upload_it(tmp_path, vocabulary, monkeypatch):
    def no_network(folder: Path, repo_id: str) -> str:
        raise publish.PublishError("cannot reach the Hub")

    monkeypatch.setattr(publish, "check_push", lambda repo_id: None)
    monkeypatch.setattr(publish, "push", no_network)
    trainer = trained(tmp_path, vocabulary, push_to_hub="me/mine")
    with pytest.raises(SystemExit) as stop:
        finish(trainer, vocabulary, "noise")
    command = f"python scripts/push_to_hub.py {tmp_path / 'final'} me/mine"
    assert stop.value.code == (
        f"not uploaded: cannot reach the Hub; the run is complete in {tmp_path / 'final'}, `{command}` uploads it later"
    )
    assert "# me/mine\n" in card(tmp_path / "final") and "# me/mine\n" in card(tmp_path / "best")
    assert json.loads((tmp_path / "final" / "config.json").read_text())["model_type"] == "mstr_spotter"
