"""Run the common tests of Transformers on XLM-SWCM."""

import unittest
from unittest import mock

import pytest
import torch
from support.transformers_suite import load
from transformers.models.auto import modeling_auto

from modeling_xlm_swcm import (
    XLMSWCMConfig,
    XLMSWCMForConditionalGeneration,
    XLMSWCMModel,
    XLMSWCMModernConfig,
    XLMSWCMModernForConditionalGeneration,
    XLMSWCMModernModel,
)


ModelTesterMixin = load("test_modeling_common").ModelTesterMixin
ConfigTester = load("test_configuration_common").ConfigTester
ids_tensor = load("test_modeling_common").ids_tensor

# The suite looks up models here, and silently skips models that are not listed.
for model_type, name in (("xlm_swcm", "XLMSWCM"), ("xlm_swcm_modern", "XLMSWCMModern")):
    modeling_auto.MODEL_MAPPING_NAMES.setdefault(model_type, f"{name}Model")
    modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES.setdefault(
        model_type, f"{name}ForConditionalGeneration"
    )


class XLMSWCMModelTester:
    base_model_class = XLMSWCMModel
    causal_lm_class = XLMSWCMForConditionalGeneration
    # One layer of each type, because the suite allows only two layers.
    decoder = {"decoder_blocks": ["custom", "normal"]}

    def __init__(self, parent):
        self.parent = parent
        self.batch_size = 13
        self.seq_length = self.encoder_seq_length = self.decoder_seq_length = 7
        self.num_hidden_layers = self.decoder_layers = 2
        self.hidden_size = 32
        self.num_attention_heads = 4
        self.vocab_size = 99
        self.is_training = True

    def get_config(self) -> XLMSWCMConfig:
        return XLMSWCMConfig(
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads,
            intermediate_size=37,
            max_position_embeddings=70,
            hidden_dropout_prob=0.1,
            **self.decoder,
        )

    def prepare_config_and_inputs_for_common(self):
        input_ids = ids_tensor([self.batch_size, self.seq_length], self.vocab_size).clamp(3)
        decoder_input_ids = ids_tensor([self.batch_size, self.seq_length], self.vocab_size).clamp(3)
        return self.get_config(), {
            "input_ids": input_ids,
            "attention_mask": torch.ones_like(input_ids),
            "decoder_input_ids": decoder_input_ids,
            "decoder_attention_mask": torch.ones_like(decoder_input_ids),
        }


# A test of the suite passes the cache by its old name, and checks that this gives a warning.
@pytest.mark.filterwarnings("always:.past_key_values. is deprecated")
class XLMSWCMSuiteTest(ModelTesterMixin, unittest.TestCase):
    all_model_classes = (XLMSWCMModel, XLMSWCMForConditionalGeneration)
    is_encoder_decoder = True
    model_tester_class = XLMSWCMModelTester

    def setUp(self):
        self._model_tester = self.model_tester_class(self)
        config_class = self.all_model_classes[0].config_class
        self.config_tester = ConfigTester(self, config_class=config_class)
        if config_class is XLMSWCMConfig:
            # The encoder and decoder classes have the plans. The suite checks them only if the config has a plan too.
            self.enterContext(mock.patch.object(XLMSWCMConfig, "base_model_tp_plan", {}))

    @property
    def model_tester(self):
        return self._model_tester

    def test_config(self):
        self.config_tester.run_common_tests()

    @unittest.skip("The source distribution has no generation suite. tests/test_generation.py tests generation.")
    def test_generation_tester_mixin_inheritance(self):
        pass


class PrefixModelTester(XLMSWCMModelTester):
    decoder = {"decoder_blocks": ["prefix", "prefix"]}


class TiedPrefixModelTester(XLMSWCMModelTester):
    decoder = {"decoder_blocks": ["prefix", "prefix"], "weight_sharing": "tied"}


class PrefixSuiteTest(XLMSWCMSuiteTest):
    model_tester_class = PrefixModelTester


class TiedPrefixSuiteTest(XLMSWCMSuiteTest):
    model_tester_class = TiedPrefixModelTester


class ModernModelTester(XLMSWCMModelTester):
    base_model_class = XLMSWCMModernModel
    causal_lm_class = XLMSWCMModernForConditionalGeneration
    decoder = {"weight_sharing": "init"}

    def get_config(self) -> XLMSWCMModernConfig:
        return XLMSWCMModernConfig(
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads,
            intermediate_size=37,
            max_position_embeddings=70,
            local_attention=4,
            mlp_dropout=0.1,
            pad_token_id=1,
            bos_token_id=0,
            eos_token_id=2,
            decoder_start_token_id=0,
            **self.decoder,
        )


class TiedModernModelTester(ModernModelTester):
    decoder = {"weight_sharing": "tied"}


class PaperModernModelTester(ModernModelTester):
    decoder = {"decoder_blocks": ["custom", "normal"]}


class ModernSuiteTest(XLMSWCMSuiteTest):
    all_model_classes = (XLMSWCMModernModel, XLMSWCMModernForConditionalGeneration)
    model_tester_class = ModernModelTester

    def setUp(self):
        if self._testMethodName.startswith("test_model_rope_scaling"):
            self.skipTest("The module is Transformers' own. Sources beyond max_position_embeddings are refused.")
        super().setUp()


class TiedModernSuiteTest(ModernSuiteTest):
    model_tester_class = TiedModernModelTester


class PaperModernSuiteTest(ModernSuiteTest):
    model_tester_class = PaperModernModelTester
