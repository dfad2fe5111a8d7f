"""Generation for a text file on the page. This file travels with a Space."""

import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path


# A Space has this module beside this file.
if __package__ == "modeling_xlm_swcm.app":
    from .xlm_swcm_models import Options, PageModel, Warn
else:
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
    outputs: list[str] = []
    for start in range(0, len(passages), CHUNK):
        yield start, len(passages), None
        chunk = passages[start : start + CHUNK]
        messages: list[str] = []
        outputs += generate_passages(model, chunk, options, messages.append)
        stop = start + len(chunk)
        place = f"Passage {stop}" if len(chunk) == 1 else f"Passages {start + 1} to {stop}"
        for message in messages:
            warn(f"{place}: {message}")
    folder = Path(tempfile.mkdtemp(dir=os.environ.get("GRADIO_TEMP_DIR")))
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


def generate_passages(model: PageModel, passages: list[str], options: Options, warn: Warn) -> list[str]:
    """Return the best text for each passage. Empty passages stay as they are."""
    texts = [passage for passage in passages if passage.strip()]
    answers = iter(model.generate(texts, options, warn) if texts else [])
    outputs = [next(answers)[0].text if passage.strip() else passage for passage in passages]
    # A passage must stay one line.
    return [re.sub(r"\n+", " ", output) for output in outputs]
