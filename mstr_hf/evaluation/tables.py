"""The figures of an evaluation: rows of metrics by language, dataset, script and word length, and their Markdown."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import isnan
from typing import Any

from mstr_hf.models.text import normalise

from .metrics import JOINERS, METRICS, Calibration, Metric, Score, calibration, script

Figure = dict[str, float | None]
"""`value`, `low` and `high`, fractions; None where there is none."""

Row = dict[str, Any]
"""`{split, words, n, readers: {name: {metric: Figure}}, mended, broken}`."""

REFINER, SPOTTER = "Refiner", "Spotter"

_LENGTHS = ((1, 3), (4, 6), (7, 9), (10, 14), (15, None))
_ENGLISH_ONLY = "wrr_alphanumeric"


@dataclass(frozen=True)
class Word:
    """A word that was read.

    Attributes:
        split: Name of its manifest.
        id: Its id in the manifest.
        image: Its image's path, relative to the manifest.
        lang: Language.
        dataset: Dataset.
        photo: Photograph, if known.
        reference: What stands on the image.
        reading: What the model reads.
        confidence: How sure the model is that all of it is right.
        script: Script of the reading, by the model.
        characters: The reading's characters, each with its score.
        alternatives: The next best readings, each with its score.
        spotter: What the Spotter reads.
        peers: What each peer reads; None where it cannot read the language.
    """

    split: str
    id: str
    image: str
    lang: str
    dataset: str
    photo: str | None
    reference: str
    reading: str
    confidence: float
    script: str
    characters: list[dict[str, Any]]
    alternatives: list[dict[str, Any]]
    spotter: str
    peers: dict[str, str | None]

    @property
    def correct(self) -> bool:
        """Whether the reading is right, as WRR counts it."""
        return normalise(self.reading, JOINERS) == normalise(self.reference, JOINERS)

    @property
    def spotter_correct(self) -> bool:
        """Whether the Spotter's reading is right."""
        return normalise(self.spotter, JOINERS) == normalise(self.reference, JOINERS)


def language_rows(words: Sequence[Word], languages: Sequence[str]) -> list[Row]:
    """A row for each language and for all, of each manifest, and of all manifests together if there are several.

    The field `words` of a row is a language or `all`.

    Args:
        words: What was read.
        languages: The languages, in the order wanted.
    """
    splits = list(dict.fromkeys(word.split for word in words))
    rows = []
    for split in [*splits, "together"] if len(splits) > 1 else splits:
        part = [word for word in words if split in (word.split, "together")]
        rows += _rows(part, lambda word: word.lang, split, order=languages)
        rows.append(_row(part, "all", split))
    return rows


def dataset_rows(words: Sequence[Word]) -> list[Row]:
    """A row for each dataset, over all manifests."""
    return _rows(words, lambda word: word.dataset)


def script_rows(words: Sequence[Word]) -> list[Row]:
    """A row for each script of the references, over all manifests."""
    return _rows(words, lambda word: script(word.reference))


def length_rows(words: Sequence[Word]) -> list[Row]:
    """A row for each range of reference lengths, in code points, over all manifests."""
    names = [f"{low}-{high}" if high else f"{low} or more" for low, high in _LENGTHS]

    def length(word: Word) -> str:
        count = len(normalise(word.reference, JOINERS))
        return next(name for name, (_, high) in zip(names, _LENGTHS, strict=True) if high is None or count <= high)

    return _rows(words, length, order=names)


def calibration_of(words: Sequence[Word]) -> Calibration:
    """How well the model's confidences say whether its readings are right."""
    return calibration([word.confidence for word in words], [word.correct for word in words])


def photo_of(word: Word) -> str | None:
    """What tells a word's photograph from all others, also those of other collections; None if unknown."""
    return f"{word.dataset}/{word.photo}" if word.photo else None


def figure(score: Score | Calibration, photos: Sequence[str | None]) -> Figure:
    """A score with its interval, as JSON can say it."""
    numbers = {"value": score.value, **dict(zip(("low", "high"), score.interval(photos), strict=True))}
    return {name: None if isnan(number) else round(number, 6) for name, number in numbers.items()}


def readings_of(words: Sequence[Word]) -> dict[str, list[str | None]]:
    """What each reader reads: the Spotter, the Refiner and the peers."""
    peers = words[0].peers
    return {
        SPOTTER: [word.spotter for word in words],
        REFINER: [word.reading for word in words],
        **{peer: [word.peers[peer] for word in words] for peer in peers},
    }


def _rows(
    words: Sequence[Word], key: Callable[[Word], str], split: str = "together", order: Iterable[str] = ()
) -> list[Row]:
    """A row for each value of the key; in the order given, else sorted."""
    groups: dict[str, list[Word]] = {}
    for word in words:
        groups.setdefault(key(word), []).append(word)
    names = [name for name in order if name in groups] or sorted(groups)
    return [_row(groups[name], name, split) for name in names]


def _row(words: Sequence[Word], name: str, split: str) -> Row:
    metrics: dict[str, Metric] = {
        metric: compute for module in METRICS.values() for metric, compute in module.items() if metric != _ENGLISH_ONLY
    }
    if {word.lang for word in words} == {"en"}:
        metrics[_ENGLISH_ONLY] = METRICS["wrr"][_ENGLISH_ONLY]
    references = [word.reference for word in words]
    photos = [photo_of(word) for word in words]
    figures: dict[str, dict[str, Figure]] = {}
    for reader, readings in readings_of(words).items():
        predictions = [reading for reading in readings if reading is not None]
        if len(predictions) == len(words):
            figures[reader] = {
                metric: figure(compute(predictions, references), photos) for metric, compute in metrics.items()
            }
        else:  # a peer that cannot read all of these languages
            figures[reader] = {metric: {"value": None, "low": None, "high": None} for metric in metrics}
    figures[REFINER]["calibration"] = figure(calibration_of(words), photos)
    return {
        "split": split,
        "words": name,
        "n": len(words),
        "photos": len(set(photos) - {None}) + photos.count(None),
        "readers": figures,
        "mended": sum(word.correct and not word.spotter_correct for word in words),
        "broken": sum(word.spotter_correct and not word.correct for word in words),
    }


def table(rows: Sequence[Row], heading: str) -> list[list[str]]:
    """Lays rows out as cells, the header first: WRR with its interval, CRR and script accuracy of each reader.

    English has a line more if its rate over a-z and 0-9 alone differs, and so has a row where joiners make a
    difference.

    Args:
        rows: Rows of one kind.
        heading: What the rows differ in.
    """
    readers = list(rows[0]["readers"])
    header = [heading, "n", *(f"{reader} {name}" for reader in readers for name in ("WRR", "CRR", "script"))]
    cells = [[*header, "mended / broken"]]
    for row in rows:
        figures = [row["readers"][reader] for reader in readers]
        variants = [("", "wrr", "crr", "script_accuracy")]
        if _ENGLISH_ONLY in figures[0]:
            variants.append((", only a-z and 0-9", _ENGLISH_ONLY, "", ""))
        if any(values["wrr"] != values["wrr_without_joiners"] for values in figures):
            variants.append((", joiners dropped", "wrr_without_joiners", "crr_without_joiners", ""))
        for suffix, words, characters, scripts in variants:
            line = [row["words"] + suffix, str(row["n"])]
            for values in figures:
                line += [interval(values[words]), percent(values.get(characters)), percent(values.get(scripts))]
            cells.append([*line, "" if suffix else f"{row['mended']} / {row['broken']}"])
    return cells


def tables(report: dict[str, Any]) -> list[tuple[str, list[list[str]]]]:
    """The tables of a report (see `mstr_hf.evaluation.run.evaluate`), each with its title."""
    rows: list[Row] = report["rows"]
    found = []
    for split in dict.fromkeys(row["split"] for row in rows):
        title = "All manifests together" if split == "together" else f"By language: {split}"
        found.append((title, table([row for row in rows if row["split"] == split], "language")))
    for key, title in (("datasets", "dataset"), ("scripts", "script"), ("lengths", "length")):
        found.append((f"By {title}", table(report[key], title)))
    return found


def notes(report: dict[str, Any]) -> list[str]:
    """What must be known beside the tables, a sentence each."""
    lines = [
        "Per cent. WRR: words read right as a whole, case and punctuation included, with its 95% interval by "
        "photograph. CRR: 1 - edit distance / length, over code points. Script: over words with a letter. Lengths are "
        "in code points after NFKD."
    ]
    error = report["calibration"]["error"]
    lines.append(f"Expected calibration error of the model's confidences: {interval(error)}.")
    for reader in (SPOTTER, REFINER):
        clusters = report["rows"][-1]["readers"][reader]["crr_graphemes"]
        lines.append(f"CRR of the {reader} over grapheme clusters: {interval(clusters)}.")
    for peer in report["peers"]:
        variants = ", ".join(f"{lang} {variant}" for lang, variant in peer["variants"].items())
        told = "is told the language; for each, the best of its settings"
        lines.append(f"{peer['name']} {peer['version']} {told}: {variants}.")
    lines += [f"{line}." for line in report["missing_peers"]]
    if report["skipped"]:
        counts = ", ".join(f"{lang} {count}" for lang, count in report["skipped"].items())
        lines.append(f"Left out, no language of this model: {counts} words.")
    if report["unreadable"]:
        lines.append(f"Left out, not readable: {', '.join(entry['id'] for entry in report['unreadable'])}.")
    return lines


def markdown(report: dict[str, Any]) -> str:
    """Lays a report out as Markdown."""
    text = [f"# Evaluation of {report['model']}"]
    for title, (header, *lines) in tables(report):
        text += ["", f"## {title}", ""]
        rule = ["---", *["--:"] * (len(header) - 1)]
        text += ["| " + " | ".join(cells) + " |" for cells in (header, rule, *lines)]
    return "\n".join([*text, "", "## Notes", "", *(f"- {line}" for line in notes(report)), ""])


def percent(value: Figure | None) -> str:
    """A figure in per cent."""
    if value is None:
        return ""
    return "-" if value["value"] is None else f"{100 * value['value']:.1f}"


def interval(value: Figure) -> str:
    """A figure in per cent with its interval, if it has one."""
    if value["low"] is None or value["high"] is None:
        return percent(value)
    return f"{percent(value)} ({100 * value['low']:.0f}-{100 * value['high']:.0f})"
