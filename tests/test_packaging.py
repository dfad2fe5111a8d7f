"""The wheel: it holds the whole package and works after installation."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from support.encoders import make_encoder, save_encoder, xlm_roberta_tokenizer
from transformers import XLMRobertaForMaskedLM


ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder, sources = tmp_path_factory.mktemp("wheel"), tmp_path_factory.mktemp("sources")
    # A build in the checkout would pick up old files from its build folder.
    for name in ("pyproject.toml", "README.md", "LICENSE", "model_card.md"):
        shutil.copy(ROOT / name, sources)
    for name in ("modeling_xlm_swcm", "conversion"):
        shutil.copytree(ROOT / name, sources / name, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "pip", "wheel", sources, "--no-deps", "--no-build-isolation", "-q", "-w", folder]
    subprocess.run(command, check=True)
    return next(folder.glob("*.whl"))


def test_the_wheel_has_one_top_level_name_and_everything_in_it(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {
        "modeling_xlm_swcm",
        f"xlm_swcm-{wheel.name.split('-')[1]}.dist-info",
    }
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "modeling_xlm_swcm").glob("**/*.py")}
    sources |= {f"modeling_xlm_swcm/conversion/{path.name}" for path in (ROOT / "conversion").glob("*.py")}
    others = ("py.typed", "model_card.md", "checkpoints/language_names.json")
    assert sources | {f"modeling_xlm_swcm/{name}" for name in others} == {
        name for name in names if name.startswith("modeling")
    }


def test_the_command_converts_from_the_installed_wheel(wheel, tmp_path):
    """A new environment has the dependencies but not the editable install."""
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    python = environment / "bin" / "python"
    site_packages = next(environment.glob("lib/python*/site-packages"))
    # The path lists packages without reading .pth files, so the editable install is not found.
    (site_packages / "dependencies.pth").write_text("\n".join(path for path in sys.path if "site-packages" in path))
    install = [sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--force-reinstall", "-q"]
    subprocess.run([*install, wheel], check=True)
    tokenizer = xlm_roberta_tokenizer()
    save_encoder(tmp_path / "encoder", make_encoder(XLMRobertaForMaskedLM, tokenizer), tokenizer)
    run = subprocess.run(
        [environment / "bin" / "xlm-swcm", "convert", "encoder", "model", "--languages", "bo", "kk"],
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert "tensors copied, each bit-equal to its source" in run.stdout
    # The folder of a package is found without an import.
    where = subprocess.run(
        [python, "-c", "import importlib.util as u; print(u.find_spec('modeling_xlm_swcm').origin)"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert str(site_packages) in where.stdout
