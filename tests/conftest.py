import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from encoders import Tensors, make_encoder, make_masked_lm, save_encoder, wake, xlm_roberta_tokenizer
from hub_client import Client, hub_client
from hypothesis import settings
from loopback_hub import Hub, loopback_hub
from packaging.version import Version
from transformers import AutoModelForSeq2SeqLM, PreTrainedModel, XLMRobertaForMaskedLM
from transformers.integrations.peft import MIN_PEFT_VERSION
from transformers.utils import logging
from typer.testing import CliRunner, Result

from modeling_xlm_swcm import XLMSWCMConfig, XLMSWCMForConditionalGeneration, XLMSWCMTokenizer
from modeling_xlm_swcm.cli import main
from modeling_xlm_swcm.conversion import convert


# a machine that is busy with other things must not fail a test
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")

ATTENTIONS = ("eager", "sdpa")
SHARINGS = [
    {"weight_sharing": sharing, "tie_word_embeddings": tie}
    for sharing, tie in itertools.product(("init", "tied"), (True, False))
]
# by its name in Transformers before 5.23
CHECKPOINTING = (
    "activation_checkpointing_enable"
    if hasattr(PreTrainedModel, "activation_checkpointing_enable")
    else "gradient_checkpointing_enable"
)
QUICK_TO_LEARN = {"initializer_range": 0.1, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
HEAD_TRANSFORM = {"weight_sharing": "init", "tie_word_embeddings": True, "lm_head_transform": True}

Batch = dict[str, torch.Tensor]

# Transformers' own `add_adapter` refuses an older PEFT, and 5.24 wants 0.22, which is not released yet
wants_peft = pytest.mark.skipif(
    Version(version("peft")) < Version(MIN_PEFT_VERSION),
    reason=f"model.add_adapter of this Transformers needs peft>={MIN_PEFT_VERSION}",
)


def tiny_config(**options) -> XLMSWCMConfig:
    """A decoder of five layers (custom, custom, normal, custom, custom) on an encoder of four."""
    sizes = dict(vocab_size=99, hidden_size=32, num_hidden_layers=4, num_attention_heads=4, intermediate_size=37)
    return XLMSWCMConfig(**(sizes | dict(max_position_embeddings=66, normal_layer_interval=2) | options))


def tiny_model(**options) -> XLMSWCMForConditionalGeneration:
    torch.manual_seed(0)
    # far larger weights than at initialisation, so that a wrong mask or a lost layer moves the outputs
    model = XLMSWCMForConditionalGeneration(tiny_config(initializer_range=0.3, **options)).eval()
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:  # biases and LayerNorms, which start as zeros and ones
            parameter.data.add_(0.1 * torch.randn_like(parameter))
        elif name.endswith((".out_proj.weight", ".fc2.weight", ".output.dense.weight")):
            # what a sublayer adds may not drown its input, or all tokens look alike after some layers
            parameter.data.mul_(0.25)
    return model


def assert_close(actual: torch.Tensor, expected: torch.Tensor):
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def logits_of(model: XLMSWCMForConditionalGeneration, **inputs) -> torch.Tensor:
    return model(**inputs).logits


def random_tokens(*shape: int, seed: int = 3) -> torch.Tensor:
    return torch.randint(4, 99, shape, generator=torch.Generator().manual_seed(seed))


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().contiguous().view(torch.uint8)


def different_tensors(first: Tensors, second: Tensors) -> list[str]:
    assert first.keys() == second.keys()
    return [name for name in first if not torch.equal(bits(first[name]), bits(second[name]))]


def load(folder: Path, **options) -> XLMSWCMForConditionalGeneration:
    """A converted folder as a user loads it, nothing missing and nothing left over."""
    model, info = AutoModelForSeq2SeqLM.from_pretrained(folder, output_loading_info=True, **options)
    assert not any(info.values()), info
    return model


def run(*arguments) -> Result:
    return CliRunner().invoke(main, ["convert", *map(str, arguments)])


def run_process(*command, **environment) -> subprocess.CompletedProcess:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"} | environment
    return subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, timeout=120)


def run_script(*arguments, **environment) -> subprocess.CompletedProcess:
    return run_process(Path(sys.executable).with_name("xlm-swcm"), "convert", *arguments, **environment)


def contents(folder: Path) -> dict[str, bytes | None]:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


def cut_short(file: Path):
    """As a download that was broken off leaves it."""
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def assert_refused(result: Result, *words: str):
    """Exit code 1 and one line on stderr that has all `words`."""
    assert result.exit_code == 1, result.stderr
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1 and result.stderr.endswith("\n"), result.stderr
    assert "Traceback" not in result.output
    for word in words:
        assert word in result.stderr
    assert result.stdout == ""


@pytest.fixture(autouse=True)
def verbosity() -> Iterator[None]:
    """How much Transformers says is for the next test what it was, whatever a script has set."""
    before = logging.get_verbosity()
    yield
    logging.set_verbosity(before)


@pytest.fixture
def model() -> XLMSWCMForConditionalGeneration:
    return tiny_model()


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    """Three sources of unequal length, right-padded, with labels."""
    torch.manual_seed(1)
    input_ids = torch.randint(4, 99, (3, 9))
    attention_mask = torch.ones_like(input_ids)
    for row, length in enumerate((9, 6, 4)):
        input_ids[row, length:] = 1
        attention_mask[row, length:] = 0
    labels = torch.randint(4, 99, (3, 7))
    labels[1, 5:] = -100
    return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}


@pytest.fixture
def source(batch) -> Batch:
    return {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}


@pytest.fixture
def target() -> torch.Tensor:
    return random_tokens(3, 7)


@pytest.fixture
def left_padded_target(target) -> Batch:
    """Targets of 7, 5 and 2 tokens."""
    mask = torch.ones_like(target)
    for row, padding in enumerate((0, 2, 5)):
        mask[row, :padding] = 0
    return {"decoder_input_ids": target.masked_fill(mask == 0, 1), "decoder_attention_mask": mask}


@pytest.fixture(scope="session")
def pairs() -> dict[str, torch.Tensor]:
    """Eight right-padded sources, and as labels `<tag> ... </s>` of unequal length; the tags are tokens 4 to 7."""
    generator = torch.Generator().manual_seed(2)
    input_ids = torch.randint(8, 99, (8, 9), generator=generator)
    labels = torch.randint(8, 99, (8, 9), generator=generator)
    labels[:, 0] = torch.arange(4, 8).repeat(2)
    for row in range(8):
        input_ids[row, 9 - row % 4 :] = 1
        end = 8 - 3 * row % 5
        labels[row, end] = 2
        labels[row, end + 1 :] = -100
    return {"input_ids": input_ids, "attention_mask": input_ids.ne(1).long(), "labels": labels}


def learn(config: XLMSWCMConfig, batch: Batch) -> XLMSWCMForConditionalGeneration:
    """A fresh model that knows `batch` by heart."""
    torch.manual_seed(0)
    for name, value in QUICK_TO_LEARN.items():
        setattr(config, name, value)
    return teach(XLMSWCMForConditionalGeneration(config), batch)


def teach(model: XLMSWCMForConditionalGeneration, batch: Batch) -> XLMSWCMForConditionalGeneration:
    """Random weights write one token for ever; what has learnt a batch writes real sequences."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(80):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
    return model.eval()


def next_texts(tokenizer: XLMSWCMTokenizer, texts: list[str], languages: list[str]) -> Batch:
    """To each text belongs the next one in the first language, the one after it in the second, and so on."""
    labels = []
    for shift, language in enumerate(languages, 1):
        tokenizer.tgt_lang = language
        labels += tokenizer(text_target=texts[shift:] + texts[:shift])["input_ids"]
    labels = torch.nn.utils.rnn.pad_sequence(list(map(torch.tensor, labels)), batch_first=True, padding_value=-100)
    return {**tokenizer(texts * len(languages), padding=True, return_tensors="pt"), "labels": labels}


@pytest.fixture(scope="session")
def trained_model(pairs) -> XLMSWCMForConditionalGeneration:
    return learn(tiny_config(), pairs)


@pytest.fixture(scope="session")
def encoder_folder(tmp_path_factory) -> Path:
    """A masked LM of four layers as a user has it on disk; shared by all tests, so nothing may change it."""
    tokenizer = xlm_roberta_tokenizer()
    return save_encoder(tmp_path_factory.mktemp("xlm-r"), make_encoder(XLMRobertaForMaskedLM, tokenizer), tokenizer)


@pytest.fixture(scope="session")
def learner_folder(encoder_folder, tmp_path_factory) -> Path:
    """A converted model for zh, kk and bo with fresh weights, which learn quickly; nothing may change it."""
    folder = tmp_path_factory.mktemp("learner") / "model"
    convert(encoder_folder, folder, languages=["zh", "kk", "bo"])
    torch.manual_seed(0)
    XLMSWCMForConditionalGeneration(XLMSWCMConfig.from_pretrained(folder, **QUICK_TO_LEARN)).save_pretrained(folder)
    return folder


@pytest.fixture
def own_encoder(encoder_folder, tmp_path) -> Path:
    """A copy of `encoder_folder` to change."""
    return Path(shutil.copytree(encoder_folder, tmp_path / "encoder"))


@pytest.fixture(scope="module")
def masked_lm() -> PreTrainedModel:
    return make_masked_lm()


@pytest.fixture
def output(tmp_path) -> Path:
    return tmp_path / "outputs" / "model"


@pytest.fixture(scope="session")
def shared_hub() -> Iterator[Hub]:
    with loopback_hub() as hub:
        yield hub


@pytest.fixture
def hub(shared_hub) -> Hub:
    """Empty, and nothing fails."""
    for kept in (shared_hub.repositories, shared_hub.objects, shared_hub.parts, shared_hub.requests):
        kept.clear()
    shared_hub.failures.clear()
    shared_hub.user, shared_hub.part_size, shared_hub.quota = "someone", 10**9, 10**12
    return shared_hub


@pytest.fixture(scope="session")
def client(shared_hub, tmp_path_factory) -> Iterator[Client]:
    with hub_client(shared_hub, tmp_path_factory.mktemp("home")) as client:
        yield client


@pytest.fixture(scope="session")
def converted(encoder_folder, tmp_path_factory) -> Path:
    """A folder as `convert` writes it, with other weights; shared by all tests, so nothing may change it."""
    folder = tmp_path_factory.mktemp("converted") / "model"
    convert(encoder_folder, folder, languages=["zh", "kk-Arab", "bo"], license="mit")
    wake(folder)
    return folder


@pytest.fixture
def folder(converted, tmp_path) -> Path:
    """A copy of `converted` to change."""
    return Path(shutil.copytree(converted, tmp_path / "model"))
