"""The demo page: drop, paste or shoot a word, and see all that there is of its reading.

`mstr demo` serves it here; on the Hub it is the `app.py` of a Space (`scripts/build_checkpoint.py --demo`). It needs
gradio and transformers, not this package: the model brings its own code.
"""

import html
import json
import os
import unicodedata
from pathlib import Path
from typing import Any

import gradio as gr
from huggingface_hub import snapshot_download
from PIL import Image
from transformers import AutoModel, AutoProcessor

MODEL = "mstr/refiner-6lang"
ALTERNATIVES = 3
EXAMPLES_PER_LANGUAGE = 2

SCRIPTS = {
    "Arab": "Arabic",
    "Beng": "Bengali",
    "Deva": "Devanagari",
    "Latn": "Latin",
    "Taml": "Tamil",
    "Telu": "Telugu",
    "Zyyy": "no letters",
}
LANGUAGES = {"en": "English", "hi": "Hindi", "bn": "Bengali", "ta": "Tamil", "te": "Telugu", "ar": "Arabic"}
RIGHT_TO_LEFT = {"Arab", "Hebr"}

INTRODUCTION = """# Read a photographed word
Give it a picture of **one word** in English, Hindi, Bengali, Tamil, Telugu or Arabic: drop or paste a file, take a
photo, or choose an example. The language need not be named. Pictures are deleted within half an hour."""

CSS = """
.mstr { font-family: "Noto Sans", "Noto Sans Devanagari", "Noto Sans Bengali", "Noto Sans Tamil", "Noto Sans Telugu",
  "Noto Naskh Arabic", system-ui, sans-serif; overflow-wrap: anywhere; }
.mstr h2 { font-size: 2.6rem; line-height: 1.6; margin: 0; text-align: start; }
.mstr dl { display: grid; grid-template-columns: max-content 1fr; gap: .4rem 1rem; margin: 1rem 0; }
.mstr dt, .mstr small { opacity: .75; }
.mstr dd { margin: 0; }
.mstr .alternative { display: flex; justify-content: space-between; gap: 1rem; max-width: 20rem; }
.mstr .characters { display: flex; flex-wrap: wrap; gap: .5rem; list-style: none; margin: .5rem 0; padding: 0; }
.mstr .characters li { border: 1px solid var(--border-color-primary); border-radius: .5rem; padding: .3rem .6rem;
  min-width: 4.5rem; text-align: center; margin: 0; }
.mstr .characters b { display: block; font-size: 1.5rem; line-height: 1.7; }
.mstr .characters .unsure { background: #fff3cd; color: #3d2f00; }
.mstr small { display: block; white-space: nowrap; }
.mstr meter { width: 8rem; height: 1rem; vertical-align: middle; }
"""


class Demo:
    """A checkpoint and its page.

    Args:
        model: Folder of a checkpoint, or its name on the Hub.
    """

    def __init__(self, model: str = MODEL):
        folder = Path(model if os.path.isdir(model) else snapshot_download(model))
        self.model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
        self.processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
        self.languages = self.model.get_bank().all_languages
        self.examples = _examples(folder / "samples")

    def page(self) -> gr.Blocks:
        """Lays the page out."""
        # Gradio writes pictures to files: every 10 minutes, those older than 10 minutes go.
        with gr.Blocks(title="Read a photographed word", analytics_enabled=False, delete_cache=(600, 600)) as page:
            gr.Markdown(INTRODUCTION)
            # On a phone the columns come one under the other: the reading right after the picture.
            with gr.Row():
                image = gr.Image(
                    type="pil",
                    image_mode=None,
                    format="png",
                    sources=["upload", "webcam", "clipboard"],
                    label="Word",
                    height=240,
                    min_width=300,
                )
                with gr.Column(min_width=300):
                    reading = gr.HTML(_note("The reading comes here."), label="Reading")
            languages = gr.CheckboxGroup(
                [(LANGUAGES.get(lang, lang), lang) for lang in self.languages],
                label="Read only characters of these languages (all, if none is chosen)",
            )
            if self.examples:
                gr.Examples([str(path) for path in self.examples], image, examples_per_page=24)
            gr.on([image.change, languages.change], self.read, [image, languages], reading, api_name="read")
        return page

    def launch(self, **options: Any) -> None:
        """Serves the page; the options are those of gradio's `launch`."""
        # The default theme fetches its fonts from elsewhere.
        theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])
        self.page().launch(theme=theme, css=CSS, footer_links=[], **options)

    def read(self, image: Image.Image | None, languages: list[str]) -> str:
        """Reads an image; returns HTML."""
        if image is None:
            return _note("The reading comes here.")
        try:
            inputs = self.processor(images=[image], return_tensors="pt")
        except ValueError as error:
            return _note(str(error).removeprefix("image 1 of the batch: "), role="alert")
        [reading] = self.model.recognise(**inputs, languages=languages or None, num_alternatives=ALTERNATIVES)
        return render(reading)


def render(reading: dict[str, Any]) -> str:
    """Lays a reading out as HTML, in the direction of its script."""
    direction = "rtl" if reading["script"] in RIGHT_TO_LEFT else "ltr"
    if not reading["text"]:
        return _note("No characters were found in this picture.", role="alert")
    alternatives = "".join(
        f'<div class="alternative"><bdi dir="{direction}">{_escape(other["text"])}</bdi>'
        f"<span>{other['score']:.1%}</span></div>"
        for other in reading["alternatives"]
    )
    spotted = f'<bdi dir="{direction}">{_escape(reading["spotter_text"]) or "nothing"}</bdi>'
    if reading["spotter_text"] == reading["text"]:
        spotted += " (the same)"
    characters = "".join(_character(character) for character in reading["characters"])
    return f"""<div class="mstr" role="status">
<h2 dir="{direction}">{_escape(reading["text"])}</h2>
<dl>
<dt>Confidence</dt><dd><meter value="{reading["score"]:.3f}"></meter> {reading["score"]:.1%}</dd>
<dt>Script</dt><dd>{SCRIPTS.get(reading["script"], _escape(reading["script"]))}</dd>
<dt>Or else</dt><dd>{alternatives or "nothing else"}</dd>
<dt>Spotter alone</dt><dd>{spotted}</dd>
</dl>
<div>Character by character, in reading order, with what each might be instead:</div>
<ol class="characters" dir="{direction}">{characters}</ol>
</div>"""


def _character(character: dict[str, Any]) -> str:
    others = "".join(
        f'<small><bdi>{_visible(other["char"])}</bdi> {other["score"]:.0%}</small>'
        for other in character["alternatives"]
    )
    kind = ' class="unsure"' if character["score"] < 0.5 else ""
    return f"<li{kind}><b>{_visible(character['char'])}</b>{character['score']:.0%}{others}</li>"


def _visible(character: str) -> str:
    """Marks stand on a dotted circle; what has no ink is named."""
    if unicodedata.category(character) == "Cf":
        return _escape(unicodedata.name(character, "").replace("ZERO WIDTH ", "").lower())
    return _escape("◌" + character if unicodedata.category(character)[0] == "M" else character)


def _note(text: str, role: str = "status") -> str:
    return f'<div class="mstr" role="{role}">{_escape(text)}</div>'


def _escape(text: str) -> str:
    return html.escape(text)


def _examples(folder: Path) -> list[Path]:
    """The first samples of each language."""
    labels = folder / "labels.jsonl"
    chosen: dict[str, list[Path]] = {}
    for line in labels.read_text(encoding="utf-8").splitlines() if labels.is_file() else ():
        record = json.loads(line)
        chosen.setdefault(record["lang"], []).append(folder / record["path_rel"])
    return [path for paths in chosen.values() for path in paths[:EXAMPLES_PER_LANGUAGE]]


if __name__ == "__main__":
    Demo(os.environ.get("MSTR_MODEL", MODEL)).launch()
