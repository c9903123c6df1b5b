"""Model cards: what is written by hand, filled with what was measured."""

from typing import Any

from mstr_hf.charsets import load_charset

Figure = dict[str, float | None]


def fill_card(template: str, parameters: int, report: dict[str, Any]) -> str:
    """Puts figures into a card.

    Args:
        template: The card with the places `{{parameters}}` and `{{results}}`.
        parameters: Parameters of the model.
        report: What `scripts/evaluate_real_words.py` wrote as JSON.

    Raises:
        ValueError: If the report has no figures of a Refiner.
    """
    filled = template.replace("{{parameters}}", f"{parameters / 1e6:.1f}")
    return filled.replace("{{results}}", results_table(report))


def results_table(report: dict[str, Any]) -> str:
    """Lays out a report as a table with one row a language, over all its manifests together."""
    # Several manifests come first one by one, then all together.
    split = report["rows"][-1]["split"]
    rows = [row for row in report["rows"] if row["split"] == split]
    if "Refiner" not in rows[0]["readers"]:
        raise ValueError("the report has no figures of a Refiner: evaluate without --spotter-only")
    others = [name for name in rows[0]["readers"] if name != "Refiner"]
    lines = [
        ["", "words", "WRR", "CRR", "script", *(f"WRR of {name}" for name in others)],
        ["---", *["--:"] * (4 + len(others))],
    ]
    for row in rows:
        name = "all" if row["words"] == "all" else load_charset(row["words"]).name
        refiner = row["readers"]["Refiner"]
        cells = [name, str(row["n"]), _interval(refiner["wrr"])]
        cells += [_percent(refiner[metric]["value"]) for metric in ("crr", "script_accuracy")]
        lines.append(cells + [_percent(row["readers"][other]["wrr"]["value"]) for other in others])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _interval(figure: Figure) -> str:
    if figure["low"] is None or figure["high"] is None:
        return _percent(figure["value"])
    return f"{_percent(figure['value'])} ({100 * figure['low']:.0f}-{100 * figure['high']:.0f})"
