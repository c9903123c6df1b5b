import contextlib
import importlib.util
import io
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoProcessor

from mstr_hf import (
    MCLIPModel,
    PrototypeBank,
    RefinerModel,
    SpotterConfig,
    SpotterModel,
    build_vocabulary,
    load_charsets,
)
from mstr_hf.charsets import load_charset
from mstr_hf.hub import publish
from mstr_hf.synthesis.words import WordsError, load_words
from mstr_hf.training.arguments import SECTIONS, TrainingArguments, mapping, parse_arguments
from mstr_hf.training.mclip import text_rows
from mstr_hf.training.simulator import Simulator

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "scripts" / "configs"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec and spec.loader
    # Dataclasses look their module up.
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def run(fonts):
    """Runs a script on English words in a few fonts of the system; gives its output."""
    try:
        load_words("en")
    except WordsError as error:
        pytest.skip(f"missing: {error}")

    def run(name: str, *options: object) -> str:
        module = load(name)
        places = [module, importlib.import_module("mstr_hf.training.words")]
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as output:
            for place in places:
                if hasattr(place, "discover_fonts"):
                    patch.setattr(place, "discover_fonts", lambda languages, folders=(): fonts)
            patch.setattr(sys, "argv", [name, *map(str, options)])
            patch.setenv("ACCELERATE_USE_CPU", "yes")
            module.main()
        return output.getvalue()

    return run


def figures(folder: Path) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for line in (folder / "log.jsonl").read_text().splitlines():
        for name, value in json.loads(line).items():
            found.setdefault(name, []).append(value)
    return found


STEPS = ["--max_steps", 2, "--eval_steps", 2, "--save_steps", 1, "--log_steps", 1, "--num_workers", 0]
WORDS = [*STEPS, "--batch_size", 2, "--eval_words", 3]
# The paper's setting, for two small steps.
REFERENCE = ["--config", CONFIGS / "reference.yaml"]
SHAPE = "stem_channels=4,stage_channels=[4,8,16],stage_blocks=[1,1],num_hidden_layers=1,intermediate_size=16"
TALL = "image_height=48,column_width=8,frames_per_column=4"


@pytest.fixture(scope="module")
def mclip(run, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "mclip"
    options = ["--languages", "en", "--architecture", "projection_dim=16", "--batch_size", 16, "--eval_samples", 40]
    run("train_mclip", *REFERENCE, "--output_dir", folder, *STEPS, *options)
    return folder


@pytest.fixture(scope="module")
def bank(run, mclip) -> Path:
    folder = mclip.with_name("bank")
    report = run("build_prototype_bank", "--mclip", mclip / "final", "--output", folder)
    assert report == (folder / "report.md").read_text()
    return folder


@pytest.fixture(scope="module")
def spotter(run, bank) -> Path:
    folder = bank.with_name("spotter")
    run("train_spotter", *REFERENCE, "--bank", bank, "--output_dir", folder, *WORDS, "--architecture", SHAPE)
    return folder


@pytest.fixture(scope="module")
def refiner(run, spotter) -> Path:
    folder = spotter.with_name("refiner")
    run("train_refiner", *REFERENCE, "--spotter", spotter / "final", "--output_dir", folder, *WORDS)
    return folder


def test_mclip(run, mclip):
    log = figures(mclip)
    assert len(log["loss"]) == 2
    assert {"top1", "top1_in_language", "top1_diacritics", "top1_letters_in_language", "nearest_row_max"} <= log.keys()
    model = MCLIPModel.from_pretrained(mclip / "final")
    assert (model.config.projection_dim, model.config.arcface_weight, model.config.subtype_weight) == (16, 0.1, 0.1)
    table = run("evaluate_mclip", "--mclip", mclip / "final", "--crops", 60).splitlines()
    assert table[2].startswith("| en | 60 | ") and table[3].startswith("| all | 60 | ")


def test_mclip_trains_on_pictures_too(run, labelled, tmp_path):
    drawn = tmp_path / "characters"
    drawn.mkdir()
    for number, char in enumerate("AbC"):
        shutil.copy(labelled.parent / f"{number}.png", drawn)
        entry = {"id": char, "path_rel": f"{number}.png", "filename": f"{number}.png", "gt_text": char, "lang": "en"}
        with open(drawn / "labels.jsonl", "a") as file:
            file.write(json.dumps(entry | {"dataset": "test"}) + "\n")
    small = ["--languages", "en", "--architecture", "projection_dim=16", "--batch_size", 8, "--eval_samples", 20]
    with open(drawn / "labels.jsonl", "a") as file:
        file.write(json.dumps(entry | {"id": "क", "gt_text": "क", "lang": "hi", "dataset": "test"}) + "\n")
    options = ["--character_data", drawn / "labels.jsonl", "--labelled_share", 0.75]
    output = run("train_mclip", "--output_dir", tmp_path / "run", *STEPS, *small, *options)
    summary = "75% of 3 labelled pictures of characters (en 3); 25% synthetic characters of en"
    assert f"trains on {summary}\n" in output
    assert "hi needs 'क' U+0915 x1: name a language that has them in --languages; all are named in" in output
    (reject,) = map(json.loads, (tmp_path / "run" / "rejects.jsonl").read_text().splitlines())
    assert reject["label"] == "क" and reject["reason"] == "characters outside the bank"
    assert summary in (tmp_path / "run" / "final" / "README.md").read_text()
    with pytest.raises(ValueError, match=r"no label can be used: 20 words left out \(more than 1 character"):
        run("train_mclip", "--output_dir", tmp_path / "none", *STEPS, *small, "--character_data", labelled)


def test_mclip_learns_the_space_of_a_bank(run, mclip, bank, tmp_path):
    options = ["--bank", bank, "--languages", "en,ar", "--eval_samples", 20, "--batch_size", 64]
    steps = ["--max_steps", 60, "--warmup_steps", 1, "--eval_steps", 60, "--learning_rate", 0.003, "--num_workers", 0]
    run("train_mclip", "--output_dir", tmp_path / "run", *options, *steps)
    model = MCLIPModel.from_pretrained(tmp_path / "run" / "final").eval()
    built = PrototypeBank.from_pretrained(bank)
    vocabulary = build_vocabulary(load_charsets(["en", "ar"]))
    with torch.no_grad():
        rows = text_rows(model, vocabulary)
    assert len(rows) == len(vocabulary.rows) > len(built)
    cosines = (rows[: len(built)] * built.prototypes).sum(1)
    assert cosines.mean() > 0.6
    run("train_mclip", "--output_dir", tmp_path / "more", "--init_from", tmp_path / "run" / "final", *options,
        "--max_steps", 0)  # fmt: skip
    same = MCLIPModel.from_pretrained(tmp_path / "more" / "final").state_dict()
    assert all(torch.equal(tensor, same[name]) for name, tensor in model.state_dict().items())


def test_a_trained_mclip_grows(run, mclip, tmp_path):
    options = ["--init_from", mclip / "final", "--languages", "en,hi", "--eval_samples", 1, "--max_steps", 0]
    run("train_mclip", "--output_dir", tmp_path / "run", *options)
    old, new = (MCLIPModel.from_pretrained(folder / "final") for folder in (mclip, tmp_path / "run"))
    count = old.config.vocab_size
    assert new.config.vocab_size > count and new.config.num_rows > old.config.num_rows
    assert torch.equal(new.text_tower.token_embedding.weight[:count], old.text_tower.token_embedding.weight)
    assert torch.equal(new.arcface_centres[: old.config.num_rows], old.arcface_centres)
    assert torch.equal(new.image_tower.projection.weight, old.image_tower.projection.weight)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--bank", "BANK", "--languages", "hi,en"], "begin with the bank's languages, en"),
        (["--bank", "BANK", "--languages", "en", "--architecture", "projection_dim=8"], "but the bank has 16"),
        (["--init_from", "MCLIP", "--languages", "hi,en"], "begin with its languages, in its order"),
        (["--init_from", "MCLIP", "--languages", "en", "--arcface_weight", "0.1"], "--subtype_weight 0 where"),
    ],
)
def test_mclip_of_other_languages_is_refused(run, mclip, bank, tmp_path, options, message):
    paths = {"BANK": bank, "MCLIP": mclip / "final"}
    options = [paths.get(option, option) for option in options]
    with pytest.raises(ValueError, match=message):
        run("train_mclip", "--output_dir", tmp_path, "--eval_samples", 1, "--max_steps", 0, *options)


def test_bank(run, bank, tmp_path):
    built = PrototypeBank.from_pretrained(bank)
    vocabulary = build_vocabulary(load_charsets(["en"]))
    assert built.charset_digest == vocabulary.digest and built.prototypes.shape == (len(vocabulary.rows), 16)
    assert torch.allclose(built.prototypes.norm(dim=-1), torch.ones(len(built)))
    report = (bank / "report.md").read_text()
    assert report.startswith(f"# {len(built)} rows of 16\n\nDigest {built.digest()}\n")
    assert (bank / "map.png").stat().st_size > 10_000
    # One that is there already.
    assert run("build_prototype_bank", "--bank", bank, "--output", tmp_path / "again") == report
    assert {path.name for path in (tmp_path / "again").iterdir()} == {"report.md", "map.png"}


def test_spotter(spotter, bank):
    log = figures(spotter)
    assert len(log["loss"]) == 2 and len(log["wrr"]) == len(log["wrr_en"]) == 1
    model = SpotterModel.from_pretrained(spotter / "final")
    assert model.get_bank().digest() == PrototypeBank.from_pretrained(bank).digest()
    assert PrototypeBank.from_pretrained(spotter / "final").digest() == model.get_bank().digest()
    assert model.config.stage_channels == [4, 8, 16]
    card = (spotter / "final" / "README.md").read_text()
    assert "| steps | 2 of 2, 2 samples each: 4 samples |" in card and "1 process(es) on CPU" in card
    assert "| data | 100% synthetic words (en 100%) |" in card and "| wrr |" in card
    assert f"architecture: {SHAPE}"[:40] in card and str(ROOT) not in card and str(spotter) not in card


def test_refiner(refiner, spotter):
    log = figures(refiner)
    assert len(log["loss"]) == 2 and len(log["wrr"]) == 1
    model = AutoModel.from_pretrained(refiner / "final")
    processor = AutoProcessor.from_pretrained(refiner / "final")
    state = SpotterModel.from_pretrained(spotter / "final").state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.spotter.state_dict().items())
    inputs = processor([torch.randint(0, 256, (40, 100), dtype=torch.uint8)], return_tensors="pt")
    (reading,) = model.eval().recognise(**inputs, num_alternatives=1)
    assert set(reading["text"]) <= set(model.get_bank().characters)
    assert "Spotter and Refiner" in (refiner / "final" / "README.md").read_text()


def test_runs_leave_what_they_should(mclip, spotter, refiner):
    for folder in (mclip, spotter, refiner):
        assert {path.name for path in folder.iterdir()} == {
            "checkpoint-00000001",
            "checkpoint-00000002",
            "best",
            "final",
            "log.jsonl",
            "tensorboard",
        }


def test_refiner_and_spotter_together(run, refiner):
    folder = refiner.with_name("joint")
    run("train_refiner", "--joint", "--init_from", refiner / "final", "--output_dir", folder, *WORDS)
    before, after = (load_file(path / "final/model.safetensors") for path in (refiner, folder))
    name = "encoder.spotter.backbone.stem.conv.weight"
    assert not torch.equal(before[name], after[name])
    assert len(figures(folder)["wrr_spotter"]) == 2  # before the first step, and after the last


def test_refiner_and_spotter_together_from_nothing(run, bank, refiner):
    folder = bank.with_name("from_nothing")
    start = ["--bank", bank, "--output_dir", folder, *WORDS]
    run("train_refiner", "--joint", *start, "--spotter_architecture", f"{SHAPE},{TALL}", "--eval_words", 2)
    model = RefinerModel.from_pretrained(folder / "final")
    assert model.config.spotter_config.image_height == 48
    assert torch.equal(model.get_bank().prototypes, PrototypeBank.from_pretrained(bank).prototypes)
    assert AutoProcessor.from_pretrained(folder / "final").image_processor.size["height"] == 48
    with pytest.raises(ValueError, match="which --joint trains"):
        run("train_refiner", *start)
    with pytest.raises(ValueError, match="leave --spotter and --init_from out"):
        run("train_refiner", "--joint", *start, "--init_from", refiner / "final")
    with pytest.raises(ValueError, match="spotter_architecture: unknown 'projection_dim'"):
        run("train_refiner", "--joint", *start, "--spotter_architecture", "projection_dim=4")
    with pytest.raises(ValueError, match="frames of 2 pixels: give 4 frames a column"):
        run("train_refiner", "--joint", *start, "--spotter_architecture", "column_width=8")
    assert model.config.freeze_spotter  # from now on
    with pytest.raises(ValueError, match="spotter_architecture: a Spotter that is trained has one"):
        run("train_refiner", "--init_from", refiner / "final", *start[2:], "--spotter_architecture", TALL)


def test_banks_are_compared_from_equal_starts(run, bank):
    folder = bank.with_name("banks")
    printed = run("compare_banks", "--bank", bank, "--output_dir", folder, *WORDS, "--architecture", SHAPE)
    table = (folder / "table.md").read_text()
    assert printed.strip().endswith(table.strip())
    assert len(table.splitlines()) == 7 and "| random unit rows, frozen |" in table
    arms = {arm: load_file(folder / arm / "final/model.safetensors") for arm in ("mclip", "random", "learned")}
    rows = {arm: weights["head.prototypes"] for arm, weights in arms.items()}
    given = PrototypeBank.from_pretrained(bank).prototypes
    assert torch.equal(rows["mclip"], given)
    assert not torch.equal(rows["random"], given) and not torch.equal(rows["learned"], given)
    assert torch.allclose(rows["learned"], given, atol=0.05)
    assert len(figures(folder / "learned")["loss"]) == 2
    resumed = run("compare_banks", "--bank", bank, "--output_dir", folder, *WORDS, "--architecture", SHAPE, "--resume")
    assert resumed.strip().endswith(table.strip())


def test_decoders_are_compared_on_equal_words(run, bank, labelled):
    folder = bank.with_name("decoders")
    shapes = ["--spotter_architecture", SHAPE, "--architecture", "hidden_size=16,intermediate_size=16"]
    options = ["--bank", bank, "--output_dir", folder, *WORDS, *shapes, "--photographs", labelled]
    printed = run("compare_decoders", *options)
    table = (folder / "table.md").read_text()
    assert "reads 20 of 30 words" in printed and printed.endswith(table + "\n")
    rows = [line.split(" | ") for line in table.splitlines()[4:]]
    spent = {row[0].strip("| "): float(row[1]) for row in rows}
    assert len(rows) == 9 and "20 labels" in table
    assert spent["CTC frames"] == spent["CTC frames, trained beside the Refiner"] < spent["the Refiner"]
    maps = [f"CTC frames, the last maps {kind}" for kind in ("H/16 x W/4", "H/16 x W/4, rows merged", "H/8 x W/4")]
    for name in ("parallel queries", *maps):
        assert spent[name] == pytest.approx(spent["CTC frames"], rel=0.25)
    assert spent["CTC frames, as much compute as with the Refiner"] == pytest.approx(spent["the Refiner"], rel=0.25)
    # What is trained is not trained again.
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*/final/model.safetensors")}
    assert len(before) == 8
    assert run("compare_decoders", *options).endswith(table + "\n")
    assert before == {path: path.stat().st_mtime_ns for path in folder.glob("*/final/model.safetensors")}
    with pytest.raises(ValueError, match="was made with other seed: name another --output_dir"):
        run("compare_decoders", *options, "--seed", 5)
    with pytest.raises(ValueError, match="two sets are called labels"):
        run("compare_decoders", *options, labelled)


def test_parallel_queries_learn_to_read(bank):
    compare = load("compare_decoders")
    shape = mapping(SHAPE, "shape", list(SpotterConfig.__annotations__))
    makers = compare.Makers(PrototypeBank.from_pretrained(bank), shape, {})
    torch.manual_seed(0)
    model = makers.spotter(compare.QuerySpotter).train()
    pixels = torch.rand(4, 1, 32, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mask = torch.ones(4, 64, dtype=torch.bool)
    labels = torch.tensor([[130, 131, 131], [132, -100, -100], [129, 128, -100], [131, 130, 129]])
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(200):
        loss = model(pixels, mask, labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    ids = model(pixels, mask).top_k_ids[..., 0]
    assert [row[row > 0].tolist() for row in ids] == [row[row > 0].tolist() for row in labels]


def test_refiner_on_simulated_readings(run, spotter):
    file = spotter.with_name("simulator.json")
    output = run("fit_simulator", "--spotter", spotter / "final", "--output", file, "--words", 8)
    assert "fitted to 4 words" in output and "| outcomes | " in output and "| scores | " in output
    bank = SpotterModel.from_pretrained(spotter / "final").get_bank()
    assert Simulator.from_file(file, bank).observations.words == 4
    folder = spotter.with_name("simulated")
    options = ["--architecture", "num_hidden_layers=1", "--simulator", file]
    run("train_refiner", "--spotter", spotter / "final", "--output_dir", folder, *WORDS, *options)
    assert len(figures(folder)["loss"]) == 2
    assert RefinerModel.from_pretrained(folder / "final").config.text_config.num_hidden_layers == 1


def test_finetuning_on_ones_own_pictures(run, refiner, labelled, monkeypatch):
    pushed = []
    monkeypatch.setattr(publish, "check_push", lambda repo_id: None)
    monkeypatch.setattr(publish, "push", lambda *args: pushed.append(args) or "address")
    folder = refiner.with_name("mine")
    output = run(
        "finetune",
        *("--checkpoint", refiner / "final", "--data", labelled, "--output_dir", folder),
        *(*WORDS, "--push_to_hub", "me/mine"),
    )
    assert "-- spotter\n" in output and "-- refiner\n" in output
    # Arabic digits are not in an English bank.
    assert "WARNING: 10 words left out (characters outside the bank), such as word-20; ar needs" in output
    assert output.count(f"; all are named in {folder / 'rejects.jsonl'}\n") == 2
    rejects = [json.loads(line) for line in (folder / "rejects.jsonl").read_text().splitlines()]
    assert [reject["id"] for reject in rejects] == [f"word-{number}" for number in range(20, 30)]
    assert rejects[1] | {"id": ""} == {"id": "", "label": "٢١", "lang": "ar", "reason": "characters outside the bank"}
    assert "step 0  wrr_en" in output and "wrr: 0.0000 -> 0.0000" in output
    model = RefinerModel.from_pretrained(folder / "final")
    best = SpotterModel.from_pretrained(folder / "spotter" / "best").state_dict()
    assert all(torch.equal(tensor, best[name]) for name, tensor in model.spotter.state_dict().items())
    trained = SpotterModel.from_pretrained(folder / "spotter" / "final").state_dict()
    assert not torch.equal(trained["head.blank"], best["head.blank"])  # the best is where it began
    assert pushed == [(folder / "final", "me/mine")]
    card = (folder / "final" / "README.md").read_text()
    assert "# me/mine\n" in card and "then 100% of 18 labelled pictures (en 18)" in card
    assert "2 of 2, then 2 of 2, 2 samples each: 8 samples" in card and "| wrr | 0.0000 | 0.0000 |" in card
    assert output.startswith("the checkpoint, read as by default: wrr_en 0.0000")
    command = f"python scripts/calibrate.py --model {folder / 'final'}"
    assert f"its confidences and its gate are still the checkpoint's: `{command}` fits them to it\n" in output


def test_finetuning_that_makes_a_model_forget_other_languages_is_worse(run, tmp_path, monkeypatch):
    # Pictures of every script, all labelled with the same English letter, which validate as well.
    entries = [json.loads(line) for line in (publish.SAMPLES / "labels.jsonl").read_text().splitlines()[::3]]
    manifest = tmp_path / "labels.jsonl"
    with open(manifest, "w") as file:
        for entry in entries:
            shutil.copy(publish.SAMPLES / entry["filename"], tmp_path)
            file.write(json.dumps(entry | {"gt_text": "I", "lang": "en"}) + "\n")
    monkeypatch.setattr(publish, "check_push", lambda repo_id: None)
    monkeypatch.setattr(publish, "push", lambda *args: pytest.fail("uploaded"))
    output = run(
        "finetune",
        *("--checkpoint", publish.CHECKPOINT, "--data", manifest, "--val_data", manifest, "--output_dir"),
        *(tmp_path / "run", *STEPS, "--max_steps", 12, "--eval_steps", 12, "--warmup_steps", 0, "--batch_size", 8),
        *("--learning_rate", 5e-3, "--eval_words", 3, "--push_to_hub", "me/mine"),
    )
    before, after = (float(re.search(rf"wrr_others: {figures}", output)[1]) for figures in (r"(\S+)", r"\S+ -> (\S+)"))
    assert before > 0.9 and after < before - 0.1
    assert "no synthetic words of bn will tell whether it is forgotten: " in output
    assert re.search(r"wrr_bn: \S+ -> \S+ \(3 words that are not of the data\)", output)
    assert re.search(r"WARNING: .*bn.* forgotten in part: train with --synthetic_share 0.2 or more", output)
    assert "not uploaded: worse than what it began with" in output


def test_self_check_says_how_many_words_it_knows_by_heart(run, refiner, labelled):
    options = [*WORDS, "--overfit_images", 4]
    folder = refiner.with_name("check")
    command = ["--checkpoint", refiner / "final", "--data", labelled, "--output_dir", folder, *options]
    with pytest.raises(SystemExit, match="is a self-check"):
        run("finetune", *command, "--push_to_hub", "me/mine")
    with pytest.raises(SystemExit, match="self-check FAILED: 0% of 4 words by heart; give it more max_steps"):
        run("finetune", *command)
    steps = ["--max_steps", 100, "--eval_steps", 50, "--save_steps", 100, "--warmup_steps", 10, "--batch_size", 4]
    command += [*steps, "--learning_rate", 1e-2, "--output_dir", folder / "longer"]
    assert run("finetune", *command).endswith("self-check passed: 100% of 4 words by heart\n")


def test_a_bank_is_extended_by_the_characters_of_labels(run, mclip, bank, spotter, refiner, labelled):
    old, folder = PrototypeBank.from_pretrained(bank), bank.with_name("extended")
    options = ["--bank", spotter / "final", "--mclip", mclip / "final", "--data", labelled, "--crops", 2]
    output = run("extend_prototype_bank", *options, "--output", folder)
    new = PrototypeBank.from_pretrained(folder)
    assert output == f"10 rows added to {len(old)}: ٠ ١ ٢ ٣ ٤ ٥ ٦ ٧ ٨ ٩\n"
    assert torch.equal(new.prototypes[: len(old)], old.prototypes)
    assert torch.allclose(new.prototypes.norm(dim=-1), torch.ones(len(new)), atol=1e-5)
    assert set(new.subtypes[len(old) :]) == {2} and new.scripts[-1] == "Zyyy" and list(new.languages[-1]) == ["ar"]
    # The Spotter goes on with it, and now takes the Arabic words as well.
    more = ["--init_from", spotter / "final", "--bank", folder, "--data", labelled, "--output_dir", folder / "run"]
    assert "100% of 27 labelled pictures (ar 9, en 18)" in run("train_spotter", *WORDS, *more)
    # So does the Refiner, on that Spotter or by itself.
    more = [*WORDS, "--data", labelled, "--init_from", refiner / "final", "--spotter", folder / "run" / "final"]
    assert "(ar 9, en 18)" in run("train_refiner", *more, "--output_dir", folder / "refiner")
    assert len(RefinerModel.from_pretrained(folder / "refiner" / "final").get_bank()) == len(new)
    mine = ["--checkpoint", refiner / "final", "--bank", folder, "--data", labelled, *WORDS]
    assert "(ar 9, en 18)" in run("finetune", *mine, "--output_dir", folder / "mine")
    # A language that is new to the bank brings its whole charset, of what is there.
    entries = [json.loads(line) for line in labelled.read_text().splitlines()][:3]
    foreign = labelled.with_name("foreign.jsonl")
    foreign.write_text("\n".join(json.dumps(entry | {"lang": "hi", "gt_text": "क"}) for entry in entries))
    said = run("extend_prototype_bank", *options[:4], "--data", foreign, "--crops", 2, "--output", folder / "hi")
    assert said.startswith("hi writes U+200C, U+200D too, which this bank leaves out of labels")
    grown = PrototypeBank.from_pretrained(folder / "hi")
    readable = {grown.characters[row] for row in grown.language_mask(["hi"]).nonzero()[:, 0].tolist()}
    assert "क" in readable and readable - {"क"} == load_charset("hi").characters & set(old.characters)
    foreign.write_text("\n".join(json.dumps(entry | {"lang": "de", "gt_text": "ß"}) for entry in entries))
    with pytest.raises(SystemExit):
        run("extend_prototype_bank", *options[:4], "--data", foreign, "--output", folder / "de")
    with pytest.raises(ValueError, match="name a --bank to start with"):
        run("train_spotter", "--output_dir", folder / "other")


def parse_configs(section: str, *names: str) -> tuple:
    """What a trainer makes of configs: its TrainingArguments, its own options and, but for mCLIP, those of words."""
    argv = ["--output_dir", "x", "--config", *(str(CONFIGS / f"{name}.yaml") for name in names)]
    argv += ["--checkpoint", "y"] if section == "finetune" else []
    args, *words, own = parse_arguments(section, SECTIONS[section], argv=argv)
    return args, own, *words


@pytest.mark.parametrize("name", sorted(path.stem for path in CONFIGS.glob("*.yaml")))
def test_each_config_fits_each_trainer(name):
    for section in ("mclip", "spotter", "refiner", "finetune"):
        options = parse_configs(section, name)
        assert options[0].output_dir == "x" and options[0].config == [str(CONFIGS / f"{name}.yaml")]


@pytest.mark.parametrize("below", ["base", "bundled"])
@pytest.mark.parametrize(("name", "languages"), [("1lang", ["hi"]), ("3lang", ["en", "hi", "bn"])])
def test_configs_of_fewer_languages_weigh_no_others(name, languages, below):
    for section in ("spotter", "refiner"):
        words = parse_configs(section, below, name)[2]
        weights = mapping(words.language_weights, "language_weights", languages)
        assert not weights or list(weights) == languages


def test_the_papers_setting_has_as_many_words_of_each_language():
    for section in ("spotter", "refiner"):
        for below in ("base", "bundled"):
            args, _, words = parse_configs(section, below, "reference")
            assert (args.optimizer, args.batch_size, words.language_weights) == ("adamw", 512, "")
        args, _, words = parse_configs(section, "base", "reference", "real")  # its second stage
        assert (args.optimizer, args.batch_size, words.language_weights) == ("adamw", 512, "")


def test_fine_tuning_on_photographs_keeps_synthetic_words_in_one_command_too():
    for section in ("spotter", "refiner", "finetune"):
        args, _, words = parse_configs(section, "base", "real")
        assert (words.synthetic_share, words.language_temperature, args.eval_steps) == (0.2, 2.0, 500)


def test_a_config_that_names_another_is_refused(tmp_path, capsys):
    (tmp_path / "a.yaml").write_text("config: b.yaml")
    with pytest.raises(SystemExit):
        parse_arguments("", [TrainingArguments], argv=["--config", str(tmp_path / "a.yaml")])
    assert "a.yaml: a config names no other: give all of them to --config" in capsys.readouterr().err


def test_simulators_are_fitted_to_words_of_every_language():
    words = [SimpleNamespace(lang=lang, number=number) for lang in ("en", "hi", "bn") for number in range(5)]
    for half in load("fit_simulator").halves(words):
        assert Counter(word.lang for word in half).keys() == {"en", "hi", "bn"} and len(half) in (6, 9)


def test_the_seed_is_the_weights_too(run, tmp_path):
    weights = []
    for number, seed in enumerate((1, 1, 2)):
        options = ["--languages", "en", "--eval_samples", "1", "--max_steps", "0", "--seed", str(seed)]
        run("train_mclip", "--output_dir", tmp_path / str(number), *options)
        weights.append((tmp_path / str(number) / "final" / "model.safetensors").read_bytes())
    assert weights[0] == weights[1] != weights[2]


def test_scripts_run_as_programs(tmp_path):
    (tmp_path / "a.yaml").write_text("spotter: {lerning_rate: 1}")
    script = ROOT / "scripts" / "train_spotter.py"
    command = [sys.executable, script, "--output_dir", "x", "--config", tmp_path / "a.yaml"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 2
    assert "a.yaml: unknown option 'lerning_rate': did you mean learning_rate?" in result.stderr.splitlines()[-1]


@pytest.fixture
def launch(fonts, tmp_path):
    """Runs a script by `accelerate launch` in two processes, with the faces of `fonts`; gives what it printed."""
    index = tmp_path / "fonts.pickle"
    index.write_bytes(pickle.dumps(fonts))
    (tmp_path / "run.py").write_text(
        "import pickle, runpy, sys\n"
        "from mstr_hf.synthesis import fonts\n"
        f"found = pickle.load(open({str(index)!r}, 'rb'))\n"
        "fonts.discover_fonts = lambda languages, folders=(): found\n"
        "sys.argv = sys.argv[1:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )

    def launch(name: str, *options: object) -> str:
        launcher = ["-m", "accelerate.commands.accelerate_cli", "launch", "--multi_gpu", "--num_processes", "2"]
        settings = ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
        command = [sys.executable, *launcher, *settings, tmp_path / "run.py", ROOT / "scripts" / f"{name}.py", *options]
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "ACCELERATE_USE_CPU": "yes",
            "OMP_NUM_THREADS": "1",
        }
        result = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, timeout=300)
        assert result.returncode == 0, result.stderr[-3000:]
        return result.stdout

    return launch


def test_each_trainer_runs_in_two_processes(launch, run, tmp_path):
    small = ["--languages", "en", "--architecture", "projection_dim=16", "--batch_size", 8, "--eval_samples", 20]
    output = launch("train_mclip", "--output_dir", tmp_path / "mclip", *STEPS, *small)
    assert output.count("2 processes on cpu") == 1 and "; 16 samples a step; steps 0 to 2" in output
    run("build_prototype_bank", "--mclip", tmp_path / "mclip" / "final", "--output", tmp_path / "bank")
    options = ["--bank", tmp_path / "bank", "--architecture", SHAPE]
    output = launch("train_spotter", "--output_dir", tmp_path / "spotter", *WORDS, *options)
    assert output.count("2 processes on cpu") == 1 and "; 4 samples a step; steps 0 to 2" in output
    options = ["--spotter", tmp_path / "spotter" / "final"]
    output = launch("train_refiner", "--output_dir", tmp_path / "refiner", *WORDS, *options)
    assert output.count("2 processes on cpu") == 1 and "; 4 samples a step; steps 0 to 2" in output
    for name, auto in (("mclip", MCLIPModel), ("spotter", SpotterModel), ("refiner", RefinerModel)):
        assert len(figures(tmp_path / name)["loss"]) == 2
        auto.from_pretrained(tmp_path / name / "final")
    card = (tmp_path / "refiner" / "final" / "README.md").read_text()
    assert "2 of 2, 4 samples each: 8 samples" in card
