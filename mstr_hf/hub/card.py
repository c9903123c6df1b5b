"""Model cards: what is written by hand, filled with what was measured."""

from collections.abc import Sequence
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from mstr_hf.charsets import available_languages, load_charset

Figure = dict[str, float | None]
Report = dict[str, Any]

HUB = "https://huggingface.co"


def fill_card(
    template: str,
    repo_id: str,
    places: dict[str, str] | None = None,
    report: Report | None = None,
    reader: str = "Refiner",
    samples: Sequence[tuple[str, str]] = (),
) -> str:
    """Puts figures into a card, its text and its metadata.

    Args:
        template: The card with places such as `{{parameters}}`. `{{repo_id}}` is filled from `repo_id`, `{{results}}`
            and `{{comparison}}` from the report.
        repo_id: The repository's name.
        places: What else goes where.
        report: What `mstr evaluate` wrote as metrics.json.
        reader: Which of the report's readers the card is about.
        samples: Language and file, in the repository, of the images that the widget offers.

    Raises:
        ValueError: If the report has no figures of the reader, a place is left over, or the metadata are invalid.
    """
    places = {"repo_id": repo_id, **(places or {})}
    if report:
        places["results"] = results_table(report, reader)
        places["comparison"] = comparison(report, reader)
    for place, text in places.items():
        template = template.replace("{{" + place + "}}", text)
    if "{{" in template:
        raise ValueError(f"nothing to fill {template[template.index('{{') :].split('}}')[0]}}}}} with")
    card = ModelCard(template)
    if report:
        card.data["model_name"] = repo_id.split("/")[-1]
        card.data["eval_results"] = eval_results(report, reader)
    if samples:
        card.data["widget"] = [
            {"src": f"{HUB}/{repo_id}/resolve/main/{file}", "example_title": load_charset(lang).name}
            for lang, file in samples
        ]
    return str(card)


def plain_card(repo_id: str, model_type: str, parameters: int, languages: Sequence[str]) -> str:
    """Writes the card of a model that somebody has trained: what is known of it, and no more."""
    reads = model_type != "mclip"
    data = ModelCardData(
        language=list(languages),
        library_name="transformers",
        pipeline_tag="image-to-text" if reads else None,
        tags=["ocr", "scene-text-recognition", "multilingual", "mstr"],
    )
    # A model may have languages that were added elsewhere.
    known = available_languages()
    names = ", ".join(load_charset(lang).name if lang in known else lang for lang in languages)
    imports = "AutoModel, AutoProcessor" if reads else "AutoModel"
    use = f'model = AutoModel.from_pretrained("{repo_id}").eval()'
    if reads:
        use += f'\nprocessor = AutoProcessor.from_pretrained("{repo_id}")'
    return f"""---
{data.to_yaml()}
---

# {repo_id.split("/")[-1]}

A model of the type `{model_type}` with {parameters / 1e6:.1f} million parameters, trained with mstr_hf for {names}.

```python
import mstr_hf  # or leave this out and pass trust_remote_code=True
from transformers import {imports}

{use}
```

Its training data, their licences and its results have not been written down here yet.
"""


def eval_results(report: Report, reader: str) -> list[EvalResult]:
    """Lays a report out as the Hub's metadata: word and character recognition rate of each language, per cent."""
    results = []
    for row in _rows(report, reader):
        name = "all languages" if row["words"] == "all" else _name(row)
        for metric, title in (("wrr", "Word recognition rate"), ("crr", "Character recognition rate")):
            value = row["readers"][reader][metric]["value"]
            if value is not None:
                results.append(
                    EvalResult(
                        task_type="image-to-text",
                        task_name="Scene text recognition",
                        dataset_type="photographed-words",
                        dataset_name=f"Photographed words, {name}",
                        dataset_config=row["words"],
                        dataset_split=row["split"],
                        metric_type=metric,
                        metric_name=title,
                        metric_value=round(100 * value, 1),
                    )
                )
    return results


def results_table(report: Report, reader: str = "Refiner") -> str:
    """Lays a report out as a table with one row a language, over all its manifests together."""
    rows = _rows(report, reader)
    others = [name for name in rows[0]["readers"] if name != reader]
    lines = [
        ["", "words", "WRR", "CRR", "script", *(f"WRR of {name}" for name in others)],
        ["---", *["--:"] * (4 + len(others))],
    ]
    for row in rows:
        figures = row["readers"][reader]
        cells = [_name(row), str(row["n"]), _interval(figures["wrr"])]
        cells += [_percent(figures[metric]["value"]) for metric in ("crr", "script_accuracy")]
        lines.append(cells + [_percent(row["readers"][other]["wrr"]["value"]) for other in others])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def comparison(report: Report, reader: str = "Refiner") -> str:
    """Says in words where the reader is behind each of the others, by word recognition rate."""
    rows = _rows(report, reader)
    sentences = []
    for other in (name for name in rows[0]["readers"] if name != reader):
        groups: dict[str, list[str]] = {"fewer": [], "more": [], "as many": []}
        for row in rows:
            own, theirs = (row["readers"][name]["wrr"]["value"] for name in (reader, other))
            if row["words"] == "all" or own is None or theirs is None:
                continue
            group = "fewer" if own < theirs else "more" if own > theirs else "as many"
            groups[group].append(f"{_name(row)} ({_percent(own)} against {_percent(theirs)})")
        parts = [
            f"{group} words {'as' if group == 'as many' else 'than'} {other} in {', '.join(names)}"
            for group, names in groups.items()
            if names
        ]
        if parts:
            sentences.append(f"It reads {'; '.join(parts)}.")
    return "\n".join(sentences)


def _rows(report: Report, reader: str) -> list[dict[str, Any]]:
    """The rows of all manifests together."""
    # Several manifests come first one by one, then all together.
    split = report["rows"][-1]["split"]
    rows = [row for row in report["rows"] if row["split"] == split]
    if reader not in rows[0]["readers"]:
        raise ValueError(f"the report has no figures of a {reader}: evaluate with it")
    return rows


def _name(row: dict[str, Any]) -> str:
    return "all" if row["words"] == "all" else load_charset(row["words"]).name


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _interval(figure: Figure) -> str:
    if figure["low"] is None or figure["high"] is None:
        return _percent(figure["value"])
    return f"{_percent(figure['value'])} ({100 * figure['low']:.0f}-{100 * figure['high']:.0f})"
