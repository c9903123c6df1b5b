"""Trains several ways at equal steps and compares what came of them.

    python scripts/compare_training.py losses --output_dir runs/losses --config scripts/configs/tiny.yaml
    python scripts/compare_training.py prefixes --output_dir runs/prefixes --config scripts/configs/tiny.yaml \\
        --spotter runs/spotter/final --simulator runs/simulator.json

`losses` trains mCLIP without, with either and with both of the ArcFace and subtype losses, and compares retrieval in
held-out fonts and the banks. `prefixes` trains the Refiner on what the Spotter reads and on what a simulator says
(scripts/fit_simulator.py), and compares validation WRR. All further options are those of train_mclip.py or
train_refiner.py, the same for each way. What was stopped goes on when it is started again.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

WEIGHT = "0.1"
LOSSES = {
    # Weights are always said, or those of a config would be in every way.
    name: ["--arcface_weight", arcface, "--subtype_weight", subtype]
    for name, arcface, subtype in (
        ("contrastive", "0", "0"),
        ("with-arcface", WEIGHT, "0"),
        ("with-subtype", "0", WEIGHT),
        ("with-both", WEIGHT, WEIGHT),
    )
}


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["losses", "prefixes"])
    parser.add_argument("--output_dir", type=Path, required=True, help="folder for all runs and comparison.md")
    parser.add_argument("--simulator", help="of prefixes: fitted simulator of the Spotter's errors")
    arguments, options = parser.parse_known_args()
    ways: Mapping[str, Sequence[str]] = LOSSES
    if arguments.what == "prefixes":
        if not arguments.simulator:
            parser.error("prefixes: name a --simulator (scripts/fit_simulator.py makes one)")
        ways = {"real": [], "simulated": ["--simulator", arguments.simulator]}
    script = "train_mclip" if arguments.what == "losses" else "train_refiner"
    results = {}
    for way, own in ways.items():
        folder = arguments.output_dir / way
        train(script, folder, *options, *own)
        results[way] = last_figures(folder)
        if arguments.what == "losses":
            results[way] |= bank_figures(folder / "final")
    report = table(results)
    (arguments.output_dir / "comparison.md").write_text(report, encoding="utf-8")
    print(report, end="")


def train(script: str, folder: Path, *options: str) -> None:
    """Runs a trainer in a process of its own, to its end."""
    command = [sys.executable, str(Path(__file__).with_name(f"{script}.py")), *options]
    done = subprocess.run([*command, "--output_dir", str(folder), "--resume", "true"])
    if done.returncode:
        sys.exit(done.returncode)
    if not (folder / "final").exists():
        sys.exit(f"{folder}: stopped by its time_limit; give the same command again to go on")


def last_figures(folder: Path) -> dict[str, float]:
    """The last training loss and the last evaluation of a run."""
    figures: dict[str, float] = {}
    for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        if "loss" in entry:
            figures["training loss"] = entry["loss"]
        elif "wrr" in entry or "top1" in entry:
            figures |= {name: value for name, value in entry.items() if name != "step"}
    return figures


def bank_figures(mclip: Path) -> dict[str, float]:
    """How the rows lie that a trained mCLIP makes."""
    from mstr_hf.models.modeling_mclip import MCLIPModel
    from mstr_hf.training.bank_report import bank_statistics
    from mstr_hf.training.mclip import text_bank, vocabulary_of

    return bank_statistics(text_bank(MCLIPModel.from_pretrained(mclip).eval(), vocabulary_of(str(mclip))))


def table(results: Mapping[str, Mapping[str, float]]) -> str:
    """One line a figure, one column a way."""
    names = list(dict.fromkeys(name for figures in results.values() for name in figures))
    lines = ["| | " + " | ".join(results) + " |", "| --- |" + " --: |" * len(results)]
    for name in names:
        cells = (f"{figures[name]:.4g}" if name in figures else "-" for figures in results.values())
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
