"""benchmarks/speed.py and serving.py: their models, rows and tables."""

import importlib
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console


@pytest.fixture
def scripts(monkeypatch):
    """Return a function that imports a script of benchmarks/."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    return importlib.import_module


def text_of(table) -> str:
    console = Console(width=150)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def test_models_have_the_decoders_and_sizes_of_the_docs(scripts):
    with torch.device("meta"):
        models = {
            name: scripts("peers").make_model(name, quick=False) for name in ("init", "prefix-init", "prefix-tied")
        }
    millions = {name: round(model.num_parameters() / 1e6) for name, model in models.items()}
    # docs/concepts/decoders.md counts the transform of the masked-LM head too.
    assert millions == {"init": 476, "prefix-init": 363, "prefix-tied": 278}
    assert models["prefix-tied"].config.decoder_blocks == 12 * ["prefix"]
    assert models["init"].config.decoder_blocks.count("custom") == 12
    for part in ("training-trimmed", "decoding-trimmed"):
        options = scripts("speed").choose_runs(part, ["prefix-tied"])["prefix-tied"]
        with torch.device("meta"):
            trimmed = scripts("peers").make_model("prefix-tied", quick=False, words=options["words"])
        assert models["prefix-tied"].num_parameters() - trimmed.num_parameters() == (250002 - 30000) * 769
    assert all(model.config.attention_probs_dropout_prob == 0 for model in models.values())


def test_a_prefix_row_of_each_part(scripts, tmp_path):
    row, speed, workloads = "prefix-tied", scripts("speed"), scripts("workloads")
    for part in ("training", "decoding", "loading", "gpu-training", "gpu-decoding"):
        assert speed.choose_runs(part, [row]) == {row: {"model": row}}
    assert workloads.train(row, quick=True)["seconds"] > 0
    decoded = workloads.decode(row, quick=True)
    assert decoded.keys() >= speed.STEPS.keys() and min(decoded.values()) > 0
    speed.save_models([row], tmp_path, quick=True)
    loaded = workloads.load(str(tmp_path / row))
    weights = scripts("peers").make_model(row, quick=True).num_parameters()
    assert loaded["million_parameters"] == weights / 1e6
    # Each weight is stored once, in four bytes.
    assert loaded["file_gb"] == pytest.approx(4 * weights / 1e9, rel=0.01)


def test_a_table_compares_with_mbart_and_the_default(scripts):
    speed = scripts("speed")
    results = {"MBart": [4.0, 4.0, 4.0], "init": [2.0, 1.5, 2.5], "prefix-tied": [1.0, 1.0, 1.0]}
    results = {name: {"seconds": values} for name, values in results.items()}
    lines = text_of(speed.make_table("training", results, {"seconds": "seconds"})).splitlines()
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if line.startswith("│")]
    assert cells == [
        ["MBart", "4.00", "1.00", "2.00"],
        ["init", "2.00 (1.50-2.50)", "0.50", "1.00"],
        ["prefix-tied", "1.00", "0.25", "0.50"],
    ]
    del results["MBart"]
    assert "/ MBart" not in text_of(speed.make_table("training", results, {"seconds": "seconds"}))


def test_an_unknown_row_is_named(scripts, monkeypatch, capsys):
    speed = scripts("speed")
    monkeypatch.setattr(sys, "argv", ["speed.py", "--only", "loading", "--rows", "init", "tied"])
    with pytest.raises(SystemExit):
        speed.main()
    assert (
        "--rows has the unknown row 'tied'. Known: MBart, init, prefix-init, prefix-tied." in capsys.readouterr().err
    )


def test_an_export_of_the_tied_prefix_decoder_generates(scripts, tmp_path):
    serving, system = scripts("serving"), "prefix-tied-exported-int8"
    assert system in serving.SYSTEMS.values()
    serving.make_exports(str(tmp_path), quick=True, prefix="prefix-tied-", systems=["exported-int8"])
    assert {path.name for path in tmp_path.iterdir()} == {"prefix-tied-pytorch", system}
    source = scripts("peers").random_tokens(2, 8)
    assert all(serving.load_generator(tmp_path / path)(source, 3, 1) == 3 for path in ("prefix-tied-pytorch", system))


def test_the_table_of_serving_has_the_systems_that_were_measured(scripts):
    serving = scripts("serving")
    settings = scripts("peers").DECODING
    names = [name for name in serving.SYSTEMS if name.startswith("XLM-SWCM") and name.endswith("int8")]
    speeds = {
        name: dict.fromkeys(settings, [speed, speed, speed]) | {"peak_gb": [1.0, 1.0, 1.0]}
        for name, speed in zip(names, (20.0, 30.0), strict=True)
    }
    table = text_of(serving.speeds_table(speeds, dict.fromkeys(names, 0.5)))
    assert "/ our int8" in table and "MBart" not in table and table.count("1.50") == len(settings)
