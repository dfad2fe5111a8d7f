"""Arguments of the wrong type in calls of the library."""

import pytest
from support.encoders import make_masked_lm

from modeling_xlm_swcm.checkpoints import inspect
from modeling_xlm_swcm.checkpoints.errors import ConversionError
from modeling_xlm_swcm.conversion import convert, convert_released, from_encoder
from modeling_xlm_swcm.evaluation import evaluate
from modeling_xlm_swcm.export import export
from modeling_xlm_swcm.hub import push
from modeling_xlm_swcm.vocabulary import extend, trim


A_MODEL = "must be a path or a Hub id (got XLMRobertaForMaskedLM). Pass a text or a Path."
A_NUMBER = "must be a whole number (got '9'). Pass a whole number."
CALLS = {
    "languages": (
        lambda model, path: from_encoder(path, languages="zh"),
        '`languages` must be a list of codes (got "zh"). Use `languages=["zh"]`.',
    ),
    "no languages": (
        lambda model, path: from_encoder(path, languages=None),
        "`languages` must be a list of texts (got NoneType). Pass a list.",
    ),
    "released languages": (
        lambda model, path: convert_released(path / "release.bin", path, path / "new", languages="zh"),
        '`languages` must be a list of codes (got "zh"). Use `languages=["zh"]`.',
    ),
    "tokenizer": (
        lambda model, path: from_encoder(model, tokenizer="encoder"),
        "`tokenizer` must be a tokenizer (got str). Load it with AutoTokenizer.from_pretrained.",
    ),
    "seed": (lambda model, path: from_encoder(path, seed="9"), f"`seed` {A_NUMBER}"),
    "encoder": (lambda model, path: from_encoder(5), "`encoder` must be a path or a Hub id (got int)."),
    "model to convert": (lambda model, path: convert(model, path), f"`encoder` {A_MODEL}"),
    "output": (
        lambda model, path: extend(path, None, corpus=["bo.txt"], size=9),
        "`output` must be a path or a Hub id (got NoneType).",
    ),
    "model to extend": (lambda model, path: extend(model, path, corpus=["bo.txt"], size=9), f"`checkpoint` {A_MODEL}"),
    "corpus": (
        lambda model, path: trim(path, path, corpus=[5]),
        "`corpus` must be a list of texts (got int). Pass a list.",
    ),
    "one corpus": (lambda model, path: trim(path, path, corpus=path / "bo.txt"), 'bo.txt" does not exist.'),
    "size": (lambda model, path: extend(path, path, corpus=["bo.txt"], size="9"), f"`size` {A_NUMBER}"),
    "min_count": (lambda model, path: trim(path, path, corpus=["bo.txt"], min_count="9"), f"`min_count` {A_NUMBER}"),
    "coverage": (
        lambda model, path: trim(path, path, corpus=["bo.txt"], coverage="9"),
        "`coverage` must be a number (got '9'). Pass a number.",
    ),
    "model to export": (lambda model, path: export(model, path), f"`folder` {A_MODEL}"),
    "model to push": (lambda model, path: push(model, "owner/name"), f"`folder` {A_MODEL}"),
    "model to inspect": (lambda model, path: inspect(model), f"`source` {A_MODEL}"),
    "path to inspect": (lambda model, path: inspect(path), "holds an encoder (XLM-R)"),
    "beams": (lambda model, path: evaluate("model", "data", "bo", num_beams="9"), f"`num_beams` {A_NUMBER}"),
    "models": (
        lambda model, path: evaluate([model], "data", "bo"),
        "`models` must be a list of texts (got XLMRoberta",
    ),
}


@pytest.fixture(scope="module")
def model():
    return make_masked_lm()


@pytest.mark.parametrize("name", CALLS)
def test_an_argument_of_the_wrong_type_is_named(model, encoder_folder, name):
    call, message = CALLS[name]
    with pytest.raises(ConversionError) as refused:
        call(model, encoder_folder)
    assert message in str(refused.value)
