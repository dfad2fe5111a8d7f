"""HTML of the page: names of languages, candidates, tokens, attention, messages. This file travels with a Space."""

import json
import re
import unicodedata
from collections.abc import Iterable
from html import escape
from pathlib import Path


# A Space has this module and the names beside this file.
if __package__ == "modeling_xlm_swcm.app":
    from ..sentences_xlm_swcm import Output
    from .xlm_swcm_models import Attention, Token
else:
    from sentences_xlm_swcm import Output  # type: ignore[no-redef]
    from xlm_swcm_models import Attention, Token  # type: ignore[no-redef]

HERE = Path(__file__).parent
NAMES_FILE = "language_names.json"
NAMES_PATH = next(path for place in (HERE, HERE.parent / "checkpoints") if (path := place / NAMES_FILE).is_file())
NAMES: dict[str, str] = json.loads(NAMES_PATH.read_text(encoding="utf-8"))
RIGHT_TO_LEFT_SCRIPTS = {"adlm", "arab", "hebr", "mand", "nkoo", "rohg", "syrc", "thaa"}

STYLE = """
.xlm { --heat: 20 184 166; }
.dark .xlm { --heat: 15 118 110; }
.xlm table { border-collapse: collapse; width: auto; margin: 0.5rem 0; }
.middle { align-self: center; }
/* An empty element would leave a gap. */
.messages:not(:has(.xlm > *)) { display: none; }
/* A long hint on a narrow screen must not move its field below the other field. */
.counts label { display: flex; flex-direction: column; justify-content: space-between; height: 100%; }
/* Tibetan and Uyghur letters are higher than a line of Latin letters. */
.language .wrap-inner { padding-block: 0; }
.language .wrap-inner input { height: 39px; margin-block: 0; }
.gradio-container textarea { line-height: 1.8; }
/* A dark page needs a lighter accent than a light page. The theme has one accent for both. */
.dark { --color-accent: var(--primary-500); }
.xlm p { margin: 0.25rem 0; color: var(--body-text-color); }
.xlm th, .xlm td { border: 1px solid var(--border-color-primary); padding: 0.3rem 0.6rem; text-align: start; }
.xlm td { line-height: 1.7; }
.xlm th { font-weight: 600; color: var(--body-text-color); }
.xlm .map { overflow-x: auto; }
.xlm .low { overflow: auto; max-height: 24rem; }
.xlm .map th, .xlm .map td { padding: 0.15rem 0.4rem; white-space: nowrap; }
.xlm .map thead th { text-align: right; }
.xlm .map td { text-align: end; min-width: 2.5rem; background: rgb(var(--heat) / calc(var(--share) * 1%)); }
.xlm ol { list-style: none; padding: 0; display: flex; flex-wrap: wrap; gap: 0.3rem; margin: 0.5rem 0; }
.xlm li { border: 1px solid var(--border-color-primary); border-radius: 4px; padding: 0.1rem 0.4rem; margin: 0; }
.xlm li.unknown { border: 2px dashed var(--error-text-color, #b91c1c); }
.xlm p.problem, .xlm p.warning { border-inline-start: 4px solid #d97706; padding: 0.4rem 0.8rem; }
.xlm p.problem { border-color: #dc2626; }
"""


def name_language(code: str) -> str:
    """Return the name of a language in the language itself, with its code."""
    name = find_name(code)
    return f"{name} ({code})" if name else code


def find_name(code: str) -> str | None:
    """Return the name of a language in the language itself, or `None` if the list of names lacks it."""
    return NAMES.get(code.lower().replace("_", "-"))


def is_right_to_left(code: str | None) -> bool:
    """Return True if a language is written from right to left: by its script code, or else by its name."""
    parts = re.split("[-_]", (code or "").lower())
    if script := next((part for part in parts[1:] if len(part) == 4), None):
        return script in RIGHT_TO_LEFT_SCRIPTS
    name = find_name(parts[0]) or ""
    return bool(name) and unicodedata.bidirectional(name[0]) in ("R", "AL")


def wrap(*parts: str) -> str:
    """Return parts of HTML in the element that the style applies to."""
    return f'<div class="xlm">{"".join(parts)}</div>'


def show_messages(warnings: Iterable[str], progress: str = "") -> str:
    """Return progress and warnings as a status that screen readers announce."""
    first = f'<p role="status">{escape(progress)}</p>' if progress else ""
    return wrap(first, *(f'<p class="warning" role="status">{escape(message)}</p>' for message in warnings))


def show_problem(message: str) -> str:
    """Return an error as an alert that screen readers announce."""
    return wrap(f'<p class="problem" role="alert">{escape(message)}</p>')


def show_candidates(candidates: list[Output], language: str | None = None) -> str:
    """Return a table of candidates in a language, with scores. For a single candidate, return its score only."""
    note = "<p>Score: mean log probability of the tokens. A larger score means that the model is more certain.</p>"
    if len(candidates) == 1:
        return wrap(f"<p>Score of the output: {name_score(candidates[0].score)}</p>", note)
    # One Arabic letter must not turn a text in another script.
    direction = "rtl" if is_right_to_left(language) else "ltr"
    rows = "".join(
        f'<tr><th scope="row">{rank}</th><td dir="{direction}" lang="{escape(language or "")}">'
        f"{escape(text).replace(chr(10), '<br>')}</td>"
        f"<td>{name_score(score)}</td></tr>"
        for rank, (text, score, _) in enumerate(candidates, 1)
    )
    return wrap(
        note,
        '<div class="low" tabindex="0" role="region" aria-label="Candidates">'
        '<table aria-label="Candidates"><thead><tr><th scope="col">Rank</th><th scope="col">Candidate</th>'
        '<th scope="col">Score</th></tr>'
        f"</thead><tbody>{rows}</tbody></table></div>",
    )


def name_score(score: float | None) -> str:
    """Return a score as text. A text without tokens has no score."""
    return "none" if score is None else f"{score:.3f}"


def show_tokens(sentences: list[list[Token]]) -> str:
    """Return the tokens of each sentence as a list."""
    lists = []
    for number, tokens in enumerate(sentences, 1):
        unknown = sum(token.is_unknown for token in tokens)
        lists.append(f"<p>Sentence {number}: {len(tokens)} tokens, &lt;unk&gt;: {unknown}.</p><ol>")
        for text, is_unknown in tokens:
            kind = ' class="unknown" title="The model reads this token as <unk>."' if is_unknown else ""
            lists.append(f'<li dir="auto"{kind}>{escape(text)}</li>')
        lists.append("</ol>")
    return wrap(*lists)


def show_attention(attention: Attention) -> str:
    """Return a heat map of attention weights as a table. A row is a generated token, a column is a source token."""
    source, target, weights, is_joint = attention
    note = "Attention of each generated token to the source tokens in percent, as a mean over all layers and heads."
    if is_joint:
        note += " A token also attends to the tokens that are already generated. The map shows only the source tokens."
    head = "".join(f'<th scope="col" dir="auto">{escape(token)}</th>' for token in source)
    rows = []
    for token, row in zip(target, weights, strict=True):
        cells = "".join(f'<td style="--share: {100 * share:.0f}">{100 * share:.0f}</td>' for share in row)
        total = f"<td>{100 * sum(row):.0f}</td>"
        rows.append(f'<tr><th scope="row" dir="auto">{escape(token)}</th>{cells}{total}</tr>')
    return wrap(
        f'<p>{note}</p><div class="map" tabindex="0" role="region" aria-label="Attention"><table><thead><tr><td></td>'
        f'{head}<th scope="col">sum</th></tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
    )
