"""LoRA: adapters that learn, that are saved, merged and resumed, and combinations that are refused."""

import inspect
import json
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from peft import AutoPeftModelForSeq2SeqLM, PeftModel
from safetensors.torch import load_file
from support.encoders import xlm_roberta_tokenizer
from support.folders import load
from support.models import assert_close, logits_of
from support.trainers import new_model
from transformers import AutoTokenizer

from modeling_xlm_swcm import XLMSWCMForConditionalGeneration
from modeling_xlm_swcm.checkpoints.errors import ConversionError
from modeling_xlm_swcm.checkpoints.inspection import read_model_config
from modeling_xlm_swcm.training.adapter_card import write_adapter_card
from modeling_xlm_swcm.training.arguments import ModelArguments, TrainingArguments
from modeling_xlm_swcm.training.checkpoints import TrainingError
from modeling_xlm_swcm.training.finetuning import check_push, finetune
from modeling_xlm_swcm.training.finetuning_data import FinetuneDataArguments
from modeling_xlm_swcm.training.lora import adapt_model, save_merged
from modeling_xlm_swcm.training.rows import DataError
from modeling_xlm_swcm.vocabulary import extend


ASKS_FOR_IMPORTS = "import_allowlist" in inspect.signature(AutoPeftModelForSeq2SeqLM.from_pretrained).parameters
# Names of the modules with the shared word embeddings.
SHARED = ("word_embeddings.weight", "lm_head.weight")


@pytest.fixture
def rows(make_trainer) -> list[dict]:
    return make_trainer.rows


def states(model) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def assert_equal(first: dict, second: dict):
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


class TestLora:
    def test_every_projection_of_the_decoder_is_adapted_and_nothing_else(self, tokenizer):
        model = adapt_model(new_model(tokenizer), ModelArguments("", lora=True, lora_rank=4))
        adapted = {name.split(".lora_")[0] for name, p in model.named_parameters() if p.requires_grad}
        # Four custom layers have 8 attention and 4 feed-forward projections. The normal layer has 8 and 2.
        assert len(adapted) == 4 * 12 + 10
        assert all(".decoder.layers." in name for name in adapted)

    def test_it_is_merged_on_export(self, make_trainer, tokenizer, tmp_path, rows):
        model = adapt_model(new_model(tokenizer), ModelArguments("", lora=True, lora_rank=4))
        trainer = make_trainer(model, learning_rate=0.05, max_steps=6, save_strategy="no")
        trainer.train()
        batch = trainer.data_collator(rows)
        expected = logits_of(trainer.model.eval(), **batch)
        assert (expected - logits_of(new_model(tokenizer), **batch)).abs().max() > 1e-2
        save_merged(trainer)
        loaded, info = XLMSWCMForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
        assert not any(info.values())
        torch.testing.assert_close(logits_of(loaded.eval(), **batch), expected, atol=1e-4, rtol=1e-4)
        assert not list(tmp_path.glob("adapter*"))

    def test_it_learns(self, make_trainer, tokenizer):
        model = adapt_model(new_model(tokenizer), ModelArguments("", lora=True, lora_rank=8))
        trainer = make_trainer(model, learning_rate=0.02, max_steps=30, save_strategy="no")
        before = trainer.evaluate()["eval_loss"]
        trainer.train()
        assert trainer.evaluate()["eval_loss"] < 0.9 * before

    def test_it_goes_on_from_a_checkpoint(self, make_trainer, tokenizer, tmp_path):
        whole, resumed = (
            make_trainer(adapt_model(new_model(tokenizer), ModelArguments("", lora=True, lora_rank=4)))
            for _ in range(2)
        )
        whole.train()
        expected = states(whole.model)
        resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
        assert_equal(states(resumed.model), expected)

    def test_a_frozen_encoder_stays_and_the_decoder_learns(self, make_trainer, tokenizer):
        model = adapt_model(new_model(tokenizer), ModelArguments("", freeze_encoder=True))
        before = states(model)
        make_trainer(model, save_strategy="no").train()
        for name, parameter in model.named_parameters():
            moved = not torch.equal(parameter, before[name])
            assert moved == (not name.startswith("model.encoder.")), name

    def test_adapters_are_not_spread_over_gpus(self, tokenizer, monkeypatch):
        monkeypatch.setattr("modeling_xlm_swcm.training.lora.is_fsdp_enabled", lambda: True)
        with pytest.raises(
            TrainingError, match="^--lora does not work with FSDP. Launch with `accelerate launch --multi_gpu`"
        ):
            adapt_model(new_model(tokenizer), ModelArguments("", lora=True))

    def test_a_rank_above_the_hidden_size_is_refused(self, tokenizer):
        model = new_model(tokenizer)
        adapt_model(model, ModelArguments("", lora=True, lora_rank=model.config.hidden_size))
        message = f"^--lora_rank must be at most {model.config.hidden_size}, the hidden size of the model"
        with pytest.raises(TrainingError, match=message):
            adapt_model(model, ModelArguments("", lora=True, lora_rank=model.config.hidden_size + 1))

    @pytest.mark.parametrize("option", ["--lora", "--freeze_encoder", "FSDP"])
    def test_layers_that_are_the_encoders_are_refused(self, tokenizer, monkeypatch, option):
        monkeypatch.setattr("modeling_xlm_swcm.training.lora.is_fsdp_enabled", lambda: option == "FSDP")
        args = ModelArguments("", **({} if option == "FSDP" else {option.strip("-"): True}))
        with pytest.raises(TrainingError, match=f"{option} needs separate weights for encoder and decoder"):
            adapt_model(new_model(tokenizer, weight_sharing="tied"), args)
        adapt_model(new_model(tokenizer), args)

    @pytest.mark.parametrize("option", ["--freeze_encoder", "FSDP"])
    def test_a_tied_prefix_decoder_is_refused_too(self, tokenizer, monkeypatch, option):
        monkeypatch.setattr("modeling_xlm_swcm.training.lora.is_fsdp_enabled", lambda: option == "FSDP")
        args, blocks = ModelArguments("", freeze_encoder=option != "FSDP"), 4 * ["prefix"]
        with pytest.raises(TrainingError, match=f"{option} needs separate weights for encoder and decoder"):
            adapt_model(new_model(tokenizer, decoder_blocks=blocks, weight_sharing="tied"), args)
        adapt_model(new_model(tokenizer, decoder_blocks=blocks), args)


def run(start: Path, output: Path, train_file: Path, **options):
    """Fine-tune with LoRA and return the scores."""
    training = TrainingArguments(
        str(output),
        do_train=True,
        do_predict=True,
        predict_with_generate=True,
        max_steps=6,
        learning_rate=1e-2,
        save_strategy="no",
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
    )
    data = FinetuneDataArguments(
        task="translation",
        source_lang="zh",
        target_lang=["kk", "bo"],
        train_file=str(train_file),
        test_file=str(train_file),
        max_source_length=30,
        max_target_length=20,
    )
    return finetune(ModelArguments(str(start), lora=True, lora_rank=4, **options), data, training)


@pytest.fixture(scope="module")
def train_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("data") / "train.tsv"
    path.write_text("zh\tkk\tbo\n我们\tжел жоқ\tཞོགས་པ\n河边没有风\tөзен\tང་ཚོ\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def extended_folder(learner_folder, tmp_path_factory) -> Path:
    """Return a model with new tokens after the language tags in its vocabulary."""
    folder = tmp_path_factory.mktemp("extended")
    (folder / "bo.txt").write_text("བཀྲ་ཤིས་བདེ་ལེགས སྐད་ཡིག་སློབ་སྦྱོང རྒྱལ་ཁབ\n" * 20, encoding="utf-8")
    report = extend(learner_folder, folder / "model", corpus=[f"bo={folder / 'bo.txt'}"], size=120)
    assert report.tokens["before"] < report.tokens["after"]
    return folder / "model"


@pytest.fixture
def batch(tokenizer) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    draw = partial(torch.randint, 4, 150, generator=generator)
    return {"input_ids": draw((2, 9)), "decoder_input_ids": draw((2, 6))}


def changed_rows(before: Path, after: Path) -> list[int]:
    rows = [load(folder).get_input_embeddings().weight for folder in (before, after)]
    return (rows[0] != rows[1]).any(1).nonzero().flatten().tolist()


class TestEmbeddings:
    @pytest.mark.parametrize(("choice", "names_report"), [("tags", False), ("new", False), ("new", True)])
    def test_the_chosen_rows_train_and_no_other(self, choice, names_report, extended_folder, train_file, tmp_path):
        report = shutil.copy(extended_folder / "vocabulary_report.json", tmp_path)
        start, option = extended_folder, choice
        if names_report:
            start = shutil.copytree(extended_folder, tmp_path / "start")
            (start / "vocabulary_report.json").unlink()
            option = str(report)
        run(start, tmp_path / "output", train_file, lora_train_embeddings=option)
        tokenizer = AutoTokenizer.from_pretrained(extended_folder)
        tags = [tokenizer.get_lang_id(code) for code in ("zh", "kk", "bo")]
        tokens = json.loads(Path(report).read_text())["tokens"]
        new = range(tokens["before"], tokens["after"]) if choice == "new" else []
        assert changed_rows(extended_folder, tmp_path / "output") == sorted({*tags, *new})
        before, after = (load(folder).state_dict() for folder in (extended_folder, tmp_path / "output"))
        others = {name for name in before if not torch.equal(before[name], after[name])}
        assert all(".decoder.layers." in name or name.endswith(SHARED) for name in others)

    @pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
    def test_adapters_are_saved_alone_and_merge_to_what_a_merged_run_saves(
        self, extended_folder, train_file, tmp_path, batch
    ):
        scores = [
            run(
                extended_folder,
                tmp_path / name,
                train_file,
                lora_train_embeddings="new",
                lora_merge=merge,
                license="mit",
            )
            for name, merge in (("merged", True), ("adapters", False))
        ]
        assert scores[0] == scores[1]
        names = {path.name for path in (tmp_path / "adapters").iterdir()}
        assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "README.md"} <= names
        assert not names & {"model.safetensors", "config.json"}
        tensors = load_file(tmp_path / "adapters" / "adapter_model.safetensors")
        assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
        assert len([name for name in tensors if "trainable_tokens_delta" in name]) == 1

        card = ModelCard.load(tmp_path / "adapters" / "README.md")
        assert (card.data.library_name, card.data.base_model, card.data.license) == ("peft", None, "mit")
        assert str(tmp_path.parent) not in str(card) and str(extended_folder) not in str(card)
        assert "| lora_rank | 4 |" in card.text and f"| chrf++ (zh-bo) | {scores[1]['chrf++']['zh-bo']} |" in card.text

        expected = logits_of(load(tmp_path / "merged").eval(), **batch)
        assert (expected - logits_of(load(extended_folder).eval(), **batch)).abs().max() > 0.01
        model = PeftModel.from_pretrained(load(extended_folder), tmp_path / "adapters").eval()
        assert_close(logits_of(model, **batch), expected)
        assert_close(logits_of(model.merge_and_unload(), **batch), expected)

    @pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
    def test_adapters_name_their_base_from_any_folder(self, extended_folder, train_file, tmp_path, batch, monkeypatch):
        base = shutil.copytree(extended_folder, tmp_path / "base")
        monkeypatch.chdir(tmp_path)
        run(Path("base"), tmp_path / "adapters", train_file, lora_merge=False)
        config = json.loads((tmp_path / "adapters" / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == str(base)
        assert (
            "The base model is a local folder. In the code, replace its name by its path."
            in Path("adapters/README.md").read_text()
        )
        monkeypatch.chdir("/")
        allowed = {"import_allowlist": ["modeling_xlm_swcm"]} if ASKS_FOR_IMPORTS else {}
        model = AutoPeftModelForSeq2SeqLM.from_pretrained(tmp_path / "adapters", **allowed).eval()
        by_hand = PeftModel.from_pretrained(load(base), tmp_path / "adapters").eval()
        assert_close(logits_of(model, **batch), logits_of(by_hand, **batch))

        base.rename(tmp_path / "moved")
        message = f"not a whole model. Their base model is {base}, which does not exist on this machine. Load the base"
        with pytest.raises(ConversionError, match=message):
            read_model_config(str(tmp_path / "adapters"))

    def test_a_run_goes_on_from_a_checkpoint(self, make_trainer, tokenizer, tmp_path):
        args = ModelArguments("", lora=True, lora_rank=4, lora_train_embeddings="tags")
        whole, resumed = (make_trainer(adapt_model(new_model(tokenizer), args, tokenizer)) for _ in range(2))
        whole.train()
        expected = states(whole.model)
        assert any("trainable_tokens_delta" in name for name in expected)
        resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
        assert_equal(states(resumed.model), expected)

    def test_a_checkpoint_of_other_embeddings_is_refused(self, make_trainer, tokenizer, tmp_path):
        make_trainer(adapt_model(new_model(tokenizer), ModelArguments("", lora=True))).train()
        args = ModelArguments("", lora=True, lora_train_embeddings="tags")
        trainer = make_trainer(adapt_model(new_model(tokenizer), args, tokenizer))
        ids = "trains the embeddings of other tokens. Ids only in the checkpoint: none. Ids only in this run: 1"
        with pytest.raises(TrainingError, match=ids):
            trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))

    def test_a_checkpoint_of_as_many_other_tokens_is_refused(self, make_trainer, tokenizer, tmp_path):
        def make(before: int):
            report = {"action": "extend", "tokens": {"before": before, "after": before + 7}}
            (tmp_path / "report.json").write_text(json.dumps(report))
            args = ModelArguments("", lora=True, lora_train_embeddings=str(tmp_path / "report.json"))
            return make_trainer(adapt_model(new_model(tokenizer), args, tokenizer))

        make(20).train()
        checkpoint = tmp_path / "checkpoint-2"
        ids = "Ids only in the checkpoint: 20, 21. Ids only in this run: 27, 28. Use the model and the --lora_train"
        with pytest.raises(TrainingError, match=f"^{checkpoint} trains the embeddings of other tokens. {ids}"):
            make(22).train(resume_from_checkpoint=str(checkpoint))
        ids = "20, 21, 22, 23, 24 and 2 more. Ids only in this run: 90, 91, 92, 93, 94 and 2 more."
        with pytest.raises(TrainingError, match=ids):
            make(90).train(resume_from_checkpoint=str(checkpoint))

    @pytest.mark.parametrize(
        ("choice", "report", "message"),
        [
            ("new", None, "^--lora_train_embeddings new needs a vocabulary_report.json in .*. Pass the path"),
            ("tag", None, "^--lora_train_embeddings tag is not a file. Use none, tags, new or the path"),
            (
                "new",
                {"action": "trim", "tokens": {"before": 9, "after": 7}},
                "does not describe an extension",
            ),
            ("new", {"action": "extend"}, 'The field "tokens" of .* does not fit the tokenizer'),
            ("new", {"action": "extend", "tokens": [1, 2]}, 'The field "tokens" of .* does not fit'),
            ("new", {"action": "extend", "tokens": {"before": 9}}, 'The field "tokens" of .* does not fit'),
            ("new", {"action": "extend", "tokens": {"before": "1", "after": 3}}, "does not fit the tokenizer"),
            ("new", {"action": "extend", "tokens": {"before": 9, "after": 9}}, "does not fit the tokenizer"),
            ("new", {"action": "extend", "tokens": {"before": 9, "after": 9999}}, "which has [0-9]+ tokens. Pass"),
        ],
    )
    def test_tokens_that_are_not_known_are_refused(self, tokenizer, tmp_path, choice, report, message):
        if report is not None:
            (tmp_path / "vocabulary_report.json").write_text(json.dumps(report))
        args = ModelArguments(str(tmp_path), lora=True, lora_train_embeddings=choice)
        with pytest.raises(TrainingError, match=message):
            adapt_model(new_model(tokenizer), args, tokenizer)

    def test_a_damaged_report_is_named(self, tokenizer, tmp_path):
        (tmp_path / "vocabulary_report.json").write_text("{")
        args = ModelArguments(str(tmp_path), lora=True, lora_train_embeddings="new")
        with pytest.raises(ConversionError, match="vocabulary_report.json is not valid JSON"):
            adapt_model(new_model(tokenizer), args, tokenizer)

    def test_models_without_tags_tokenizer_or_tied_output_are_refused(self, tokenizer):
        args = ModelArguments("", lora=True, lora_train_embeddings="tags")
        with pytest.raises(TrainingError, match="needs a tokenizer"):
            adapt_model(new_model(tokenizer), args)
        without_tags = type(tokenizer)(
            tokenizer_object=xlm_roberta_tokenizer().backend_tokenizer, **xlm_roberta_tokenizer().special_tokens_map
        )
        with pytest.raises(TrainingError, match="needs language tags, but the tokenizer has no tags"):
            adapt_model(new_model(tokenizer), args, without_tags)
        with pytest.raises(TrainingError, match="--lora_train_embeddings needs an output projection that is tied"):
            adapt_model(new_model(tokenizer, tie_word_embeddings=False), args, tokenizer)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lora_train_embeddings": "tags"}, "--lora_train_embeddings needs --lora. Add --lora."),
        ({"lora_merge": False}, "--lora_merge false needs --lora. Add --lora."),
        (
            {"lora": True, "lora_train_embeddings": "tags", "freeze_encoder": True},
            "--freeze_encoder keeps the embeddings fixed.",
        ),
        ({"lora": True, "lora_merge": False, "save_dtype": "float32"}, "--save_dtype has no effect on adapters."),
    ],
)
def test_options_that_do_not_go_together_are_refused(options, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        ModelArguments("", **options)


def test_adapters_alone_are_not_pushed_as_a_model(tmp_path):
    training = TrainingArguments(str(tmp_path), push_to_hub=True, hub_model_id="a/b", report_to=[], use_cpu=True)
    with pytest.raises(DataError, match="^--push_to_hub pushes a whole model. Remove --lora_merge false, or upload"):
        check_push(ModelArguments("", lora=True, lora_merge=False), training)


@pytest.mark.parametrize("choice", ["none", "tags"])
@pytest.mark.parametrize("sharing", ["init", "tied"])
def test_a_prefix_decoder_has_adapters_that_merge(make_trainer, tokenizer, tmp_path, rows, sharing, choice):
    model = new_model(tokenizer, decoder_blocks=["prefix"] * 4, weight_sharing=sharing)
    model = adapt_model(model, ModelArguments("", lora=True, lora_rank=4, lora_train_embeddings=choice), tokenizer)
    adapted = {name.split(".lora_")[0] for name, p in model.named_parameters() if ".lora_" in name and p.requires_grad}
    assert len(adapted) == 4 * 6
    part = ".encoder.encoder.layer." if sharing == "tied" else ".decoder.layers."
    assert all(part in name for name in adapted)
    trainer = make_trainer(model, learning_rate=0.01, save_strategy="no")
    trainer.train()
    inputs = trainer.data_collator(rows)
    expected = logits_of(trainer.model.eval(), **inputs)
    save_merged(trainer)
    torch.testing.assert_close(logits_of(load(tmp_path).eval(), **inputs), expected, atol=1e-3, rtol=1e-3)


def test_a_folder_of_adapters_is_not_taken_for_a_model(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(
        ConversionError, match="contains adapters of PEFT, not a whole model. Load the base model, merge"
    ):
        read_model_config(str(tmp_path))


@pytest.mark.parametrize("is_local", [True, False])
def test_the_card_of_adapters_names_the_base(tmp_path, is_local):
    (tmp_path / "base").mkdir()
    base = str(tmp_path / "base") if is_local else "owner/base"
    metrics = {"training": {"steps": 3}, "dataset": "news", "results": {"loss": 1.5, "bleu": {"bo": 2.0}}}
    write_adapter_card(tmp_path, base, metrics, "mit")
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.base_model == (None if is_local else base)
    assert ("base_model:adapter:owner/base" in card.data.tags) != is_local
    assert "| loss | 1.5 |\n| bleu (bo) | 2.0 |" in card.text and "| steps | 3 |" in card.text
    code = card.text.split("```python")[1].split("```")[0]
    assert f'from_pretrained("{"base" if is_local else base}", ' in code
    compile(code, "card", "exec")
    # A card that somebody wrote stays.
    (tmp_path / "README.md").write_text("by hand")
    write_adapter_card(tmp_path, base, metrics, "mit")
    assert (tmp_path / "README.md").read_text() == "by hand"
