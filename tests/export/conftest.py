"""A trained model and its export, shared by all tests of the export. Nothing may change their folders."""

from pathlib import Path

import pytest
from support.learners import TEXTS, Learner
from support.models import learn, next_texts
from transformers import AutoTokenizer

from modeling_xlm_swcm import XLMSWCMConfig
from modeling_xlm_swcm.export import export


@pytest.fixture(
    scope="session",
    params=[
        dict(weight_sharing="init", lm_head_transform=True),
        dict(weight_sharing="tied", lm_head_transform=False, tie_word_embeddings=False),
        dict(decoder_blocks=4 * ["prefix"], decoder_layers=4, weight_sharing="init"),
        dict(decoder_blocks=4 * ["prefix"], decoder_layers=4, weight_sharing="tied", lm_head_transform=True),
    ],
    ids=["init, with a transform", "tied, with an untied output", "prefix", "tied prefix, with a transform"],
)
def learner(request, learner_folder, tmp_path_factory) -> Learner:
    tokenizer = AutoTokenizer.from_pretrained(learner_folder, src_lang="zh")
    config = XLMSWCMConfig.from_pretrained(learner_folder, **request.param)
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
