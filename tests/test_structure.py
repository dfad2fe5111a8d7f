"""Check the length of the files, and which parts of the package import which other parts."""

import ast
from pathlib import Path

import pytest


ROOT = Path(__file__).parent.parent
PACKAGE = "modeling_xlm_swcm"
# a part may import the parts that stand before it in its row
MAY_IMPORT = {
    "checkpoints": {"model"},
    "corpora": {"model", "checkpoints"},
    "vocabulary": {"model", "checkpoints", "corpora"},
    "conversion": {"model", "checkpoints"},
    "hub": {"model", "checkpoints"},
    "export": {"model", "checkpoints"},
    "training": {"model", "checkpoints", "corpora", "hub"},
    "command": {"model", "checkpoints"},
    "evaluation": {"model", "checkpoints", "corpora", "hub", "training", "command"},
    "serving": {"checkpoints", "command", "export"},
    "app": {"model", "checkpoints", "command", "export", "serving"},
    "cli": {
        *("model", "checkpoints", "corpora", "vocabulary", "conversion", "hub", "export", "training", "evaluation"),
        *("command", "serving", "app"),
    },
    "model": set(),
}
# external packages that every machine with Transformers has
TRAVELLING = {"torch", "transformers", "tokenizers", "huggingface_hub"}


def python_files() -> dict[str, Path]:
    """Return the files of the package by module name."""
    files = {PACKAGE + f".conversion.{path.stem}": path for path in (ROOT / "conversion").glob("*.py")}
    for path in (ROOT / PACKAGE).rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if "conversion" not in parts:
            files[".".join(parts)] = path
    return files


FILES = python_files()


def imported_modules(module: str, path: Path) -> set[str]:
    """Return the absolute names of the modules that a file imports when it is imported."""
    modules = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = module.rsplit(".", node.level)[0] if node.level else ""
            source = ".".join(filter(None, (base, node.module)))
            modules |= {f"{source}.{alias.name}" for alias in node.names} | {source}
    return modules


def part_of(module: str) -> str | None:
    """Return the part of the package that a module belongs to."""
    names = module.split(".")
    if names[0] != PACKAGE:
        return None
    return names[1] if len(names) > 1 and names[1] in MAY_IMPORT else "model"


@pytest.mark.parametrize("module", sorted(FILES))
def test_imports_run_one_way(module):
    part = part_of(module)
    imported = {part_of(other) for other in imported_modules(module, FILES[module])} - {None, part}
    assert imported <= MAY_IMPORT[part]


def test_no_file_imports_itself_in_a_circle():
    graph = {module: imported_modules(module, path) & FILES.keys() for module, path in FILES.items()}
    while leaves := [module for module, others in graph.items() if not others & graph.keys()]:
        for module in leaves:
            del graph[module]
    assert not graph


@pytest.mark.parametrize("module", [module for module in FILES if module.endswith("_xlm_swcm")])
def test_travelling_files_import_what_every_machine_has(module):
    if module.endswith(("xlm_swcm_runtime", "xlm_swcm_server")):
        return
    assert FILES[module].parent == ROOT / PACKAGE
    for other in imported_modules(module, FILES[module]):
        top = other.split(".")[0]
        assert top in TRAVELLING | {PACKAGE} or top in __import__("sys").stdlib_module_names


def test_no_file_is_long():
    lengths = {path.name: len(path.read_text(encoding="utf-8").splitlines()) for path in python_files().values()}
    assert {name: length for name, length in lengths.items() if length > 500} == {}


def test_no_script_imports_another_and_nothing_edits_the_path():
    folders = [ROOT / name for name in ("examples", "benchmarks", "tests")]
    # transformers_suite.py imports the tests of Transformers from a cache
    ignored = {"fixtures", "transformers_suite.py"}
    scripts = [path for folder in folders for path in folder.rglob("*.py") if not ignored & set(path.parts)]
    edits = [path.name for path in scripts if "sys.path." + "insert" in path.read_text(encoding="utf-8")]
    assert edits == []
