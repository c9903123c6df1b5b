from dataclasses import dataclass, field

import pytest

from mstr_hf.training.arguments import TrainingArguments, mapping, parse_arguments


@dataclass
class Other:
    names: list[str] = field(default_factory=list)
    weights: str = ""
    share: float | None = None
    flag: bool = True


def parse(*argv: object, section: str = "spotter") -> tuple[TrainingArguments, Other]:
    return parse_arguments(section, [TrainingArguments, Other], argv=list(map(str, argv)))


def refused(capsys, *argv: object) -> str:
    with pytest.raises(SystemExit) as stop:
        parse(*argv)
    assert stop.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_later_files_win_and_the_command_line_wins_over_all(tmp_path):
    (tmp_path / "a.yaml").write_text(
        "output_dir: runs\nseed: 1\nlearning_rate: 1.0e-4\nspotter: {max_steps: 5, seed: 2}\n"
        "mclip: {arcface_weight: 1}\n"
    )
    (tmp_path / "b.yaml").write_text(
        "bf16: true\nflag: false\nnames: [x y, z]\nshare: null\n"
        "spotter:\n  weights: {en: 2, layers: [1, 2]}\n  max_steps: 6\n"
    )
    args, other = parse("--config", tmp_path / "a.yaml", tmp_path / "b.yaml", "--seed", 7)
    assert (args.output_dir, args.seed, args.learning_rate, args.max_steps, args.bf16) == ("runs", 7, 1e-4, 6, True)
    assert (other.flag, other.names, other.share) == (False, ["x y", "z"], None)
    assert mapping(other.weights, "weights", ["en", "layers"]) == {"en": 2, "layers": [1, 2]}
    assert parse("--config", tmp_path / "a.yaml")[0].seed == 2
    args, _ = parse("--config", tmp_path / "a.yaml", "--config", tmp_path / "b.yaml")
    assert (args.seed, args.max_steps) == (2, 6)


def test_later_files_take_back_what_earlier_ones_said(tmp_path):
    (tmp_path / "a.yaml").write_text(
        "output_dir: runs\nseed: 1\nmax_steps: 5\nspotter: {names: [x, y], share: 0.5, weights: {en: 2}, seed: 2}\n"
    )
    (tmp_path / "b.yaml").write_text(
        "names: []\nshare: null\nspotter:\n  seed: null\n  weights: {}\nrefiner:\nmclip: {max_steps: null}\n"
    )
    args, other = parse("--config", tmp_path / "a.yaml", tmp_path / "b.yaml")
    assert (args.seed, args.max_steps) == (0, 5) and (other.names, other.share, other.weights) == ([], None, "")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("lerning_rate: 1", "a.yaml: unknown option 'lerning_rate': did you mean learning_rate?"),
        ("spotter: {zzz: 1}", "a.yaml: unknown option 'zzz': it is no option of the trainer of spotter"),
        ("mclip: {arcface_wait: 1}", "a.yaml: unknown option 'arcface_wait': did you mean arcface_weight?"),
        ("finetune: {zzz: 1}", "a.yaml: unknown option 'zzz': it is no option of the trainer of finetune"),
        ("- a\n- b", "a.yaml: write options as 'name: value', one a line"),
        ("a: [", "a.yaml: not YAML: "),
        ("spotter: [1]", "a.yaml: 'spotter: [1]' is no section: write options of the trainer of spotter below"),
        ("refiner: 3", "a.yaml: 'refiner: 3' is no section: write options of the trainer of refiner below"),
        ("spoter: {seed: 1}", "a.yaml: unknown option 'spoter': did you mean spotter?"),
        ("max_steps: many", "argument --max_steps/--max-steps: invalid int value: 'many'"),
        ("batch_size: 0", "batch_size is 0: give 1 or more"),
        ("num_threads: 0", "num_threads is 0: give 1 or more"),
        ("max_steps: -1", "max_steps is -1: give 0 or more"),
        ("warmup_steps: -1", "warmup_steps is -1: give 0 or more"),
        ("num_workers: -1", "num_workers is -1: give 0 or more"),
        ("seed: -1", "seed is -1: give 0 or more"),
        ("weight_decay: -0.1", "weight_decay is -0.1: give 0 or more"),
        ("learning_rate: 0", "learning_rate is 0.0: give more than 0"),
        ("max_grad_norm: .nan", "max_grad_norm is nan: give more than 0"),
        ("time_limit: -5", "time_limit is -5.0: give more than 0"),
    ],
)
def test_wrong_files_are_refused_in_one_line(tmp_path, capsys, content, message):
    (tmp_path / "a.yaml").write_text(content)
    assert message in refused(capsys, "--output_dir", "x", "--config", tmp_path / "a.yaml")


def test_wrong_command_lines_are_refused(tmp_path, capsys):
    assert "--lerning_rate" in refused(capsys, "--output_dir", "x", "--lerning_rate", 1)
    assert "--learning" in refused(capsys, "--output_dir", "x", "--learning", 1)  # no abbreviations
    assert "--config" in refused(capsys, "--config", tmp_path / "missing.yaml")
    assert "--output_dir" in refused(capsys)


@pytest.mark.parametrize("option", ["a", "a=", "a=1,b", "=1", "a=[1"])
def test_mapping_has_one_form(option):
    with pytest.raises(ValueError, match="option: "):
        mapping(option, "option", ["a", "b"])
    assert mapping("", "option", []) == {}
    with pytest.raises(ValueError, match="option: unknown 'c': use a, b"):
        mapping("c=1", "option", ["a", "b"])
