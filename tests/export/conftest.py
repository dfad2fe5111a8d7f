"""A trained model and its export, shared by all tests of the export. Nothing may change their folders."""

from pathlib import Path

import pytest
from support.encoders import gemma_tokenizer, make_encoder, save_encoder
from support.learners import TEXTS, Learner
from support.models import learn, next_texts
from transformers import AutoConfig, AutoTokenizer, ModernBertForMaskedLM

from modeling_xlm_swcm.conversion import convert
from modeling_xlm_swcm.export import export


@pytest.fixture(scope="session")
def modern_folder(tmp_path_factory) -> Path:
    """Return a converted ModernBERT with a BPE tokenizer. Its local layers read four tokens on each side."""
    folder, tokenizer = tmp_path_factory.mktemp("modern"), gemma_tokenizer(TEXTS)
    encoder = make_encoder(ModernBertForMaskedLM, tokenizer, max_position_embeddings=66)
    convert(save_encoder(folder / "encoder", encoder, tokenizer), folder / "model", languages=["zh", "kk", "bo"])
    return folder / "model"


@pytest.fixture(
    scope="session",
    params=[
        dict(weight_sharing="init", lm_head_transform=True),
        dict(weight_sharing="tied", lm_head_transform=False, tie_word_embeddings=False),
        dict(decoder_blocks=4 * ["prefix"], decoder_layers=4, weight_sharing="init"),
        dict(decoder_blocks=4 * ["prefix"], decoder_layers=4, weight_sharing="tied", lm_head_transform=True),
        dict(folder="modern_folder", weight_sharing="tied"),
    ],
    ids=["init, with a transform", "tied, with an untied output", "prefix", "tied prefix, with a transform", "modern"],
)
def learner(request, tmp_path_factory) -> Learner:
    options = {"folder": "learner_folder"} | request.param
    converted = request.getfixturevalue(options.pop("folder"))
    tokenizer = AutoTokenizer.from_pretrained(converted, src_lang="zh")
    config = AutoConfig.from_pretrained(converted, **options)
    model = learn(config, next_texts(tokenizer, TEXTS, ["bo", "kk"]))
    model.generation_config.max_length = 24
    folder = tmp_path_factory.mktemp("learner")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Learner(folder, model, tokenizer)


@pytest.fixture(scope="session")
def exported(learner, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "model"
    export(learner.folder, folder)
    return folder
