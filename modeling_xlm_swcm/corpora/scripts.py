"""Scripts of characters and texts."""

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping


def find_script(character: str) -> str | None:
    """Return the script of a letter or mark, for example `TIBETAN`, or `None` for any other character."""
    if unicodedata.category(character)[0] not in "LM":
        return None
    # The Unicode name of a letter starts with its script.
    return unicodedata.name(character, "UNNAMED").split()[0]


def find_scripts(counts: Mapping[str, float], share: float) -> set[str]:
    """Return the scripts with at least `share` of the letters in `counts`, which maps texts to their frequency."""
    letters: dict[str, float] = defaultdict(float)
    for text, count in counts.items():
        for character in text:
            if (script := find_script(character)) is not None:
                letters[script] += count
    return {script for script, count in letters.items() if count >= share * sum(letters.values())}


def find_main_script(texts: Iterable[str]) -> str | None:
    """Return the script of most letters in some texts, or `None` if they have no letter."""
    scripts = Counter(script for text in texts for script in map(find_script, text) if script is not None)
    return max(scripts, key=scripts.__getitem__, default=None)
