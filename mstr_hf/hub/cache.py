"""The bundled checkpoint as an entry of the Hub's cache, so that it loads by its name without network."""

import hashlib
import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub.constants import HF_HUB_CACHE
from huggingface_hub.file_download import repo_folder_name

REPO_ID = "mstr/refiner-6lang"
CHECKPOINT = Path(__file__).parents[1] / "pretrained" / "refiner-6lang"
MCLIP = CHECKPOINT.with_name("mclip-6lang")  # in the space of the checkpoint's bank


@dataclass(frozen=True)
class Installed:
    """A checkpoint in the cache.

    Attributes:
        snapshot: Folder with the checkpoint's files.
        revision: 40 hexadecimal digits; equal contents have equal revisions.
        changed: Whether anything had to be written.
    """

    snapshot: Path
    revision: str
    changed: bool


def install_checkpoint(cache_dir: str | os.PathLike[str] | None = None) -> Installed:
    """Puts the bundled checkpoint into the Hub's cache as branch `main` of `mstr/refiner-6lang`.

    Nothing is written if it is there already; files that are missing or damaged are mended. An interrupted
    call leaves the branch where it was.

    Args:
        cache_dir: The cache; the one of the Hub's library by default (`HF_HUB_CACHE`, `HF_HOME`).

    Returns:
        Where it lies, and its revision, which `from_pretrained(..., revision=...)` accepts.

    Raises:
        FileNotFoundError: If there is no checkpoint to install.
        OSError: If the cache cannot be written.
    """
    if not (CHECKPOINT / "config.json").is_file():
        raise FileNotFoundError(f"no checkpoint in {CHECKPOINT}: reinstall mstr_hf with all its files")
    files = repository_files(CHECKPOINT)
    digests = {name: _sha256(files[name]) for name in sorted(files)}
    revision = hashlib.sha1(json.dumps(digests).encode()).hexdigest()

    repo = Path(cache_dir or HF_HUB_CACHE).expanduser() / repo_folder_name(repo_id=REPO_ID, repo_type="model")
    snapshot = repo / "snapshots" / revision
    missing = [name for name in digests if _sha256(snapshot / name) != digests[name]]
    main = repo / "refs" / "main"
    changed = bool(missing) or not main.is_file() or main.read_text() != revision
    if changed:
        repo.mkdir(parents=True, exist_ok=True)
        # Made aside and moved into place, the branch last: readers of the cache see whole files only.
        with tempfile.TemporaryDirectory(dir=repo, prefix=".installing-") as scratch:
            for name in missing:
                blob = repo / "blobs" / _blob_name(files[name], digests[name])
                _place(files[name], blob, snapshot / name, Path(scratch))
            branch = Path(scratch, "main")
            branch.write_text(revision)
            _move(branch, main)
    return Installed(snapshot, revision, changed)


def repository_files(folder: Path) -> dict[str, Path]:
    """Returns the files of a folder that is laid out as a repository, by their names in it; none that are hidden."""
    paths = {path.relative_to(folder): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {
        name.as_posix(): path
        for name, path in paths.items()
        if "__pycache__" not in name.parts and not any(part.startswith(".") for part in name.parts)
    }


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def _blob_name(path: Path, sha256: str) -> str:
    """Returns what the Hub names a blob by: SHA-256 in large file storage, the git object id elsewhere."""
    if path.suffix == ".safetensors":
        return sha256
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _place(source: Path, blob: Path, target: Path, scratch: Path) -> None:
    """Copies a file to `blob` and links `target` to it."""
    copy, link = scratch / "copy", scratch / "link"
    shutil.copyfile(source, copy)
    try:
        link.symlink_to(os.path.relpath(blob, target.parent))
    except OSError:  # Windows lets few users make links; the Hub's library then does without blobs too.
        _move(copy, target)
    else:
        _move(copy, blob)
        _move(link, target)


def _move(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    source.replace(target)
