"""Check the pattern that every model card has."""

import re

from huggingface_hub import ModelCard


SECTIONS = ["Use", "Intended use and limits", "How it was made", "Evaluation", "Citation"]


def python_blocks(card: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)


def check_pattern(card: ModelCard):
    assert re.findall(r"^## (.+)$", card.text, flags=re.MULTILINE) == SECTIONS
    assert card.text.count("\n# ") == 1
    assert not re.search(r"[{}]{2}|\{%|None|\[\]|\n\n\n", str(card)), str(card)
    data = card.data
    assert data.library_name == "transformers"
    assert data.pipeline_tag in ("translation", "summarization", "question-answering")
    assert data.license and data.language and "xlm-swcm" in data.tags
    use, pipe = python_blocks(card.text)
    assert len(use.strip().splitlines()) <= 10 and len(pipe.strip().splitlines()) <= 4
    assert f'"{card.text.split("# ")[1].splitlines()[0]}"' in use.replace("someone/", "")
