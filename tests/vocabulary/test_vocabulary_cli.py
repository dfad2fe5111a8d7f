"""`xlm-swcm vocab`: options reach the library functions, and the report counts the changes."""

import json
from pathlib import Path

import matplotlib.image
import pytest
from support.folders import contents
from support.vocabularies import TEXTS, ids, load_tokenizer, run_vocab
from typer.testing import Result

from modeling_xlm_swcm.vocabulary.report import VocabularyReport


def report_of(result: Result, output: Path) -> dict:
    assert result.exit_code == 0, result.stderr
    return json.loads((output / "vocabulary_report.json").read_text())


def printed(result: Result) -> str:
    """Return the output without spaces and line breaks, which depend on the terminal."""
    return "".join(result.stdout.split())


@pytest.mark.parametrize(
    "arguments",
    [
        ["--corpus", "bo", "mvf", "en", "--size", "200"],
        ["--corpus", "bo", "--corpus", "mvf", "--corpus", "en", "--size=200"],
        ["--size", "200", "--corpus=bo", "mvf", "en", "--seed", "0"],
    ],
    ids=" ".join,
)
def test_a_corpus_can_be_several_files_or_repeated_options(reader, texts, output, arguments):
    files = {language: texts[language] for language in ("bo", "mvf", "en")}
    paths = [f"--corpus={texts['bo']}" if word == "--corpus=bo" else files.get(word, word) for word in arguments]
    assert [*report_of(run_vocab("extend", reader, output, *paths), output)["languages"]] == ["bo", "mvf", "en"]


def test_the_report_counts_the_changes(reader, texts, output):
    result = run_vocab("extend", reader, output, "--corpus", texts["bo"], texts["en"], "--size", 150)
    report = report_of(result, output)
    old, new = load_tokenizer(reader), load_tokenizer(output)
    assert report["action"] == "extend" and report["source"] == reader.name
    assert report["options"] == {"size": 150, "init": "mean-of-pieces", "seed": 0}
    assert report["tokens"] == report["rows"] == {"before": len(old), "after": len(new)}
    assert report["parameters"]["after"] - report["parameters"]["before"] == 33 * (len(new) - len(old))
    assert report["changed"] == ["lm_head.bias", "roberta.embeddings.word_embeddings.weight"]
    assert len(report["kept"]) == 72 and not set(report["kept"]) & set(report["changed"])
    tibetan = report["languages"]["bo"]
    assert tibetan["lines"] == len(TEXTS["bo"]) and tibetan["resegmented"] == 1
    assert tibetan["before"]["unknown"] > 0.2 and tibetan["after"]["unknown"] == 0
    tokens = sum(len(ids(new, text)) for text in TEXTS["bo"])
    assert tibetan["after"]["tokens"] == tokens
    assert tibetan["after"]["fertility"] == pytest.approx(tokens / tibetan["words"])
    added = len(new) - len(old)
    assert "Learned150tokensfromthecorpus.Added" in printed(result)
    assert f"Added{added}tokens.Theother{150 - added}wereknownorareinanotherscript." in printed(result)
    assert f"Tokens:{len(old):,}→{len(new):,}." in printed(result)
    assert "languagelinestokens/linetokens/word<unk>resegmented" in printed(result)
    assert f"Changedtensors:2({','.join(report['changed'])}).Unchangedtensors:72." in printed(result)
    assert f"{tibetan['before']['unknown']:.2%}→0.00%" in printed(result)
    assert f"Writtento{output}." in printed(result)


def test_all_options_reach_the_library(reader, texts, tmp_path):
    extend = ["--corpus", texts["bo"], "--size", 100, "--init", "random", "--seed", 3]
    report = report_of(run_vocab("extend", reader, tmp_path / "extended", *extend), tmp_path / "extended")
    assert report["options"] == {"size": 100, "init": "random", "seed": 3}
    for option, value in (("min_count", 2), ("size", 200), ("coverage", 0.9)):
        output, flag = tmp_path / option, f"--{option.replace('_', '-')}"
        trim = ["--corpus", texts["en"], flag, value, "--pad-to-multiple-of", 64]
        report = report_of(run_vocab("trim", reader, output, *trim), output)
        expected = {"min_count": None, "size": None, "coverage": None, "pad_to_multiple_of": 64}
        assert report["options"] == expected | {option: value}
        assert report["rows"]["after"] % 64 == 0


def test_labels_join_files_of_a_language(reader, texts, output):
    files = [f"one={texts['bo']}", f"one={texts['en']}", f"two={texts['zh']}"]
    report = report_of(run_vocab("trim", reader, output, "--corpus", *files), output)
    assert {name: text["lines"] for name, text in report["languages"].items()} == {
        "one": len(TEXTS["bo"]) + len(TEXTS["en"]),
        "two": len(TEXTS["zh"]),
    }


def test_evaluation_text_is_measured_and_not_learnt_from(reader, texts, tmp_path):
    for name, more in (("without", []), ("with", ["--eval", texts["mvf"], texts["en"]])):
        run = run_vocab("extend", reader, tmp_path / name, "--corpus", texts["bo"], "--size", 100, *more)
        report = report_of(run, tmp_path / name)
    assert [*report["languages"]] == ["mvf", "en"]
    assert report["languages"]["mvf"]["after"]["unknown"] > 0.1
    assert load_tokenizer(tmp_path / "with").get_vocab() == load_tokenizer(tmp_path / "without").get_vocab()


def test_a_plot_is_a_png_file(reader, texts, output, tmp_path):
    plot = tmp_path / "plots" / "vocabulary.png"
    files = [texts[language] for language in TEXTS]
    result = run_vocab("extend", reader, output, "--corpus", *files, "--size", 300, "--plot", plot)
    assert result.exit_code == 0, result.stderr
    assert f"Plotwrittento{plot}." in printed(result)
    assert plot.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    picture = matplotlib.image.imread(plot)
    assert picture.shape[1] == 1350 and picture[..., :3].std() > 0.05
    assert contents(plot.parent).keys() == {"vocabulary.png"}


def test_a_plot_may_lie_in_the_output(reader, texts, output):
    run_vocab("trim", reader, output, "--corpus", texts["en"], "--plot", output / "vocabulary.png")
    assert (output / "vocabulary.png").is_file() and (output / "config.json").is_file()


def test_an_interruption_after_writing_names_the_folder(reader, texts, output, tmp_path, monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(VocabularyReport, "plot", interrupt)
    arguments = ["--corpus", texts["bo"], "--size", 150, "--plot", tmp_path / "change.png"]
    result = run_vocab("extend", reader, output, *arguments)
    assert result.exit_code == 130
    assert result.stderr.splitlines()[-1] == f"error: Interrupted. {output} is written."
    assert (output / "config.json").is_file()


@pytest.mark.parametrize("action", ["extend", "trim"])
def test_a_dry_run_reports_and_writes_nothing(reader, texts, output, action):
    result = run_vocab(action, reader, output, "--corpus", texts["bo"], "--size", 250, "--dry-run")
    assert result.exit_code == 0, result.stderr
    assert f"{output} was not written (--dry-run)." in result.stdout and "Tokens:" in result.stdout
    assert not output.parent.exists()


def test_overwrite_replaces_a_model(reader, texts, output):
    for text in ("en", "zh"):
        result = run_vocab("trim", reader, output, "--corpus", texts[text], "--overwrite")
        report = report_of(result, output)
    assert [*report["languages"]] == ["zh"]
    assert list(output.parent.iterdir()) == [output]


def test_a_trimmed_language_with_many_unknown_tokens_gets_a_warning(reader, texts, output):
    result = run_vocab("trim", reader, output, "--corpus", texts["mvf"], texts["en"])
    unknown = report_of(result, output)["languages"]["mvf"]["after"]["unknown"]
    assert f"{unknown:.0%}ofthemvftokensare<unk>.Themodelcannotgeneratethislanguage." in printed(result)
    assert "entokensare<unk>" not in printed(result)
