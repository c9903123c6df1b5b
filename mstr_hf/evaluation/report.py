"""The report of an evaluation as one HTML file that needs nothing else: pictures, styles and charts are inside."""

import base64
import io
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader
from PIL import Image
from rapidfuzz.distance import Levenshtein

from mstr_hf.models.image_processing_mstr import load_image
from mstr_hf.models.text import display, normalise

from . import tables
from .confusions import character_confusions, differences, script_confusions
from .metrics import JOINERS
from .tables import Word

PICTURE_HEIGHT, PICTURE_WIDTH = 56, 280
CONFUSIONS, EXAMPLES = 24, 4
FAILURES = 24
CHANGES = 48

_DOTTED_CIRCLE = "\u25cc"


def html(report: dict[str, Any], words: Sequence[Word], images: Sequence[Path]) -> str:
    """Lays a report out as HTML.

    Args:
        report: The content of `metrics.json`.
        words: What was read.
        images: The image of each word.
    """
    pictures: dict[int, str] = {}

    def card(place: int) -> dict[str, Any]:
        word = words[place]
        if place not in pictures:
            pictures[place] = _picture(images[place])
        return {
            "picture": pictures[place],
            "word": word,
            "reference": display(word.reference),
            "reading": differences(word.reading, word.reference),
            "spotter": differences(word.spotter, word.reference),
        }

    def cards(chosen: Callable[[Word], bool], rank: Callable[[Word], float], limit: int) -> dict[str, Any]:
        places = sorted((place for place, word in enumerate(words) if chosen(word)), key=lambda p: -rank(words[p]))
        return {"n": len(places), "cards": [card(place) for place in places[:limit]]}

    readings = [word.reading for word in words]
    references = [word.reference for word in words]
    scripts, matrix = script_confusions(readings, references)
    confusions = character_confusions(readings, references)
    environment = Environment(
        loader=PackageLoader("mstr_hf.evaluation", "templates"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("report.html").render(
        model=report["model"],
        readers=report["rows"][-1]["readers"],
        total=report["rows"][-1],
        tables=tables.tables(report),
        notes=tables.notes(report),
        percent=tables.percent,
        interval=tables.interval,
        scripts=scripts,
        matrix=[(name, row) for name, row in zip(scripts, matrix, strict=True) if any(row)],
        confusions=[
            {
                "true": _glyph(confusion.true),
                "read": _glyph(confusion.read),
                "count": confusion.count,
                "cards": [card(place) for place in confusion.words[:EXAMPLES]],
            }
            for confusion in confusions[:CONFUSIONS]
        ],
        bins=report["calibration"]["bins"],
        error=report["calibration"]["error"],
        sure=cards(lambda word: not word.correct, lambda word: word.confidence, FAILURES),
        far=cards(lambda word: not word.correct, _distance, FAILURES),
        mended=cards(lambda word: word.correct and not word.spotter_correct, lambda word: word.confidence, CHANGES),
        broken=cards(lambda word: word.spotter_correct and not word.correct, lambda word: word.confidence, CHANGES),
    )


def _distance(word: Word) -> float:
    """Edit distance in characters, as long words fail worse; at a tie the surer reading first."""
    distance = Levenshtein.distance(normalise(word.reading, JOINERS), normalise(word.reference, JOINERS))
    return distance + word.confidence


def _picture(path: Path) -> str:
    """A small JPEG of an image, as an address that holds it."""
    image = load_image(path).convert("RGB")
    with Image.open(path) as coloured:
        if coloured.mode == "RGB" and coloured.size == image.size:
            image = coloured.convert("RGB")
    # Twice as large as shown, for fine screens.
    image.thumbnail((2 * PICTURE_WIDTH, 2 * PICTURE_HEIGHT))
    content = io.BytesIO()
    image.save(content, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(content.getvalue()).decode()


def _glyph(character: str) -> dict[str, str]:
    """A character as it can stand alone, with its code and name: marks sit on a dotted circle, joiners have no ink."""
    if not character:
        return {"shown": "", "code": "nothing", "name": "nothing"}
    mark = unicodedata.category(character) in ("Mn", "Mc", "Me")
    return {
        "shown": _DOTTED_CIRCLE + character if mark else character.strip(JOINERS),
        "code": f"U+{ord(character):04X}",
        "name": unicodedata.name(character, "").lower(),
    }
