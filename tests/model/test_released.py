"""The authors' release: the converted model computes the same as a plain implementation of the release."""

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.commands import assert_refused
from support.encoders import SENTENCES, Tensors, edit_config, make_encoder, save_encoder, xlm_roberta_tokenizer
from support.folders import bits, load
from support.models import CHECKPOINTING, Batch, assert_close, logits_of
from support.released import END, PAD, START, PlainRelease, make_release
from support.remote_code import CODE, SOURCE, TARGET, python_files, run_without_the_package
from torch import nn
from transformers import AutoModel, AutoModelForSeq2SeqLM, AutoTokenizer, XLMRobertaForMaskedLM
from typer.testing import CliRunner, Result

from modeling_xlm_swcm.cli import main
from modeling_xlm_swcm.compat_xlm_swcm import CACHE
from modeling_xlm_swcm.conversion import ConversionError, convert_released
from modeling_xlm_swcm.released_xlm_swcm import (
    ReleasedXLMSWCMConfig,
    ReleasedXLMSWCMForConditionalGeneration,
    ReleasedXLMSWCMModel,
)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> Path:
    """Return an encoder with another epsilon and activation than the released decoder layers."""
    tokenizer = xlm_roberta_tokenizer()
    options = dict(layer_norm_eps=0.1, hidden_act="relu", tie_word_embeddings=False)
    model = make_encoder(XLMRobertaForMaskedLM, tokenizer, **options)
    return save_encoder(tmp_path_factory.mktemp("encoder"), model, tokenizer)


@pytest.fixture(scope="module")
def source(encoder) -> Batch:
    """Return right-padded sources of unequal length."""
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    return dict(tokenizer(SENTENCES, padding=True, truncation=True, max_length=30, return_tensors="pt"))


@pytest.fixture(scope="module")
def target() -> torch.Tensor:
    """Return right-padded targets with start and end token."""
    tokens = torch.randint(4, 90, (len(SENTENCES), 10), generator=torch.Generator().manual_seed(5))
    tokens[:, 0] = START
    for row in range(len(SENTENCES)):
        end = 9 - row % 5
        tokens[row, end] = END
        tokens[row, end + 1 :] = PAD
    return tokens


@pytest.fixture(scope="module")
def plain(encoder, source, target) -> PlainRelease:
    """Return a release that has learned the targets, because random weights repeat one token."""
    plain = make_release(encoder)
    optimizer = torch.optim.AdamW(plain.parameters(), lr=3e-3)
    for _ in range(100):
        optimizer.zero_grad()
        logits = plain(**source, decoder_input_ids=target[:, :-1])
        nn.functional.cross_entropy(logits.transpose(1, 2), target[:, 1:], ignore_index=PAD).backward()
        optimizer.step()
    return plain


@pytest.fixture(scope="module")
def tensors(plain) -> Tensors:
    return plain.state_dict()


@pytest.fixture(scope="module")
def folder(encoder, tensors, tmp_path_factory) -> Path:
    released = tmp_path_factory.mktemp("release")
    torch.save(tensors, released / "release.bin")
    convert_released(released / "release.bin", encoder, released / "model")
    return released / "model"


@pytest.fixture(scope="module")
def exact(plain) -> PlainRelease:
    """Return the release in double precision, so that rounding hides no difference."""
    return copy.deepcopy(plain).double()


@pytest.fixture(params=["eager", "sdpa"])
def model(request, folder) -> ReleasedXLMSWCMForConditionalGeneration:
    return load(folder, attn_implementation=request.param, dtype=torch.float64)


def write(model, source: Batch, **options) -> torch.Tensor:
    return model.generate(**source, do_sample=False, **options)


class TestArithmetic:
    def test_the_logits_are_those_of_the_plain_arithmetic(self, model, exact, source, target):
        is_token = target != PAD
        actual = logits_of(model, **source, decoder_input_ids=target, decoder_attention_mask=is_token.long())
        with torch.no_grad():
            expected = exact(**source, decoder_input_ids=target)
        assert expected.std() > 1
        torch.testing.assert_close(actual[is_token], expected[is_token])

    @torch.no_grad()
    def test_the_logits_of_every_step_with_a_cache_are_those_of_the_plain_arithmetic(self, model, exact, source):
        tokens = torch.randint(4, 90, (len(SENTENCES), 6), generator=torch.Generator().manual_seed(6))
        expected, cache = exact(**source, decoder_input_ids=tokens), None
        for step in range(6):
            output = model(**source, decoder_input_ids=tokens[:, step : step + 1], **{CACHE: cache}, use_cache=True)
            cache = getattr(output, CACHE)
            torch.testing.assert_close(output.logits[:, 0], expected[:, step])

    @torch.no_grad()
    @pytest.mark.parametrize("use_cache", [True, False])
    def test_greedy_search_writes_what_the_plain_arithmetic_writes(self, model, exact, source, use_cache):
        written = write(model, source, max_new_tokens=12, use_cache=use_cache)
        assert written[:, 0].tolist() == len(SENTENCES) * [START]
        expected = torch.full((len(SENTENCES), 1), START)
        while expected.shape[1] < written.shape[1]:
            following = exact(**source, decoder_input_ids=expected)[:, -1].argmax(-1, keepdim=True)
            ended = (expected[:, 1:] == END).any(1, keepdim=True)
            # The plain attention masks padding, so tokens after the end change nothing before it.
            expected = torch.cat([expected, following.masked_fill(ended, PAD)], dim=1)
        assert torch.equal(written, expected)
        assert len({tuple(row) for row in written.tolist()}) > 4

    @torch.no_grad()
    @pytest.mark.parametrize("use_cache", [True, False])
    def test_beam_search_writes_what_the_plain_arithmetic_writes(self, model, exact, source, use_cache):
        steps, beams = 7, 4
        options = dict(num_beams=beams, num_return_sequences=beams, use_cache=use_cache)
        found = write(model, source, min_new_tokens=steps, max_new_tokens=steps, **options)
        for row in range(len(SENTENCES)):
            one = {name: tensor[row : row + 1] for name, tensor in source.items()}
            expected, scores = torch.tensor([[START]]), torch.zeros(1, dtype=torch.float64)
            for _ in range(steps):
                inputs = {name: tensor.expand(len(expected), -1) for name, tensor in one.items()}
                following = exact(**inputs, decoder_input_ids=expected)[:, -1].log_softmax(-1)
                following[:, END] = -torch.inf
                scores, chosen = (scores[:, None] + following).flatten().topk(beams)
                beam, token = chosen // following.shape[1], chosen % following.shape[1]
                expected = torch.cat([expected[beam], token[:, None]], dim=1)
            assert torch.equal(found[row * beams : (row + 1) * beams], expected)

    @torch.no_grad()
    def test_training_drops_what_the_release_drops(self, folder):
        """Dropout skips attention weights and the self-attention of a custom layer, which has no residual."""
        custom, normal = (load(folder).model.decoder.layers[index] for index in (0, 3))
        hidden, source = torch.randn(2, 2, 5, 32)
        attended, _ = custom.self_attn(custom.norm1(hidden))
        custom.train().dropout.p = normal.train().dropout.p = 1.0
        assert_close(custom(hidden, None, source), attended)
        assert_close(normal(hidden, None, source), normal.norm2(normal.norm1(normal.norm1(hidden))))

    def test_every_weight_is_trained(self, folder, source, target):
        model = load(folder).train()
        getattr(model, CHECKPOINTING)()
        loss = model(**source, labels=target.masked_fill(target == PAD, -100)).loss
        loss.backward()
        assert loss.isfinite()
        without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
        assert without == []

    def test_states_and_attentions_of_every_layer_are_given(self, folder, source, target):
        model = load(folder, attn_implementation="eager")
        with torch.no_grad():
            output = model(**source, decoder_input_ids=target, output_hidden_states=True, output_attentions=True)
        assert len(output.decoder_hidden_states) == 6
        assert len(output.decoder_attentions) == len(output.cross_attentions) == 5


class TestConversion:
    def run(self, *arguments) -> Result:
        return CliRunner().invoke(main, ["convert-released", *map(str, arguments)])

    def test_every_tensor_of_the_model_is_a_released_one(self, folder, tensors):
        model = load(folder).state_dict()
        report = json.loads((folder / "conversion_report.json").read_text())
        shared = {name for name in model if name.startswith("model.decoder.embeddings.")}
        assert report["copied"].keys() == model.keys() - shared
        assert report["new"] == {}
        for name, released in report["copied"].items():
            tensor = tensors[re.sub(r"\[.\]$", "", released)]
            if released.endswith("]"):
                tensor = tensor.chunk(3)["qkv".index(released[-2])]
            assert torch.equal(bits(model[name]), bits(tensor)), name

    def test_every_released_tensor_is_copied_or_dropped(self, folder, tensors):
        report = json.loads((folder / "conversion_report.json").read_text())
        copied = [re.sub(r"\[.\]$", "", released) for released in report["copied"].values()]
        assert {*copied, *report["dropped"]} == tensors.keys()
        assert len(report["copied"]) == len(set(report["copied"].values()))
        assert all("pooler" in name or "embed_layer" in name for name in report["dropped"])

    def test_the_config_has_the_released_layers(self, folder, encoder):
        config = load(folder).config
        assert type(config) is ReleasedXLMSWCMConfig
        assert config.decoder_blocks == 3 * ["released_custom"] + ["released_normal", "released_custom"]
        assert config.vocab_size == len(AutoTokenizer.from_pretrained(encoder))
        assert config.decoder_start_token_id == START
        assert not config.tie_word_embeddings
        assert load(folder).generation_config.decoder_start_token_id == START

    @pytest.mark.parametrize(
        ("wrap", "options"),
        [
            (lambda plain: nn.DataParallel(plain).state_dict(), {}),
            (lambda plain: {"model_state_dict": plain.state_dict(), "epoch": 7, "loss": 1.5}, {}),
            (lambda plain: {"state_dict": nn.DataParallel(plain).state_dict()}, {}),
            (lambda plain: plain.state_dict(), {"_use_new_zipfile_serialization": False}),
            (lambda plain: plain.state_dict() | {"embed_layer.position_ids": torch.arange(40)[None]}, {}),
        ],
        ids=["DataParallel", "model_state_dict", "state_dict", "an old pickle", "with a buffer"],
    )
    def test_the_wrappings_of_a_state_dict_change_nothing(self, plain, encoder, folder, output, wrap, options):
        released = output.with_name("release.bin")
        released.parent.mkdir()
        torch.save(wrap(plain), released, **options)
        result = self.run(released, "--encoder", encoder, output)
        assert result.exit_code == 0, result.stderr
        assert (output / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()

    def test_a_conversion_prints_what_it_did(self, folder, encoder, output):
        result = self.run(folder.parent / "release.bin", "--encoder", encoder, output)
        printed = "".join(result.stdout.split())
        assert "223tensorscopied,eachbit-equaltoitssource.Newtensors:0.Droppedtensorsofthesource:12." in printed
        assert f"Writtento{output}." in printed

    def test_the_layers_have_the_names_that_checkpoints_have(self, folder):
        attention = {f"{kind}_attn.{part}_proj" for kind in ("self", "cross") for part in ("q", "k", "v", "out")}
        custom = attention | {"ffn1.fc1", "ffn1.fc2", "ffn2.fc1", "ffn2.fc2", "norm1", "norm2", "norm3", "norm4"}
        normal = attention | {"ffn.fc1", "ffn.fc2", "norm1", "norm2"}
        layers = load(folder).model.decoder.layers
        for layer, modules in zip(layers, [*3 * [custom], normal, custom], strict=True):
            assert layer.state_dict().keys() == {f"{m}.{kind}" for m in modules for kind in ("weight", "bias")}

    def test_a_saved_model_comes_back_the_same(self, folder, source, target, tmp_path):
        model = load(folder)
        model.save_pretrained(tmp_path)
        again = load(tmp_path)
        assert type(again) is ReleasedXLMSWCMForConditionalGeneration
        inputs = source | {"decoder_input_ids": target}
        assert torch.equal(logits_of(again, **inputs), logits_of(model, **inputs))
        base, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
        assert type(base) is ReleasedXLMSWCMModel and not any(info.values())
        with torch.no_grad():
            states = base(**inputs).last_hidden_state
        assert_close(again.lm_head(states).detach(), logits_of(model, **inputs))

    def test_a_copy_in_the_file_that_is_off_by_a_bit_is_noticed(self, folder, encoder, tmp_path, monkeypatch):
        def save_wrongly(model, path, save_pretrained=ReleasedXLMSWCMForConditionalGeneration.save_pretrained):
            model.model.decoder.layers[3].self_attn.v_proj.bias.data.view(torch.int32)[-1] ^= 1
            save_pretrained(model, path)

        monkeypatch.setattr(ReleasedXLMSWCMForConditionalGeneration, "save_pretrained", save_wrongly)
        with pytest.raises(
            RuntimeError, match=r"layers\.3\.self_attn\.v_proj\.bias differs from .+\. Report this bug\.$"
        ):
            convert_released(folder.parent / "release.bin", encoder, tmp_path / "model")
        assert list(tmp_path.iterdir()) == []


class TestVocabulary:
    @pytest.fixture
    def with_two_tags(self, encoder, tmp_path) -> Path:
        """Return a release with two rows after the tokens of the encoder."""
        tokens = len(AutoTokenizer.from_pretrained(encoder))
        torch.save(make_release(encoder, vocab_size=tokens + 2).state_dict(), tmp_path / "release.bin")
        return tmp_path / "release.bin"

    def test_languages_take_the_rows_behind_the_encoders_tokens(self, with_two_tags, encoder, tmp_path):
        report = convert_released(with_two_tags, encoder, tmp_path / "model", languages=["zh", "bo"])
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
        tokens = len(AutoTokenizer.from_pretrained(encoder))
        assert tokenizer.languages == ["zh", "bo"]
        assert report.language_ids == {"zh": tokens, "bo": tokens + 1}
        assert tokenizer.get_lang_id("bo") == tokens + 1
        assert report.new == {} and report.new_ids == []
        rows = torch.load(with_two_tags)["embed_layer.word_embeddings.weight"]
        assert torch.equal(load(tmp_path / "model").get_input_embeddings().weight.detach(), rows)

    @pytest.mark.parametrize("languages", [[], ["bo"], ["bo", "ug", "zh"]])
    def test_languages_that_do_not_fill_the_rows_are_refused(self, with_two_tags, encoder, tmp_path, languages):
        with pytest.raises(ConversionError, match=f"{len(languages)} language tags.*`languages`"):
            convert_released(with_two_tags, encoder, tmp_path / "model", languages=languages)
        assert not (tmp_path / "model").exists()

    def test_spare_rows_of_the_encoder_may_stay_spare(self, with_two_tags, encoder, tmp_path):
        tokenizer = AutoTokenizer.from_pretrained(encoder)
        spacious = save_encoder(
            tmp_path / "encoder",
            make_encoder(XLMRobertaForMaskedLM, tokenizer, vocab_size=len(tokenizer) + 2),
            tokenizer,
        )
        convert_released(with_two_tags, spacious, tmp_path / "model", languages=["bo"])
        assert load(tmp_path / "model").config.vocab_size == len(tokenizer) + 2


def change(**new: torch.Tensor | None) -> Callable[[Tensors], object]:
    """Return an edit that replaces tensors, or removes them for `None`. `__` stands for a dot."""

    def edit(tensors: Tensors) -> Tensors:
        changed = tensors | {name.replace("__", "."): tensor for name, tensor in new.items()}
        return {name: tensor for name, tensor in changed.items() if tensor is not None}

    return edit


def off_by_a_bit(name: str) -> Callable[[Tensors], object]:
    def edit(tensors: Tensors) -> Tensors:
        tensor = tensors[name].clone()
        tensor.view(torch.int32)[-1, -1] ^= 1
        return tensors | {name: tensor}

    return edit


BAD_RELEASES = {
    "a missing tensor": (change(decoder__layers__3__ffn__2__bias=None), ["lacks decoder.layers.3.ffn.2.bias."]),
    "no output": (
        change(decoder__last_linear__weight=None, decoder__last_linear__bias=None),
        ["decoder.last_linear.weight and 1 more"],
    ),
    "a missing projection": (
        change(decoder__layers__1__cross_attention__in_proj_weight=None),
        ["decoder.layers.1.cross_attention.in_proj_weight[q] and 2 more"],
    ),
    "a tensor too many": (
        change(decoder__layers__0__norm5__bias=torch.ones(32)),
        ["has an unknown tensor: decoder.layers.0.norm5.bias"],
    ),
    "an encoder layer too many": (
        change(encoder__encoder__layer__4__output__dense__bias=torch.ones(32)),
        ["has an unknown tensor: encoder.encoder.layer.4.output.dense.bias", "the same number of layers"],
    ),
    "another shape": (change(decoder__layers__2__ffn1__0__weight=torch.ones(36, 32)), ["[36, 32]", "[37, 32]"]),
    "a projection without thirds": (
        change(decoder__layers__0__self_attention__in_proj_bias=torch.ones(97)),
        ["in_proj_bias[q]", "[33]", "[32]"],
    ),
    "embeddings that are no repeat": (
        off_by_a_bit("decoder.embed_layer.word_embeddings.weight"),
        ["decoder.embed_layer.word_embeddings.weight", "not equal to encoder.embeddings.word_embeddings.weight"],
    ),
    "a state dict of something else": (lambda _: {"fc.weight": torch.ones(2, 2)}, ["not a released XLM-SWCM"]),
    "a state dict without a decoder": (
        lambda tensors: {name: tensor for name, tensor in tensors.items() if not name.startswith("decoder.")},
        ["decoder.layers.0.norm1.weight", "not a released XLM-SWCM"],
    ),
    "no state dict": (lambda _: [1, 2], ["not a dict of tensors"]),
    "an empty state dict": (lambda _: {}, ["not a released XLM-SWCM"]),
    "pickled code": (lambda _: {"state_dict": Path("x")}, ["pickled code, which xlm-swcm never runs"]),
}


class TestBadInput:
    def run(self, released: Path, encoder: Path | str, output: Path, *arguments: str) -> Result:
        command = ["convert-released", str(released), "--encoder", str(encoder), str(output), *arguments]
        return CliRunner().invoke(main, command)

    @pytest.mark.parametrize("case", BAD_RELEASES)
    def test_a_bad_file_is_told_in_one_sentence(self, case, tensors, encoder, tmp_path):
        edit, words = BAD_RELEASES[case]
        torch.save(edit(tensors), tmp_path / "release.bin")
        assert_refused(self.run(tmp_path / "release.bin", encoder, tmp_path / "model"), "release.bin", *words)
        assert [path.name for path in tmp_path.iterdir()] == ["release.bin"]

    def test_a_file_that_is_not_there_or_cut_short_is_named(self, folder, encoder, tmp_path):
        missing, short = tmp_path / "missing.bin", tmp_path / "short.bin"
        assert_refused(self.run(missing, encoder, tmp_path / "model"), f"{missing} does not exist.")
        assert_refused(
            self.run(tmp_path, encoder, tmp_path / "model"), f"{tmp_path} is a folder. Pass the weight file"
        )
        short.write_bytes((folder.parent / "release.bin").read_bytes()[:5000])
        assert_refused(self.run(short, encoder, tmp_path / "model"), str(short), "cut short")

    def test_an_encoder_that_is_not_the_releases_is_refused(self, folder, own_encoder, tmp_path):
        released = folder.parent / "release.bin"
        edit_config(own_encoder, num_hidden_layers=5)
        assert_refused(
            self.run(released, own_encoder, tmp_path / "model"), "lacks encoder.encoder.layer.4", "and 15 more"
        )
        edit_config(own_encoder, pad_token_id=2)
        assert_refused(self.run(released, own_encoder, tmp_path / "model"), "pad_token_id is 2", "1 in its tokenizer")
        edit_config(own_encoder, model_type="xlm_swcm")
        assert_refused(self.run(released, own_encoder, tmp_path / "model"), "already an XLM-SWCM checkpoint")
        assert_refused(self.run(released, tmp_path / "none", tmp_path / "model"), "does not exist")

    def test_an_output_that_holds_the_release_is_refused(self, folder, encoder):
        released = folder.parent / "release.bin"
        before = sorted(folder.parent.iterdir())
        (folder.parent / "config.json").write_text("{}")
        result = self.run(released, encoder, folder.parent, "--overwrite")
        (folder.parent / "config.json").unlink()
        assert_refused(result, str(released), "would be lost")
        assert sorted(folder.parent.iterdir()) == before

    def test_a_language_is_checked(self, folder, encoder, tmp_path):
        result = self.run(folder.parent / "release.bin", encoder, tmp_path / "model", "--languages", "Tibetan!")
        assert_refused(result, '"Tibetan!" is not a language code')


def test_a_machine_with_transformers_alone_computes_the_same(encoder, tmp_path):
    tokens = len(AutoTokenizer.from_pretrained(encoder))
    plain = make_release(encoder, vocab_size=tokens + 2)
    torch.save(plain.state_dict(), tmp_path / "release.bin")
    folder = tmp_path / "model"
    convert_released(tmp_path / "release.bin", encoder, folder, languages=["bo", "zh"])
    AutoTokenizer.from_pretrained(folder, src_lang="bo", tgt_lang="zh").save_pretrained(folder)
    assert python_files(folder) == CODE | {"released_xlm_swcm.py"}

    remote = run_without_the_package(folder, tmp_path / "elsewhere")
    assert len(remote["refused"]) == 8
    ours = [ReleasedXLMSWCMConfig, ReleasedXLMSWCMModel, ReleasedXLMSWCMForConditionalGeneration]
    assert remote["classes"] == [*(it.__name__ for it in ours), "XLMSWCMTokenizer"]
    assert all(module.startswith("transformers_modules.") for module in remote["modules"])
    batch = AutoTokenizer.from_pretrained(folder)(SOURCE, text_target=TARGET, return_tensors="pt")
    model = AutoModelForSeq2SeqLM.from_pretrained(folder)
    assert torch.equal(remote["logits"], logits_of(model, **batch))
    assert torch.equal(remote["logits_again"], remote["logits"])
    targets = model.prepare_decoder_input_ids_from_labels(batch["labels"])
    with torch.no_grad():
        assert_close(remote["logits"], plain(batch["input_ids"], targets))
    options = dict(forced_bos_token_id=tokens + 1, no_repeat_ngram_size=1, max_new_tokens=8)
    assert torch.equal(remote["generated"], model.generate(batch["input_ids"], **options))
