import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import scan_cache_dir, try_to_load_from_cache

from mstr_hf import RefinerModel, build_vocabulary, load_charsets
from mstr_hf.hub import cache

# With the package, and without it through the code that lies beside the weights.
LOAD = """
import sys
from transformers import AutoModel, AutoProcessor
revision, package = sys.argv[1:]
if package:
    import mstr_hf
else:
    sys.modules["mstr_hf"] = None
for where in ({"revision": revision}, {}):
    model = AutoModel.from_pretrained("mstr/refiner-6lang", trust_remote_code=not package, **where)
    processor = AutoProcessor.from_pretrained("mstr/refiner-6lang", trust_remote_code=not package, **where)
    print(type(model).__module__, model.special_rows.sum().item(), processor.tokenizer("word").input_ids)
"""


@pytest.fixture
def checkpoint(tiny_checkpoint, tmp_path, monkeypatch):
    """A copy of a small checkpoint takes the place of the bundled one."""
    folder = tmp_path / "checkpoint"
    shutil.copytree(tiny_checkpoint, folder)
    (folder / "pictures").mkdir()
    (folder / "pictures" / "word.txt").write_text("in a folder")
    monkeypatch.setattr(cache, "CHECKPOINT", folder)
    return folder


def _refuse(*_, **__):
    raise OSError("refused")


def _times(folder):
    return {path: path.lstat().st_mtime_ns for path in folder.rglob("*")}


@pytest.mark.parametrize("package", ["mstr_hf", ""])
def test_loads_by_name_in_a_fresh_process_without_network(checkpoint, tmp_path, package):
    installed = cache.install_checkpoint(tmp_path / "hub")
    environment = os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_CACHE": str(tmp_path / "hub")}
    command = [sys.executable, "-c", LOAD, installed.revision, package]
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    weight = RefinerModel.from_pretrained(checkpoint).special_rows.sum().item()
    ids = build_vocabulary(load_charsets(["en", "hi"])).encode("word")
    for line in done.stdout.splitlines():
        module, rest = line.split(maxsplit=1)
        assert module.startswith(package or "transformers_modules.") and module.endswith("modeling_refiner")
        assert rest == f"{weight} {ids}"
    assert len(done.stdout.splitlines()) == 2


def test_is_an_orderly_entry_of_the_cache(checkpoint, tmp_path):
    installed = cache.install_checkpoint(tmp_path / "cache")
    info = scan_cache_dir(tmp_path / "cache")
    assert not info.warnings
    [repo] = info.repos
    [revision] = repo.revisions
    assert (repo.repo_id, revision.commit_hash, revision.refs) == (
        cache.REPO_ID,
        installed.revision,
        {"main"},
    )
    files = [path for path in checkpoint.rglob("*") if path.is_file()]
    assert repo.nb_files == len(files)
    for path in files:
        name = path.relative_to(checkpoint).as_posix()
        cached = try_to_load_from_cache(cache.REPO_ID, name, tmp_path / "cache")
        assert Path(cached).read_bytes() == path.read_bytes()
    # The Hub's names: git's object id, or SHA-256 for what it keeps in large file storage.
    blobs = {path.name for path in (installed.snapshot.parents[1] / "blobs").iterdir()}
    weights = (checkpoint / "model.safetensors").read_bytes()
    assert blobs >= {"dbfc185e6ab2d201e623ed9bb6143db028d04d33", hashlib.sha256(weights).hexdigest()}


def test_again_writes_nothing(checkpoint, tmp_path):
    first = cache.install_checkpoint(tmp_path / "cache")
    before = _times(tmp_path / "cache")
    second = cache.install_checkpoint(tmp_path / "cache")
    assert first.changed and not second.changed
    assert (second.snapshot, second.revision) == (first.snapshot, first.revision)
    assert _times(tmp_path / "cache") == before


def test_mends_what_is_damaged(checkpoint, tmp_path):
    installed = cache.install_checkpoint(tmp_path / "cache")
    weights = installed.snapshot / "model.safetensors"
    weights.resolve().write_bytes(weights.read_bytes()[:100])
    (installed.snapshot / "config.json").resolve().unlink()
    (installed.snapshot / "tokenizer.json").unlink()
    assert cache.install_checkpoint(tmp_path / "cache").changed
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (installed.snapshot / name).read_bytes() == (checkpoint / name).read_bytes()


def test_other_contents_are_another_revision_beside_the_first(checkpoint, tmp_path):
    first = cache.install_checkpoint(tmp_path / "cache")
    (checkpoint / "README.md").write_text("another card")
    second = cache.install_checkpoint(tmp_path / "cache")
    assert second.revision != first.revision
    assert (first.snapshot / "model.safetensors").is_file()
    assert (second.snapshot.parents[1] / "refs" / "main").read_text() == second.revision


def test_interrupted_leaves_the_branch_and_no_scraps(checkpoint, tmp_path, monkeypatch):
    first = cache.install_checkpoint(tmp_path / "cache")
    (checkpoint / "config.json").write_text("{}")
    with monkeypatch.context() as patched:
        patched.setattr(cache, "_place", _refuse)
        with pytest.raises(OSError, match="refused"):
            cache.install_checkpoint(tmp_path / "cache")
    repo = first.snapshot.parents[1]
    assert (repo / "refs" / "main").read_text() == first.revision
    assert sorted(path.name for path in repo.iterdir()) == ["blobs", "refs", "snapshots"]


def test_where_links_are_forbidden_files_are_copied(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "symlink_to", _refuse)
    installed = cache.install_checkpoint(tmp_path / "cache")
    assert not any(path.is_symlink() for path in installed.snapshot.rglob("*"))
    assert not cache.install_checkpoint(tmp_path / "cache").changed
    weights = try_to_load_from_cache(cache.REPO_ID, "model.safetensors", tmp_path / "cache")
    assert Path(weights).read_bytes() == (checkpoint / "model.safetensors").read_bytes()


def test_importing_writes_nothing(tmp_path):
    environment = os.environ | {name: str(tmp_path) for name in ("HOME", "HF_HOME", "MSTR_CACHE")}
    subprocess.run([sys.executable, "-c", "import mstr_hf, mstr_hf.hub.cache"], env=environment, check=True)
    assert list(tmp_path.iterdir()) == []
