"""Generation for the lines of a text or file on the page. This file travels with a Space."""

import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path


# A Space has this module beside this file.
if __package__ == "modeling_xlm_swcm.app":
    from ..sentences_xlm_swcm import Output, join_outputs
    from .xlm_swcm_models import Options, PageModel, Warn
else:
    from sentences_xlm_swcm import Output, join_outputs  # type: ignore[no-redef]
    from xlm_swcm_models import Options, PageModel, Warn  # type: ignore[no-redef]

CHUNK = 16  # passages between two reports of progress


def generate_file(
    model: PageModel, path: Path, is_whole: bool, options: Options, warn: Warn
) -> Iterator[tuple[int, int, Path | None]]:
    """
    Generate a text for each line of a file, or for the whole file, and write a file.

    Args:
        model (`PageModel`): Model to use.
        path (`Path`): UTF-8 text file.
        is_whole (`bool`): Whether the file is one text. Otherwise each line is a text, and empty lines stay empty.
        options (`Options`): Task, languages and beams.
        warn (`Callable`): Function that gets each warning.

    Yields:
        `tuple[int, int, Path | None]`: number of finished passages, number of all passages, and the file at the end.

    Raises:
        ValueError: if the file cannot be read or the model cannot use a text.
    """
    passages = read_passages(path, is_whole and not model.is_split(options))
    model.check([passage for passage in passages if passage.strip()], options)
    for candidates in generate_passages(model, passages, options, warn):
        if len(candidates) < len(passages):
            yield len(candidates), len(passages), None
    # A passage must stay one line.
    outputs = [re.sub(r"\n+", " ", best.text) for best, *_ in candidates]
    # Gradio deletes old files in its cache, and only there.
    cache = os.environ.get("GRADIO_TEMP_DIR") or os.path.join(tempfile.gettempdir(), "gradio")
    os.makedirs(cache, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=cache))
    # A file system allows names of 255 bytes.
    output = folder / f"{path.stem[:60]}.{options.tgt_lang or 'output'}.txt"
    output.write_bytes("".join(f"{text}\n" for text in outputs).encode())
    yield len(passages), len(passages), output


def read_passages(path: Path, is_whole: bool) -> list[str]:
    """Return the lines of a file, or its whole text in a list. A split text is generated line by line."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path.name} is not UTF-8 text. Save it as UTF-8.") from error
    # The page deletes uploaded files after an hour.
    except OSError as error:
        raise ValueError(f"{path.name} cannot be read any more. Choose the file again.") from error
    if not text.strip():
        raise ValueError(f"{path.name} is empty. Write one passage per line.")
    return [text] if is_whole else text.removesuffix("\n").split("\n")


def generate_passages(
    model: PageModel, passages: list[str], options: Options, warn: Warn
) -> Iterator[list[list[Output]]]:
    """Yield the candidates for all finished passages, at the start and after each chunk. Empty passages stay."""
    model.check_pair(options, warn)
    finished: list[list[Output]] = []
    yield finished
    for start in range(0, len(passages), CHUNK):
        chunk = passages[start : start + CHUNK]
        numbers = [number for number, passage in enumerate(chunk, start + 1) if passage.strip()]
        texts = [passages[number - 1] for number in numbers]
        warn_of_texts = partial(name_passages, warn, numbers if len(passages) > 1 else [])
        answers = iter(model.generate(texts, options, warn_of_texts) if texts else [])
        for passage in chunk:
            finished.append(next(answers) if passage.strip() else [Output(passage)] * options.num_candidates)
        yield finished


def name_passages(warn: Warn, numbers: list[int], message: str, texts: Sequence[int]):
    """Pass a message to `warn`, after the numbers of its passages. A single passage has no number."""
    named = [numbers[index] for index in texts if numbers] or numbers
    place = f"{'Passages' if len(named) > 1 else 'Passage'} {', '.join(map(str, named))}: " if named else ""
    warn(f"{place}{message}")


def join_passages(candidates: list[list[Output]]) -> list[Output]:
    """Join the candidates for the lines of a text. Candidate *k* joins candidate *k* of each line."""
    parts = ["", *["", "\n"] * (len(candidates) - 1), "", ""]
    return [join_outputs([parts], outputs)[0] for outputs in zip(*candidates, strict=True)]
