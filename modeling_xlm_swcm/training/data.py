"""Old import path of `rows`, `examples` and `mixture`."""

import warnings

from .examples import Pair, encode_pairs, encode_texts
from .mixture import CorpusConfig as Corpus
from .mixture import Mixture, load_corpora
from .rows import BadRows, DataError, read_rows


__all__ = [
    "BadRows",
    "Corpus",
    "DataError",
    "Mixture",
    "Pair",
    "encode_pairs",
    "encode_texts",
    "load_corpora",
    "read_rows",
]

warnings.warn(
    f"{__name__} is deprecated. Import from rows, examples and mixture in {__package__}.",
    FutureWarning,
    stacklevel=2,
)
