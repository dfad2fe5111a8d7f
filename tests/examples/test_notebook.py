"""examples/quickstart.ipynb runs from top to bottom, and shows what its cells print."""

import json
import re
from pathlib import Path

import pytest
from support.encoders import make_encoder, save_encoder, xlm_roberta_tokenizer
from support.hub_client import SENT
from transformers import XLMRobertaForMaskedLM


EXAMPLES = Path(__file__).parents[2] / "examples"
CELLS = json.loads((EXAMPLES / "quickstart.ipynb").read_text(encoding="utf-8"))["cells"]
CODE = [cell for cell in CELLS if cell["cell_type"] == "code"]
SHOWN = "".join("".join(output["text"]) for cell in CODE for output in cell["outputs"])
HELD_OUT = r"(\d+) of 100 held-out outputs are exactly right\."
EXPORTED = r"The exported model writes the same text for (\d+) of 100 dates\."


def script(**settings) -> str:
    """Return the code of all cells, with other values in the settings, and without commands of Jupyter."""
    code = "\n\n".join("".join(cell["source"]) for cell in CODE)
    code = re.sub(r"^( *)[!%].*", r"\1pass", code, flags=re.MULTILINE)
    for name, value in settings.items():
        code, count = re.subn(rf"^{name} = .*", lambda _, line=f"{name} = {value}": line, code, flags=re.MULTILINE)
        assert count == 1, name
    return code


def sentences(printed: str) -> list[str]:
    """Return the printed sentences, with # in place of each number."""
    lines = (re.sub(r"\d[\d.,]*\d|\d", "#", line) for line in printed.splitlines())
    return [line for line in lines if re.fullmatch(r"[A-Z<].*[.:]", line) and "→" not in line]


def test_every_step_runs_and_the_model_arrives_on_the_hub(hub, client, tmp_path):
    tokenizer = xlm_roberta_tokenizer()
    encoder = make_encoder(XLMRobertaForMaskedLM, tokenizer, max_position_embeddings=80, num_hidden_layers=1)
    save_encoder(tmp_path / "encoder", encoder, tokenizer)
    settings = {"ENCODER": repr(str(tmp_path / "encoder")), "OUTPUT": f"Path({str(tmp_path / 'out')!r})"}
    code = script(**settings, EPOCHS="0.1", NEW_TOKENS="150", HUB_REPO="'someone/en-bo'")
    outcome = client.run(code)
    assert outcome["error"].startswith("FileNotFoundError") and "set REPOSITORY" in outcome["error"]
    with client.working_in(EXAMPLES):
        outcome = client.run(code)
    assert outcome["error"] is None, outcome["error"]
    assert hub.repositories["someone/en-bo"].private
    assert hub.repositories["someone/en-bo"].files.keys() >= SENT
    assert re.search(HELD_OUT, outcome["printed"]) and re.search(EXPORTED, outcome["printed"])
    *shown, not_pushed = sentences(SHOWN)
    assert sentences(outcome["printed"]) == shown and not_pushed.startswith("Nothing is pushed.")


def test_the_outputs_are_those_of_one_run_and_hold_no_progress_bars():
    assert len(CELLS) < 15
    assert [cell["execution_count"] for cell in CODE] == list(range(1, len(CODE) + 1))
    assert {output.get("name") for cell in CODE for output in cell["outputs"]} == {"stdout"}
    assert int(re.search(HELD_OUT, SHOWN)[1]) >= 80
    assert re.search(r"<unk> among the tokens of bo: \d+\.\d% before, 0\.0% after\.", SHOWN)
    assert not re.search(r"(^|\s)/\w", SHOWN)


def test_every_link_leads_to_a_file():
    text = "".join("".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "markdown")
    links = re.findall(r"\]\((\S+)\)", text)
    assert links and all((EXAMPLES / link).is_file() for link in links)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_real_encoder_learns_the_dates(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(EXAMPLES)
    exec(script(OUTPUT=f"Path({str(tmp_path)!r})"), {})
    printed = capsys.readouterr().out
    assert int(re.search(HELD_OUT, printed)[1]) >= 80
    assert int(re.search(EXPORTED, printed)[1]) >= 95
