"""The exported runtime runs without PyTorch, reads texts like the tokenizer, serves threads and checks its input."""

import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import torch
from support.encoders import camembert_tokenizer, gemma_tokenizer, roberta_tokenizer, xlm_roberta_tokenizer
from support.folders import cut_short
from support.learners import TEXTS, UNSEEN
from support.tags import with_tags
from transformers import GenerationConfig, TopKLogitsWarper, TopPLogitsWarper

from modeling_xlm_swcm.export import export, xlm_swcm_search
from modeling_xlm_swcm.export.export import make_text_tokenizer
from modeling_xlm_swcm.export.xlm_swcm_logits import filter_scores
from modeling_xlm_swcm.export.xlm_swcm_runtime import ExportedModel
from modeling_xlm_swcm.pipeline_xlm_swcm import XLMSWCMPipeline
from modeling_xlm_swcm.scores_xlm_swcm import score_sequences


pytestmark = pytest.mark.parametrize(
    "learner", [dict(weight_sharing="init", lm_head_transform=True)], indirect=True, ids=["init"]
)

SPELT = [
    *("<s>", "</s>", "<pad>", "<mask>", "<unk>", "<bo>", "<zh> no wind", "two <s>herons</s>", " <mask> boat", "<ｓ>"),
    *("", " ", "\0 <s>", "\0", "▁<s>", "<\0s>", "<s", "😀<unk>😀", "no\n\twind", "ང་ཚོས<kk>དཔེ", "<s>NOTUSED"),
]


@pytest.fixture(scope="module")
def runtime(exported) -> ExportedModel:
    return ExportedModel(exported, threads=1)


def test_token_ids_are_equal_to_the_pipeline(learner, runtime):
    pipeline = XLMSWCMPipeline(model=learner.model, tokenizer=learner.tokenizer, src_lang="zh", tgt_lang="bo")
    texts = [text for text in [*TEXTS, *UNSEEN, *SPELT] if len(text) < 30]
    ids = runtime._encode(texts, "zh")
    assert ids == [pipeline.preprocess(text, src_lang="zh")["input_ids"][0].tolist() for text in texts]
    # `<s>`, the tag and `</s>` frame the text. The text itself has no control ids.
    control = set(learner.tokenizer.all_special_ids) - {learner.tokenizer.unk_token_id}
    assert not [row for row in ids if control & set(row[2:-1])]
    for split in (True, False):
        expected = [answer["translation_text"] for answer in pipeline(texts, split=split)]
        written = runtime(texts, src_lang="zh", tgt_lang="bo", split=split)
        assert expected == [text if split else text.strip() for text in written]


def test_the_folder_runs_without_pytorch(learner, exported):
    code = """if True:
        import sys
        for name in ("torch", "transformers", "modeling_xlm_swcm"):
            sys.modules[name] = None
        from xlm_swcm_runtime import ExportedModel
        texts = ExportedModel(threads=1)(sys.argv[1:], src_lang="zh", tgt_lang="bo", num_beams=2)
        print([text.strip() for text in texts])
    """
    command = [sys.executable, "-c", code, *TEXTS]
    run = subprocess.run(command, cwd=exported, capture_output=True, text=True, env=os.environ | {"PYTHONUTF8": "1"})
    assert run.returncode == 0, run.stderr
    expected = learner.tokenizer.batch_decode(learner.write(TEXTS, "bo", num_beams=2), skip_special_tokens=True)
    assert run.stdout.strip() == str([text.strip() for text in expected])


def test_texts_are_generated_in_the_target_language(learner, runtime):
    for language in ("bo", "kk"):
        expected = learner.tokenizer.batch_decode(learner.write(TEXTS, language), skip_special_tokens=True)
        assert runtime(TEXTS, src_lang="zh", tgt_lang=language, split=False) == expected
        written = runtime(TEXTS, src_lang="zh", tgt_lang=language)
        assert [text.strip() for text in written] == [text.strip() for text in expected]
    assert runtime([], src_lang="zh", tgt_lang="bo") == []
    # A padding token that a text spells out is text.
    spelt = ["no <pad> wind", "<pad>ང་ཚོས་དཔེ", *(f"<pad>{text}" for text in TEXTS)]
    expected = learner.tokenizer.batch_decode(learner.write(spelt, "bo"), skip_special_tokens=True)
    assert runtime(spelt, src_lang="zh", tgt_lang="bo", split=False) == expected


@pytest.mark.filterwarnings("ignore:Number of incomplete outputs")
def test_settings_of_the_checkpoint_are_the_defaults(learner, tmp_path):
    folder = Path(shutil.copytree(learner.folder, tmp_path / "model"))
    tag = learner.tokenizer.get_lang_id("kk")
    # Transformers' trainer writes all settings with their defaults.
    defaults = GenerationConfig._get_default_generation_params()
    settings = {name: value for name, value in defaults.items() if value is not None}
    settings |= json.loads((folder / "generation_config.json").read_text())
    settings |= {"num_beams": 3, "length_penalty": 0.5, "max_new_tokens": 9, "forced_bos_token_id": tag}
    # These settings do not change greedy decoding and beam search.
    settings |= {"temperature": 0.7, "early_stopping": False}
    settings |= {"repetition_penalty": 1.5}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    export(folder, tmp_path / "exported")
    runtime = ExportedModel(tmp_path / "exported", threads=1)
    input_ids = learner.tokenizer(TEXTS, padding=True, return_tensors="np")["input_ids"]
    expected = learner.write(TEXTS, "kk", num_beams=3, length_penalty=0.5, max_new_tokens=9, repetition_penalty=1.5)
    np.testing.assert_array_equal(runtime.generate(input_ids), expected)
    assert runtime(TEXTS, src_lang="zh") == learner.tokenizer.batch_decode(expected, skip_special_tokens=True)


def test_a_document_is_translated_as_by_the_pipeline(learner, runtime, recwarn):
    pipeline = XLMSWCMPipeline(model=learner.model, tokenizer=learner.tokenizer, src_lang="zh", tgt_lang="bo")
    document = "# The river\n\n - no wind. The ferry stays!\n" + "two herons, one boat, " * 6
    expected = [text["translation_text"] for text in pipeline(["no wind", document])]
    for batch_tokens in (1, 60, 4096):
        options = {"src_lang": "zh", "tgt_lang": "bo", "batch_tokens": batch_tokens}
        assert runtime(["no wind", document], **options) == expected
    message = "A sentence has .* tokens, but the maximum is 38. It is cut into 4 parts."
    with pytest.warns(UserWarning, match=message) as warned:
        runtime(["no wind", document], src_lang="zh", tgt_lang="bo")
    assert {warning.filename for warning in warned} == {__file__}
    # A text in one language is one input.
    with pytest.raises(ValueError, match="^Text 2 has .* tokens, but the model reads at most 38. Split the text."):
        runtime(["no wind", document], src_lang="bo", tgt_lang="bo")
    assert runtime(["no wind. No wind."], src_lang="bo", tgt_lang="bo") == runtime(
        ["no wind. No wind."], src_lang="bo", tgt_lang="bo", split=False
    )


@pytest.mark.parametrize(
    "make_tokenizer",
    [
        *(xlm_roberta_tokenizer, lambda: xlm_roberta_tokenizer("<bo>"), camembert_tokenizer, roberta_tokenizer),
        gemma_tokenizer,
    ],
)
def test_no_text_spells_a_special_token_in_any_vocabulary(learner, make_tokenizer):
    tokenizer = with_tags(make_tokenizer(), ["bo", "zh"], src_lang="bo")
    exported = tokenizers.Tokenizer.from_str(make_text_tokenizer(tokenizer))
    exported.encode_special_tokens = True
    assert exported.get_vocab_size() == len(tokenizer)
    for text in [*SPELT, *TEXTS]:
        expected = tokenizer(text, split_special_tokens=True, add_special_tokens=False)["input_ids"]
        assert exported.encode(text, add_special_tokens=False).ids == expected
        framed = tokenizer(text, split_special_tokens=True)["input_ids"]
        assert exported.decode(framed) == tokenizer.decode(
            framed, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )


@pytest.mark.parametrize("num_beams", [1, 2])
def test_texts_that_reach_the_maximum_length_are_counted(runtime, recwarn, num_beams):
    languages = {"src_lang": "zh", "tgt_lang": "bo", "num_beams": num_beams}
    runtime(TEXTS[:3], **languages)
    assert not recwarn.list
    message = "^Number of incomplete outputs: 3. The maximum is 2 tokens. Pass a larger max_new_tokens, or shorter"
    with pytest.warns(UserWarning, match=message):
        runtime(TEXTS[:3], **languages, max_new_tokens=2)


def test_a_text_that_merges_to_a_special_token_is_refused(learner, runtime, monkeypatch):
    vocab = {"<s>": 0, "<": 10, "s": 11, ">": 12, "<s": 13}
    trained_on_html = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, [("<", "s"), ("<s", ">")]))
    monkeypatch.setattr(runtime, "tokenizer", trained_on_html)
    assert runtime._encode(["<", "s>"], "zh")[1][2:-1] == [11, 12]
    with pytest.raises(ValueError, match="^Text 2 contains a special token. .* Remove the special token"):
        runtime(["<", "<s>"], src_lang="zh", tgt_lang="bo")


def test_threads_get_the_texts_that_calls_get_alone(learner, exported, monkeypatch):
    made = []
    create = xlm_swcm_search.create_infer_request
    monkeypatch.setattr(xlm_swcm_search, "create_infer_request", lambda *args: made.append(create(*args)) or made[-1])
    runtime = ExportedModel(exported, threads=1)
    calls = [
        ([*TEXTS, *UNSEEN][start : start + size], {"tgt_lang": language, "num_beams": beams})
        for start, size in ((0, 1), (3, 2), (8, 4))
        for language in ("bo", "kk")
        for beams in (1, 3)
    ]
    alone = [runtime(texts, src_lang="zh", **options) for texts, options in calls]
    assert len(set(map(tuple, alone))) > 6
    barrier, results = threading.Barrier(4), {}

    def work(thread: int):
        barrier.wait()
        for step in range(len(calls)):
            number = (5 * step + 3 * thread) % len(calls)
            texts, options = calls[number]
            results[thread, number] = runtime(texts, src_lang="zh", **options)

    threads = [threading.Thread(target=work, args=(thread,)) for thread in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {(thread, number): alone[number] for thread in range(4) for number in range(len(calls))}
    # Encoder and decoder have one request each, for any number of calls and threads.
    assert len(made) == 2


def test_the_number_of_kept_kernels_is_limited(learner, exported, monkeypatch):
    options = []

    class Core:
        def read_model(self, path):
            return CORE.read_model(path)

        def compile_model(self, graph, device, given):
            options.append(given)
            return CORE.compile_model(graph, device, given)

    CORE = xlm_swcm_search.CORE
    monkeypatch.setattr(xlm_swcm_search, "CORE", Core())
    ExportedModel(exported, threads=1)
    assert [given["CPU_RUNTIME_CACHE_CAPACITY"] for given in options] == [64, 64]


def test_a_process_that_was_forked_after_a_load_is_refused(learner, exported, runtime, monkeypatch):
    monkeypatch.setattr(os, "getpid", lambda: -1)
    for use in (lambda: ExportedModel(exported), lambda: runtime(TEXTS, src_lang="zh", tgt_lang="bo")):
        with pytest.raises(RuntimeError, match="^This process was forked after a model was loaded, and OpenVINO can"):
            use()
    # The first process is free to load.
    monkeypatch.setattr(ExportedModel, "_process", None)
    assert ExportedModel(exported, threads=1)(TEXTS, src_lang="zh", tgt_lang="bo")


def test_a_call_after_an_interrupted_call_is_right(learner, runtime, monkeypatch):
    expected = runtime(TEXTS, src_lang="zh", tgt_lang="bo")
    step, places = runtime._searches.step, []

    def interrupt(tokens, place, *args):
        places.append(place)
        if place == 3:
            raise KeyboardInterrupt
        return step(tokens, place, *args)

    with monkeypatch.context() as patch:
        patch.setattr(runtime._searches, "step", interrupt)
        with pytest.raises(KeyboardInterrupt):
            runtime(UNSEEN, src_lang="zh", tgt_lang="kk")
    assert places == [0, 1, 2, 3]
    assert runtime(TEXTS, src_lang="zh", tgt_lang="bo") == expected


LOAD_ERROR = "^Cannot load the exported model in {}. {}. Export the model with xlm-swcm export.$"


@pytest.mark.parametrize("file", ["model.bin", "model.xml", "tokenizer.json", "config.json"])
def test_a_damaged_export_is_named(learner, exported, tmp_path, file):
    folder = shutil.copytree(exported, tmp_path / "model")
    damages = [(cut_short, "damaged.*"), (Path.unlink, "missing"), (lambda path: path.mkdir(), "missing")]
    for damage, cause in damages:
        damage(folder / file)
        with pytest.raises(ValueError, match=LOAD_ERROR.format(folder, f"{file} is {cause}")):
            ExportedModel(folder)
    shutil.rmtree(folder)
    with pytest.raises(ValueError, match=LOAD_ERROR.format(folder, "config.json is missing")):
        ExportedModel(folder)


@pytest.mark.parametrize("file", ["model.bin", "model.xml", "tokenizer.json"])
def test_a_file_of_another_export_is_named(learner, exported, tmp_path, file):
    export(learner.folder, tmp_path / "int8", quantize="int8")
    folder = shutil.copytree(exported, tmp_path / "model")
    path = folder / file
    if file == "tokenizer.json":
        path.write_text(path.read_text().replace("<bo>", "<mn>"))
    else:
        shutil.copy(tmp_path / "int8" / file, path)
    with pytest.raises(ValueError, match=LOAD_ERROR.format(folder, f"{file} is damaged, or belongs to another model")):
        ExportedModel(folder)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"languages": ["zh"]}, "languages must be a dict"),
        ({"languages": {"zh": "4"}}, "languages.zh must be a whole number from 0 to 150 .got '4'."),
        ({"languages": {"zh": 999}}, "languages.zh must be a whole number from 0 to 150 .got 999."),
        ({"longest_input": None}, "longest_input must be a whole number"),
        ({"vocab_size": 1.5}, "vocab_size must be a whole number"),
        ({"pad_token_id": -1}, "pad_token_id must be a whole number"),
        ({"end_token_ids": [2, True]}, "end_token_ids must be a whole number"),
        ({"end_token_ids": 2}, "end_token_ids must be a list"),
        ({"generation": {}}, "max_new_tokens must be a whole number"),
        ({"generation": [1]}, "generation must be a dict"),
        ({"sha256": None}, "sha256 must be a dict"),
        ({"model_type": "xlm-roberta"}, "belongs to a model that is not exported"),
    ],
    ids=str,
)
def test_wrong_fields_of_the_config_are_named(learner, exported, tmp_path, fields, words):
    folder = Path(shutil.copytree(exported, tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | fields))
    with pytest.raises(ValueError, match=LOAD_ERROR.format(folder, f"config.json .*{words}.*")):
        ExportedModel(folder)
    for content in ("[]", "[" * 100000, "\xff"):
        (folder / "config.json").write_text(content, encoding="latin-1")
        with pytest.raises(ValueError, match=LOAD_ERROR.format(folder, "config.json .*")):
            ExportedModel(folder)


def test_an_older_export_has_the_defaults_of_transformers(learner, exported, runtime, tmp_path):
    folder = Path(shutil.copytree(exported, tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    stored = ("forced_bos_token_id", "max_new_tokens", "num_beams", "length_penalty")
    config["generation"] = {name: config["generation"][name] for name in stored}
    (folder / "config.json").write_text(json.dumps(config))
    assert ExportedModel(folder).config["generation"] == runtime.config["generation"]
    assert runtime.config["generation"].keys() > set(stored) | {"top_k", "do_sample"}


@pytest.mark.parametrize("threads", [-1, 2.0, "2", True, 10**9])
def test_a_wrong_number_of_threads_is_refused(learner, exported, threads):
    with pytest.raises(ValueError, match="^threads must be a whole number from 0 to 1024"):
        ExportedModel(exported, threads=threads)


def test_languages_are_checked(learner, runtime):
    for language in ("en", "", ["zh"], 4):
        with pytest.raises(ValueError, match="^Unknown language .* for src_lang. Use one of: zh, kk, bo.$"):
            runtime(TEXTS, src_lang=language, tgt_lang="bo")
        with pytest.raises(ValueError, match="^Unknown language .* for tgt_lang. Use one of: zh, kk, bo.$"):
            runtime(TEXTS, src_lang="zh", tgt_lang=language)
    for given, missing in (("tgt_lang", "src_lang"), ("src_lang", "tgt_lang")):
        with pytest.raises(ValueError, match=f"{missing} is not set. Use one of: zh, kk, bo"):
            runtime(TEXTS, **{given: "bo"})


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        ("no wind", "texts must be a list of strings .got one string.. Put the string in a list."),
        (None, "texts must be a list of strings .got NoneType.."),
        ({"no wind": 1}, "texts must be a list of strings .got dict.."),
        (["no wind", None], "Text 2 must be a string .got NoneType.."),
        ([b"no wind"], "Text 1 must be a string .got bytes.."),
        ([("no", "wind")], "Text 1 must be a string .got tuple.."),
        (["no wind", "\ud83d"], "Text 2 is not valid Unicode."),
        (["no wind", "no wind " * 40], "Text 2 has .* tokens, but the model reads at most 38. Split the text."),
    ],
    ids=str,
)
def test_texts_are_checked(learner, runtime, texts, words):
    with pytest.raises((TypeError, ValueError), match=f"^{words}"):
        runtime(texts, src_lang="zh", tgt_lang="bo", split=False)
    assert runtime(tuple(TEXTS), src_lang="zh", tgt_lang="bo") == runtime(TEXTS, src_lang="zh", tgt_lang="bo")


@pytest.mark.parametrize(
    "options",
    [
        *({"max_new_tokens": value} for value in (0, -1, 39, 10**30, 2.5, "3", True)),
        *({"num_beams": value} for value in (0, -1, 100000, 1.0, "2")),
        *({"length_penalty": value} for value in (float("nan"), float("inf"), 11, -11, "1", True, 1j)),
        *({"forced_bos_token_id": value} for value in (-1, 10**6, "4", 2.0)),
        *({"no_repeat_ngram_size": value} for value in (-1, 39, 2.0)),
        *({"repetition_penalty": value} for value in (0, -1.5, float("nan"), "1")),
        *({"temperature": value} for value in (0, 101)),
        *({"top_k": value} for value in (-1, 1.5, 10**6)),
        *({"top_p": value} for value in (-0.1, 1.1)),
        *({"seed": value} for value in (-1, "1", 1.0)),
        *({"num_return_sequences": value} for value in (0, True)),
    ],
    ids=str,
)
def test_options_are_checked(learner, runtime, options):
    name = next(iter(options))
    with pytest.raises(
        ValueError, match=f"^{name} must be a .*number from [-.\\d]+ to \\d+ .got .*. Use another number.$"
    ):
        runtime.generate(np.full((1, 3), 5), **options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"do_sample": "yes"}, "do_sample must be True or False .got 'yes'."),
        ({"do_sample": True, "num_beams": 2}, "do_sample needs num_beams=1 .got num_beams=2.. Set num_beams=1."),
        ({"num_return_sequences": 3, "num_beams": 2}, "num_return_sequences must be at most num_beams .got 3 with 2"),
    ],
)
def test_options_that_do_not_go_together_are_refused(learner, runtime, options, words):
    with pytest.raises(ValueError, match=f"^{words}"):
        runtime(TEXTS, src_lang="zh", tgt_lang="bo", **options)


def test_scores_are_equal_to_the_pipeline(learner, runtime):
    pipeline = XLMSWCMPipeline(model=learner.model, tokenizer=learner.tokenizer, src_lang="zh", tgt_lang="bo")
    texts = ["no wind. The ferry stays!", *TEXTS[:3], "***"]
    for options in ({}, {"num_beams": 4, "num_return_sequences": 2, "repetition_penalty": 1.5}):
        answers = pipeline(texts, return_scores=True, **options)
        written = runtime(texts, src_lang="zh", tgt_lang="bo", return_scores=True, batch_tokens=30, **options)
        if options:
            plain = runtime(texts, src_lang="zh", tgt_lang="bo", **options)
            assert plain == [[text for text, _ in candidates] for candidates in written]
            answers, written = sum(answers, []), sum(written, [])
        assert [text for text, _ in written] == [answer["translation_text"] for answer in answers]
        scores, expected = [score for _, score in written], [answer["score"] for answer in answers]
        assert scores[-1] is None and len(set(scores)) > 3
        assert scores == [score if score is None else pytest.approx(score, abs=1e-4) for score in expected]
    assert runtime([], src_lang="zh", tgt_lang="bo", return_scores=True) == []
    ids, scores = runtime.generate(np.full((1, 3), 5), forced_bos_token_id=4, max_new_tokens=1, return_scores=True)
    assert ids.shape == (1, 2) and np.isnan(scores).all()


@pytest.mark.parametrize(("temperature", "top_k", "top_p"), [(0.5, 5, 1.0), (1.5, 40, 0.8), (2, 0, 0.6)])
def test_tokens_are_sampled_from_the_distribution_of_transformers(learner, temperature, top_k, top_p):
    scores = np.random.default_rng(0).normal(size=(4, 150)).astype(np.float32) * 3
    expected = torch.tensor(scores) / temperature
    for warper in (TopKLogitsWarper(top_k or 150), TopPLogitsWarper(top_p)):
        expected = warper(None, expected)
    for row, probabilities in zip(scores, expected.softmax(-1).numpy(), strict=True):
        filtered = np.zeros(150)
        tokens, filtered_probabilities = filter_scores(row, temperature, top_k, top_p)
        filtered[tokens] = filtered_probabilities
        np.testing.assert_allclose(filtered, probabilities, atol=1e-6)


def test_samples_are_reproduced_by_their_seed_and_have_scores(learner, runtime):
    inputs = learner.tokenizer(UNSEEN[:2], padding=True, return_tensors="pt")
    tag = learner.tokenizer.get_lang_id("bo")
    options = dict(forced_bos_token_id=tag, do_sample=True, num_return_sequences=300, temperature=2.0, top_k=4)
    ids, scores = runtime.generate(
        inputs["input_ids"].numpy(), **options, max_new_tokens=3, seed=1, return_scores=True
    )
    again, other = (runtime.generate(inputs["input_ids"].numpy(), **options, max_new_tokens=3, seed=s) for s in (1, 2))
    assert ids.shape[0] == 600 and np.array_equal(ids, again) and not np.array_equal(ids, other)
    sequences = torch.tensor(ids).unflatten(0, (2, 300))
    expected = score_sequences(learner.model, inputs, sequences, torch.tensor([2]), is_forced=True)[0]
    np.testing.assert_allclose(scores, expected.flatten(), atol=1e-4)
    # The shares of the first tokens are near their probabilities.
    logits = learner.model(**inputs, decoder_input_ids=sequences[:, 0, :2]).logits[:, -1].detach().numpy()
    for row, drawn in zip(logits, ids.reshape(2, 300, -1)[:, :, 2], strict=True):
        tokens, probabilities = filter_scores(row, 2.0, 4, 1.0)
        assert set(drawn) <= set(tokens) and len(set(drawn)) > 1
        np.testing.assert_allclose((drawn[:, None] == tokens).mean(0), probabilities, atol=0.12)
    # Batches of one call draw different numbers.
    languages = dict(src_lang="zh", tgt_lang="bo", split=False, batch_tokens=1)
    with pytest.warns(UserWarning, match="incomplete"):
        texts = runtime(UNSEEN[:1] * 8, **languages, do_sample=True, temperature=9, seed=3, max_new_tokens=4)
    assert len(set(texts)) > 1


def test_the_limits_of_options_are_allowed(learner, runtime):
    vocab_size = runtime.config["vocab_size"]
    for options in (
        {"num_beams": vocab_size // 2},
        {"max_new_tokens": np.int64(38)},
        {"length_penalty": np.float32(10)},
    ):
        assert runtime.generate(np.full((1, 3), 5), **options).shape[0] == 1


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ([np.full((1, 39), 5)], "input_ids must have shape"),
        ([np.full(3, 5)], "input_ids must have shape"),
        ([np.full((2, 0), 5)], "input_ids must have shape"),
        ([np.full((1, 3), 5.0)], "input_ids must be a rectangular array of integers"),
        ([[[5, 6], [7]]], "input_ids must be a rectangular array of integers"),
        (["no wind"], "input_ids must be a rectangular array of integers"),
        ([np.full((1, 3), -1)], "input_ids must be from 0 to 150 .got -1 to -1."),
        ([np.full((1, 3), 153)], "input_ids must be from 0 to 150 .got 153 to 153."),
        ([np.full((1, 3), 5), np.full((1, 2), 1)], "attention_mask must have the shape of input_ids"),
        ([np.full((1, 3), 5), np.full((1, 3), 2)], "attention_mask must have the shape of input_ids"),
        ([np.full((1, 3), 5), np.full((1, 3), 1.0)], "attention_mask must be a rectangular array of integers"),
    ],
)
def test_arrays_are_checked(learner, runtime, arrays, words):
    with pytest.raises(ValueError, match=f"^{words}"):
        runtime.generate(*arrays)
    assert runtime.generate(np.full((0, 3), 5)).shape == (0, 1)


def test_a_failure_of_openvino_is_one_sentence(learner, runtime, monkeypatch):
    def fail(*_):
        raise RuntimeError("Exception from src/inference:\nstd::bad_alloc")

    monkeypatch.setattr(runtime._searches, "read", fail)
    with pytest.raises(RuntimeError, match="^OpenVINO cannot run the model on sources of shape .1, 3. with 2 beams"):
        runtime.generate(np.full((1, 3), 5), num_beams=2)
