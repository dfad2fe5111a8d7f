"""Rows, examples and datasets of a fine-tuning."""

import pytest
import yaml
from support.corpus_files import write_rows

from modeling_xlm_swcm import XLMSWCMTokenizer
from modeling_xlm_swcm.training.examples import Pair
from modeling_xlm_swcm.training.finetuning_data import (
    FinetuneDataArguments,
    PairEncoder,
    encode_for_evaluation,
    pairs_of_row,
    read_pairs,
)
from modeling_xlm_swcm.training.rows import BadRows, DataError


ROWS = [
    {"zh": "我们", "kk": "жел жоқ", "bo": "ང་ཚོ"},
    {"zh": "河边没有风", "kk": "өзен", "bo": "ཁྱེད་རང"},
    {"zh": "早上去河边", "kk": "бардық", "bo": "ཞོགས་པ"},
]


def data_arguments(task: str, **options) -> FinetuneDataArguments:
    return FinetuneDataArguments(task, **({"source_lang": "zh"} | options))


def pairs_of(row: dict, args: FinetuneDataArguments) -> list[Pair]:
    bad_rows = BadRows()
    pairs = list(pairs_of_row("data.jsonl:7", row, args, bad_rows))
    bad_rows.report()
    return pairs


class TestRows:
    def test_translation_into_several_languages_and_back(self):
        args = data_arguments("translation", target_lang=["kk", "bo"], both_directions=True)
        expected = [
            ("我们", "жел жоқ", "zh", "kk"),
            ("我们", "ང་ཚོ", "zh", "bo"),
            ("жел жоқ", "我们", "kk", "zh"),
            ("ང་ཚོ", "我们", "bo", "zh"),
        ]
        for row in (ROWS[0], {"id": 1, "translation": ROWS[0]}):
            assert [pair[1:5] for pair in pairs_of(row, args)] == expected

    def test_a_language_that_is_asked_for_twice_is_one(self):
        args = data_arguments("translation", target_lang=["kk", "kk"])
        assert [pair.tgt_lang for pair in pairs_of(ROWS[0], args)] == ["kk"]

    def test_a_summary_has_the_language_of_its_row(self):
        args = data_arguments("summarization", source_lang=None, lang_column="lang", summary_column="title")
        (pair,) = pairs_of({"text": "a b", "title": "a", "lang": "kk"}, args)
        assert pair == ("data.jsonl:7", "a b", "a", "kk", "kk", ())
        args.target_lang = ["zh"]
        assert pairs_of({"text": "a b", "title": "a", "lang": "kk"}, args)[0].tgt_lang == "zh"

    @pytest.mark.parametrize("answers", ["b", ["b", "c"], {"text": ["b", "c"], "answer_start": [2, 4]}])
    def test_an_answer_is_read_as_text_as_list_and_as_in_squad(self, answers):
        row = {"question": "q?", "context": "a b c", "answers": answers}
        (pair,) = pairs_of(row, data_arguments("question-answering"))
        assert (pair.source, pair.target) == (("q?", "a b c"), "b")
        assert pair.other_targets == (() if answers == "b" else ("c",))

    @pytest.mark.parametrize(
        ("task", "row", "message"),
        [
            ("summarization", {"text": "a"}, 'data.jsonl:7 has no column "summary"'),
            ("summarization", {"text": " ", "summary": "a"}, 'data.jsonl:7 is empty in the column "text"'),
            ("question-answering", {"question": "q", "context": "c", "answers": {"text": []}}, "data.jsonl:7 has no"),
            ("translation", {"zh": "a"}, 'data.jsonl:7 has no column "kk"'),
        ],
    )
    def test_a_row_without_its_texts_is_named(self, task, row, message):
        target_lang = ["kk"] if task == "translation" else None
        with pytest.raises(DataError, match=message):
            pairs_of(row, data_arguments(task, target_lang=target_lang))


class TestEncoding:
    @pytest.fixture
    def tokenizer(self, learner_folder) -> XLMSWCMTokenizer:
        return XLMSWCMTokenizer.from_pretrained(learner_folder)

    def test_question_and_context_are_a_pair_of_texts(self, tokenizer):
        args = data_arguments("question-answering")
        pair = Pair("x:1", ("风？", "河边没有风"), "没有", "zh", "zh")
        (example,) = PairEncoder(tokenizer, args, BadRows())([pair], 20)
        tokenizer.src_lang = tokenizer.tgt_lang = "zh"
        assert example["input_ids"] == tokenizer("风？", "河边没有风")["input_ids"]
        assert example["labels"] == tokenizer(text_target="没有")["input_ids"]

    def test_long_sources_are_cut_off_only_where_asked_and_counted(self, tokenizer):
        pairs = [Pair("x:1", "河" * 40, "风", "zh", "zh"), Pair("x:2", "河", "风", "zh", "zh")]
        args = data_arguments("summarization", max_source_length=12, truncate_sources=True)
        encoder = PairEncoder(tokenizer, args, BadRows())
        long, short = encoder(pairs, 20)
        tokenizer.src_lang = "zh"
        whole = tokenizer("河" * 40)["input_ids"]
        assert long["input_ids"] == [*whole[:11], tokenizer.eos_token_id] and len(short["input_ids"]) < 12
        assert encoder.num_truncated == 1
        args.truncate_sources = False
        advice = "Correct the data, pass a larger maximum length, or pass `skip_bad_rows=True`."
        with pytest.raises(DataError, match=f"x:1 has a source of more than 12 tokens. {advice}"):
            encoder = PairEncoder(tokenizer, args, BadRows())
            assert len(list(encoder(pairs, 20))) == 1
            encoder.report()

    def test_references_stay_beside_their_examples_when_rows_are_skipped(self, tokenizer):
        args = data_arguments("translation", target_lang=["kk"], max_source_length=12)
        sources, target = ["我们", "河" * 40, "风"], "өзен " * 100
        pairs = [Pair(f"x:{n}", source, f"{n} {target}", "zh", "kk") for n, source in enumerate(sources)]
        examples, metrics = encode_for_evaluation(pairs, PairEncoder(tokenizer, args, BadRows(True)))
        assert metrics.references == [f"0 {target}", f"2 {target}"]
        assert [len(example["labels"]) for example in examples] == [128, 128]
        assert metrics.groups == ["zh-kk", "zh-kk"]


@pytest.mark.parametrize(
    ("task", "row", "option"),
    [
        ("translation", {"chinese": "风", "kazakh": "жел"}, "--source_lang"),
        ("translation", {"zh": "风", "ug": "شامال"}, "--target_lang"),
        ("summarization", {"text": "风", "title": "风", "lang": "zh"}, "--summary_column"),
        ("summarization", {"text": "风", "summary": "风"}, "--lang_column"),
        ("question-answering", {"question": "风", "context": "风", "lang": "zh"}, "--answer_column"),
    ],
)
def test_a_column_that_a_file_lacks_comes_with_the_option_that_names_it(tmp_path, task, row, option):
    options = {"target_lang": ["kk"]} if task == "translation" else {"lang_column": "lang"}
    file = write_rows(tmp_path / "rows.tsv", [row])
    args = data_arguments(task, train_file=file, skip_bad_rows=True, **options)
    with pytest.raises(
        DataError,
        match=rf'has no column "(.*)" \(columns: {", ".join(row)}\)\. Rename a column to "\1", or change {option}\.$',
    ):
        read_pairs(args, ["train"])


def test_a_spreadsheet_is_no_table_of_pairs(tmp_path):
    (tmp_path / "pairs.xlsx").write_bytes(b"PK")
    args = data_arguments("translation", target_lang=["kk"], train_file=str(tmp_path / "pairs.xlsx"))
    with pytest.raises(DataError, match=r"pairs\.xlsx cannot be read, because \.xlsx files are not supported\."):
        read_pairs(args, ["train"])


def test_plain_text_is_not_a_table_of_pairs(tmp_path):
    (tmp_path / "zh.txt").write_text("风\n", encoding="utf-8")
    args = data_arguments("translation", target_lang=["kk"], train_file=str(tmp_path / "zh.txt"))
    message = r"zh\.txt is plain text\. Pass a TSV, CSV or JSON Lines file with the columns zh and kk\.$"
    with pytest.raises(DataError, match=message):
        read_pairs(args, ["train"])


def test_a_dataset_has_configurations_and_splits_with_a_limit_each(tmp_path):
    for config in ("short", "long"):
        (tmp_path / config).mkdir()
        for split in ("train", "validation", "test"):
            rows = [row | {"zh": f"{config} {split} {number}"} for number, row in enumerate(ROWS + ROWS, 1)]
            write_rows(tmp_path / config / f"{split}.jsonl", rows)
    configs = [{"config_name": config, "data_dir": config} for config in ("short", "long")]
    (tmp_path / "README.md").write_text(f"---\n{yaml.safe_dump({'configs': configs})}---\n")
    args = data_arguments(
        "translation",
        target_lang=["kk"],
        dataset_name=str(tmp_path),
        dataset_config_name="long",
        max_train_samples=3,
        max_eval_samples=1,
        max_predict_samples=2,
    )
    read = read_pairs(args, ["train", "validation", "test"])
    assert {split: [pair.source for pair in pairs] for split, pairs in read.items()} == {
        "train": ["long train 1", "long train 2", "long train 3"],
        "validation": ["long validation 1"],
        "test": ["long test 1", "long test 2"],
    }
