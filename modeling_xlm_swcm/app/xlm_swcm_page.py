"""The page to try a model, made with Gradio. This file travels with a Space."""

import os
import re
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


# Gradio reads these variables when it is imported. It sends no statistics and keeps no texts.
os.environ.update(GRADIO_ANALYTICS_ENABLED="False", GRADIO_RUN_HISTORY="False")

import gradio as gr  # noqa: E402


# A Space has these modules beside this file.
if __package__ == "modeling_xlm_swcm.app":
    from . import xlm_swcm_tables as tables
    from .xlm_swcm_files import generate_file, generate_passages, join_passages
    from .xlm_swcm_models import MAX_BEAMS, Options, PageModel, check_count
else:
    import xlm_swcm_tables as tables  # type: ignore[no-redef]
    from xlm_swcm_files import generate_file, generate_passages, join_passages  # type: ignore[no-redef]
    from xlm_swcm_models import MAX_BEAMS, Options, PageModel, check_count  # type: ignore[no-redef]


FONTS = ("system-ui", "sans-serif")
THEME = gr.themes.Default(primary_hue="teal", font=FONTS, font_mono=("monospace",))
# The default colours are hard to read: their contrast is below 4.5.
THEME.set(
    body_text_color_subdued="*neutral_600",
    body_text_color_subdued_dark="*neutral_300",
    color_accent="*primary_700",
    button_primary_background_fill="*primary_700",
    button_primary_background_fill_dark="*primary_700",
    button_primary_background_fill_hover="*primary_800",
    button_primary_background_fill_hover_dark="*primary_800",
)
MAX_MEGABYTES = 5
# Options of Gradio's `launch`. The fonts and scripts of the page come from the same server.
LAUNCH: dict[str, Any] = dict(
    theme=THEME,
    css=tables.STYLE,
    footer_links=[],
    max_file_size=f"{MAX_MEGABYTES}mb",
    ssr_mode=False,
)
# One call runs at a time. No call is listed as a public endpoint.
CALL: dict[str, Any] = dict(concurrency_limit=1, concurrency_id="model", api_visibility="private")
UPDATE: dict[str, Any] = dict(queue=False, api_visibility="private", show_progress="hidden")
UNIT = {"One passage per line": False, "The whole file is one text": True}


@dataclass
class Choices:
    """The components that every tab reads."""

    task: gr.Radio
    source: gr.Dropdown
    target: gr.Dropdown
    swap: gr.Button
    question: gr.Textbox
    beams: gr.Number
    candidates: gr.Number

    @property
    def inputs(self) -> list:
        """The components of [`make_options`], in its order."""
        return [self.task, self.source, self.target, self.question, self.beams, self.candidates]


def make_options(task, src_lang, tgt_lang, question, num_beams, num_candidates) -> Options:
    """Return the options of a call from the values on the page."""
    languages = {"src_lang": src_lang, "tgt_lang": tgt_lang}
    counts = {"num_beams": num_beams, "num_candidates": num_candidates}
    return Options(task=task, question=question or "", **languages, **counts)


def make_page(model: PageModel, name: str) -> gr.Blocks:
    """
    Make the page.

    Args:
        model (`PageModel`): Model to show.
        name (`str`): Name of the model, for the title.

    Returns:
        `gr.Blocks`: the page. Launch it with the options `LAUNCH`.
    """
    with gr.Blocks(title=f"Try {name}", analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        # A backslash before ASCII punctuation makes it plain text in Markdown.
        gr.Markdown("# " + re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", name))
        choices = make_choices(model)
        with gr.Tab("Text"):
            text, results, run = add_text(model, choices)
        with gr.Tab("File"):
            add_file(model, choices)
        with gr.Tab("Tokens and attention"):
            add_inspection(model, choices, text)
        connect_choices(choices, text, results, run)
    return page


def in_language(code: str | None) -> dict[str, Any]:
    """Return the properties of a text box in a language: its direction, and its language for screen readers."""
    return dict(rtl=tables.is_right_to_left(code), html_attributes=gr.InputHTMLAttributes(lang=code))


def make_choices(model: PageModel) -> Choices:
    """Add the components for task, languages and beams. A choice that the model does not have is hidden."""
    languages = [(tables.name_language(code), code) for code in model.languages]
    first, last = (model.languages[0], model.languages[-1]) if languages else (None, None)
    task = gr.Radio(model.tasks, value=model.tasks[0], label="Task", visible=len(model.tasks) > 1)
    with gr.Row(visible=bool(languages)):
        source = gr.Dropdown(languages, value=first, label="Source language", scale=4, elem_classes="language")
        swap = gr.Button("Swap languages", size="sm", scale=1, min_width=140, elem_classes="middle")
        target = gr.Dropdown(languages, value=last, label="Target language", scale=4, elem_classes="language")
    is_answering = model.tasks[0] == "question-answering"
    question = gr.Textbox(label="Question", visible=is_answering, **in_language(first))
    with gr.Row(elem_classes="counts"):
        beams = gr.Number(4, label="Beams", info=f"At most {MAX_BEAMS}. 1 is greedy decoding.")
        candidates = gr.Number(1, label="Candidates", info="At most the number of beams.")
    return Choices(task, source, target, swap, question, beams, candidates)


def connect_choices(choices: Choices, text: gr.Textbox, results: list, run: Any):
    """Connect the languages to the text boxes, and show the question for its task. A new target ends the `run`."""
    choices.source.change(
        lambda code: [gr.update(**in_language(code))] * 2,
        choices.source,
        [text, choices.question],
        **UPDATE,
    )
    choices.target.change(clear_results, choices.target, results, **UPDATE)
    # A call in progress would write in the old language.
    gr.on([choices.target.input, choices.swap.click], None, cancels=[run], **UPDATE)
    inputs = [choices.task, choices.source, choices.target, text, results[0]]
    choices.swap.click(swap, inputs, [choices.source, choices.target, text, *results], **UPDATE)
    choices.task.change(
        lambda task: gr.update(visible=task == "question-answering"), choices.task, choices.question, **UPDATE
    )


def clear_results(target: str) -> tuple:
    """Clear the output, the table and the messages, which are in the old target language."""
    return gr.update(value="", **in_language(target)), "", ""


def swap(task: str, source: str, target: str, text: str, output: str) -> tuple:
    """Swap the languages. The output of a translation becomes the source text."""
    new = output if task == "translation" and output else text
    return target, source, new, *clear_results(source)


def add_text(model: PageModel, choices: Choices) -> tuple[gr.Textbox, list, Any]:
    """Add the tab for a text. Return its source, its results (output, table and messages) and its call."""
    with gr.Row():
        source, target = (in_language(choice.value) for choice in (choices.source, choices.target))
        # On a narrow screen, the boxes do not fit beside each other.
        size: dict[str, Any] = dict(lines=6, max_lines=20, min_width=320)
        text = gr.Textbox(label="Source text", **size, **source)
        output = gr.Textbox(label="Output", interactive=False, **size, **target)
    with gr.Row():
        button, stop = gr.Button("Generate", variant="primary"), gr.Button("Stop")
    messages, table = gr.HTML(elem_classes="messages"), gr.HTML()

    def generate(text: str, *values) -> Iterator[tuple]:
        warnings: list[str] = []
        try:
            options = make_options(*values)
            model.check([text], options)
            # A line break ends a sentence.
            passages = text.split("\n") if model.is_split(options) else [text]
            for finished in generate_passages(model, passages, options, warnings.append):
                candidates, is_end = join_passages(finished), len(finished) == len(passages)
                progress = "" if is_end else show_progress(len(finished), len(passages))
                table = tables.show_candidates(candidates, options.tgt_lang) if is_end else ""
                yield candidates[0].text if candidates else "", table, tables.show_messages(warnings, progress)
        except Exception as error:
            yield "", "", tables.show_problem(explain(error))

    inputs, outputs = [text, *choices.inputs], [output, table, messages]
    run = gr.on([button.click, text.submit], generate, inputs, outputs, show_progress_on=output, **CALL)
    stop.click(stop_progress, messages, messages, cancels=[run], **UPDATE)
    return text, outputs, run


def show_progress(done: int, total: int) -> str:
    """Return the progress of a call as a sentence."""
    return f"{done} of {total} passages are finished."


def stop_progress(messages: str) -> str:
    """Return the messages of a stopped call: they say that it stopped, unless all its passages are finished."""
    return re.sub(r">(\d+) of (?!\1 )(\d+) passages are finished\.<", r">Stopped after \1 of \2 passages.<", messages)


def add_file(model: PageModel, choices: Choices):
    """Add the tab for a file."""
    size = f"The file is UTF-8 text of at most {MAX_MEGABYTES} MB."
    gr.Markdown(f"{size} Line breaks and empty lines stay. The output has the best candidates.")
    source = gr.File(label="Text file", file_count="single", file_types=["text", ".txt", ".md"])
    unit = gr.Radio(list(UNIT), value=next(iter(UNIT)), label="Content of the file")
    with gr.Row():
        button, stop = gr.Button("Generate file", variant="primary"), gr.Button("Stop")
    messages, output = gr.HTML(elem_classes="messages"), gr.File(label="Output file", interactive=False)

    def generate(path: str | None, unit: str, *values) -> Iterator[tuple]:
        warnings: list[str] = []
        try:
            if path is None:
                raise ValueError("No file is chosen. Choose a text file.")
            steps = generate_file(model, Path(path), UNIT[unit], make_options(*values), warnings.append)
            for done, total, written in steps:
                yield tables.show_messages(warnings, show_progress(done, total)), written and str(written)
        except Exception as error:
            yield tables.show_problem(explain(error)), None

    run = button.click(generate, [source, unit, *choices.inputs], [messages, output], show_progress_on=output, **CALL)
    stop.click(stop_progress, messages, messages, cancels=[run], **UPDATE)


def add_inspection(model: PageModel, choices: Choices, text: gr.Textbox):
    """Add the tab for the tokens of the source text and the attention to them."""
    buttons = "Show tokens or Show attention" if model.has_attention else "Show tokens"
    gr.Markdown(f"Write a source text in the tab Text. Then select {buttons}.")
    with gr.Row():
        tokens = gr.Button("Show tokens", elem_classes="middle")
        number = gr.Number(1, label="Sentence", info="For the attention.", visible=model.has_attention)
        attention = gr.Button("Show attention", visible=model.has_attention, elem_classes="middle")
    if not model.has_attention:
        gr.Markdown("This is an exported model. It returns no attention weights. Try the model before the export.")
    messages, table = gr.HTML(elem_classes="messages"), gr.HTML()

    def split(text: str, *values) -> tuple[list[str], Options]:
        options = make_options(*values)
        model.check([text], options)
        return model.split(text, options), options

    def show_tokens(text: str, number: int, *values) -> tuple:
        sentences, _ = split(text, *values)
        return tables.show_tokens([model.tokenize(sentence) for sentence in sentences]), ""

    def show_attention(text: str, number: int, *values) -> tuple:
        sentences, options = split(text, *values)
        if not sentences:
            raise ValueError("The text has no letters or digits. Write a sentence.")
        check_count("Sentence", number, len(sentences), ", the number of sentences")
        warnings: list[str] = []
        model.check_pair(options, warnings.append)
        return tables.show_attention(model.attend(sentences[number - 1], options)), tables.show_messages(warnings)

    inputs = [text, number, *choices.inputs]
    tokens.click(explain_errors(show_tokens, 2), inputs, [table, messages], show_progress_on=table, **CALL)
    attention.click(explain_errors(show_attention, 2), inputs, [table, messages], show_progress_on=table, **CALL)


def explain_errors(function: Callable, outputs: int) -> Callable:
    """Return a function that shows an error in the last of its outputs, and clears the others."""

    def call(*values):
        try:
            return function(*values)
        except Exception as error:
            return [""] * (outputs - 1) + [tables.show_problem(explain(error))]

    return call


def explain(error: Exception) -> str:
    """Return an error as a sentence. The traceback of an unexpected error goes to the terminal."""
    if isinstance(error, ValueError | RuntimeError) and str(error):
        return str(error)
    traceback.print_exc()
    return f"The model failed ({type(error).__name__}). The terminal has the details."
