"""The model card: it is complete and correct, and its example code runs."""

import json
import shutil

import pytest
import torch
from huggingface_hub import ModelCard
from support.cards import check_pattern, python_blocks
from support.commands import assert_refused
from support.encoders import make_encoder, save_encoder, xlm_roberta_tokenizer
from support.hub_client import SENT
from support.released import make_release
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, XLMRobertaForMaskedLM

from modeling_xlm_swcm.conversion import ConversionError, convert, convert_released
from modeling_xlm_swcm.hub.card import generate_card


METRICS = {
    "task": "translation",
    "dataset": "someone/sentences",
    "results": {"chrf": {"bo": 31.5, "kk-Arab": 24.25}, "bleu": 4.5},
    "training": {"learning_rate": 0.0001, "epochs": 3},
    "example": {"text": '"no wind"', "src_lang": "zh", "tgt_lang": "kk-Arab"},
}
QUESTION = {"question": "no wind?", "context": "A quiet morning", "src_lang": "zh", "tgt_lang": "zh"}


def filled(folder, **options) -> ModelCard:
    (folder / "README.md").write_text(generate_card(folder, "someone/model", **options), encoding="utf-8")
    return ModelCard.load(folder / "README.md")


def write_metrics(folder, **changes):
    (folder / "metrics.json").write_text(json.dumps(METRICS | changes, ensure_ascii=False))


def test_a_card_of_a_random_decoder_claims_no_copies(encoder_folder, tmp_path):
    convert(encoder_folder, tmp_path / "model", languages=["bo"], decoder_init="random", license="mit")
    card = str(filled(tmp_path / "model"))
    assert "The decoder started from random weights." in card and "built from" not in card


@pytest.mark.parametrize("weight_sharing", ["init", "tied"])
def test_a_card_of_a_prefix_decoder_names_it_and_its_sources(encoder_folder, tmp_path, weight_sharing):
    options = {"decoder": "prefix", "weight_sharing": weight_sharing, "license": "mit"}
    convert(encoder_folder, tmp_path / "model", languages=["bo"], **options)
    card = filled(tmp_path / "model")
    check_pattern(card)
    assert "It is a prefix decoder" in card.text and "arxiv.org/abs/2110.13640" in card.text
    assert ("The decoder uses the weights of the encoder." in card.text) == (weight_sharing == "tied")
    assert "4 prefix" in card.text and "acl-long.893" not in card.text.split("## Use")[0]


def test_a_card_of_a_conversion_says_what_it_was_made_of_and_that_it_is_not_trained(encoder_folder, tmp_path):
    languages = ["zh", "kk-Arab", "bo"]
    convert(encoder_folder, tmp_path / "model", languages=languages, decoder="paper", license="mit")
    card = filled(tmp_path / "model")
    check_pattern(card)
    assert card.data.to_dict() == {
        "language": ["zh", "kk", "bo"],
        "language_bcp47": ["kk-Arab"],
        "library_name": "transformers",
        "license": "mit",
        "pipeline_tag": "translation",
        "tags": ["xlm-swcm", "seq2seq", "low-resource"],
    }
    for words in (
        "No training is recorded",
        "No evaluation is recorded",
        "Its licence is mit. Tensors: 170 copied (2 with new rows), 58 new, 0 dropped.",
        "built from the layers of the encoder `xlm-r0` (not on the Hub), with new layers in between.",
        "| normal_layer_interval | 3 |",
        "decoder  ■ ■ ■ □ ■  4 custom, 1 normal",
        "at most 38 tokens",
        "tags for zh, kk-Arab, bo",
        "doi = {10.18653/v1/2025.acl-long.893}",
    ):
        assert words in card.text


def test_a_card_of_a_training_has_its_settings_and_results(folder):
    write_metrics(folder)
    card = filled(folder)
    check_pattern(card)
    assert card.data.datasets == ["someone/sentences"]
    assert card.data.metrics == ["chrf", "bleu"]
    (index,) = card.data.to_dict()["model-index"]
    values = {
        (metric["type"], result["dataset"].get("config")): metric["value"]
        for result in index["results"]
        for metric in result["metrics"]
    }
    assert values == {("chrf", "bo"): 31.5, ("chrf", "kk-Arab"): 24.25, ("bleu", None): 4.5}
    assert index["results"][0]["task"]["type"] == "translation"
    assert index["results"][0]["dataset"]["type"] == "someone/sentences"
    for words in (
        "| chrf | kk-Arab | 24.25 |",
        "| bleu | all | 4.5 |",
        "| learning_rate | 0.0001 |",
        "was trained for",
    ):
        assert words in card.text
    assert "No training" not in card.text and "No evaluation" not in card.text


def test_a_card_says_how_many_texts_were_evaluated(folder):
    write_metrics(folder, evaluation={"texts, zh-bo": 997, "num_beams": 4})
    card = filled(folder)
    assert "| evaluation setting | value |\n|---|---|\n| texts, zh-bo | 997 |\n| num_beams | 4 |\n\n" in card.text
    write_metrics(folder)
    assert "evaluation setting" not in filled(folder).text


@pytest.mark.parametrize("task", ["translation", "summarization", "question-answering", "no languages", "not trained"])
def test_the_usage_runs_as_printed(hub, client, folder, encoder_folder, task):
    if task == "no languages":
        shutil.rmtree(folder)
        convert(encoder_folder, folder, license="mit")
    elif task != "not trained":
        example = QUESTION if task == "question-answering" else METRICS["example"]
        write_metrics(folder, task=task, example=example)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    outcome = client.command("push", folder, "someone/model")
    assert outcome.exit_code == 0, outcome.output
    outcomes = [
        client.run(code) for code in python_blocks(hub.repositories["someone/model"].files["README.md"].decode())
    ]
    assert [outcome["error"] for outcome in outcomes] == [None, None]
    with_generate, with_pipeline = (outcome["printed"] for outcome in outcomes)
    written = eval(with_pipeline)
    written = written if task == "question-answering" else written[0]
    assert [*written.values()] == [with_generate.strip()] and with_generate.strip()
    if task == "translation":
        tokenizer.src_lang = "zh"
        inputs = tokenizer(METRICS["example"]["text"], return_tensors="pt")
        model = AutoModelForSeq2SeqLM.from_pretrained(folder)
        ids = model.generate(**inputs, forced_bos_token_id=tokenizer.get_lang_id("kk-Arab"), num_beams=4)
        assert tokenizer.decode(ids[0], skip_special_tokens=True).strip() == with_generate.strip()


def test_a_model_that_was_loaded_is_saved_with_its_report_without_the_paths(folder, encoder_folder, tmp_path):
    saved = tmp_path / "saved"
    for part in (AutoModelForSeq2SeqLM, AutoTokenizer):
        part.from_pretrained(folder).save_pretrained(saved)
    report = (folder / "conversion_report.json").read_text()
    assert str(encoder_folder) in report
    assert (saved / "conversion_report.json").read_text() == report.replace(str(encoder_folder), encoder_folder.name)
    assert str(filled(saved)) == str(filled(folder))


def test_a_report_that_is_damaged_stops_no_model_from_loading(folder, tmp_path):
    (folder / "conversion_report.json").write_text('{"source": ')
    model = AutoModelForSeq2SeqLM.from_pretrained(folder)
    model.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved" / "conversion_report.json").exists()
    with pytest.raises(ConversionError, match="conversion_report.json"):
        generate_card(tmp_path / "saved", "someone/model")


def test_an_encoder_of_the_hub_is_named_with_its_commit_and_licence(hub, client, tmp_path):
    encoder = tmp_path / "encoder"
    tokenizer = xlm_roberta_tokenizer()
    save_encoder(encoder, make_encoder(XLMRobertaForMaskedLM, tokenizer), tokenizer)
    (encoder / "README.md").write_text("---\nlicense: cc-by-sa-4.0\n---\nAn encoder.\n")
    commit = hub.add("someone/encoder", encoder).refs["main"].oid
    command = ["convert", "someone/encoder", tmp_path / "model", "--languages", "zh", "--push-to-hub", "someone/model"]
    outcome = client.command(*command)
    assert outcome.exit_code == 0, outcome.output
    card = ModelCard(hub.repositories["someone/model"].files["README.md"].decode())
    check_pattern(card)
    assert (card.data.base_model, card.data.base_model_relation) == ("someone/encoder", "finetune")
    assert card.data.license == "cc-by-sa-4.0"
    assert f"[someone/encoder](https://huggingface.co/someone/encoder), commit `{commit}`" in card.text
    (tmp_path / "model" / "README.md").write_text(
        str(card).replace("base_model: someone/encoder\n", "").split("<!--")[0]
    )
    assert_refused(client.command("push", tmp_path / "model", "someone/model"), "README.md", "lacks base_model")


def test_a_licence_that_is_given_wins_over_the_encoders_own(encoder_folder, own_encoder, tmp_path):
    for number, (card, given, expected) in enumerate(
        [
            ("---\nlicense: mit\n---\n", None, "mit"),
            ("---\nlicense: mit\n---\n", "apache-2.0", "apache-2.0"),
            ("---\nlicense: [\n---\n", None, None),
            ("No metadata\n", None, None),
        ]
    ):
        (own_encoder / "README.md").write_text(card)
        report = convert(own_encoder, tmp_path / str(number), license=given)
        assert report.license == expected
        assert json.loads((tmp_path / str(number) / "conversion_report.json").read_text())["license"] == expected


def test_a_released_checkpoint_is_pushed_with_its_own_code_and_a_card_that_says_so(
    hub, client, encoder_folder, tmp_path
):
    words = len(AutoTokenizer.from_pretrained(encoder_folder)) + 1
    torch.save(make_release(encoder_folder, vocab_size=words).state_dict(), tmp_path / "release.bin")
    convert_released(tmp_path / "release.bin", encoder_folder, tmp_path / "model", languages=["zh"])
    assert_refused(client.command("push", tmp_path / "model", "someone/model"), "licence", "--license")
    assert_refused(
        client.command("push", tmp_path / "model", "someone/model", "--license", "MIT License"), "MIT License"
    )
    outcome = client.command("push", tmp_path / "model", "someone/model", "--license", "mit")
    assert outcome.exit_code == 0, outcome.output
    files = hub.repositories["someone/model"].files
    assert files.keys() == SENT | {"released_xlm_swcm.py"}
    card = files["README.md"].decode()
    check_pattern(ModelCard(card))
    assert "The authors released this model as `release.bin`" in card and "built from" not in card
    assert client.command("inspect", "someone/model").exit_code == 0
