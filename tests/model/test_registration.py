import importlib
import json
from pathlib import Path

import pytest
import torch
from support.encoders import xlm_roberta_tokenizer
from support.models import tiny_config, tiny_model
from support.remote_code import CODE, SOURCE, TARGET, python_files, run_without_the_package
from transformers import AutoConfig, AutoModel, AutoModelForSeq2SeqLM, AutoTokenizer, PreTrainedConfig, PreTrainedModel
from transformers.models.auto import configuration_auto, modeling_auto, tokenization_auto

import modeling_xlm_swcm
from modeling_xlm_swcm import XLMSWCMConfig, XLMSWCMForConditionalGeneration, XLMSWCMModel, XLMSWCMTokenizer


AUTO_MAP = {
    "AutoConfig": "configuration_xlm_swcm.XLMSWCMConfig",
    "AutoModel": "modeling_xlm_swcm.XLMSWCMModel",
    "AutoModelForSeq2SeqLM": "modeling_xlm_swcm.XLMSWCMForConditionalGeneration",
}


def tiny_tokenizer() -> XLMSWCMTokenizer:
    encoder_tokenizer = xlm_roberta_tokenizer()
    return XLMSWCMTokenizer(
        tokenizer_object=encoder_tokenizer.backend_tokenizer,
        languages=["bo", "zh"],
        src_lang="bo",
        tgt_lang="zh",
        **encoder_tokenizer.special_tokens_map,
    )


def check_auto_classes():
    assert type(AutoConfig.for_model("xlm_swcm")) is XLMSWCMConfig
    assert type(AutoModel.from_config(tiny_config())) is XLMSWCMModel
    assert type(AutoModelForSeq2SeqLM.from_config(tiny_config())) is XLMSWCMForConditionalGeneration
    assert tokenization_auto.TOKENIZER_MAPPING[XLMSWCMConfig] is XLMSWCMTokenizer
    assert tokenization_auto.tokenizer_class_from_name("XLMSWCMTokenizer") is XLMSWCMTokenizer


class TestImport:
    @pytest.fixture
    def registries(self, monkeypatch):
        """Undo what a test registers."""
        for registry in (
            configuration_auto.CONFIG_MAPPING,
            modeling_auto.MODEL_MAPPING,
            modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
            tokenization_auto.TOKENIZER_MAPPING,
        ):
            monkeypatch.setattr(registry, "_extra_content", dict(registry._extra_content))
        classes = dict(tokenization_auto.REGISTERED_TOKENIZER_CLASSES)
        monkeypatch.setattr(tokenization_auto, "REGISTERED_TOKENIZER_CLASSES", classes)

    def test_the_auto_classes_give_our_classes(self):
        check_auto_classes()

    def test_importing_twice_does_no_harm(self, registries):
        importlib.reload(modeling_xlm_swcm)
        check_auto_classes()

    def test_an_older_registration_of_the_same_names_gives_way(self, registries):
        older_config = type("XLMSWCMConfig", (PreTrainedConfig,), {"model_type": "xlm_swcm"})
        older_model = type("XLMSWCMModel", (PreTrainedModel,), {"config_class": older_config})
        older_tokenizer = type("XLMSWCMTokenizer", (type(xlm_roberta_tokenizer()),), {})
        AutoConfig.register("xlm_swcm", older_config, exist_ok=True)
        AutoModel.register(older_config, older_model)
        AutoTokenizer.register(older_config, tokenizer_class=older_tokenizer)
        assert type(AutoConfig.for_model("xlm_swcm")) is older_config
        importlib.reload(modeling_xlm_swcm)
        check_auto_classes()

    def test_the_package_names_what_it_offers(self):
        for name in modeling_xlm_swcm.__all__:
            assert getattr(modeling_xlm_swcm, name).__name__ == name


class TestSavedCode:
    def check(self, folder: Path, files: set[str]):
        assert python_files(folder) == files
        package = Path(modeling_xlm_swcm.__file__).parent
        for file in files:
            assert (folder / file).read_bytes() == (package / file).read_bytes()

    def auto_map(self, folder: Path, file: str = "config.json") -> dict:
        return json.loads((folder / file).read_text())["auto_map"]

    @pytest.mark.parametrize("part", [lambda model: model, lambda model: model.model], ids=["with head", "base"])
    def test_a_saved_model_carries_its_code_and_names_every_class(self, model, tmp_path, part):
        part(model).save_pretrained(tmp_path)
        self.check(tmp_path, CODE - {"tokenization_xlm_swcm.py", "punctuation_xlm_swcm.py"})
        assert self.auto_map(tmp_path) == AUTO_MAP

    def test_a_saved_config_names_every_class(self, tmp_path):
        tiny_config().save_pretrained(tmp_path)
        assert self.auto_map(tmp_path) == AUTO_MAP

    def test_a_saved_tokenizer_carries_its_code(self, tmp_path):
        tiny_tokenizer().save_pretrained(tmp_path)
        self.check(tmp_path, {"compat_xlm_swcm.py", "punctuation_xlm_swcm.py", "tokenization_xlm_swcm.py"})
        assert self.auto_map(tmp_path, "tokenizer_config.json")["AutoTokenizer"][0] == (
            "tokenization_xlm_swcm.XLMSWCMTokenizer"
        )

    def test_model_and_tokenizer_fit_in_one_folder_in_either_order(self, model, tmp_path):
        for first, second in ((model, tiny_tokenizer()), (tiny_tokenizer(), model)):
            folder = tmp_path / type(first).__name__
            first.save_pretrained(folder)
            second.save_pretrained(folder)
            self.check(folder, CODE)
            assert self.auto_map(folder) == AUTO_MAP


class TestRemoteCode:
    @pytest.fixture(scope="class")
    @classmethod
    def folder(cls, tmp_path_factory) -> Path:
        folder = tmp_path_factory.mktemp("checkpoint")
        tokenizer = tiny_tokenizer()
        tokenizer.save_pretrained(folder)
        tiny_model(vocab_size=len(tokenizer)).save_pretrained(folder)
        return folder

    @pytest.fixture(scope="class")
    @classmethod
    def remote(cls, folder, tmp_path_factory) -> dict:
        return run_without_the_package(folder, tmp_path_factory.mktemp("elsewhere"))

    @pytest.fixture
    def batch(self, folder) -> dict[str, torch.Tensor]:
        return dict(AutoTokenizer.from_pretrained(folder)(SOURCE, text_target=TARGET, return_tensors="pt"))

    def test_code_is_refused_without_trust(self, remote):
        assert len(remote["refused"]) == 8
        assert all("trust_remote_code" in message for message in remote["refused"])

    def test_the_classes_come_from_the_folder(self, remote):
        ours = [XLMSWCMConfig, XLMSWCMModel, XLMSWCMForConditionalGeneration, XLMSWCMTokenizer]
        assert remote["classes"] == [it.__name__ for it in ours]
        assert all(module.startswith("transformers_modules.") for module in remote["modules"])

    def test_the_tokens_are_ours(self, remote, batch):
        assert remote["batch"].keys() == batch.keys()
        for name, tokens in batch.items():
            assert torch.equal(remote["batch"][name], tokens)

    @torch.no_grad()
    def test_the_logits_are_ours_to_the_bit(self, remote, folder, batch):
        model = AutoModelForSeq2SeqLM.from_pretrained(folder)
        assert torch.equal(remote["logits"], model(**batch).logits)
        assert torch.equal(remote["logits_again"], remote["logits"])
        model.set_attn_implementation("eager")
        assert torch.equal(remote["eager"], model(**batch).logits)
        assert torch.equal(remote["eager_later"], remote["eager"])
        assert not torch.equal(remote["eager_later"], remote["logits_again"])

    @torch.no_grad()
    def test_the_base_models_states_are_ours_to_the_bit(self, remote, folder, batch):
        model = AutoModel.from_pretrained(folder)
        states = model(batch["input_ids"], decoder_input_ids=batch["labels"]).last_hidden_state
        assert torch.equal(remote["states"], states)

    def test_the_generated_tokens_are_ours(self, remote, folder, batch):
        model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
        tag = tokenizer.get_lang_id("zh")
        options = dict(forced_bos_token_id=tag, no_repeat_ngram_size=1, max_new_tokens=8)
        generated = model.generate(batch["input_ids"], **options)
        assert torch.equal(remote["generated"], generated)
        assert generated[0, 1] == tag
