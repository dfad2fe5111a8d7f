"""Output of a training: results, plots and model cards."""

import json
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from matplotlib.axes import Axes
from peft import LoraConfig
from support.models import wants_peft
from support.trainers import new_model
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from modeling_xlm_swcm import XLMSWCMForConditionalGeneration
from modeling_xlm_swcm.hub import card_template as card
from modeling_xlm_swcm.training.arguments import ModelArguments
from modeling_xlm_swcm.training.checkpoints import TrainingError
from modeling_xlm_swcm.training.lora import adapt_model, save_merged
from modeling_xlm_swcm.training.plots import plot_history
from modeling_xlm_swcm.training.results import write_results
from modeling_xlm_swcm.training.trainer import XLMSWCMTrainer


class TestResults:
    @pytest.fixture
    def start(self, tokenizer, tmp_path_factory) -> Path:
        """Return the folder of a converted model."""
        folder = tmp_path_factory.mktemp("converted")
        report = {"source": "somebody/encoder", "options": {}, "counts": {"copied": 1, "new": 2, "dropped": 3}}
        model = new_model(tokenizer)
        model.conversion_report = report | {"license": "mit"}
        model.save_pretrained(folder)
        return folder

    def write(self, make_trainer, start, **options):
        model = XLMSWCMForConditionalGeneration.from_pretrained(start)
        trainer = make_trainer(model, logging_steps=1, eval_strategy="steps", eval_steps=2, **options)
        trainer.train()
        data = {"training data": "text.txt", "bleu_signature": "nrefs:1|case:mixed"}
        save_merged(trainer)
        write_results(trainer, ModelArguments(str(start)), "translation", "news", {"chrf": {"ug": 12.5}}, data)

    def test_everything_is_left_behind(self, make_trainer, start, tmp_path):
        self.write(make_trainer, start, label_smoothing_factor=0.1, gradient_accumulation_steps=2)
        metrics = json.loads((tmp_path / "metrics.json").read_text())
        assert (metrics["task"], metrics["dataset"], metrics["results"]) == (
            "translation",
            "news",
            {"chrf": {"ug": 12.5}},
        )
        training = metrics["training"]
        assert training["start"] == start.name
        assert training["steps"] == 4 and training["batch_size"] == 8 and training["label_smoothing"] == 0.1
        assert "lora_rank" not in training and training["precision"] == "float32" and "seconds" in training

        card = (tmp_path / "README.md").read_text()
        assert "| training data | text.txt |" in card and "| optimizer | adamw_torch" in card
        assert "| bleu_signature | nrefs:1\\|case:mixed |" in card
        assert "| learning_rate | 0.001 |" in card and "12.5" in card and str(start.parent) not in card
        assert (tmp_path / "training.png").read_bytes().startswith(b"\x89PNG")
        for name in ("model.safetensors", "tokenizer.json", "conversion_report.json"):
            assert (tmp_path / name).is_file()
        assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]

    def test_an_unknown_licence_is_said_and_stops_nothing(self, make_trainer, tmp_path, start, caplog):
        report = json.loads((start / "conversion_report.json").read_text()) | {"license": None}
        (start / "conversion_report.json").write_text(json.dumps(report))
        card.logger.addHandler(caplog.handler)
        self.write(make_trainer, start)
        card.logger.removeHandler(caplog.handler)
        assert (
            "The licence of the encoder somebody/encoder is not known. The model card names no licence." in caplog.text
        )
        assert ModelCard.load(tmp_path / "README.md").data.license is None

    def test_tensorboard_gets_the_losses(self, make_trainer, tmp_path):
        trainer = make_trainer(report_to=["tensorboard"], max_steps=2, logging_steps=1, save_strategy="no")
        trainer.train()
        (folder,) = (tmp_path / "runs").iterdir()
        losses = EventAccumulator(str(folder)).Reload().Scalars("train/loss")
        logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        assert [event.value for event in losses] == pytest.approx(logged) and len(losses) == 2

    @pytest.mark.parametrize(("max_steps", "logging_steps", "steps"), [(3, 500, [1, 2, 3]), (4, 2, [2, 4])])
    def test_a_training_that_is_shorter_than_its_logging_steps_has_losses_to_plot(
        self, make_trainer, max_steps, logging_steps, steps
    ):
        trainer = make_trainer(max_steps=max_steps, logging_steps=logging_steps, save_strategy="no")
        trainer.train()
        assert [entry["step"] for entry in trainer.state.log_history if "loss" in entry] == steps

    def test_the_plot_has_losses_and_metrics(self, tmp_path, monkeypatch):
        drawn = []
        monkeypatch.setattr(Axes, "plot", lambda self, x, y, *a, label=None, **k: drawn.append((label, x, y)) or [])
        history = [
            {"step": 1, "loss": 3.0, "epoch": 1},
            {"step": 2, "loss": 2.0},
            {"step": 2, "eval_loss": 2.5, "eval_chrf": 9.0, "eval_runtime": 1.0, "eval_samples_per_second": 3.0},
            {"step": 2, "train_runtime": 3.0, "train_loss": 2.5},
        ]
        plot_history(history, tmp_path / "plot.png")
        assert drawn == [
            ("training", (1, 2), (3.0, 2.0)), ("held out", (2,), (2.5,)), ("chrf", (2,), (9.0,))
        ]  # fmt: skip


class TestCard:
    REPORT = {"source": "encoder", "options": {}, "counts": {"copied": 1, "new": 2, "dropped": 3}}

    @pytest.fixture
    def trainer(self, make_trainer, tokenizer) -> XLMSWCMTrainer:
        model = new_model(tokenizer)
        model.conversion_report = dict(self.REPORT)
        trainer = make_trainer(model)
        trainer.save_model()
        return trainer

    def test_it_has_what_the_caller_knows_and_the_settings(self, trainer, tmp_path):
        trainer.create_model_card(license="mit", tasks="summarization", dataset="somebody/news")
        card = ModelCard.load(tmp_path / "README.md")
        assert (card.data.license, card.data.pipeline_tag) == ("mit", "summarization")
        assert card.data.datasets == ["somebody/news"] and "was trained for summarization" in card.text
        assert "| learning_rate | 0.001 |" in card.text

    def test_without_a_task_none_is_claimed(self, trainer, tmp_path):
        trainer.create_model_card()
        text = ModelCard.load(tmp_path / "README.md").text
        assert "The training record names no task." in text and "trained for" not in text

    def test_metrics_of_the_run_come_first(self, trainer, tmp_path):
        (tmp_path / "metrics.json").write_text('{"task": "question-answering", "results": {"f1": 12.5}}')
        trainer.create_model_card(tasks="summarization")
        card = ModelCard.load(tmp_path / "README.md")
        assert card.data.pipeline_tag == "question-answering" and "| f1 | all | 12.5 |" in card.text

    def test_a_task_that_no_card_knows_is_refused(self, trainer, tmp_path):
        with pytest.raises(TrainingError, match=r'Unknown task "fill-mask"\. Use one of: translation, .*\.'):
            trainer.create_model_card(tasks="fill-mask")
        assert not (tmp_path / "README.md").exists()

    def check_upstreams_card(self, trainer, folder):
        trainer.create_model_card(model_name="mine", tasks="translation")
        assert "according to the information the Trainer had access to" in (folder / "README.md").read_text()

    def test_adapters_and_models_without_a_report_have_upstreams(self, make_trainer, tokenizer, tmp_path):
        adapted = new_model(tokenizer)
        adapted.conversion_report = dict(self.REPORT)
        for model in (adapt_model(adapted, ModelArguments("", lora=True)), new_model(tokenizer)):
            self.check_upstreams_card(make_trainer(model), tmp_path)

    @wants_peft
    def test_a_model_with_adapters_of_transformers_own_has_upstreams(self, make_trainer, tokenizer, tmp_path):
        model = new_model(tokenizer)
        model.conversion_report = dict(self.REPORT)
        model.add_adapter(LoraConfig(target_modules=["q_proj"]))
        self.check_upstreams_card(make_trainer(model), tmp_path)
