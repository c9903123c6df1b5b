"""Runs what the README tells users to copy."""

import re
from pathlib import Path

import torch
from transformers import AutoModel

ROOT = Path(__file__).parents[1]


def test_fine_tuning_with_transformers_trainer(tmp_path, monkeypatch):
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.M | re.S)
    [code] = [block for block in blocks if "Trainer(" in block]
    assert code.count('"fine-tuned"') == 2
    monkeypatch.chdir(ROOT)
    names: dict = {}
    exec(compile(code.replace('"fine-tuned"', repr(str(tmp_path))), "README.md", "exec"), names)

    first, second, _ = names["trainer"].state.log_history
    assert second["loss"] < first["loss"]
    before, after = AutoModel.from_pretrained(names["checkpoint"]), AutoModel.from_pretrained(tmp_path)
    changed = {
        name for name, tensor in before.state_dict().items() if not torch.equal(tensor, after.state_dict()[name])
    }
    assert changed and all(name.startswith("encoder.spotter.") for name in changed)
    assert "encoder.spotter.head.prototypes" not in changed
    inputs = names["collate"](names["words"][:2])
    del inputs["labels"]
    assert len(after.recognise(**inputs)) == 2
