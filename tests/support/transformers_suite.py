"""Load the common tests of Transformers from the source distribution of the installed version.

The wheel does not contain these tests. pip downloads them once to the git-ignored `.cache/`, as the package
`transformers_suite_<version>`.
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


CACHE = Path(__file__).parents[2] / ".cache"


def _fetch(folder: Path):
    """Download the test files of the installed version to `folder`."""
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
    """Import a module of the suite, for example `test_modeling_common`."""
    name = f"transformers_suite_{transformers.__version__.replace('.', '_')}"
    folder = CACHE / name
    CACHE.mkdir(exist_ok=True)
    # Several test processes may load the suite at once.
    with FileLock(CACHE / "lock"):
        if not folder.exists():
            _fetch(folder)
    if name not in sys.modules:
        sys.path.insert(0, str(CACHE))
        importlib.import_module(name)
        # The common tests import these three modules from folders that the source distribution leaves out.
        for package in ("exporters", "generation", "utils"):
            _stand_in(f"{name}.{package}", __path__=[])
        _stand_in(f"{name}.exporters.test_export", ExportTesterMixin=type("ExportTesterMixin", (), {}))
        _stand_in(f"{name}.generation.test_utils", GenerationTesterMixin=type("GenerationTesterMixin", (), {}))
        common = {"return_dict": False, "output_hidden_states": True, "chunk_size_feed_forward": 5, "dtype": "float16"}
        _stand_in(f"{name}.utils.test_configuration_utils", config_common_kwargs=common)
    return importlib.import_module(f"{name}.{module}")
