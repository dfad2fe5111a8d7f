"""examples/recipes: each recipe from an encoder and a folder of data to scores, on small data."""

import importlib
import json
import runpy
import shutil
import sys
from pathlib import Path

import encoder
import pytest
import steps
import titles
import torch
import translation
from small_tokenizer import train_tokenizer
from support.encoders import SENTENCES, unigram_pieces, xlm_roberta_tokenizer
from support.folders import load
from support.models import assert_close
from transformers import Trainer, TrainingArguments, XLMRobertaConfig

from modeling_xlm_swcm.checkpoints.reading import read_json
from modeling_xlm_swcm.conversion import from_encoder
from modeling_xlm_swcm.training.encoder import XLMRobertaForMaskedLM, make_rows


EXAMPLES = Path(__file__).parents[2] / "examples"
TEXT = {"zh": SENTENCES[8], "bo": SENTENCES[2], "ug": SENTENCES[5], "kk": "жел жоқ еді", "mn": "өнөр олон"}
TEXT["en"] = "wind"
QUICK = ["--pretrain_steps", "2", "--steps", "2", "--seed", "3"]


@pytest.fixture
def data(tmp_path) -> Path:
    folder = tmp_path / "data"
    (folder / "mono").mkdir(parents=True)
    (folder / "titles").mkdir()
    for code, text in TEXT.items():
        (folder / "mono" / f"{code}.own.txt").write_text(f"{text}\n" * 4, encoding="utf-8")
    columns = ["line", "doc", "split", *TEXT]
    splits = ["train"] * 4 + ["dev"] * 2 + ["test"] * 3
    lines = [columns, *([str(n), "d", split, *TEXT.values()] for n, split in enumerate(splits))]
    (folder / "ntrex.tsv").write_text("".join("\t".join(line) + "\n" for line in lines), encoding="utf-8")
    for name in titles.SOURCES:
        code = name[:2]
        rows = [{"lang": code, "split": split, "text": TEXT[code] * 3, "title": TEXT[code]} for split in splits]
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / "titles" / name).write_text(text, encoding="utf-8")
    return folder


@pytest.fixture
def recipe(data, tmp_path, monkeypatch):
    """Return a function that runs a recipe with its scripts in this process and returns the output folder."""

    def run_here(script, *words):
        monkeypatch.setattr(sys, "argv", [script, *map(str, words)])
        importlib.import_module(script.removesuffix(".py")).main()

    def run(module, *words) -> Path:
        for where in (steps, module):
            monkeypatch.setattr(where, "run_script", run_here)
        output = tmp_path / "output"
        monkeypatch.setattr(sys, "argv", ["recipe", "--data", str(data), "--output_dir", str(output), *words])
        module.main()
        return output

    return run


@pytest.fixture
def quick(encoder_folder) -> list[str]:
    return ["--encoder", str(encoder_folder), *QUICK, "--num_beams", "1"]


def test_the_help_keeps_the_command_and_names_each_default_once(recipe, capsys):
    with pytest.raises(SystemExit, match="0"):
        recipe(encoder, "--help")
    printed = capsys.readouterr().out
    assert "\n    python examples/recipes/encoder.py --data DATA --output_dir OUTPUT\n" in printed
    assert "Folder with the data. Required." in printed and "(default" not in printed


def test_an_encoder_of_all_languages_goes_on_where_it_was_stopped(recipe):
    sizes = ["--vocab_size", "300", "--hidden_size", "16", "--num_hidden_layers", "1", "--num_attention_heads", "2"]
    steps = ["--save_steps", "20", "--eval_steps", "20", "--logging_steps", "20", "--warmup_steps", "0"]
    rate = ["--learning_rate", "0.01", "--lr_scheduler_type", "constant"]
    options = [*sizes, *steps, *rate, "--per_device_train_batch_size", "8"]
    folder = recipe(encoder, *options, "--max_steps", "20") / "encoder"
    stopped = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    recipe(encoder, *options, "--max_steps", "40")
    log = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    # The last entry is the summary of the run.
    assert log[: len(stopped) - 1] == stopped[:-1]
    losses = [entry["eval_loss"] for entry in log if "eval_loss" in entry]
    assert len(losses) == 2 and losses[1] < losses[0]
    assert (folder / "training.png").is_file()
    for stage in (folder, folder / "checkpoint-20"):
        _, report = from_encoder(stage, languages=list(TEXT))
        assert report.copied["lm_head.bias"] == "lm_head.bias"
        report.tokenizer.src_lang = "zh"
        assert all(report.tokenizer.unk_token_id not in report.tokenizer(text).input_ids for text in TEXT.values())


def test_an_encoder_with_a_vocabulary_of_xlm_r_extended_and_trimmed(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(encoder, "NEW_TOKENS", 30)
    monkeypatch.setattr(encoder, "VOCABULARY", 110)
    given = xlm_roberta_tokenizer(
        pieces=[piece for piece in unigram_pieces() if not "\u0f00" <= piece[0][-1] <= "\u0fff"]
    )
    given.save_pretrained(tmp_path / "given")
    sizes = ["--hidden_size", "16", "--num_hidden_layers", "1", "--num_attention_heads", "2", "--max_steps", "2"]
    folder = recipe(encoder, "--tokenizer", str(tmp_path / "given"), *sizes, "--per_device_train_batch_size", "8")
    model, report = from_encoder(folder / "encoder", languages=list(TEXT))
    pieces = set(report.tokenizer.get_vocab()) - {f"<{code}>" for code in TEXT}
    assert len(pieces) == 110 and pieces - given.get_vocab().keys()
    report.tokenizer.src_lang = "bo"
    assert report.tokenizer.unk_token_id not in report.tokenizer(TEXT["bo"]).input_ids


@pytest.fixture
def train_encoder(data, tmp_path, monkeypatch):
    def run(*words):
        text = data / "mono" / "kk.own.txt"
        given = ["--corpus", text, "--output_dir", tmp_path / "output", "--per_device_train_batch_size", 2, *words]
        monkeypatch.setattr(sys, "argv", ["train_encoder.py", *map(str, given)])
        runpy.run_path(str(EXAMPLES / "train_encoder.py"), run_name="__main__")

    return run


@pytest.mark.parametrize(("more", "losses"), [(["--eval_strategy", "epoch"], 0), (["--validation"], 1)])
def test_an_encoder_with_and_without_text_that_is_held_out(train_encoder, data, tmp_path, more, losses):
    sizes = ["--vocab_size", 100, "--hidden_size", 16, "--num_hidden_layers", 1, "--num_attention_heads", 2]
    train_encoder(*sizes, "--dropout", 0, "--max_steps", 2, *more, *[data / "mono" / "zh.own.txt"] * losses)
    log = json.loads((tmp_path / "output" / "trainer_state.json").read_text())["log_history"]
    assert log[-1]["step"] == 2 and sum("eval_loss" in entry for entry in log) == losses
    config = json.loads((tmp_path / "output" / "config.json").read_text())
    assert config["hidden_dropout_prob"] == config["attention_probs_dropout_prob"] == 0


def test_a_resumed_encoder_is_the_same_and_masks_do_not_change(train_encoder, data, tmp_path):
    sizes = ["--vocab_size", 100, "--hidden_size", 16, "--num_hidden_layers", 1, "--num_attention_heads", 2]
    sizes += ["--validation", data / "mono" / "zh.own.txt", "--eval_strategy", "steps", "--eval_steps", 2]
    sizes += ["--learning_rate", 0, "--save_steps", 2, "--logging_steps", 1, "--max_steps", 4]
    train_encoder(*sizes)
    state = tmp_path / "output" / "checkpoint-4" / "trainer_state.json"
    losses = [
        [entry[name] for entry in read_json(state)["log_history"] if name in entry] for name in ("loss", "eval_loss")
    ]
    # The weights do not change, so the evaluation differs only by its masks.
    assert losses[1][0] == losses[1][1]
    shutil.rmtree(state.parent)
    train_encoder(*sizes, "--resume_from_checkpoint", "last")
    assert [entry["loss"] for entry in read_json(state)["log_history"] if "loss" in entry] == losses[0]


def test_a_batch_without_masked_tokens_has_no_loss(tmp_path):
    sizes = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = XLMRobertaForMaskedLM(XLMRobertaConfig(**sizes, intermediate_size=16))
    ids = torch.full((1, 4), 7)
    for count in (None, 0, torch.tensor(0)):
        assert model(ids, torch.ones(1, 4), torch.full((1, 4), -100), count).loss == 0


def test_special_tokens_in_the_text_of_an_encoder_are_text():
    text = ["a <mask> </s> b<mask>"] * 200 + [*TEXT.values()] * 20
    tokenizer = train_tokenizer(text, 150, 24)
    pieces = [piece for piece, _ in json.loads(tokenizer.backend_tokenizer.to_str())["model"]["vocab"]]
    assert len(set(pieces)) == len(pieces)
    ids = make_rows(tokenizer, ["a <mask></s> b<s>"], 24)["input_ids"][0]
    special = {tokenizer.mask_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id}
    assert (ids[0], ids[-1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id) and not special & set(ids[1:-1])
    plain = tokenizer([TEXT["bo"]], truncation=True, max_length=9, return_overflowing_tokens=True)
    assert make_rows(tokenizer, [TEXT["bo"]], 9)["input_ids"] == plain["input_ids"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--num_attention_heads", 7],
            r"--hidden_size must be a multiple of --num_attention_heads \(got 160 and 7\)\.",
        ),
        (["--vocab_size", 6], "--vocab_size 6 is too small for the characters of the text. Use a larger size."),
        (["--mask_share", 0], r"--mask_share must be above 0 and below 1 \(got 0.0\)\. Use, for example, 0.2\."),
        (["--dropout", 7], r"--dropout must be at least 0 and below 1 \(got 7.0\)\."),
        (["--max_length", 2], "--max_length must be at least 3"),
        (["--sampling_exponent", -3], r"--sampling_exponent must be between 0 and 1 \(got -3.0\)\."),
        (["--seed", -1], r"--seed must be between 0 and 4294967295 \(got -1\)\."),
        (["--max_grad_norm", "nan"], r"--max_grad_norm must be at least 0 and finite \(got nan\)\."),
        (["--gradient_accumulation_steps", 0], r"--gradient_accumulation_steps must be at least 1 \(got 0\)\."),
        (["--push_to_hub"], "train_encoder.py does not support --push_to_hub and its options."),
        (["--hub_model_id", "owner/name"], "train_encoder.py does not support --push_to_hub and its options."),
        (["--save_strategy", "best"], "--save_strategy best needs an evaluation during the training."),
    ],
)
def test_sizes_of_an_encoder_that_cannot_be_are_refused(train_encoder, tmp_path, options, message):
    with pytest.raises(SystemExit, match=f"^error: {message}"):
        train_encoder(*options)
    assert not (tmp_path / "output").exists()
    with pytest.raises(SystemExit, match="^error: --load_best_model_at_end needs validation data. Pass --validation"):
        train_encoder("--load_best_model_at_end", "--eval_strategy", "steps")


def test_the_loss_of_accumulated_batches_is_that_of_one_batch(tmp_path):
    sizes = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = XLMRobertaForMaskedLM(XLMRobertaConfig(**sizes, intermediate_size=16)).eval()
    assert Trainer(model, TrainingArguments(str(tmp_path), use_cpu=True)).model_accepts_loss_kwargs
    input_ids = torch.randint(5, 50, (4, 9), generator=torch.Generator().manual_seed(0))
    labels = input_ids.masked_fill(torch.arange(36).view(4, 9) % 7 > 2, -100)
    count = (labels != -100).sum()
    loss = lambda rows, **options: model(input_ids[rows], torch.ones(4, 9)[rows], labels[rows], **options).loss  # noqa: E731
    parts = sum(loss(slice(row, row + 1), num_items_in_batch=count) for row in range(4))
    assert_close(parts, loss(slice(None)))


def test_translation_into_all_languages_and_back(recipe, quick):
    output = recipe(translation, *quick)
    metrics = json.loads((output / "translation" / "metrics.json").read_text())
    others = ["bo", "ug", "kk", "mn"]
    expected = {"all", *(f"zh-{code}" for code in others), *(f"{code}-zh" for code in others)}
    assert metrics["results"]["chrf++"].keys() == expected
    assert (metrics["training"]["start"], metrics["training"]["seed"]) == ("pretrained", "3")
    written = (output / "translation" / "generated_predictions.txt").read_text(encoding="utf-8")
    assert written.count("\n") == 3 * 8
    load(output / "translation")


def test_titles_of_two_languages(recipe, quick):
    output = recipe(titles, *quick, "--samples", "0", "3")
    with pytest.raises(SystemExit, match="belongs to other arguments"):
        recipe(titles, *quick, "--learning_rate", "1e-4")
    results = json.loads((output / "titles" / "transfer.json").read_text())
    assert {samples: list(row) for samples, row in results["scores"].items()} == dict.fromkeys("03", ["zh", "kk"])
    assert (output / "titles" / "transfer.png").is_file()
