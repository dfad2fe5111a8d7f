"""Transformers' own common tests, taken from its source distribution of the installed version.

The wheel does not carry them. They are fetched with pip once, kept under the git-ignored `.cache/`, and imported from
there as the package `transformers_suite_<version>`.
"""

import importlib
import subprocess
import sys
import tarfile
import tempfile
import types
from pathlib import Path

import transformers
from filelock import FileLock


CACHE = Path(__file__).parent.parent / ".cache"


def _fetch(folder: Path):
    """Put the `tests/test_*.py` of the installed version's source distribution into `folder`."""
    with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
        requirement = f"transformers=={transformers.__version__}"
        command = [sys.executable, "-m", "pip", "download", requirement, "--no-binary", "transformers", "--no-deps"]
        subprocess.run([*command, "--quiet", "--dest", scratch], check=True)
        (archive,) = Path(scratch).glob("transformers-*.tar.gz")
        complete = Path(scratch) / "suite"
        complete.mkdir()
        with tarfile.open(archive) as tar:
            for member in tar.getmembers():
                parts = Path(member.name).parts
                if len(parts) == 3 and parts[1] == "tests" and parts[2].endswith(".py"):
                    (complete / parts[2]).write_bytes(tar.extractfile(member).read())
        (complete / "__init__.py").touch()
        complete.rename(folder)


def _stand_in(name: str, **attributes):
    module = types.ModuleType(name)
    module.__dict__.update(attributes)
    sys.modules[name] = module


def load(module: str) -> types.ModuleType:
    """Import `module`, such as `test_modeling_common`, from the suite of the installed version."""
    name = f"transformers_suite_{transformers.__version__.replace('.', '_')}"
    folder = CACHE / name
    CACHE.mkdir(exist_ok=True)
    with FileLock(CACHE / "lock"):  # several test processes may want it at once
        if not folder.exists():
            _fetch(folder)
    if name not in sys.modules:
        sys.path.insert(0, str(CACHE))
        importlib.import_module(name)
        # the common tests import these three from folders that the source distribution leaves out
        for package in ("exporters", "generation", "utils"):
            _stand_in(f"{name}.{package}", __path__=[])
        _stand_in(f"{name}.exporters.test_export", ExportTesterMixin=type("ExportTesterMixin", (), {}))
        _stand_in(f"{name}.generation.test_utils", GenerationTesterMixin=type("GenerationTesterMixin", (), {}))
        common = {"return_dict": False, "output_hidden_states": True, "chunk_size_feed_forward": 5, "dtype": "float16"}
        _stand_in(f"{name}.utils.test_configuration_utils", config_common_kwargs=common)
    return importlib.import_module(f"{name}.{module}")
