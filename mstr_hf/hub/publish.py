"""Checkpoint folders, laid out as repositories of the Hub, and their way there."""

import inspect
import json
import os
import shutil
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from huggingface_hub import (
    CommitInfo,
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    get_token,
    is_offline_mode,
)
from huggingface_hub.errors import (
    HfHubHTTPError,
    HTTPError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
)
from huggingface_hub.utils import validate_repo_id
from transformers.dynamic_module_utils import get_relative_import_files

from mstr_hf.hub import handler
from mstr_hf.hub.cache import CHECKPOINT, repository_files
from mstr_hf.hub.card import plain_card
from mstr_hf.models import modeling_mclip, modeling_refiner, modeling_spotter, pipeline_mstr, processing_mstr
from mstr_hf.models.image_processing_mstr import MAX_RATIO, MSTRImageProcessor
from mstr_hf.models.modeling_mclip import MCLIPModel
from mstr_hf.models.modeling_refiner import RefinerModel
from mstr_hf.models.modeling_spotter import SpotterModel
from mstr_hf.models.processing_mstr import MSTRProcessor
from mstr_hf.vocabulary import Vocabulary

# The tokenizer is left out: its files load as a plain fast tokenizer where the package is missing.
_PROCESSORS = {
    "AutoProcessor": "processing_mstr.MSTRProcessor",
    "AutoImageProcessor": "image_processing_mstr.MSTRImageProcessor",
}
AUTO_MAPS: dict[type, dict[str, str]] = {
    MCLIPModel: {"AutoConfig": "configuration_mclip.MCLIPConfig", "AutoModel": "modeling_mclip.MCLIPModel"},
    SpotterModel: {
        "AutoConfig": "configuration_spotter.SpotterConfig",
        "AutoModel": "modeling_spotter.SpotterModel",
        **_PROCESSORS,
    },
    RefinerModel: {
        "AutoConfig": "configuration_refiner.RefinerConfig",
        "AutoModel": "modeling_refiner.RefinerModel",
        "AutoModelForTextRecognition": "modeling_refiner.RefinerModel",
        **_PROCESSORS,
    },
}
# A task of transformers' own before v5, and still that of the Hub.
PIPELINES = {
    "image-to-text": {"impl": "pipeline_mstr.SceneTextRecognitionPipeline", "pt": ["AutoModel"], "type": "image"}
}

SAMPLES = CHECKPOINT.parent / "samples"

# What one push writes and the next may not overwrite, as the number of shards is in the names.
_SHARDS = (".safetensors", ".safetensors.index.json", ".parquet", ".arrow")

_ATTEMPTS = 3

_Result = TypeVar("_Result")


def assemble(
    model: MCLIPModel | SpotterModel | RefinerModel,
    folder: str | os.PathLike[str],
    vocabulary: Vocabulary | None = None,
    repo_id: str | None = None,
) -> None:
    """Writes a checkpoint that the Auto classes load, with all else that belongs into its repository.

    They load it where `mstr_hf` is imported, and with `trust_remote_code=True` where it is not installed. A Spotter or
    Refiner comes with its bank, its processor and sample images, a Refiner with the code of its pipeline and a handler
    for Inference Endpoints too.

    Args:
        model: It is saved in the precision that it has.
        folder: Where to write; made if needed, files of the same names are replaced, but for a card.
        vocabulary: What an mCLIP was trained on; the other models know theirs from their bank.
        repo_id: Name of the repository, for the card that is written where there is none; by default the folder's.

    Raises:
        BankError: If the model was never given a bank.
        ValueError: If an mCLIP comes without its vocabulary.
    """
    folder = Path(folder)
    auto_map = AUTO_MAPS[type(model)]
    model.config.auto_map = auto_map
    if isinstance(model, MCLIPModel):
        if vocabulary is None:
            raise ValueError("an mCLIP does not know its characters: give its vocabulary too")
        vocabulary.tokenizer().save_pretrained(folder)
        _copy_code(folder, modeling_mclip)
    else:
        bank = model.get_bank()
        bank.save_pretrained(folder)
        vocabulary = Vocabulary.from_bank(bank)
        _save_processor(folder, model, vocabulary)
        _copy_code(folder, modeling_refiner if isinstance(model, RefinerModel) else modeling_spotter, processing_mstr)
        (folder / "samples").mkdir(exist_ok=True)
        for sample in SAMPLES.iterdir():
            shutil.copy(sample, folder / "samples")
    if isinstance(model, RefinerModel):
        model.config.custom_pipelines = PIPELINES
        model.config.freeze_spotter = True  # also where the two were trained together: who goes on says so anew
        _copy_code(folder, pipeline_mstr)
        # As in `recognise`: the longest reading and its end.
        model.generation_config.max_new_tokens = model.config.spotter_config.max_length + 1
        shutil.copy(inspect.getfile(handler), folder)
    model.save_pretrained(folder)
    if folder.resolve() != CHECKPOINT:
        shutil.copy(CHECKPOINT / "LICENSE", folder)
    card = folder / "README.md"
    if not card.exists():
        name = repo_id or folder.resolve().name
        text = plain_card(name, model.config.model_type, model.num_parameters(), vocabulary.languages)
        card.write_text(text, encoding="utf-8")


def _save_processor(folder: Path, model: SpotterModel | RefinerModel, vocabulary: Vocabulary) -> None:
    spotter = model.spotter if isinstance(model, RefinerModel) else model
    height = spotter.config.image_height
    image_processor = MSTRImageProcessor(size={"height": height, "width": MAX_RATIO * height})
    processor = MSTRProcessor(image_processor, vocabulary.tokenizer())
    # Only saved, so not declared.
    image_processor.auto_map = processor.auto_map = AUTO_MAPS[type(model)]  # type: ignore[attr-defined]
    processor.save_pretrained(folder)


def _copy_code(folder: Path, *modules: ModuleType) -> None:
    for module in modules:
        source = inspect.getfile(module)
        for path in (source, *get_relative_import_files(source)):
            shutil.copy(path, folder)


class PublishError(RuntimeError):
    """What keeps a folder from being published; the message is one line that names the mend."""


def push(
    folder: str | os.PathLike[str],
    repo_id: str,
    *,
    repo_type: str = "model",
    private: bool = False,
    token: str | None = None,
    commit_message: str | None = None,
    parent_commit: str | None = None,
) -> str:
    """Uploads a folder to the Hub as one commit, which holds only what changed.

    The repository is made if it is not there. Files on the Hub that the folder has not got stay, save for shards of
    weights and of data: those of an earlier push would be loaded with the new ones. Hidden files are not uploaded.
    The revision is noted in `.cache/huggingface/` of the folder, so that a later push of it finds out whether
    somebody else has written to the repository since; a folder without such a note goes over whatever is there.
    Whatever goes wrong, the repository is as it was, and so is the folder.

    Args:
        folder: What to upload, laid out as the repository.
        repo_id: Such as `mstr/refiner-6lang`.
        repo_type: `model`, `dataset` or `space` (one that runs Gradio).
        private: Whether a new repository is private.
        token: A token that may write; by default the one that the Hub's library knows (`HF_TOKEN`, `hf auth login`).
        commit_message: First line of the commit; "Upload mstr_hf's files" by default.
        parent_commit: Revision on the Hub that is to be built on, which may be one that somebody else made.

    Returns:
        URL of the commit; of the newest one if nothing has changed.

    Raises:
        PublishError: If there is nothing to upload, the token is missing or refused, the Hub cannot be reached or
            fails, the card's metadata are invalid, or the repository has a revision that this folder does not know.
    """
    folder = Path(folder)
    files = _files(folder)
    api = HfApi(token=token)
    with _explained(api.endpoint, repo_id):
        _patiently(api.whoami)
        sdk = "gradio" if repo_type == "space" else None
        _patiently(
            lambda: api.create_repo(repo_id, repo_type=repo_type, private=private, exist_ok=True, space_sdk=sdk)
        )
        head = _patiently(lambda: api.repo_info(repo_id, repo_type=repo_type)).sha
        pushed = _Pushed(folder, f"{api.endpoint}/{repo_type}s/{repo_id}")
        known = parent_commit or pushed.revision or head
        if head != known and head is not None:
            raise PublishError(_newer(repo_id, head, f"builds on {known}"))

        def commit() -> CommitInfo:
            # Asked for again each time: a commit whose answer was lost leaves nothing to do.
            there = api.list_repo_files(repo_id, repo_type=repo_type)
            stale = [name for name in there if name not in files and name.endswith(_SHARDS)]
            return api.create_commit(
                repo_id,
                # The library marks operations as done: a second attempt needs new ones.
                [CommitOperationAdd(name, files[name]) for name in sorted(files)]
                + [CommitOperationDelete(name) for name in stale],
                commit_message=commit_message or "Upload mstr_hf's files",
                repo_type=repo_type,
                parent_commit=head,
            )

        done = _patiently(commit)
    pushed.note(done.oid)
    return str(done.commit_url)


def check_push(repo_id: str) -> None:
    """Finds what would keep a later `push` from the start, without asking the Hub.

    Args:
        repo_id: Such as `mstr/refiner-6lang`.

    Raises:
        PublishError: If there is no token, the Hub's library is told to stay offline, or the name is none.
    """
    with _explained(HfApi().endpoint, repo_id):
        validate_repo_id(repo_id)
        if is_offline_mode():
            raise OfflineModeIsEnabled
        if get_token() is None:
            raise LocalTokenNotFoundError


def _files(folder: Path) -> dict[str, Path]:
    """Files to upload by their names in the repository."""
    if not folder.is_dir():
        raise PublishError(f"{folder}: no such folder: name the folder to publish")
    files = repository_files(folder)
    if not files:
        raise PublishError(f"{folder}: nothing to publish in it")
    return files


def _patiently(call: Callable[[], _Result]) -> _Result:
    """Calls again, a little later, where the Hub or the network fails for the moment."""
    for attempt in range(1, _ATTEMPTS):
        try:
            return call()
        except HTTPError as error:
            if isinstance(error, HfHubHTTPError) and error.response.status_code not in (429, 500, 502, 503, 504):
                raise
            time.sleep(2 ** (attempt - 1))
    return call()


@contextmanager
def _explained(endpoint: str, repo_id: str) -> Generator[None]:
    """Turns what the Hub's library raises into one line for the user."""
    tokens = f"make one that may write at {endpoint}/settings/tokens and set HF_TOKEN to it or run `hf auth login`"
    try:
        yield
    except LocalTokenNotFoundError:
        raise PublishError(f"{endpoint} wants a token: {tokens}") from None
    except OfflineModeIsEnabled:
        raise PublishError("HF_HUB_OFFLINE is set: unset it to publish") from None
    except HfHubHTTPError as error:
        status, said = error.response.status_code, error.server_message or _first_line(error)
        if status == 401:
            raise PublishError(f"{endpoint} refuses the token: {tokens}") from error
        if status == 403:
            raise PublishError(f"the token may not write to {repo_id} ({said}): {tokens}") from error
        if status in (409, 412):
            raise PublishError(_newer(repo_id, "another one", "found a moment ago")) from error
        raise PublishError(f"{endpoint} answers {status} ({said}): nothing was changed, push again later") from error
    except HTTPError as error:
        raise PublishError(
            f"cannot reach {endpoint} ({_first_line(error)}): nothing was changed, push again once there is a network"
        ) from error
    except ValueError as error:  # the name of the repository, or the metadata of a card
        raise PublishError(" ".join(str(error).split())) from error


def _newer(repo_id: str, head: str, known: str) -> str:
    return (
        f"{repo_id} has a newer revision on the Hub, {head}, than the one that this push {known}: look at it, "
        "take over what is to stay, then push with that revision as the parent commit"
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


class _Pushed:
    """The revision that a folder was pushed as, in a file that no push uploads."""

    def __init__(self, folder: Path, repository: str):
        self._path = folder / ".cache" / "huggingface" / "mstr_pushed.json"
        self._repository = repository

    @property
    def revision(self) -> str | None:
        """The revision, None if the folder was never pushed there."""
        return self._read().get(self._repository)

    def note(self, revision: str) -> None:
        """Keeps the revision; where the folder cannot be written, later pushes go without it."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.write_text(json.dumps({**self._read(), self._repository: revision}, indent=1))
        except OSError:
            pass

    def _read(self) -> dict[str, str]:
        return json.loads(self._path.read_text()) if self._path.is_file() else {}
