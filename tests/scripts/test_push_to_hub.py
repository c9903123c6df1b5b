import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from mstr_hf.hub.publish import PublishError

SCRIPT = Path(__file__).parents[2] / "scripts" / "push_to_hub.py"


@pytest.fixture
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("push_to_hub", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_options_reach_the_push_and_its_url_is_printed(script, monkeypatch, capsys):
    calls = []
    monkeypatch.setattr(script, "push", lambda *args, **kwargs: calls.append((args, kwargs)) or "https://hub/commit/1")
    words = "push_to_hub.py shards me/words --repo_type dataset --private --commit_message More --parent_commit 1a2b3c4"
    monkeypatch.setattr("sys.argv", words.split())
    assert script.main() == 0 and capsys.readouterr().out == "https://hub/commit/1\n"
    expected = {"folder": "shards", "repo_id": "me/words", "repo_type": "dataset", "private": True}
    assert calls == [((), {**expected, "commit_message": "More", "parent_commit": "1a2b3c4"})]


def test_what_keeps_it_from_publishing_is_one_line(script, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("sys.argv", ["push_to_hub.py", str(tmp_path), "me/words"])
    assert script.main() == 1
    assert capsys.readouterr().err == f"push_to_hub.py: {tmp_path}: nothing to publish in it\n"
    with pytest.raises(PublishError, match="name the folder"):
        script.push(tmp_path / "gone", "me/words")
