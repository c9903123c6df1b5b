"""transformers' own common tests, of the installed version: where they lie, and how they get there.

They are part of transformers' source distribution, but of no installation. Run as a script (`make test` does), this
module fetches that distribution with pip and keeps its tests in the environment that transformers is installed in;
after that nothing needs a network. They are never committed.
"""

import importlib
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from types import ModuleType

import pytest
import transformers

FOLDER = Path(sys.prefix, "share", f"transformers-tests-{transformers.__version__}")

# What the common tests import, or read, and the source distribution leaves out.
_STUBS = {
    "transformers_tests/__init__.py": "",
    "transformers_tests/generation/__init__.py": "",
    "transformers_tests/generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    "transformers_tests/exporters/__init__.py": "",
    "transformers_tests/exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    "transformers_tests/utils/__init__.py": "",
    "transformers_tests/utils/test_configuration_utils.py": """config_common_kwargs = {
    "return_dict": False,
    "output_hidden_states": True,
    "output_attentions": True,
    "dtype": "float16",
    "chunk_size_feed_forward": 5,
    "architectures": ["BertModel"],
    "id2label": {0: "label"},
    "label2id": {"label": "0"},
    "problem_type": "regression",
}
""",
    "transformers_tests/fixtures/sample_text.txt": "Words of many scripts.\\n\\nOne a line.\\n",
    "utils/fetch_hub_objects_for_ci.py": "def url_to_local_path(url, return_url_if_not_found=True):\n    return url\n",
}


def load(name: str) -> ModuleType:
    """Imports one of the common tests, such as `test_modeling_common`; skips the caller where they are missing."""
    pytest.importorskip("parameterized", reason="missing: parameterized: pip install '.[test]'")
    if not FOLDER.is_dir():
        pytest.skip("missing: transformers' common tests: python tests/transformers_suite.py", allow_module_level=True)
    if str(FOLDER) not in sys.path:
        sys.path.append(str(FOLDER))
    return importlib.import_module(f"transformers_tests.{name}")


def fetch() -> None:
    """Puts the common tests of the installed version into `FOLDER`, unless they are there."""
    if FOLDER.is_dir():
        return
    FOLDER.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=FOLDER.parent) as scratch:
        source = f"transformers=={transformers.__version__}"
        options = ["--no-deps", "--no-build-isolation", "--no-binary=transformers", "--quiet", f"--dest={scratch}"]
        subprocess.run([sys.executable, "-m", "pip", "download", *options, source], check=True)
        (archive,) = Path(scratch).glob("*.tar.gz")
        made = Path(scratch, "made")
        with tarfile.open(archive) as files:
            for member in files:
                path = Path(*Path(member.name).parts[1:])
                if member.isfile() and path.parent == Path("tests") and path.suffix == ".py":
                    member.name = str(Path("transformers_tests", path.name))
                    files.extract(member, made, filter="data")
        for name, content in _STUBS.items():
            path = made / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content, encoding="utf-8")
        made.rename(FOLDER)  # at once: a killed download leaves nothing that looks complete


if __name__ == "__main__":
    fetch()
