import re
from html.parser import HTMLParser

import pytest

from mstr_hf.evaluation.run import evaluate

VOID = {"meta", "img", "line", "path"}


class Page(HTMLParser):
    """Checks that tags are closed, and collects texts and attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""
        self.attributes: list[tuple[str, str | None]] = []

    def handle_starttag(self, tag: str, attributes: list) -> None:
        self.attributes += attributes
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list) -> None:
        self.attributes += attributes

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.text += data


@pytest.fixture
def page(fake_model, fake_processor, fake_peer, manifests, tmp_path):
    evaluate(fake_model(), fake_processor, "<b>fake</b>", manifests, tmp_path / "out", ["my_readers:Fake"])
    page = Page()
    page.feed((tmp_path / "out" / "report.html").read_text(encoding="utf-8"))
    assert page.open == []
    page.text = re.sub(r"\s+", " ", page.text)
    return page


def test_report_holds_everything_it_shows(page):
    addresses = [value for name, value in page.attributes if name in ("src", "href")]
    assert addresses and all(address.startswith(("#", "data:image/jpeg;base64,")) for address in addresses)
    targets = {value for name, value in page.attributes if name == "id"}
    assert {address[1:] for address in addresses if address.startswith("#")} == targets


def test_report_tells_what_happened(page):
    assert "Evaluation of <b>fake</b>" in page.text
    assert "4 words of 2 photographs" in page.text
    assert "Refinermended2broke1" in page.text.replace(" ", "")
    assert "CU+0043→cU+0063" in page.text.replace(" ", "")  # C is read as c
    mended = page.text[page.text.index("Wrong by the Spotter") : page.text.index("Right by the Spotter")]
    assert "Shap" in mended and "दूघ" in mended and "Cafe" not in mended
    broken = page.text[page.text.index("Right by the Spotter") :]
    assert "truthCafereadcafe" in broken.replace(" ", "")
    assert "Left out, no language of this model: kn 1 words." in page.text


def test_texts_carry_language_and_direction(page):
    assert ("lang", "hi") in page.attributes and ("dir", "auto") in page.attributes
