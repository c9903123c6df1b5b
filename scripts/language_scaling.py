"""Does a language gain or lose when others are learned with it? Trains and compares models of more and more languages.

    python scripts/language_scaling.py --output runs/scaling --manifests real.jsonl --fonts FOLDER

For each set of languages (hi; hi, bn and en; all six) and each of two seeds it trains mCLIP, builds the bank, trains
Spotter and Refiner together, with the same number of samples *a language* (of mCLIP's crops, a language has as many as
its share of the characters), and scores the model on synthetic words in fonts that training never saw, and on the words
of the manifests. It writes `results.json`, `table.md` and `plot.svg`.
What was stopped goes on when the command is given again. The shape and the schedule of the models are those of
`--config` (`scripts/configs/scaling.yaml` for CPUs) or the trainers' own.

The default numbers of samples take days on a CPU. Scores below 25% WRR say that training was too short to conclude
anything: where any training of a comparison has them, no conclusion is drawn.
"""

import argparse
import json
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count, islice, pairwise
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoModel, AutoProcessor

import mstr_hf  # noqa: F401  (registers the Auto classes)
from mstr_hf.charsets import load_charset, load_charsets
from mstr_hf.data.manifest import read_manifest
from mstr_hf.evaluation.run import evaluate
from mstr_hf.evaluation.tables import REFINER, Figure, interval
from mstr_hf.hub.publish import assemble
from mstr_hf.models.modeling_refiner import RefinerModel
from mstr_hf.synthesis.cache import read_json, write_json
from mstr_hf.synthesis.fonts import discover_fonts
from mstr_hf.synthesis.synthetic_words import WordSynthesiser
from mstr_hf.synthesis.words import load_words
from mstr_hf.vocabulary import build_vocabulary

SCRIPTS = Path(__file__).parent
SETS = ["hi", "hi,bn,en", "hi,bn,en,ta,te,ar"]
SEEDS = [0, 1]
SYNTHETIC = "synthetic"
# Words that neither a trainer's evaluation (seed 1) nor a calibration (2) draws.
TEST_SEED = 3
# As mild as the crops that mCLIP is scored on, so that short trainings of small models tell something.
SEVERITY = 0.3
MIN_WRR = 0.25
SPEED_WORDS = 64
# A contrastive loss tells a crop from the others of its batch: of few, it learns little.
MCLIP_BATCH = 64

Result = dict[str, Any]
COLOURS = ("#2b62b8", "#b3261e", "#1b7f4b", "#8a4fb0", "#b97700", "#0f7f8b", "#667079")


@dataclass(frozen=True)
class Run:
    """One training: the languages, in their order, and the seed."""

    languages: tuple[str, ...]
    seed: int

    @property
    def name(self) -> str:
        """Name of its folder."""
        return f"{'-'.join(self.languages)}/seed-{self.seed}"


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--output", type=Path, required=True, help="folder for everything")
    add("--manifests", nargs="*", type=Path, default=[], help="words to score beside the synthetic ones")
    add("--fonts", nargs="*", default=[], help="folders with fonts beside the system's")
    add("--sets", nargs="+", default=SETS, metavar="hi,bn", help="languages of each model")
    add("--seeds", nargs="+", type=int, default=SEEDS, metavar="N", help="a training for each")
    add("--words", type=int, default=200_000, help="training words a language")
    add("--characters", type=int, default=100_000, help="training crops a language, for mCLIP")
    add("--test-words", type=int, default=500, help="synthetic test words a language")
    add("--batch-size", type=int, default=64, help="words a step; few make more of few words")
    add("--config", nargs="*", type=Path, default=[], help="config files of the trainers")
    args = parser.parse_args()

    try:
        check_manifests(args.manifests)
        configs = [path.read_text(encoding="utf-8") for path in args.config]
    except (OSError, ValueError) as error:
        parser.error(str(error))
    # What a model is scored on does not belong to its training.
    trained = {name: value for name, value in sorted(vars(args).items()) if name not in ("output", "manifests")}
    settings = {name: str(value) for name, value in trained.items()}
    settings["config"] = "\n".join(configs)
    file = args.output / "settings.json"
    if read_json(file) not in (None, settings):
        parser.error(f"{args.output} holds an experiment with other options: name another folder, or delete it")
    args.output.mkdir(parents=True, exist_ok=True)
    write_json(file, settings)

    sets = [tuple(languages.split(",")) for languages in args.sets]
    synthetic = draw_test_words(args, sorted({lang for languages in sets for lang in languages}))
    results = []
    for seed in args.seeds:
        for languages in sets:
            results.append(train_and_score(args, Run(languages, seed), [synthetic, *args.manifests]))
    write_json(args.output / "results.json", results)
    text = report(results)
    (args.output / "table.md").write_text(text, encoding="utf-8")
    (args.output / "plot.svg").write_text(plot(results), encoding="utf-8")
    print(text)


def check_manifests(manifests: Sequence[Path]) -> None:
    """Reads manifests before days of training, which would not have to be done again, but whose user would be gone.

    Raises:
        OSError: If one cannot be read.
        ValueError: If one is malformed, or their names are not different.
    """
    stems = [SYNTHETIC, "together", *(manifest.stem for manifest in manifests)]
    for stem in stems:
        if stems.count(stem) > 1:
            raise ValueError(f"two sets of test words are called {stem}: rename a manifest")
    for manifest in manifests:
        read_manifest(manifest)


def draw_test_words(args: argparse.Namespace, languages: Sequence[str]) -> Path:
    """Draws the synthetic test words, the same for all models, and writes their manifest.

    A word's font family stands for its photograph, since words in one font fail together. Words that not every model
    can spell, such as Latin codes among the Hindi, are left out.
    """
    folder = args.output / SYNTHETIC
    manifest = folder / f"{SYNTHETIC}.jsonl"
    if manifest.exists():
        return manifest
    synthesiser = WordSynthesiser(
        discover_fonts(languages, args.fonts),
        {lang: load_words(lang) for lang in languages},
        split="heldout",
        severity=SEVERITY,
        joiners=build_vocabulary(load_charsets(languages)).joiners,
    )
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for lang in languages:
        characters = load_charset(lang).characters
        drawn = (synthesiser.word(TEST_SEED, index, lang) for index in count())
        words = (word for word in drawn if characters.issuperset(word.text))
        for index, word in enumerate(islice(words, args.test_words)):
            name = f"{lang}_{index:05d}.png"
            Image.fromarray(word.image).save(folder / name)
            entry = {"id": name, "path_rel": name, "filename": name, "gt_text": word.text, "lang": lang}
            lines.append(json.dumps({**entry, "dataset": SYNTHETIC, "photo": word.family}, ensure_ascii=False))
    partial = folder / "partial"
    partial.write_text("\n".join(lines) + "\n", encoding="utf-8")
    partial.replace(manifest)
    return manifest


def train_and_score(args: argparse.Namespace, run: Run, manifests: Sequence[Path]) -> Result:
    """Trains one model and scores it; what a run before this one did is not done again."""
    folder = args.output / run.name
    folder.mkdir(parents=True, exist_ok=True)

    def train(script: str, samples: int, batch_size: int, options: Sequence[str | Path]) -> Path:
        """Runs a training script on so many samples a language; gives the final model's folder."""
        output = folder / script
        steps = -(-samples * len(run.languages) // batch_size)
        numbers = ["--max_steps", steps, "--eval_steps", steps, "--batch_size", batch_size, "--seed", run.seed]
        resume = ["--resume"] if list(output.glob("checkpoint-*")) else []
        fonts = ["--fonts", *args.fonts] if args.fonts else []
        config = ["--config", *args.config] if args.config else []
        command = [SCRIPTS / f"{script}.py", "--output_dir", output, *numbers, *options, *resume, *fonts, *config]
        return step(output / "final", output, command)

    languages = ",".join(run.languages)
    weights = ["--language_weights", ",".join(f"{lang}=1" for lang in run.languages)]
    mclip = train("train_mclip", args.characters, MCLIP_BATCH, ["--languages", languages])
    bank = folder / "bank"
    step(bank, bank, [SCRIPTS / "build_prototype_bank.py", "--mclip", mclip, "--output", bank])
    refiner = train("train_refiner", args.words, args.batch_size, ["--bank", bank, "--joint", *weights])
    checkpoint = folder / "checkpoint"
    if not checkpoint.exists():
        assemble(RefinerModel.from_pretrained(refiner), folder / "partial")
        (folder / "partial").rename(checkpoint)

    model = AutoModel.from_pretrained(checkpoint).eval()
    processor = AutoProcessor.from_pretrained(checkpoint)
    scores = {}
    for manifest in manifests:
        if any(record.lang in run.languages for record in read_manifest(manifest)):
            scored = evaluate(
                model, processor, run.name, [manifest], folder / "evaluation" / manifest.stem, num_alternatives=0
            )
            scores[manifest.stem] = {
                row["words"]: {"n": row["n"], **{name: row["readers"][REFINER][name] for name in ("wrr", "crr")}}
                for row in scored["rows"]
            }
    file = folder / "speed.json"
    if (speed := read_json(file)) is None:
        speed = round(words_per_second(model, processor, manifests[0], run.languages[0]), 1)
        write_json(file, speed)
    return {
        "languages": list(run.languages),
        "seed": run.seed,
        "parameters": model.num_parameters(),
        "bank_rows": len(model.get_bank()),
        "words_per_second": speed,
        "scores": scores,
    }


def step(made: Path, output: Path, command: Sequence[object]) -> Path:
    """Runs a script unless it has been run to its end, which a mark beside its output says; gives what it makes."""
    mark = output.with_name(f"{output.name}.done")
    if not mark.exists():
        run_script([str(part) for part in command])
        if not made.exists():
            raise SystemExit(f"{output}: stopped by its time_limit; give the same command again to go on")
        mark.touch()
    return made


def run_script(command: Sequence[str]) -> None:
    """Runs a Python script in a process of its own.

    Raises:
        SystemExit: If it fails; the message names the command.
    """
    print(shlex.join(command), flush=True)
    # Which is told when this process is: a training saves then, and is not there to be met by the next one.
    script = subprocess.Popen([sys.executable, *command])
    before = signal.signal(signal.SIGTERM, lambda *_: script.terminate())
    failed = script.wait()
    signal.signal(signal.SIGTERM, before)
    if failed:
        raise SystemExit(f"failed: {shlex.join(command)}; give the same command again to go on from here")


def words_per_second(model: Any, processor: Any, manifest: Path, lang: str) -> float:
    """Speed of reading test words of one language on one thread, the best of three times."""
    records = [record for record in read_manifest(manifest) if record.lang == lang][:SPEED_WORDS]
    inputs = processor(images=[record.path for record in records], return_tensors="pt")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        model.recognise(**inputs)
        seconds.append(time.perf_counter() - start)
    torch.set_num_threads(threads)
    return len(records) / min(seconds)


def over_seeds(
    results: Sequence[Result], test: str, lang: str, languages: Sequence[str], metric: str
) -> Figure | None:
    """The mean of a metric over seeds, from the lowest to the highest end of its intervals; None if not scored.

    `least` is the lowest of the values.
    """
    figures = [
        result["scores"][test][lang][metric]
        for result in results
        if result["languages"] == list(languages) and lang in result["scores"].get(test, {})
    ]
    if not figures:
        return None
    lows, highs = ([figure[end] for figure in figures if figure[end] is not None] for end in ("low", "high"))
    return {
        "value": sum(figure["value"] for figure in figures) / len(figures),
        "least": min(figure["value"] for figure in figures),
        "low": min(lows, default=None),
        "high": max(highs, default=None),
    }


def _axes(results: Sequence[Result]) -> tuple[list[str], list[str], list[list[str]]]:
    """Test sets, languages and sets of languages, each in the order of the results."""
    tests = list(dict.fromkeys(test for result in results for test in result["scores"]))
    sets = list(dict.fromkeys(tuple(result["languages"]) for result in results))
    languages = list(dict.fromkeys(lang for names in sets for lang in names))
    return tests, languages, [list(names) for names in sets]


def report(results: Sequence[Result]) -> str:
    """Lays results out as Markdown: figures by language, what the models cost, and what may be concluded."""
    tests, languages, sets = _axes(results)
    seeds = ", ".join(str(seed) for seed in dict.fromkeys(result["seed"] for result in results))
    lines = ["# Language scaling", ""]
    lines += [f"Per cent, mean over seeds {seeds}, from the lowest to the highest end of their 95% intervals.", ""]
    header = ["words", "language", "metric", *(f"{len(names)}: {', '.join(names)}" for names in sets)]
    lines += _markdown(
        [header]
        + [
            [test, load_charset(lang).name, metric.upper(), *cells]
            for test in tests
            for lang in languages
            for metric in ("wrr", "crr")
            if any(cells := [_cell(over_seeds(results, test, lang, names, metric)) for names in sets])
        ]
    )
    lines += ["", "## Cost", ""]
    cost = [["languages", "seed", "parameters", "bank rows", "words/s, one thread"]]
    for result in results:
        numbers = (result["seed"], f"{result['parameters']:,}", result["bank_rows"], result["words_per_second"])
        cost.append([", ".join(result["languages"]), *map(str, numbers)])
    lines += [*_markdown(cost), "", "## Conclusions", ""]
    return "\n".join([*lines, *(f"- {line}" for line in conclusions(results)), ""])


def _cell(figure: Figure | None) -> str:
    return "" if figure is None else interval(figure)


def _markdown(rows: Sequence[Sequence[str]]) -> list[str]:
    rule = ["---" for _ in rows[0]]
    return ["| " + " | ".join(row) + " |" for row in (rows[0], rule, *rows[1:])]


def conclusions(results: Sequence[Result]) -> list[str]:
    """What may be concluded for each language and test set: a change that is greater than the intervals."""
    tests, languages, sets = _axes(results)
    lines = []
    for test in tests:
        for lang in languages:
            scored = [(names, over_seeds(results, test, lang, names, "wrr")) for names in sets]
            steps = [(names, figure) for names, figure in scored if figure is not None]
            for (fewer, before), (more, after) in pairwise(steps):
                lines.append(
                    f"{load_charset(lang).name}, {test}, {len(fewer)} to {len(more)} languages: "
                    f"{_change(before, after)}"
                )
    return lines or ["No conclusion may be drawn: no language is in two sets."]


def _change(before: Figure, after: Figure) -> str:
    values = [figure["value"] for figure in (before, after)]
    if min(figure["least"] or 0 for figure in (before, after)) < MIN_WRR:
        return "no conclusion may be drawn: WRR below 25."
    change = 100 * ((values[1] or 0) - (values[0] or 0))
    ends = [before["low"], before["high"], after["low"], after["high"]]
    if None in ends:
        return f"{change:+.1f}, without intervals: no conclusion may be drawn."
    low, high, other_low, other_high = (end or 0 for end in ends)
    apart = other_low > high or other_high < low
    return f"{change:+.1f}, " + ("beyond the intervals." if apart else "within the intervals: no conclusion.")


def plot(results: Sequence[Result]) -> str:
    """Draws WRR by number of languages as SVG: a panel for each test set, a line for each language."""
    tests, languages, sets = _axes(results)
    counts = [len(names) for names in sets]
    width, height, left, top = 330, 260, 46, 40
    span = max(counts) - min(counts) or 1

    def x(count: int) -> float:
        return left + 24 + (width - 48) * (count - min(counts)) / span

    def y(value: float) -> float:
        return top + height * (1 - value)

    def panel(number: int, test: str) -> list[str]:
        shapes = [f'<g transform="translate({number * (width + left + 30)} 0)">']
        shapes.append(f'<text x="{left}" y="24" font-weight="bold">{test}: WRR, %, by number of languages</text>')
        for tick in range(0, 101, 25):
            shapes.append(
                f'<path d="M{left} {y(tick / 100)}h{width}" stroke="#dfe3e7"/>'
                f'<text x="{left - 6}" y="{y(tick / 100) + 4}" text-anchor="end">{tick}</text>'
            )
        shapes.append(
            f'<path d="M{left} {y(MIN_WRR)}h{width}" stroke="#b3261e" stroke-dasharray="4 4"/>'
            f'<text x="{left + width}" y="{y(MIN_WRR) - 5}" text-anchor="end">below: no conclusion</text>'
        )
        shapes += [
            f'<text x="{x(count)}" y="{top + height + 20}" text-anchor="middle">{count}</text>' for count in counts
        ]
        for line, lang in enumerate(languages):
            colour, shift = COLOURS[line % len(COLOURS)], 3 * line
            found = [
                (x(len(names)) + shift, figure)
                for names in sets
                if (figure := over_seeds(results, test, lang, names, "wrr")) is not None
            ]
            points = " ".join(f"{place:.1f},{y(figure['value'] or 0):.1f}" for place, figure in found)
            shapes.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
            for place, figure in found:
                shapes.append(f'<circle cx="{place:.1f}" cy="{y(figure["value"] or 0):.1f}" r="4" fill="{colour}"/>')
                if figure["low"] is not None and figure["high"] is not None:
                    ends = f"M{place:.1f} {y(figure['low']):.1f}V{y(figure['high']):.1f}"
                    shapes.append(f'<path d="{ends}" stroke="{colour}"/>')
            corner = f'x="{left + 60 * line}" y="{top + height + 46}"'
            shapes.append(f'<text {corner} fill="{colour}">{load_charset(lang).name}</text>')
        return [*shapes, "</g>"]

    body = [shape for number, test in enumerate(tests) for shape in panel(number, test)]
    size = (max(len(tests) * (width + left + 30), left + 60 * len(languages) + 60), top + height + 64)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{size[0]}" height="{size[1]}" font-family="sans-serif" '
    return "\n".join([f'{head}font-size="12"><rect width="100%" height="100%" fill="white"/>', *body, "</svg>", ""])


if __name__ == "__main__":
    main()
