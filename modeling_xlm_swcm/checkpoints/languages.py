"""Check lists of language codes."""

import re
from collections.abc import Iterable

from transformers.utils import logging

from .errors import ConversionError


logger = logging.get_logger(__name__)

# All codes of ISO 639-1, with the codes that it has withdrawn.
ISO_639_1 = """
aa ab ae af ak am an ar as av ay az ba be bg bh bi bm bn bo br bs ca ce ch co cr cs cu cv cy da de dv dz ee el en eo
es et eu fa ff fi fj fo fr fy ga gd gl gn gu gv ha he hi ho hr ht hu hy hz ia id ie ig ii ik in io is it iu iw ja ji
jv jw ka kg ki kj kk kl km kn ko kr ks ku kv kw ky la lb lg li ln lo lt lu lv mg mh mi mk ml mn mo mr ms mt my na nb
nd ne ng nl nn no nr nv ny oc oj om or os pa pi pl ps pt qu rm rn ro ru rw sa sc sd se sg sh si sk sl sm sn so sq sr
ss st su sv sw ta te tg th ti tk tl tn to tr ts tt tw ty ug uk ur uz ve vi vo wa wo xh yi yo za zh zu
"""


def check_spaces(option: str, codes: Iterable[str]):
    """Refuse language codes with commas between them."""
    for code in codes:
        if "," in code:
            words = " ".join(code.replace(",", " ").split())
            raise ConversionError(f'{option} cannot be "{code}". Write the codes with spaces between them: {words}.')


def check_codes(codes: Iterable[str]):
    """
    Check language codes.

    A code of two letters that is not in ISO 639-1 gives a warning. It is usually the code of a country, such as `kz`.

    Raises:
        ConversionError: if two codes differ only in case, such as `bo` and `BO`. They name the same language.
    """
    seen: dict[str, str] = {}
    for code in codes:
        language = re.split("[-_]", code)[0].lower()
        if len(language) == 2 and language not in ISO_639_1.split():
            logger.warning_once(
                f'The code "{code}" is used as it is, but ISO 639-1 has no such language. Do not use the code of a '
                "country. Kazakh is kk, not kz. Chinese is zh, not cn."
            )
        if (other := seen.setdefault(code.casefold(), code)) != code:
            raise ConversionError(
                f'The language codes "{other}" and "{code}" differ only in case. Use one spelling for each language.'
            )
