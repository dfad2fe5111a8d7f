"""Scores, comparisons, samples and reports of outputs that are given."""

import errno
import json

import pytest
from rich.console import Console
from support.evaluation import SOURCES, TARGETS
from support.folders import contents

from modeling_xlm_swcm.checkpoints.errors import ConversionError
from modeling_xlm_swcm.evaluation import Evaluation, report, scoring
from modeling_xlm_swcm.evaluation.scoring import choose_samples, describe_sample, score_direction
from modeling_xlm_swcm.evaluation.systems import Outputs
from modeling_xlm_swcm.hub.card import read_metrics
from modeling_xlm_swcm.training.examples import Pair
from modeling_xlm_swcm.training.metrics import score


PAIRS = [
    Pair(f"test.tsv:{row}", *texts, "zh", "bo") for row, texts in enumerate(zip(SOURCES, TARGETS, strict=True), 2)
]


def outputs(*texts: str, unk=(), cut=(), truncated=0) -> Outputs:
    rows = range(len(texts))
    return Outputs(list(texts), [row in unk for row in rows], [row in cut for row in rows], truncated)


BAD = outputs(SOURCES[0], "", TARGETS[1], TARGETS[3], unk=[0], cut=[0, 3], truncated=2)


@pytest.fixture
def evaluation(monkeypatch) -> Evaluation:
    monkeypatch.setattr(scoring, "MIN_TEXTS", len(PAIRS))
    monkeypatch.setattr(report, "MIN_TEXTS", len(PAIRS))
    result = score_direction(PAIRS, {"good": outputs(*TARGETS), "bad": BAD})
    sources = {"good": "models/good", "bad": "someone/bad"}
    return Evaluation("test.tsv", "translation", sources, {"zh-bo": result}, {"num_beams": 1})


def test_scores_are_those_of_fine_tuning_and_a_perfect_model_has_100():
    result = score_direction(PAIRS, {"bad": BAD})
    expected = score(BAD.texts, TARGETS)
    assert {name: result.models["bad"].scores[name] for name in ("chrf++", "bleu", "rougeL_f", "exact_match")} == {
        name: expected[name] for name in ("chrf++", "bleu", "rougeL_f", "exact_match")
    }
    assert result.signatures == {name: expected[name] for name in ("chrf++_signature", "bleu_signature")}
    perfect = score_direction(PAIRS, {"good": outputs(*TARGETS)}).models["good"]
    assert set(perfect.scores.values()) == {100}


def test_normalised_chrf_ignores_what_xlm_r_cannot_write():
    pairs = [Pair("", "a", "书，好！", "bo", "zh")]
    scores = score_direction(pairs, {"model": outputs("书,好!")}).models["model"].scores
    assert scores["chrf++"] < 60 and scores["chrf++_nfkc"] == 100


def test_all_faults_are_counted():
    counts = score_direction(PAIRS, {"bad": BAD}).models["bad"].count_faults()
    expected = {"unk": 1, "empty": 1, "repeated": 0, "cut": 2, "wrong_script": 1, "copied": 1}
    assert counts == expected | {"truncated_source": 2}


def test_a_better_model_is_significantly_better_and_an_equal_one_is_not():
    pairs = [Pair("", "x", f"{number} {number + 1} a b", "en", "en") for number in range(60)]
    same = [f"{number} {number + 1} a" for number in range(60)]
    worse = [f"{number} b" for number in range(60)]
    models = {name: outputs(*texts) for name, texts in {"first": same, "second": same, "third": worse}.items()}
    result = score_direction(pairs, models).models
    assert result["first"].p_values == {}
    assert result["second"].p_values == {"chrf++": 1.0, "bleu": 1.0}
    assert result["third"].p_values["chrf++"] < 0.01 and result["third"].p_values["bleu"] < 0.01
    assert all(model.intervals["chrf++"] >= 0 for model in result.values())


def test_samples_go_from_the_best_to_the_worst_output():
    result = score_direction(PAIRS, {"bad": BAD})
    assert choose_samples(result, 2)[0] in (2, 3) and choose_samples(result, 2)[1] in (0, 1)
    assert sorted(choose_samples(result, 10)) == [0, 1, 2, 3]
    sample = describe_sample(result, 0)
    assert sample["source"] == SOURCES[0] and sample["reference"] == TARGETS[0]
    assert sample["outputs"]["bad"]["faults"] == ["unk", "cut", "wrong_script", "copied"]
    assert not sample["outputs"]["bad"]["is_right"]


def test_the_tables_have_a_row_for_each_model_and_fit_in_80_columns(evaluation):
    console = Console(width=80, record=True)
    evaluation.print(console)
    lines = console.export_text().splitlines()
    rows = [line.split() for line in lines if line.strip().startswith("zh-bo")]
    assert [row[:4] for row in rows[:2]] == [["zh-bo", "good", "100.00", "±0.00"], ["zh-bo", "bad", *rows[1][2:4]]]
    # texts, unk, empty, repeated, cut, wrong_script, copied, truncated_source
    assert rows[3] == ["zh-bo", "bad", *["4", "1", "1", "0", "2", "1", "1", "2"]]
    assert "p: paired bootstrap of chrF++ against good, 1000 samples." in lines
    assert any(line.startswith("bleu_signature: nrefs:1|") for line in lines)
    assert not any("…" in line for line in lines)


def test_the_names_of_models_stay_whole_in_narrow_tables_and_are_no_markup():
    names = ["experiment-a/[bold]final[/x]", "experiment-b/[bold]final[/x]"]
    result = score_direction(PAIRS, dict.fromkeys(names, BAD))
    console = Console(width=80, record=True)
    Evaluation("[/x].tsv", "translation", dict.fromkeys(names, ""), {"zh-bo": result}, {}).print(console)
    lines = console.export_text().splitlines()
    (start,) = (place for place, line in enumerate(lines) if "texts with faults" in line)
    cells = "".join(line[8:20].strip() for line in lines[start:])
    assert all(name in cells for name in names)


def test_few_texts_have_no_interval_and_no_p_value():
    result = score_direction(PAIRS, {"good": outputs(*TARGETS), "bad": BAD})
    assert all(model.intervals == model.p_values == {} for model in result.models.values())
    console = Console(width=80, record=True)
    sources = {"good": "models/good", "bad": "someone/bad"}
    Evaluation("test.tsv", "translation", sources, {"zh-bo": result}, {}).print(console)
    text = console.export_text()
    assert "±" not in text and "bootstrap" not in text
    assert "No confidence intervals or p-values for fewer than 30 texts: zh-bo." in text


def test_the_plot_names_every_model(evaluation):
    names = ["_under", "m$x$y"]
    evaluation.sources = dict.fromkeys(names, "")
    evaluation.directions["zh-bo"].models = dict(
        zip(names, evaluation.directions["zh-bo"].models.values(), strict=True)
    )
    (legend,) = evaluation._draw().legends
    assert [text.get_text() for text in legend.get_texts()] == [" _under", r"m\$x\$y"]


@pytest.mark.parametrize("models", [1, 2, 4])
def test_the_legend_of_the_plot_is_whole_and_below_the_bars(models):
    names = [f"experiment-{number}/{'a-long-name-' * number}final" for number in range(models)]
    result = score_direction(PAIRS, dict.fromkeys(names, BAD))
    figure = Evaluation("test.tsv", "translation", dict.fromkeys(names, ""), {"zh-bo": result}, {})._draw()
    figure.draw_without_rendering()
    box, axes = figure.legends[0].get_window_extent(), figure.axes[0].get_tightbbox()
    assert box.y1 <= axes.y0
    assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1
    assert axes.height > figure.bbox.height / 2


def test_the_plot_names_its_score_and_its_intervals(evaluation):
    (axes,) = evaluation._draw().axes
    assert axes.get_ylabel() == "chrF++\nerror bars: 95 % confidence interval"
    for model in evaluation.directions["zh-bo"].models.values():
        model.intervals.clear()
    assert evaluation._draw().axes[0].get_ylabel() == "chrF++"
    evaluation.task = "summarization"
    assert evaluation._draw().axes[0].get_ylabel() == "ROUGE-L"


def test_a_report_is_whole_or_absent(evaluation, tmp_path, monkeypatch):
    def fail(*arguments, **options):
        raise OSError(errno.ENOSPC, "full")

    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "results.json").write_text("old")
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", fail)
    for name in ("old", "new"):
        with pytest.raises(
            ConversionError, match=f"^Cannot write {tmp_path / name}: No space left .* Free some space"
        ):
            evaluation.write(tmp_path / name)
    assert contents(tmp_path) == {"old": None, "old/results.json": b"old"}


def test_the_files_hold_everything(evaluation, tmp_path):
    evaluation.write(tmp_path / "report")
    content = json.loads((tmp_path / "report" / "results.json").read_text(encoding="utf-8"))
    models = content["directions"]["zh-bo"]["models"]
    assert models["good"]["scores"]["chrf++"] == 100 and models["bad"]["faults"]["cut"] == 2
    assert set(models["bad"]["p_values"]) == {"chrf++", "bleu"}
    assert len(content["directions"]["zh-bo"]["samples"]) == 4
    lines = (tmp_path / "report" / "outputs.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(lines[1])["outputs"] == {"good": TARGETS[1], "bad": ""}
    samples = (tmp_path / "report" / "samples.md").read_text(encoding="utf-8")
    assert "good: right" in samples and "bad: wrong, unk, cut, wrong_script, copied" in samples
    assert (tmp_path / "report" / "scores.png").read_bytes().startswith(b"\x89PNG")


def test_the_results_go_into_metrics_json_and_the_training_stays(evaluation, tmp_path):
    folder = tmp_path / "good"
    folder.mkdir()
    (folder / "conversion_report.json").write_text("{}")
    (folder / "metrics.json").write_text('{"training": {"epochs": 3}, "dataset": "old", "results": {}}')
    evaluation.sources["good"], evaluation.skipped = str(folder), {"zh-bo": 2}
    assert evaluation.record() == [folder / "metrics.json"]
    metrics = read_metrics(folder)
    assert metrics["training"] == {"epochs": 3}
    assert (metrics["task"], metrics["dataset"]) == ("translation", "test.tsv")
    assert metrics["results"]["chrf++"] == {"zh-bo": 100.0}
    assert metrics["evaluation"] == {"texts, zh-bo": 4, "skipped rows, zh-bo": 2, "num_beams": 1}
    evaluation.settings["max_samples"] = 4
    with pytest.raises(ConversionError, match="^`max_samples=4` selects only some texts"):
        evaluation.record()
