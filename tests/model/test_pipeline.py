"""Translation, summarization and question answering with `pipeline`."""

import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support.encoders import SENTENCES, edit_tensors
from support.models import learn, next_texts
from torch.utils.data import Dataset
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, GenerationConfig, pipeline

from modeling_xlm_swcm import XLMSWCMConfig, XLMSWCMPipeline
from modeling_xlm_swcm.pipeline_xlm_swcm import TASKS


TEXTS = ["The river", "A quiet morning", "no wind", "The ferry stays"]
OPTIONS = dict(max_new_tokens=8)


class Endless(Dataset):
    """A dataset that raises no IndexError after its end."""

    def __len__(self) -> int:
        return len(TEXTS)

    def __getitem__(self, index: int) -> str:
        return TEXTS[index % len(TEXTS)]


@pytest.fixture(scope="module")
def converted(converted, tmp_path_factory) -> Path:
    """Return a checkpoint with a different output for every text and language."""
    folder = Path(shutil.copytree(converted, tmp_path_factory.mktemp("translator") / "model"))
    tokenizer = AutoTokenizer.from_pretrained(folder, src_lang="zh")
    model = learn(XLMSWCMConfig.from_pretrained(folder), next_texts(tokenizer, TEXTS, ["bo", "kk-Arab", "zh"]))
    learnt = model.state_dict()
    edit_tensors(folder, lambda tensors: {name: learnt[name] for name in tensors})
    return folder


@pytest.fixture(params=["code of the folder", "the plugin's"])
def load(request, converted):
    """Return a function that loads a pipeline for a task."""
    how = (
        dict(trust_remote_code=True) if request.param == "code of the folder" else dict(pipeline_class=XLMSWCMPipeline)
    )
    return lambda task, **options: pipeline(task, model=str(converted), **how, **options)


@pytest.fixture
def write(converted):
    """Return a function that calls `generate` for a source, without a pipeline."""
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(converted), AutoTokenizer.from_pretrained(converted)

    def write(*source: str, src: str, tgt: str, **options) -> list[str]:
        tokenizer.src_lang = src
        inputs = tokenizer(*source, return_tensors="pt")
        ids = model.generate(**inputs, forced_bos_token_id=tokenizer.get_lang_id(tgt), **OPTIONS | options)
        return [text.strip() for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]

    return write


def test_a_text_and_a_list_of_texts_are_translated(load, write):
    translate = load("translation")
    expected = [{"translation_text": write(text, src="zh", tgt="bo")[0]} for text in TEXTS]
    assert len({answer["translation_text"] for answer in expected}) > 1
    languages = dict(src_lang="zh", tgt_lang="bo")
    assert translate(TEXTS[0], **languages, **OPTIONS) == expected[:1]
    for batch_size in (1, 2, 3, 8):
        assert translate(TEXTS, **languages, **OPTIONS, batch_size=batch_size) == expected
    assert translate([], **languages) == []
    streamed = translate((text for text in TEXTS), **languages, **OPTIONS, batch_size=2)
    assert [answer for answers in streamed for answer in answers] == expected
    streamed = translate(Endless(), **languages, **OPTIONS)
    assert [answer for answers in streamed for answer in answers] == expected


def test_a_document_is_translated_line_by_line(load, write, caplog):
    translate = load("translation", src_lang="zh", tgt_lang="bo", **OPTIONS)
    sentences = ["The river", "A quiet morning.", "No wind!", "The ferry stays"]
    document = "# {}\n\n  - {}  {}\n  - ***\n\n\t1. {} \n"
    greedy, beams = ({}, dict(num_beams=4, num_return_sequences=3))
    for options in (greedy, beams):
        lines = [write(sentence, src="zh", tgt="bo", **options) for sentence in sentences]
        expected = [{"translation_text": document.format(*texts)} for texts in zip(*lines, strict=True)]
        assert translate(document.format(*sentences), **options, batch_size=2) == expected
        texts = ["No wind!", document.format(*sentences), "\n"]
        answers = [
            [{"translation_text": text} for text in lines[2]],
            expected,
            len(expected) * [{"translation_text": "\n"}],
        ]
        streamed = list(translate((text for text in texts), **options, batch_size=3))
        assert streamed == answers
    assert "is cut" not in caplog.text
    long = "The river, " * 12
    parts = translate(long)[0]["translation_text"]
    assert "A sentence has 87 tokens, but the maximum is 38. It is cut into 4 parts." in caplog.text
    assert parts == " ".join(4 * write("The river, The river, The river,", src="zh", tgt="bo")) + " "


def test_a_text_is_one_input_without_split(load, write):
    translate = load("translation", src_lang="zh", tgt_lang="bo", **OPTIONS)
    text = "no wind! The ferry"
    whole = [{"translation_text": write(text, src="zh", tgt="bo")[0]}]
    assert translate(text, split=False) == whole == translate(text, truncation=True) != translate(text)
    with pytest.raises(ValueError, match="tokens, but the maximum is 38. Shorten it, or set truncation=True."):
        translate("The river, " * 12, split=False)
    with pytest.raises(ValueError, match="split=True is for translation only, not for summarization. Set truncation"):
        load("summarization")(text, src_lang="zh", split=True)


def test_languages_and_options_may_be_set_once_and_changed_in_a_call(load, write):
    translate = load("translation", src_lang="zh", tgt_lang="bo", **OPTIONS)
    for call, languages in (({}, ("zh", "bo")), ({"tgt_lang": "kk-Arab"}, ("zh", "kk-Arab")), ({}, ("zh", "bo"))):
        expected = write(TEXTS[1], src=languages[0], tgt=languages[1])
        assert [answer["translation_text"] for answer in translate(TEXTS[1], **call)] == expected
    assert translate(TEXTS[1], max_new_tokens=3) != translate(TEXTS[1])
    # The start token counts in `max_length`.
    assert translate(TEXTS[1], max_length=4) == translate(TEXTS[1], max_new_tokens=3)


def test_a_call_leaves_the_tokenizers_language_as_it_is(load):
    translate = load("translation", **OPTIONS)
    translate(TEXTS[0], src_lang="zh", tgt_lang="bo")
    assert translate.tokenizer.src_lang is None
    with pytest.raises(ValueError, match="src_lang is not set"):
        translate(TEXTS[0], tgt_lang="bo")


def test_threads_share_a_pipeline(load, write, monkeypatch):
    translate = load("translation", **OPTIONS)
    languages = [("zh", "bo"), ("bo", "zh"), ("kk-Arab", "bo"), ("bo", "kk-Arab")]
    expected = [
        [{"translation_text": write(TEXTS[0], src=src, tgt=tgt)[0]} for src, tgt in [pair]] for pair in languages
    ]
    barrier, tags = threading.Barrier(4), []
    tokenizer_class = type(translate.tokenizer)
    encode, generate = tokenizer_class._encode_plus, translate.model.generate

    def wait(self, *args, **kwargs):
        # All threads have made their call, and no text is encoded.
        barrier.wait(timeout=60)
        return encode(self, *args, **kwargs)

    def watch(**options):
        tags.append((options["input_ids"][0, 1].item(), options["forced_bos_token_id"]))
        return generate(**options)

    monkeypatch.setattr(tokenizer_class, "_encode_plus", wait)
    monkeypatch.setattr(translate.model, "generate", watch)
    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(translate, TEXTS[0], src_lang=src, tgt_lang=tgt) for src, tgt in languages]
        assert [call.result() for call in calls] == expected
    tag = translate.tokenizer.get_lang_id
    assert sorted(tags) == sorted((tag(src), tag(tgt)) for src, tgt in languages)


@pytest.mark.parametrize("spelt", ["<bo>", "<s>", "</s>", "<mask>", "<unk>"])
def test_a_special_token_that_is_spelt_out_is_text(load, spelt):
    translate = load("translation")
    ids = translate.preprocess(f"The {spelt} river", src_lang="zh")["input_ids"][0].tolist()
    tokenizer = translate.tokenizer
    start = [tokenizer.bos_token_id, tokenizer.get_lang_id("zh")]
    assert ids[:2] == start and ids[-1] == tokenizer.eos_token_id
    control = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    assert control.isdisjoint(ids[2:-1])
    question = {"question": f"{spelt} a", "context": f"b {spelt}"}
    pair = load("question-answering").preprocess(question, src_lang="zh")["input_ids"][0].tolist()
    assert pair[:2] == start and pair.count(tokenizer.eos_token_id) == 3
    assert sum(token in control for token in pair) == 5


def test_several_sequences_and_beams_are_returned(load, write):
    beams = dict(num_beams=4, num_return_sequences=3)
    expected = [
        [{"translation_text": text} for text in write(source, src="zh", tgt="bo", **beams)] for source in TEXTS
    ]
    translate = load("translation", src_lang="zh", tgt_lang="bo", **OPTIONS)
    assert translate(TEXTS, **beams, batch_size=3) == expected
    assert translate(TEXTS, **beams, return_dict_in_generate=True) == expected
    assert translate(TEXTS[0], **beams) == expected[0]


def test_scores_do_not_change_texts_and_average_the_tokens_of_a_document(load):
    translate = load("translation", src_lang="zh", tgt_lang="bo", **OPTIONS, num_beams=3, num_return_sequences=2)
    document = f"{TEXTS[0]}. {TEXTS[1]}.\n\n- {TEXTS[2]}"
    texts = [document, *TEXTS, "\n"]
    (whole, *answers, empty) = translate(texts, return_scores=True, batch_size=4)
    assert empty == 2 * [{"translation_text": "\n", "score": None, "num_tokens": 0}]
    assert translate(["\n"], return_scores=True) == [empty]
    without = [[{"translation_text": answer["translation_text"]} for answer in text] for text in (whole, *answers)]
    assert without == translate(texts)[:-1]
    # Each sentence alone, with a full stop and the end token.
    parts = translate([f"{TEXTS[0]}.", f"{TEXTS[1]}.", TEXTS[2]], return_scores=True, split=False)
    for number, answer in enumerate(whole):
        outputs = [part[number] for part in parts]
        assert answer["num_tokens"] == sum(output["num_tokens"] for output in outputs)
        total = sum(output["score"] * output["num_tokens"] for output in outputs)
        assert answer["score"] == pytest.approx(total / answer["num_tokens"], abs=1e-5)
    forced = translate(TEXTS[0], max_new_tokens=1, return_scores=True)
    assert [(answer["score"], answer["num_tokens"]) for answer in forced] == 2 * [(None, 0)]


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}])
def test_terms_change_only_the_sentences_that_have_them(load, tmp_path, options):
    (tmp_path / "terms.tsv").write_text("River\tboat\nferry\theron\n", encoding="utf-8")
    terms = {"terms": str(tmp_path / "terms.tsv"), "terms_strength": 30}
    translate = load("translation", src_lang="zh", tgt_lang="bo", **OPTIONS, **options, **terms)
    document = f"{TEXTS[0]}.\n{TEXTS[1]}. {TEXTS[3]}."
    plain = [answer["translation_text"] for answer in translate([*TEXTS, document], terms={})]
    for batch_size in (1, 4):
        written = [answer["translation_text"] for answer in translate([*TEXTS, document], batch_size=batch_size)]
        assert ["boat" in text for text in written] == [True, False, False, False, True]
        assert ["heron" in text for text in written] == [False, False, False, True, True]
        assert written[1:3] == plain[1:3]
    # With a tiny strength, the output does not change.
    assert [answer["translation_text"] for answer in translate(TEXTS, terms_strength=1e-9)] == plain[:-1]
    assert not any(term in text for text in plain for term in ("boat", "heron"))
    with pytest.raises(ValueError, match="^terms_strength has no effect without terms. Pass terms too."):
        load("translation", src_lang="zh", tgt_lang="bo")(TEXTS, terms_strength=2.0)


def test_a_generation_config_is_taken(load, write):
    config = GenerationConfig(max_new_tokens=4, num_beams=2, decoder_start_token_id=0)
    answers = load("translation")(TEXTS[0], src_lang="zh", tgt_lang="bo", generation_config=config)
    assert answers[0]["translation_text"] == write(TEXTS[0], src="zh", tgt="bo", max_new_tokens=4, num_beams=2)[0]


def test_a_forced_tag_stands_before_languages_that_are_not_asked_for(load, write):
    translate, summarize = (load(task, src_lang="zh", **OPTIONS) for task in ("translation", "summarization"))
    expected = write(TEXTS[0], src="zh", tgt="bo")[0]
    tag = translate.tokenizer.get_lang_id("bo")
    settings = GenerationConfig(
        forced_bos_token_id=tag, decoder_start_token_id=0, max_new_tokens=OPTIONS["max_new_tokens"]
    )
    for forced in ({"forced_bos_token_id": tag}, {"generation_config": settings}):
        assert translate(TEXTS[0], **forced) == [{"translation_text": expected}]
        assert summarize(TEXTS[0], **forced) == [{"summary_text": expected}]
    in_chinese = write(TEXTS[0], src="zh", tgt="zh")[0]
    to_chinese = load("translation", src_lang="zh", tgt_lang="zh", **OPTIONS)
    assert to_chinese(TEXTS[0], forced_bos_token_id=tag) == [{"translation_text": expected}]
    assert to_chinese(TEXTS[0]) == [{"translation_text": in_chinese}]
    assert translate(TEXTS[0], tgt_lang="zh", forced_bos_token_id=tag) == [{"translation_text": in_chinese}]


def test_a_summary_is_in_the_language_of_the_text_unless_another_is_asked_for(load, write):
    summarize = load("summarization", **OPTIONS)
    for call, tgt in (({}, "bo"), ({"tgt_lang": "zh"}, "zh")):
        expected = [{"summary_text": write(text, src="bo", tgt=tgt)[0]} for text in TEXTS]
        assert summarize(TEXTS, src_lang="bo", **call, batch_size=2) == expected


def test_a_question_is_answered_from_its_context_in_every_form_of_input(load, write):
    answer = load("question-answering", src_lang="zh", **OPTIONS)
    questions, contexts = TEXTS[:3], TEXTS[1:4]
    expected = [{"answer": write(*pair, src="zh", tgt="zh")[0]} for pair in zip(questions, contexts, strict=True)]
    pairs = [dict(question=q, context=c) for q, c in zip(questions, contexts, strict=True)]
    assert answer(question=questions[0], context=contexts[0]) == expected[0] == answer(pairs[0])
    assert answer(question=questions, context=contexts, batch_size=2) == expected == answer(pairs)
    several = answer(pairs[0], num_beams=2, num_return_sequences=2)
    assert [list(one) for one in several] == [["answer"], ["answer"]]


def test_a_question_that_is_too_long_to_truncate_the_context_is_refused(load):
    answer = load("question-answering", src_lang="zh", **OPTIONS)
    with pytest.raises(
        ValueError, match="truncation='only_second' cannot shorten this input to 38 tokens: .* Shorten"
    ):
        answer(question="The river, " * 12, context="no wind", truncation="only_second")


def test_a_pipeline_saves_a_model_that_a_pipeline_loads(load, tmp_path):
    translate = load("translation", src_lang="zh", tgt_lang="bo", **OPTIONS)
    translate.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["custom_pipelines"].keys() == TASKS.keys()
    again = pipeline("translation", model=str(tmp_path), trust_remote_code=True, **OPTIONS)
    assert again(TEXTS, src_lang="zh", tgt_lang="bo") == translate(TEXTS)


@pytest.mark.parametrize(
    ("task", "inputs", "options", "words"),
    [
        ("translation", "The river", dict(tgt_lang="bo"), "src_lang is not set"),
        ("translation", "The river", dict(src_lang="bo"), "tgt_lang is not set. Set it to one of: zh, kk-Arab, bo"),
        ("translation", "The river", dict(src_lang="bo", tgt_lang="ug"), 'Unknown language "ug"'),
        ("translation", "", dict(src_lang="bo", tgt_lang="ug"), 'Unknown language "ug"'),
        ("translation", {"text": "The river"}, dict(src_lang="bo", tgt_lang="zh"), "Pass a text or a list"),
        ("translation", None, dict(src_lang="bo", tgt_lang="zh"), "Cannot read the input None. Pass a text"),
        ("question-answering", "Who?", dict(src_lang="bo"), "question and context"),
        ("question-answering", {"question": "Who?", "context": None}, dict(src_lang="bo"), "dict of two texts"),
        ("question-answering", {"question": "Who?", "context": ["a"]}, dict(src_lang="bo"), "dict of two texts"),
        ("question-answering", None, dict(question="Who?", src_lang="bo"), "question and context"),
        ("question-answering", None, dict(question=["a", "b"], context=["a"], src_lang="bo"), "same length"),
        ("summarization", SENTENCES[0], dict(src_lang="bo"), "49 tokens, but the maximum is 38. Shorten it"),
    ],
)
def test_what_is_missing_or_wrong_is_named(load, task, inputs, options, words):
    with pytest.raises(ValueError, match=words):
        load(task)(inputs, **options)


def test_a_second_text_is_refused_and_not_ignored(load):
    with pytest.raises(ValueError, match=r"one input \(got 2\)\. Pass several texts as one list"):
        load("translation")("The river", "The bank", src_lang="bo", tgt_lang="zh")
    with pytest.raises(ValueError, match="a question as question= and context="):
        load("question-answering")("Who?", "The river", src_lang="bo")


def test_a_long_text_is_cut_where_that_is_asked_for_with_a_warning(load, caplog):
    summarize = load("summarization")
    assert summarize(SENTENCES[0], src_lang="bo", truncation=True, **OPTIONS)
    assert "The input has 49 tokens. It is truncated to 38 tokens." in caplog.text
    ids = summarize.preprocess(SENTENCES[0], src_lang="bo", truncation=True)["input_ids"][0].tolist()
    tokenizer = summarize.tokenizer
    assert [len(ids), ids[1], ids[-1]] == [38, tokenizer.get_lang_id("bo"), tokenizer.eos_token_id]
    with pytest.raises(ValueError, match="49 tokens, but the maximum is 38"):
        summarize(SENTENCES[0], src_lang="bo", truncation="do_not_truncate", **OPTIONS)


def test_outputs_that_reach_the_maximum_length_are_counted_once_a_call(load, caplog):
    translate = load("translation", src_lang="zh", tgt_lang="bo")
    whole = translate(TEXTS, max_new_tokens=30)
    assert "incomplete" not in caplog.text
    cut = translate(TEXTS, max_new_tokens=3, batch_size=2)
    assert all(
        text["translation_text"].startswith(part["translation_text"]) for text, part in zip(whole, cut, strict=True)
    )
    message = "Number of incomplete outputs: {}. The maximum is 3 tokens. "
    message += "Pass a larger max_new_tokens, or split the inputs."
    assert [record.message for record in caplog.records] == [message.format(4)]
    list(translate((text for text in TEXTS), max_new_tokens=3))
    assert caplog.text.count(message.format(1)) == 4
    caplog.clear()
    limit = translate.model.config.longest_input
    translate(TEXTS[0], max_new_tokens=limit, min_new_tokens=limit)
    assert f"Number of incomplete outputs: 1. The maximum is {limit} tokens. Split long inputs. If" in caplog.text
    # The default limit counts the start token.
    translate(TEXTS[0], min_new_tokens=limit - 1)
    assert f"The maximum is {limit - 1} tokens. Split long inputs." in caplog.text


def test_an_output_that_another_rule_ends_is_not_called_incomplete(load, caplog):
    translate = load("translation", src_lang="zh", tgt_lang="bo")
    config = GenerationConfig(max_new_tokens=5, forced_bos_token_id=7, eos_token_id=2, max_time=1e-6)
    translate(TEXTS[0], generation_config=config)
    assert "incomplete" not in caplog.text


def test_spaces_before_punctuation_stay(load):
    translate = load("translation", src_lang="zh", tgt_lang="bo", **OPTIONS)
    translate.tokenizer.clean_up_tokenization_spaces = True
    ids = translate.tokenizer("The river .", add_special_tokens=False, return_tensors="pt")["input_ids"]
    assert translate.postprocess({"generated": ids[None]}) == [{"translation_text": "The river ."}]


def test_another_task_is_refused_by_name(converted):
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(converted), AutoTokenizer.from_pretrained(converted)
    with pytest.raises(ValueError, match='Unknown task "paraphrase". Choose one of: translation, summarization'):
        XLMSWCMPipeline(model, tokenizer, task="paraphrase")


def test_the_tasks_of_a_saved_config_are_those_of_the_pipeline(converted):
    assert json.loads((converted / "config.json").read_text())["custom_pipelines"].keys() == TASKS.keys()
