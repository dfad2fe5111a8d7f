"""Metrics of generated text: equal texts score 100 and disjoint texts score 0, in every script."""

import json
from pathlib import Path
from types import SimpleNamespace

import evaluate
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.encoders import xlm_roberta_tokenizer
from transformers import EvalPrediction

import modeling_xlm_swcm
from modeling_xlm_swcm.training.finetuning import save_scores
from modeling_xlm_swcm.training.metrics import GenerationMetrics, score
from modeling_xlm_swcm.training.segmentation import segment, words


# Two texts of each language, which share only spaces and, in Tibetan, the tsheg.
TEXTS = {
    "bo": ("ང་དཔེ་ཆ་དང", "ཞིམ་ཤོག"),
    "ug": ("ھاۋا ئوچۇق", "بىز"),
    "kk-Cyrl": ("өзен жағасы", "құрт"),
    "kk-Arab": ("اۋا رايى", "كۇز"),
    "mn-Cyrl": ("Бид өглөө голын эрэг дээр очсон", "ахуй"),
    "mn-Mong": ("ᠪᠢ ᠨᠣᠮ ᠤᠩᠰᠢᠵᠤ ᠪᠠᠶᠢᠨ᠎ᠠ", "ᠭᠡᠷ ᠲᠡᠭᠡᠳ"),
    "zh": ("我们早上去了河边没有风", "书房里很安静"),
    "en": ("the quiet river", "jam box"),
}
SHORT = {"ug": "چوڭ", "zh": "书", "mn-Mong": "ᠭᠡᠷ", "bo": "ཞིམ"}
visible = st.text(min_size=1, max_size=30).filter(lambda text: segment(text))


def numbers(scores: dict) -> dict[str, float]:
    return {name: value for name, value in scores.items() if not name.endswith("signature")}


class TestSegmentation:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("ཁྱེད་རང་ག་པར༌ཕེབས་ག །༡༢་", "ཁྱེད རང ག པར ཕེབས ག ༡༢"),
            ("بۈگۈن ھاۋا ئوچۇق، شامال يوق.", "بۈگۈن ھاۋا ئوچۇق شامال يوق"),
            ("Өзен-көл, жел жоқ!", "өзен көл жел жоқ"),
            ("ᠪᠠᠶᠢᠨ᠎ᠠ᠃ ᠮᠣᠩᠭᠣᠯ\u202fᠤᠨ", "ᠪᠠᠶᠢᠨ᠎ᠠ ᠮᠣᠩᠭᠣᠯ ᠤᠨ"),
            ("我们有3.5米，ＯＫ。", "我 们 有 3.5 米 ok"),
            ("It's e\u0301te\u0301: 12:30", "it's \xe9t\xe9 12 30"),
            ("?!", "? !"),
            (" \n", ""),
        ],
    )
    def test_words(self, text, expected):
        assert words(text) == expected.split()

    def test_punctuation_and_case_are_kept_for_bleu(self):
        assert segment("Жел жоқ! བདེ་།") == ["Жел", "жоқ", "!", "བདེ", "།"]

    @given(st.text(max_size=50))
    def test_nothing_but_blanks_and_tshegs_is_lost(self, text):
        assert "".join("".join(segment(text)).split()) == "".join("".join(segment(" " + text)).split())
        assert all(part.strip() for part in segment(text))

    @given(st.text(alphabet="ཀཁགངིེོུྱྲ", max_size=40), st.text(alphabet="ཀཁགངིེོུྱྲ", max_size=40))
    def test_a_tsheg_always_parts_syllables(self, first, second):
        syllables = segment(f"ཀ{first}") + segment(f"ཀ{second}")
        assert segment(f"ཀ{first}་ཀ{second}") == segment(f"ཀ{first}༌ཀ{second}") == syllables


class TestScores:
    @pytest.mark.parametrize("language", TEXTS)
    def test_identical_texts_score_100(self, language):
        text, _ = TEXTS[language]
        assert set(numbers(score([text], [text])).values()) == {100}

    @pytest.mark.parametrize("language", SHORT)
    def test_identical_texts_of_one_word_score_100(self, language):
        assert set(numbers(score([SHORT[language]], [SHORT[language]])).values()) == {100}

    @pytest.mark.parametrize("language", TEXTS)
    def test_disjoint_texts_score_0(self, language):
        prediction, reference = TEXTS[language]
        scores = numbers(score([prediction], [reference]))
        # sacrebleu's chrF++ counts the tsheg as a character.
        assert scores.pop("chrf++") <= (2 if language == "bo" else 0)
        assert set(scores.values()) == {0}
        without_tsheg = numbers(score([prediction.replace("་", " ")], [reference]))
        assert set(without_tsheg.values()) == {0}

    @given(visible)
    def test_any_text_scores_100_against_itself(self, text):
        assert numbers(score([text], [text])) == pytest.approx(dict.fromkeys(numbers(score(["a"], ["b"])), 100))

    @given(st.lists(st.tuples(visible, visible), min_size=1, max_size=4))
    def test_scores_are_shares_and_precision_is_the_recall_of_the_reverse(self, pairs):
        predictions, references = zip(*pairs, strict=True)
        scores, reverse = score(predictions, references), score(references, predictions)
        assert all(0 <= value <= 100 for value in numbers(scores).values())
        for kind in ("rouge1", "rouge2", "rougeL"):
            assert scores[f"{kind}_p"] == pytest.approx(reverse[f"{kind}_r"])
            assert scores[f"{kind}_f"] == pytest.approx(reverse[f"{kind}_f"])

    def test_rouge_by_hand(self):
        # Three of four syllables match, two of three bigrams, and the longest common subsequence has three.
        scores = score(["ང་དཔེ་ཆ་ཀློག"], ["ང་དཔེ་ཆ་བྲིས་སོང"])
        assert scores["rouge1_p"] == 75 and scores["rouge1_r"] == 60
        assert scores["rouge2_p"] == pytest.approx(200 / 3) and scores["rouge2_r"] == 50
        assert scores["rougeL_f"] == pytest.approx(200 / 3)
        assert scores["token_f1"] == scores["rouge1_f"] == pytest.approx(200 / 3)

    def test_rouge_is_the_mean_over_texts(self):
        scores = score(["我去", "a"], ["我来", "b"])
        assert scores["rouge1_f"] == 25

    def test_exact_match_ignores_case_and_punctuation(self):
        scores = score(["Астана.", "Алматы"], ["астана", "Алматы қаласы"])
        assert scores["exact_match"] == 50 and scores["rouge1_f"] == pytest.approx((100 + 200 / 3) / 2)

    @pytest.mark.parametrize(("text", "written"), [("25℃", "25°C"), ("№ 5", "No 5"), ("™", "TM"), ("ﬀ", "FF")])
    def test_forms_that_a_tokenizer_normalises_match(self, text, written):
        scores = score([written], [text])
        assert scores["exact_match"] == scores["rougeL_f"] == 100

    def test_the_best_of_several_references_counts(self):
        scores = score(["他", "我去", "a"], [["人", "我", "他"], ["我来", "你"], "a"])
        assert scores["exact_match"] == pytest.approx(200 / 3)
        assert scores["token_f1"] == pytest.approx(100 * (1 + 0.5 + 1) / 3)
        one, other = score(["我去", "a"], ["你", "a"]), score(["我去", "a"], [["你", "我去"], "a"])
        assert one["bleu"] < other["bleu"] == 100 and one["chrf++"] < other["chrf++"] == 100

    def test_bleu_differs_with_case_and_its_signature_names_the_segmentation(self):
        scores = score(["Жел жоқ еді бүгін"], ["жел жоқ еді бүгін"])
        assert scores["bleu"] < 100 == scores["rougeL_f"]
        assert "tok:uax29-nfkc-notsheg|" in scores["bleu_signature"] and "nw:2" in scores["chrf++_signature"]

    def test_unequal_or_no_texts_are_refused(self):
        with pytest.raises(ValueError, match="Cannot score 0 predictions against 0 references"):
            score([], [])
        with pytest.raises(ValueError, match="Cannot score 1 predictions against 2 references"):
            score(["a"], ["a", "b"])


class TestGenerationMetrics:
    @pytest.fixture
    def tokenizer(self):
        return xlm_roberta_tokenizer()

    def encode(self, tokenizer, texts: list[str], padding: int) -> np.ndarray:
        rows = tokenizer(texts)["input_ids"]
        width = max(map(len, rows)) + 2
        return np.array([row + [padding] * (width - len(row)) for row in rows])

    def test_padding_and_ignored_labels_are_no_text(self, tokenizer):
        texts = ["A quiet morning", "the river"]
        prediction = EvalPrediction(
            predictions=self.encode(tokenizer, texts, -100), label_ids=self.encode(tokenizer, texts, 1)
        )
        scores = GenerationMetrics(tokenizer)(prediction)
        faults = {name: scores.pop(name) for name in list(scores) if name.endswith("_outputs")}
        assert set(scores.values()) == {100} and set(faults.values()) == {0}
        assert "bleu_signature" not in scores

    def test_given_references_count_and_not_what_the_tokenizer_made_of_them(self, tokenizer):
        ids = self.encode(tokenizer, ["the river"], 1)
        scores = GenerationMetrics(tokenizer, references=["the river ☃ ☃"])(SimpleNamespace(predictions=ids))
        assert scores["rouge1_p"] == 100 and scores["rouge1_r"] == 50

    def test_rows_that_fill_up_the_last_batch_of_several_processes_do_not_count(self, tokenizer):
        ids = self.encode(tokenizer, ["the river", "the boat", "the river"], 1)
        metrics = GenerationMetrics(tokenizer, references=["the river", "the boat"], names=["chrf++", "bleu"])
        assert metrics(SimpleNamespace(predictions=ids)) == {"chrf++": 100, "bleu": 100, "cut_outputs": 0}
        assert metrics.written == ["the river", "the boat"]

    def test_groups_are_scored_apart(self, tokenizer):
        ids = self.encode(tokenizer, ["the river", "the river", "the boat"], 1)
        metrics = GenerationMetrics(
            tokenizer, ["the river", "one", "the bank"], groups=["kk", "bo", "kk"], names=["rouge1_f", "exact_match"]
        )
        scores = metrics(SimpleNamespace(predictions=ids))
        expected = {"rouge1_f": 50, "exact_match": 100 / 3, "kk_rouge1_f": 75, "bo_rouge1_f": 0, "cut_outputs": 0}
        assert scores == pytest.approx(expected)
        assert metrics.scores["kk"]["exact_match"] == 50
        assert metrics.signatures.keys() == {"bleu_signature", "chrf++_signature"}

    def test_outputs_that_reach_the_maximum_length_are_counted(self, tokenizer):
        start, end, pad = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
        (word,) = tokenizer("river", add_special_tokens=False)["input_ids"][-1:]
        ids = np.array([[start, word, end, pad], [start, word, word, word], [start, word, word, -100]])
        metrics = GenerationMetrics(tokenizer, 3 * ["river"], groups=["kk", "bo", "bo"], names=["chrf++"])
        assert metrics(SimpleNamespace(predictions=ids))["cut_outputs"] == 2
        assert [metrics.scores[group]["cut_outputs"] for group in ("kk", "bo")] == [0, 2]
        # This number is not a score, so it cannot select a model.
        assert "cut_outputs" not in metrics.metric_names

    def test_they_are_in_the_result_file_and_in_a_warning(self, tokenizer, tmp_path, monkeypatch):
        warned = []
        monkeypatch.setattr("modeling_xlm_swcm.training.finetuning.logger.warning", warned.append)
        start, end = tokenizer.bos_token_id, tokenizer.eos_token_id
        metrics = GenerationMetrics(tokenizer, 2 * ["river"], names=["chrf++"])
        metrics(SimpleNamespace(predictions=np.array([[start, 5, end], [start, 5, 6]])))
        arguments = SimpleNamespace(output_dir=str(tmp_path))
        trainer = SimpleNamespace(args=arguments, is_world_process_zero=lambda: True)
        assert save_scores(metrics, trainer, "eval", 1.5).keys() == {"chrf++"}
        assert json.loads((tmp_path / "eval_results.json").read_text())["all"]["cut_outputs"] == 1
        assert warned == ["1 of 2 outputs are incomplete: they reached --max_target_length. Pass a larger value."]

    def test_the_script_of_each_language_is_its_own(self, tokenizer):
        texts = {"kk": "өзен", "bo": "ཞིམ"}
        metrics = GenerationMetrics(tokenizer, [*texts.values()], groups=[*texts], names=["chrf++"])
        metrics.decode = lambda ids: ["өзен", "өзен"]
        metrics(SimpleNamespace(predictions=np.array([[0, 5, 2], [0, 3, 2]])))
        assert [metrics.scores[group]["wrong_script_outputs"] for group in ("all", "kk", "bo")] == [1, 0, 1]
        assert [metrics.scores[group]["unk_outputs"] for group in ("all", "kk", "bo")] == [1, 0, 1]


def test_evaluate_loads_the_folder_offline(monkeypatch):
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    folder = Path(modeling_xlm_swcm.__file__).parent / "training" / "text_metrics"
    metric = evaluate.load(str(folder))
    texts = [text for text, _ in TEXTS.values()]
    scores = metric.compute(predictions=texts, references=texts)
    assert set(numbers(scores).values()) == {100} and scores["bleu_signature"]
