"""The README and the pages under docs/ are true: links lead somewhere, commands and options exist, guides run."""

import ast
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
import typer
import yaml
from fastapi.testclient import TestClient
from support.encoders import make_encoder, save_encoder, wake, xlm_roberta_tokenizer
from support.evaluation import SOURCES, save_peer, write_files, write_table
from support.hub_client import Client
from transformers import HfArgumentParser, Seq2SeqTrainingArguments, XLMRobertaForMaskedLM

from modeling_xlm_swcm import XLMSWCMConfig
from modeling_xlm_swcm.app.command import make_app
from modeling_xlm_swcm.cli import main
from modeling_xlm_swcm.conversion import convert
from modeling_xlm_swcm.conversion.plan import count_parameters
from modeling_xlm_swcm.export import export
from modeling_xlm_swcm.export.xlm_swcm_server import create_app


ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
CLI = "from modeling_xlm_swcm.cli import main; main()"
PAGES = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in sorted(DOCS.rglob("*.md"))}
PAGES["README.md"] = (ROOT / "README.md").read_text(encoding="utf-8")
GUIDES = [name for name in PAGES if name.startswith("docs/guides/")]
# the options of these scripts, as their sections in docs/reference/options.md name them
SCRIPTS = ("pretrain", "finetune", "transfer", "generate", "train_encoder")
# options in tables of a guide and in running text belong to these programs
PROGRAM_OF_TOOLS = {"accelerate": {"--multi_gpu", "--num_processes", "--config_file"}, "uvicorn": {"--factory"}}


class Parsed(BaseException):
    """Ends a script as soon as it has read its command line."""


def code_blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGES[page], flags=re.DOTALL)


def without_code(text: str) -> str:
    return re.sub(r"```.*?```", "", text, flags=re.DOTALL)


def count_words(text: str) -> int:
    """Count words as `wc -w` does, without code blocks and without marks such as table borders."""
    return sum(re.search(r"\w", word) is not None for word in without_code(text).split())


def commands(page: str) -> Iterator[list[str]]:
    for block in code_blocks(page, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            if words := shlex.split(line, comments=True):
                yield words


COMMANDS = [(page, words) for page in PAGES for words in commands(page)]


def command_id(value) -> str:
    return value if isinstance(value, str) else " ".join(value)[:60]


def cli_commands() -> dict[str, typer.core.TyperCommand]:
    """Return every command of `xlm-swcm` by its name, such as `vocab extend`."""

    def walk(group, prefix: str) -> Iterator[tuple[str, typer.core.TyperCommand]]:
        for name, command in group.commands.items():
            if hasattr(command, "commands"):
                yield from walk(command, f"{prefix}{name} ")
            else:
                yield f"{prefix}{name}", command

    return dict(walk(typer.main.get_command(main), ""))


def cli_options(name: str) -> set[str]:
    return {option for parameter in cli_commands()[name].params for option in parameter.opts if option[:2] == "--"}


def parse_script(words: list[str], monkeypatch) -> HfArgumentParser:
    """Run a script until it has parsed `words`, and return its parser."""
    script = ROOT / words[0]
    parsers = []
    parse = HfArgumentParser.parse_args_into_dataclasses

    def parse_and_stop(parser, *args, **kwargs):
        parse(parser, *args, **kwargs)
        parsers.append(parser)
        raise Parsed

    monkeypatch.setattr(HfArgumentParser, "parse_args_into_dataclasses", parse_and_stop)
    monkeypatch.setattr(sys, "argv", [str(script), *words[1:]])
    # as Python does for a script
    monkeypatch.syspath_prepend(str(script.parent))
    monkeypatch.chdir(ROOT)
    with pytest.raises(Parsed):
        runpy.run_path(str(script), run_name="__main__")
    return parsers[0]


@pytest.fixture(scope="module")
def script_options() -> dict[str, set[str]]:
    """Return the options of each training script, with the options that it shares with other scripts."""
    required = {
        "pretrain": ["--model_name_or_path", "m", "--data", "d", "--output_dir", "o"],
        "finetune": ["--model_name_or_path", "m", "--task", "summarization", "--source_lang", "zh"],
        "transfer": ["--model_name_or_path", "m", "--task", "summarization", "--source_lang", "zh"],
        "generate": ["--model_name_or_path", "m", "--source_lang", "zh", "--target_lang", "bo"],
        "train_encoder": ["--corpus", "bo.txt", "--output_dir", "o"],
    }
    required["transfer"] += ["--high_resource", "zh"]
    options = {}
    for name in SCRIPTS:
        with pytest.MonkeyPatch.context() as patch:
            parser = parse_script([f"examples/{name}.py", *required[name]], patch)
            options[name] = {option for option in parser._option_string_actions if option.startswith("--")}
    return options


@pytest.mark.parametrize("page", GUIDES)
def test_a_guide_is_short(page):
    assert count_words(PAGES[page]) < 900


@pytest.mark.parametrize("page", PAGES)
def test_every_relative_link_leads_to_a_file_and_a_heading(page):
    def anchors(text: str) -> set[str]:
        headings = re.findall(r"^#+ (.+)$", without_code(text), flags=re.MULTILINE)
        return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}

    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(PAGES[page])):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        linked = (ROOT / page).parent / path if path else ROOT / page
        assert linked.is_file(), f"{page}: {target}"
        # mkdocs knows only what is under docs/
        assert page == "README.md" or linked.resolve().is_relative_to(DOCS), f"{page}: {target}"
        assert not anchor or anchor in anchors(linked.read_text(encoding="utf-8")), f"{page}: {target}"


def test_every_page_is_on_the_map():
    def pages(entry) -> Iterator[str]:
        if isinstance(entry, str):
            yield f"docs/{entry}"
        else:
            for part in entry.values() if isinstance(entry, dict) else entry:
                yield from pages(part)

    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    assert sorted(pages(nav)) == sorted(PAGES.keys() - {"README.md"})


@pytest.mark.parametrize(("page", "words"), [case for case in COMMANDS if case[1][0] == "xlm-swcm"], ids=command_id)
def test_every_command_of_the_cli_parses(page, words):
    known = cli_commands()
    name = " ".join(words[1:3]) if words[1] == "vocab" else words[1]
    assert name in known, page
    # no callback runs
    known[name].make_context(name, words[len(name.split()) + 1 :])


@pytest.mark.parametrize(
    ("page", "words"),
    [case for case in COMMANDS if any(re.fullmatch(r"examples/\S+\.py", w) for w in case[1])],
    ids=command_id,
)
def test_every_command_of_an_example_parses(page, words, monkeypatch, tmp_path):
    start = next(index for index, word in enumerate(words) if re.fullmatch(r"examples/\S+\.py", word))
    assert words[:start] == ["python"] or words[:2] == ["accelerate", "launch"]
    assert {word for word in words[:start] if word[:2] == "--"} <= PROGRAM_OF_TOOLS["accelerate"]
    data = tmp_path / "DATA"
    if "recipes" in words[start]:  # a recipe looks for its data and its encoder first
        data.mkdir()
        for name in ("ntrex.tsv", "titles/zh.csl.jsonl", "titles/zh.cmrc.jsonl", "titles/kk.kazqad.jsonl"):
            (data / name).parent.mkdir(exist_ok=True)
            (data / name).touch()
        words = [str(data) if word == "DATA" else word for word in words]
        words[words.index("--output_dir") + 1] = str(tmp_path / "output")
    parse_script(words[start:], monkeypatch)


@pytest.mark.parametrize(("page", "words"), COMMANDS, ids=command_id)
def test_every_other_program_and_file_is_known(page, words):
    assert words[0] in {
        "xlm-swcm",
        "python",
        "accelerate",
        "pip",
        "make",
        "hf",
        "curl",
        "docker",
        "bash",
        "jupyter",
        "uvicorn",
    }, page
    for word in words:
        if word.startswith(("examples/", "benchmarks/")):
            assert (ROOT / word).is_file(), f"{page}: {word}"


TARGETS = {target for text in PAGES.values() for target in re.findall(r"`make ([a-z-]+)", text)}
TARGETS |= {word for _, words in COMMANDS if words[0] == "make" for word in words[1:] if "=" not in word}


@pytest.mark.parametrize("target", sorted(TARGETS))
def test_every_make_command_is_there(target):
    run = subprocess.run(["make", "--dry-run", "--always-make", target], cwd=ROOT, capture_output=True, text=True)
    # docs is also a folder, so make finds it without a rule
    assert run.returncode == 0 and "Nothing to be done" not in run.stdout, run.stderr


@pytest.mark.parametrize("page", PAGES)
def test_every_script_and_preset_in_the_text_exists(page):
    for path in re.findall(r"`((?:examples|benchmarks)/[\w./-]+\.(?:py|yaml|ipynb))`", PAGES[page]):
        assert (ROOT / path).is_file(), f"{page}: {path}"


@pytest.mark.parametrize("page", ["README.md", "docs/index.md", *GUIDES, *(p for p in PAGES if "/concepts/" in p)])
def test_every_option_in_the_text_exists(page, script_options):
    known = {option for name in cli_commands() for option in cli_options(name)}
    known |= {option for options in script_options.values() for option in options}
    named = set(re.findall(r"(?<![\w-])--[a-z][\w-]+", without_code(PAGES[page])))
    assert not named - known.union(*PROGRAM_OF_TOOLS.values())


def option_tables(title: str) -> Iterator[tuple[str, set[str]]]:
    """Yield heading and options of every section of the reference with `title` in its heading."""
    for section in re.split(r"^#{2,3} ", PAGES["docs/reference/options.md"], flags=re.MULTILINE)[1:]:
        heading, _, text = section.partition("\n")
        cells = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `--")]
        if title in heading:
            yield heading, {option for cell in cells for option in re.findall(r"--[\w-]+", cell)}


@pytest.mark.parametrize("name", cli_commands())
def test_the_reference_lists_the_options_of_every_command(name):
    ((_, listed),) = [table for table in option_tables(f"`xlm-swcm {name} ") if table[1]]
    assert listed == cli_options(name) - {"--help"}


def test_the_reference_lists_the_options_of_the_scripts(script_options):
    upstream = set(HfArgumentParser(Seq2SeqTrainingArguments)._option_string_actions)
    listed = {name: set() for name in SCRIPTS}
    for heading, options in option_tables("examples/"):
        for name in re.findall(r"examples/(\w+)\.py", heading):
            listed[name] |= options
    listed["transfer"] |= listed["finetune"]
    for name, options in script_options.items():
        own = {option for option in options if option not in upstream and not option.startswith("--no_")}
        own = {option for option in own if "-" not in option[2:]}  # argparse knows both spellings
        assert listed[name] - options == set(), name
        # what only overrides a default of Transformers is not listed
        assert own - listed[name] - {"--help"} == set(), name


@pytest.mark.parametrize("page", PAGES)
def test_python_blocks_are_python_and_their_names_exist(page):
    """Check that each name that a block imports from this package exists."""
    for block in code_blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("modeling_xlm_swcm"):
                module = __import__(node.module, fromlist=["_"])
                for alias in node.names:
                    assert hasattr(module, alias.name), f"{page}: {node.module}.{alias.name}"


@pytest.mark.parametrize("page", PAGES)
def test_a_page_names_no_module_that_is_gone(page):
    for module in re.findall(r"`(modeling_xlm_swcm(?:\.\w+)+)`", PAGES[page]):
        parts = module.split(".")
        try:
            __import__(module)
        except ImportError:
            assert hasattr(__import__(".".join(parts[:-1]), fromlist=["_"]), parts[-1]), f"{page}: {module}"


@pytest.mark.parametrize("page", ["README.md", "docs/concepts/decoders.md"])
def test_the_parameter_counts_of_the_decoders_are_those_of_the_code(page):
    paper = XLMSWCMConfig(lm_head_transform=True)
    prefix = XLMSWCMConfig(lm_head_transform=True, decoder_blocks=12 * ["prefix"])
    counts = [count_parameters(prefix)["init"], count_parameters(prefix)["tied"], count_parameters(paper)["init"]]
    assert all(f"{count / 1e6:.0f} million" in PAGES[page] for count in counts)


def test_yaml_blocks_are_corpora():
    from modeling_xlm_swcm.training import mixture

    blocks = [block for page in PAGES for block in code_blocks(page, "yaml")]
    assert blocks
    for block in blocks:
        for entries in yaml.safe_load(block).values():
            for entry in entries:
                mixture.CorpusConfig(**entry)


@pytest.fixture
def client(client, hub, tmp_path) -> Iterator[Client]:
    """Return the process, in a folder with text. `FacebookAI/xlm-roberta-base` is a small encoder there."""
    tokenizer = xlm_roberta_tokenizer()
    encoder = make_encoder(XLMRobertaForMaskedLM, tokenizer, max_position_embeddings=130)
    folder = save_encoder(tmp_path / "encoder", encoder, tokenizer)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    hub.add("FacebookAI/xlm-roberta-base", folder)
    hub.user = "your-name"
    syllables, characters = ["ང", "ཚོས", "དཔེ", "ཆ", "ཀློག", "གི", "ཡོད", "མི"], "我们早上去了河边没有风"
    for name in ("bo.txt", "dev.txt"):
        lines = ["་".join(syllables[i % 5 :: 1 + i % 2]) + "།" for i in range(40)]
        (tmp_path / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    lines = [characters[i % 7 :: 1 + i % 3] for i in range(40)]
    (tmp_path / "zh.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    with client.working_in(tmp_path):
        yield client


def page_code(page: str) -> list[tuple[str, str]]:
    """Return language and text of all blocks that can run, in order."""
    return [
        (language, block.replace("\\\n", " "))
        for language, block in re.findall(r"```(bash|python)\n(.*?)```", PAGES[page], flags=re.DOTALL)
    ]


def run_page(client: Client, page: str) -> list[str]:
    """Run the `xlm-swcm` commands and the Python blocks of a page in order, and return what each printed."""
    printed = []
    for language, block in page_code(page):
        if language == "python":
            outcome = client.run(block)
            assert outcome["error"] is None, f"{page}: {block}\n{outcome['error']}"
            printed.append(outcome["printed"])
            continue
        for line in block.splitlines():
            if line.startswith("xlm-swcm "):
                outcome = client.command(*shlex.split(line)[1:])
                assert outcome.exit_code == 0, f"{page}: {line}\n{outcome.output}"
                printed.append(outcome.output)
    return printed


def test_the_guides_to_conversion_and_publishing_and_the_page_on_tags_run(client, hub, tmp_path):
    run_page(client, "docs/guides/convert.md")
    command = next(words for words in commands("docs/guides/convert.md") if words[:2] == ["xlm-swcm", "convert"])
    assert client.command(*command[1:], "--overwrite").exit_code == 0
    run_page(client, "docs/concepts/language-tags.md")
    printed = run_page(client, "docs/guides/publish.md")
    assert hub.repositories["your-name/my-model"].private
    assert "copied" in printed[2]  # of inspect
    assert len(printed[6].splitlines()) == 2  # a translation a line
    assert {"app.py", "README.md"} <= hub.repositories["spaces/your-name/try-my-model"].files.keys()


def test_the_guide_to_porting_a_script_runs(client):
    (loss,) = run_page(client, "docs/guides/port.md")
    assert float(loss.splitlines()[-1]) > 0


def test_the_guide_to_vocabularies_runs(client, tmp_path, monkeypatch):
    page = "docs/guides/vocabulary.md"
    monkeypatch.setitem(PAGES, page, PAGES[page].replace("8000", "60"))
    run_page(client, page)
    assert (tmp_path / "change.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "xlmr-bo-zh" / "id_map.json").is_file()


def test_the_guides_to_generation_and_export_run(client, tmp_path):
    """The model is untrained."""
    convert(tmp_path / "encoder", tmp_path / "zh-bo", languages=["zh", "bo"])
    wake(tmp_path / "zh-bo")
    printed = run_page(client, "docs/guides/finetune.md")
    assert len(ast.literal_eval(printed[0])) == 2
    assert "75.0" in printed[1]
    (document,) = run_page(client, "docs/guides/translate.md")
    first, empty, *items, score = document.splitlines()
    assert float(score.split()[0]) < 0 < int(score.split()[1])
    assert first.startswith("# ") and empty == "" and [item[:2] for item in items] == ["- ", "- ", ""]
    command = next(words for words in commands("docs/guides/export.md") if words[0] == "xlm-swcm")
    outcome = client.command(*command[1:])
    assert outcome.exit_code == 0, outcome.output
    example = "\n".join(code_blocks("docs/guides/export.md", "python"))
    # as on another machine
    folder = shutil.move(tmp_path / "zh-bo-int8", tmp_path / "elsewhere")
    run = subprocess.run([sys.executable, "-c", example], cwd=folder, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    texts, ((best, second),), (sample,) = map(ast.literal_eval, run.stdout.splitlines())
    assert len(texts) == 2 and best[1] < 0 > second[1] and isinstance(sample, str)
    request = next(words for words in commands("docs/guides/serve.md") if words[0] == "curl")
    body = request[request.index("-d") + 1]
    with TestClient(create_app(folder, threads=1)) as server:
        answer = server.post("/translate", content=body, headers={"content-type": "application/json"}).json()
    assert answer["translations"] == texts and len(answer["scores"]) == 2


def test_the_guide_to_the_page_runs(encoder_folder, tmp_path, monkeypatch):
    """The model is untrained."""
    monkeypatch.chdir(tmp_path)
    convert(encoder_folder, "zh-bo", languages=["zh", "bo"])
    export("zh-bo", "zh-bo-int8", quantize="int8")
    models = [words[2] for words in commands("docs/guides/try.md") if words[:2] == ["xlm-swcm", "try"]]
    assert models == ["zh-bo", "zh-bo-int8"]
    for model in models:
        assert f"Try {model}" in TestClient(make_app(model)).get("/").text
    assert count_words(PAGES["docs/guides/try.md"]) < 500


def test_the_guide_to_evaluation_runs(client, hub, tmp_path):
    """The model is untrained."""
    convert(tmp_path / "encoder", tmp_path / "zh-bo", languages=["zh", "bo"])
    wake(tmp_path / "zh-bo")
    hub.add("facebook/nllb-200-distilled-600M", save_peer(tmp_path / "peer"))
    write_table(tmp_path / "test.tsv", copies=8)
    (tmp_path / "titles").symlink_to("zh-bo")
    write_files(tmp_path, {"titles.test.jsonl": [{"text": "ང་ཚོས་དཔེ་ཆ་ཀློག་གི་ཡོད།", "title": "དཔེ་ཆ"}]})
    printed = run_page(client, "docs/guides/evaluate.md")
    assert "samples.md" in printed[0] and (tmp_path / "report" / "scores.png").is_file()
    assert "nllb-200-distilled-600M" in printed[1] and "p: paired bootstrap" in printed[1]
    assert "rouge1" in printed[2]
    assert "Recorded in zh-bo/metrics.json." in printed[3]
    assert "'truncated_source': 0" in printed[4]
    assert len((tmp_path / "report" / "outputs.jsonl").read_text(encoding="utf-8").splitlines()) == 8 * len(SOURCES)


def test_the_names_of_the_python_reference_can_be_imported_as_it_says():
    found = 0
    for section in PAGES["docs/reference/python.md"].split("\n## "):
        if module := re.search(r"Import th\w+ names? from `([\w.]+)`", section):
            names = re.findall(r"^::: [\w.]+\.(\w+)$", section, flags=re.MULTILINE)
            found += len(names)
            assert [name for name in names if not hasattr(import_module(module[1]), name)] == []
    assert found > 15
