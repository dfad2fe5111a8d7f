"""The page to try a model: models, files, HTML and messages, without a browser."""

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from fastapi.testclient import TestClient
from gradio.utils import get_upload_folder
from support.commands import assert_refused
from support.encoders import SENTENCES
from typer.testing import CliRunner

from modeling_xlm_swcm.app import xlm_swcm_page as page
from modeling_xlm_swcm.app import xlm_swcm_tables as tables
from modeling_xlm_swcm.app.command import load_page_model, make_app
from modeling_xlm_swcm.app.xlm_swcm_files import generate_file, generate_passages
from modeling_xlm_swcm.app.xlm_swcm_models import Attention, Options, PageModel, Token
from modeling_xlm_swcm.cli import main
from modeling_xlm_swcm.conversion import convert
from modeling_xlm_swcm.export import export
from modeling_xlm_swcm.sentences_xlm_swcm import Output


OPTIONS = Options(src_lang="zh", tgt_lang="bo", num_beams=3, num_candidates=2)


@pytest.fixture(scope="module")
def prefix_folder(encoder_folder, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("prefix") / "model"
    convert(encoder_folder, folder, languages=["zh", "kk-Arab", "bo"])
    return folder


@pytest.fixture(scope="module", params=["prefix", "paper"])
def model(request, prefix_folder, learner_folder) -> PageModel:
    loaded = load_page_model(str(prefix_folder if request.param == "prefix" else learner_folder))
    loaded.model.generation_config.max_length = 12
    return loaded


@pytest.fixture(scope="module")
def exported(prefix_folder, tmp_path_factory) -> PageModel:
    folder = tmp_path_factory.mktemp("exported") / "model"
    export(prefix_folder, folder)
    loaded = load_page_model(str(folder))
    loaded.model.config["generation"]["max_new_tokens"] = 12
    return loaded


def test_candidates_are_those_of_the_pipeline_with_warnings(model):
    texts, warnings = [SENTENCES[0], "***"], []
    answers = model.generate(texts, OPTIONS, lambda *warning: warnings.append(warning))
    languages = {"src_lang": "zh", "tgt_lang": "bo"}
    expected = model.pipes["translation"](texts, num_beams=3, num_return_sequences=2, return_scores=True, **languages)
    assert [[output.text for output in answer] for answer in answers] == [
        [answer["translation_text"] for answer in answers] for answers in expected
    ]
    assert len(answers[0]) == 2 and answers[0][0].score < 0
    message, incomplete = warnings[-1]
    assert message.startswith("Number of incomplete outputs") and set(incomplete) <= {0, 1}


def test_a_warning_names_its_passage(model, exported, tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    text = "One boat. " + "two herons, one boat, " * 8
    (tmp_path / "in.txt").write_text(f"***\n\n{text}\n***\n")
    options = Options(src_lang="zh", tgt_lang="bo", num_beams=1)
    for one in (model, exported):
        warnings = []
        list(generate_passages(one, [text], options, warnings.append))
        list(generate_file(one, tmp_path / "in.txt", False, options, warnings.append))
        of_text, of_file = (warning for warning in warnings if "It is cut into" in warning)
        assert [warning for warning in warnings if "incomplete" in warning][-1].startswith("Passage 3: Number of inc")
        assert re.match("A sentence has .* tokens, but the maximum is .* It is cut into", of_text)
        assert of_file == f"Passage 3: {of_text}"


def test_a_summary_and_an_answer_read_the_whole_text(model):
    for task in ("summarization", "question-answering"):
        options = Options(task=task, question="wind?", src_lang="zh", tgt_lang="bo", num_beams=1)
        assert model.split("no wind. No boat.", options) == ["no wind. No boat."]
        (candidates,) = model.generate(["no wind. No boat."], options, print)
        assert len(candidates) == 1


def test_attention_is_the_part_over_the_source(model):
    attention = model.attend("no wind", OPTIONS)
    assert attention.source[0] == "<s>" and attention.source[-1] == "</s>" and attention.source[1] == "<zh>"
    assert "<bo>" not in attention.target
    assert [len(row) for row in attention.weights] == [len(attention.source)] * len(attention.target)
    sums = [sum(row) for row in attention.weights]
    assert attention.is_joint == model.model.config.has_prefix_decoder
    assert all(0 < total < 0.999 for total in sums) if attention.is_joint else sums == pytest.approx([1] * len(sums))


def test_an_exported_model_gives_the_candidates_of_the_runtime(exported):
    warnings = []
    (candidates,) = exported.generate(["no wind"], OPTIONS, lambda message, texts: warnings.append(message))
    expected = exported.model(
        ["no wind"], "zh", "bo", num_beams=3, num_return_sequences=2, return_scores=True, warn=lambda text: None
    )
    assert [(text, score) for text, score, _ in candidates] == expected[0]
    assert not exported.has_attention and exported.tasks == ["translation"]
    assert exported.split("No wind. No boat.", OPTIONS) == ["No wind.", "No boat."]
    assert [token.is_unknown for token in exported.tokenize("no ☃")][-1]
    assert all("incomplete" in warning for warning in warnings)


def test_an_exported_model_without_languages_splits_texts(exported, monkeypatch):
    calls = []
    model = SimpleNamespace(generate_texts=lambda *texts, **options: calls.append(options) or [])
    model.list_warnings = list
    monkeypatch.setattr(exported, "languages", [])
    monkeypatch.setattr(exported, "model", model)
    exported.generate(["No wind. No boat."], Options(), print)
    assert [call["split"] for call in calls] == [True]


@pytest.mark.parametrize(
    ("changes", "text", "message"),
    [
        ({"tgt_lang": "xx"}, "no wind", 'The target language "xx" is unknown. Choose one of: zh, '),
        ({"src_lang": None}, "no wind", 'The source language "" is unknown.'),
        ({"num_beams": 50}, "no wind", r"Beams must be a whole number from 1 to 16 \(got 50\)"),
        ({"num_beams": 2.5}, "no wind", r"Beams must be a whole number from 1 to 16 \(got 2.5\)"),
        ({"num_beams": None}, "no wind", "The field Beams is empty. Write a whole number from 1 to 16."),
        (
            {"num_candidates": None},
            "no wind",
            "The field Candidates is empty. Write a whole number from 1 to 3, the n",
        ),
        (
            {"num_candidates": 4},
            "no wind",
            r"Candidates must be a whole number from 1 to 3, the number of beams \(got 4\)",
        ),
        ({}, " \n", "The text is empty. Write or paste a text."),
        ({}, None, "The text is empty. Write or paste a text."),
        ({}, "no \ud800", "The text is not valid Unicode: it has half of a character. Write it again."),
        ({"task": "question-answering", "question": "\ud800"}, "no wind", "The text is not valid Unicode"),
        ({"task": "poetry"}, "no wind", 'The task "poetry" is unknown. Choose one of: translation, '),
        ({"num_beams": True}, "no wind", "Beams must be a whole number"),
        ({"task": "question-answering"}, "no wind", "The question is empty. Write a question."),
        ({"task": "summarization"}, "no wind " * 400, r"The text has \d+ tokens, but the model reads at most \d+. S"),
    ],
)
def test_wrong_input_is_a_sentence(model, changes, text, message):
    with pytest.raises(ValueError, match=message):
        model.check([text], Options(**(vars(OPTIONS) | changes)))


def test_a_question_and_a_text_at_the_limit_are_accepted(prefix_folder, monkeypatch):
    model = load_page_model(str(prefix_folder))
    options = Options(task="question-answering", src_lang="zh", tgt_lang="zh", question="no wind")
    ids = model.tokenizer("no wind", "The river", src_lang="zh")["input_ids"]
    monkeypatch.setattr(model, "limit", len(ids))
    model.check(["The river"], options)
    monkeypatch.setattr(model, "limit", len(ids) - 1)
    with pytest.raises(ValueError, match=f"The text has {len(ids)} tokens"):
        model.check(["The river"], options)


class Echo(PageModel):
    def __init__(self):
        super().__init__(["zh", "ug"], ["translation", "summarization"], 100)

    def generate(self, texts, options, warn):
        return [[Output(text.upper(), -len(text), 1)] * options.num_candidates for text in texts]

    def tokenize(self, text):
        return [Token(word, False) for word in text.split()]


OPTIONS_OF_ECHO = Options(task="translation", src_lang="zh", tgt_lang="ug")


def get_generate(model: PageModel) -> Callable:
    """Return the function of the button Generate."""
    functions = page.make_page(model, "x").fns.values()
    return next(function.fn for function in functions if function.name == "generate" and len(function.outputs) == 3)


def test_a_text_shows_its_progress():
    generate = get_generate(Echo())
    text = "a\n\n bcd\n" * 10
    first, second, last = generate(text, "translation", "zh", "ug", None, 4, 2)
    assert first == ("", "", tables.show_messages([], "0 of 31 passages are finished."))
    assert second == (
        "\n".join(text.upper().split("\n")[:16]),
        "",
        tables.show_messages([], "16 of 31 passages are finished."),
    )
    assert last[0] == text.upper() and ">-2.500<" in last[1] and "finished" not in last[2]
    *_, last = generate(text, "summarization", "zh", "ug", None, 4, 1)
    assert last[0] == text.upper()


def test_a_stopped_text_says_where_it_stopped():
    warnings = ["Passage 3: x"]
    running, stopped, finished = (
        tables.show_messages(warnings, sentence)
        for sentence in (page.show_progress(16, 47), "Stopped after 16 of 47 passages.", page.show_progress(47, 47))
    )
    assert page.stop_progress(running) == stopped
    assert page.stop_progress(finished) == finished and page.stop_progress("") == ""


def test_a_new_target_language_clears_the_results():
    attributes = page.gr.InputHTMLAttributes(lang="ug")
    assert page.clear_results("ug") == (page.gr.update(value="", rtl=True, html_attributes=attributes), "", "")


def test_a_swap_makes_the_translation_the_source():
    cleared = page.clear_results("zh")
    assert page.swap("translation", "zh", "ug", "a", "b") == ("ug", "zh", "b", *cleared)
    # Without an output, the text stays. A summary does not replace its source.
    assert page.swap("translation", "zh", "ug", "a", "") == ("ug", "zh", "a", *cleared)
    assert page.swap("summarization", "zh", "ug", "a", "b") == ("ug", "zh", "a", *cleared)


def test_candidates_have_the_direction_of_their_language():
    candidates = [Output("\u0627 a", -0.5), Output("b", None)]
    for language, direction in (("ug", "rtl"), ("mn", "ltr"), (None, "ltr")):
        shown = tables.show_candidates(candidates, language)
        assert shown.count(f'<td dir="{direction}" lang="{language or ""}">') == 2 and "auto" not in shown
    generate = get_generate(Echo())
    *_, (_, table, _) = generate("a", "translation", "zh", "ug", None, 4, 2)
    assert '<td dir="rtl" lang="ug">' in table


def test_an_error_of_a_text_is_an_alert():
    message = "The field Beams is empty. Write a whole number from 1 to 16."
    assert list(get_generate(Echo())("a", "translation", "zh", "ug", None, None, 1)) == [
        ("", "", tables.show_problem(message))
    ]


def test_a_translation_into_the_language_of_the_source_is_a_warning():
    generate = get_generate(Echo())
    message = "Source and target language are both zh. A translation needs two languages."
    *_, (_, _, shown) = generate("a", "translation", "zh", "zh", None, 4, 1)
    assert message in shown
    *_, (_, _, shown) = generate("a", "summarization", "zh", "zh", None, 4, 1)
    assert message not in shown


def run_file(path: Path, is_whole: bool, task: str) -> tuple[list, str]:
    options = Options(task=task, src_lang="zh", tgt_lang="ug")
    *steps, (done, total, output) = generate_file(Echo(), path, is_whole, options, print)
    assert output.name == f"{path.stem}.ug.txt" and done == total
    return steps, output.read_bytes().decode()


def test_without_a_folder_for_files_an_output_is_in_the_cache_that_gradio_empties(tmp_path, monkeypatch):
    monkeypatch.delenv("GRADIO_TEMP_DIR", raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "in.txt").write_text("a\n")
    *_, (_, _, output) = generate_file(Echo(), tmp_path / "in.txt", False, OPTIONS_OF_ECHO, print)
    assert Path(get_upload_folder()) in output.resolve().parents


def test_a_file_keeps_its_lines(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    path = tmp_path / "in.txt"
    path.write_bytes(b"\xef\xbb\xbf" + b"a\n\n b\r\n" * 10)
    for is_whole in (False, True):
        steps, text = run_file(path, is_whole, "translation")
        assert text == "A\n\n B\r\n" * 10
        assert steps == [(0, 30, None), (16, 30, None)]
    assert run_file(path, True, "summarization")[0] == [(0, 1, None)]


@pytest.mark.parametrize(
    ("content", "message"), [(b"\xff\xfea\0", "is not UTF-8 text. Save it"), (b" \n", "is empty")]
)
def test_a_file_that_is_no_text_is_refused(tmp_path, content, message):
    (tmp_path / "in.txt").write_bytes(content)
    with pytest.raises(ValueError, match=f"in.txt {message}"):
        run_file(tmp_path / "in.txt", False, "translation")


def test_a_file_with_a_long_name_is_written_and_a_deleted_file_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    path = tmp_path / f"{'x' * 250}.txt"
    path.write_text("a\n")
    options = OPTIONS_OF_ECHO
    *_, (_, _, output) = generate_file(Echo(), path, False, options, print)
    assert output.name == f"{'x' * 60}.ug.txt" and output.read_text() == "A\n"
    path.unlink()
    with pytest.raises(ValueError, match="cannot be read any more. Choose the file again."):
        list(generate_file(Echo(), path, False, options, print))


def test_directions_and_names_of_languages():
    right = ["ug", "kk-Arab", "kk_Arab", "ar", "he", "ur-PK", "xx-Hebr"]
    assert all(map(tables.is_right_to_left, right))
    assert not any(map(tables.is_right_to_left, ["zh", "bo", "kk", "mn-Mong", "ug-Latn", "xx", "", None]))
    assert tables.name_language("ug") == "ئۇيغۇرچە (ug)" and tables.name_language("xx") == "xx"


def test_progress_is_no_warning():
    assert "warning" not in tables.show_messages([], "47 of 47 passages are finished.")


def test_a_single_candidate_is_not_shown_twice():
    shown = tables.show_candidates([Output("no wind", -0.5)])
    assert "no wind" not in shown and "-0.500" in shown


def find_contrast(*colours: str) -> float:
    """Return the contrast of two colours, each as `#rrggbb`, as WCAG 2 defines it."""

    def find_luminance(colour: str) -> float:
        parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, light = sorted(map(find_luminance, colours))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize(
    ("name", "ground"),
    [
        ("button_primary_background_fill", "#ffffff"),
        ("button_primary_background_fill_dark", "#ffffff"),
        ("button_primary_background_fill_hover", "#ffffff"),
        ("button_primary_background_fill_hover_dark", "#ffffff"),
        ("color_accent", "#ffffff"),
        ("body_text_color_subdued", "#ffffff"),
        ("body_text_color_subdued_dark", "#27272a"),
    ],
)
def test_colours_have_the_contrast_that_readers_need(name, ground):
    colour = getattr(page.THEME, getattr(page.THEME, name).removeprefix("*"))
    assert find_contrast(colour, ground) >= 4.5


def test_the_text_of_the_heat_map_has_the_contrast_that_readers_need():
    heat = re.findall(r"--heat: (\d+) (\d+) (\d+)", tables.STYLE)
    texts = [getattr(page.THEME, f"neutral_{number}") for number in (800, 100)]
    for colour, text in zip(heat, texts, strict=True):
        assert find_contrast("#" + "".join(f"{int(part):02x}" for part in colour), text) >= 4.5


def test_the_page_says_what_it_needs(model, exported):
    for one, buttons in ((model, "Show tokens or Show attention"), (exported, "Show tokens")):
        blocks = list(page.make_page(one, "x").blocks.values())
        texts = [block.value for block in blocks if isinstance(block, page.gr.Markdown)]
        assert f"Write a source text in the tab Text. Then select {buttons}." in texts
        assert any(text.startswith("The file is UTF-8 text of at most 5 MB.") for text in texts)
        assert any("At most 16." in (block.info or "") for block in blocks if isinstance(block, page.gr.Number))
        # With a precision, Gradio rounds 2.5 silently.
        assert not any(block.precision == 0 for block in blocks if isinstance(block, page.gr.Number))


def test_texts_are_escaped():
    shown = [
        tables.show_candidates([Output("<b>\n&", -0.5), Output("x", None)]),
        tables.show_tokens([[Token("<b>", True), Token("&", False)]]),
        tables.show_attention(Attention(["<b>"], ["&"], [[0.25]], True)),
        tables.show_problem("<b>&"),
        tables.show_messages(["<b>&"]),
    ]
    for html in shown:
        assert "<b>" not in html and "&lt;b&gt;" in html and "&amp;" in html
    assert "-0.500" in shown[0] and "none" in shown[0] and "&lt;unk&gt;: 1" in shown[1]
    assert '<td style="--share: 25">25</td>' in shown[2]


def test_errors_become_alerts_and_clear_old_outputs(capfd):
    def fail(error):
        raise error

    call = page.explain_errors(fail, 3)
    assert call(ValueError("Too long. Shorten it."))[2] == tables.show_problem("Too long. Shorten it.")
    *others, shown = call(KeyError("x"))
    assert others == ["", ""] and "The model failed (KeyError)." in shown
    assert "Traceback" in capfd.readouterr().err


def test_the_page_asks_no_other_host(prefix_folder):
    client = TestClient(make_app(str(prefix_folder)))
    answer = client.get("/")
    assert answer.status_code == 200 and "default-src 'self'" in answer.headers["content-security-policy"]
    loaded = re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="(https?:[^"]+)"', answer.text)
    assert not [url for url in loaded if not url.startswith("http://testserver")]
    config = client.get("/config").json()
    assert not config["analytics_enabled"] and config["footer_links"] == []


def test_a_missing_extra_is_named(monkeypatch, converted):
    monkeypatch.setattr("modeling_xlm_swcm.command.find_spec", lambda name: None)
    assert_refused(CliRunner().invoke(main, ["try", str(converted)]), "needs gradio", "extra app")


def test_the_name_of_a_model_is_no_markdown(exported):
    blocks = page.make_page(exported, "zh_bo[1](*བོད*)").blocks.values()
    heading = next(block.value for block in blocks if isinstance(block, page.gr.Markdown))
    assert heading == r"# zh\_bo\[1\]\(\*བོད\*\)"
