"""The interface between page and model, and a model that runs in Transformers. This file travels with a Space."""

import contextlib
import json
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from transformers import Pipeline, pipeline


# A Space has this module beside this file.
if __package__ == "modeling_xlm_swcm.app":
    from ..sentences_xlm_swcm import Output, list_sentences, split_texts
else:
    from sentences_xlm_swcm import Output, list_sentences, split_texts  # type: ignore[no-redef]


MAX_BEAMS = 16
BATCH_SIZE = 8
EAGER = {"attn_implementation": "eager"}  # other implementations return no attention weights

Warn = Callable[[str], object]
# This function gets a message and the indices of its texts, if they are known.
WarnOfTexts = Callable[[str, Sequence[int]], object]


@dataclass(frozen=True, kw_only=True)
class Options:
    """Task, languages and beams of a call, and the question of the task `question-answering`."""

    task: str = "translation"
    question: str = ""
    src_lang: str | None = None
    tgt_lang: str | None = None
    num_beams: int = 4
    num_candidates: int = 1


class Token(NamedTuple):
    """A source token, and whether it is `<unk>`."""

    text: str
    is_unknown: bool


class Attention(NamedTuple):
    """Mean attention weights of shape `(target_len, source_len)`, with the tokens of target and source."""

    source: list[str]
    target: list[str]
    weights: list[list[float]]
    is_joint: bool


class PageModel:
    """
    A model that the page shows.

    Args:
        languages (`list[str]`): Codes of the languages with a tag.
        tasks (`list[str]`): Tasks of the model.
        limit (`int`): Maximum length of a source in tokens.
    """

    has_attention = False

    def __init__(self, languages: list[str], tasks: list[str], limit: int):
        self.languages, self.tasks, self.limit = languages, tasks, limit

    def generate(self, texts: list[str], options: Options, warn: WarnOfTexts) -> list[list[Output]]:
        """Return the candidates for each text, best first."""
        raise NotImplementedError

    def tokenize(self, text: str) -> list[Token]:
        """Return the tokens of a text, without special tokens."""
        raise NotImplementedError

    def attend(self, text: str, options: Options) -> Attention:
        """Return the attention of the best text to its source."""
        raise NotImplementedError

    def is_split(self, options: Options) -> bool:
        """Return True if texts are generated sentence by sentence."""
        return options.task == "translation"

    def split(self, text: str, options: Options) -> list[str]:
        """Return the sentences of a text, or the text itself if it is not split."""
        if not self.is_split(options):
            return [text.strip()]
        return list_sentences(split_texts([text], self._count_tokens, self.limit, lambda index, message: None))

    def check(self, texts: list[str], options: Options):
        """
        Check texts and options.

        Raises:
            ValueError: if the model cannot use them.
        """
        if options.task not in self.tasks:
            raise ValueError(f'The task "{options.task}" is unknown. Choose one of: {", ".join(self.tasks)}.')
        for name, code in (("source", options.src_lang), ("target", options.tgt_lang)):
            if self.languages and code not in self.languages:
                known = ", ".join(self.languages)
                raise ValueError(f'The {name} language "{code or ""}" is unknown. Choose one of: {known}.')
        check_count("Beams", options.num_beams, MAX_BEAMS)
        check_count("Candidates", options.num_candidates, options.num_beams, ", the number of beams")
        if options.task == "question-answering" and not options.question.strip():
            raise ValueError("The question is empty. Write a question.")
        check_unicode(options.question)
        for text in texts:
            if not text or not text.strip():
                raise ValueError("The text is empty. Write or paste a text.")
            check_unicode(text)
            length = 0 if self.is_split(options) else self._count_source(join_question(text, options))
            if length > self.limit:
                raise ValueError(
                    f"The text has {length} tokens, but the model reads at most {self.limit}. Shorten the text."
                )

    def check_pair(self, options: Options, warn: Warn):
        """Warn of a translation into the language of the source."""
        if self.languages and options.task == "translation" and options.src_lang == options.tgt_lang:
            warn(f"Source and target language are both {options.src_lang}. A translation needs two languages.")

    def _count_source(self, parts: list[str]) -> int:
        # Only the first part has a language tag.
        return sum(self._count_tokens(parts)) - bool(self.languages) * (len(parts) - 1)

    def _count_tokens(self, texts: list[str]) -> list[int]:
        # The start, the language tag and the end are tokens too.
        return [len(self.tokenize(text)) + 2 + bool(self.languages) for text in texts]


def join_question(text: str, options: Options) -> list[str]:
    """Return the parts of a source: the text, after the question if there is one."""
    return [options.question, text] if options.task == "question-answering" else [text]


def mark_unknown(tokens: list[str], ids: list[int], unknown_id: int) -> list[Token]:
    """Return tokens, and whether each is `<unk>`."""
    return [Token(token, token_id == unknown_id) for token, token_id in zip(tokens, ids, strict=True)]


def check_unicode(text: str):
    """Refuse a text that a tokenizer cannot read."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError("The text is not valid Unicode: it has half of a character. Write it again.") from error


def check_count(name: str, value: Any, maximum: int, reason: str = ""):
    """Refuse a value that is not a whole number from 1 to `maximum`."""
    if value is None:
        raise ValueError(f"The field {name} is empty. Write a whole number from 1 to {maximum}{reason}.")
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= maximum:
        raise ValueError(
            f"{name} must be a whole number from 1 to {maximum}{reason} (got {value}). Use another number."
        )


class TransformersModel(PageModel):
    """
    A model of Transformers.

    Args:
        pipe (`XLMSWCMPipeline`): Pipeline with the model, which uses eager attention.
        tasks (`list[str]`): Tasks of the model.
    """

    has_attention = True

    def __init__(self, pipe: Pipeline, tasks: list[str]):
        model: Any = pipe.model
        tokenizer: Any = pipe.tokenizer
        self.model, self.tokenizer = model, tokenizer
        super().__init__(tokenizer.languages, tasks, tokenizer.model_max_length)
        self.pipes = {task: type(pipe)(model=self.model, tokenizer=self.tokenizer, task=task) for task in tasks}

    def generate(self, texts: list[str], options: Options, warn: WarnOfTexts) -> list[list[Output]]:
        """Return the candidates for each text, best first."""
        inputs: list = texts
        if options.task == "question-answering":
            inputs = [{"question": options.question, "context": text} for text in texts]
        arguments: dict[str, Any] = {"num_beams": options.num_beams, "num_return_sequences": options.num_candidates}
        if self.languages:
            arguments |= {"src_lang": options.src_lang, "tgt_lang": options.tgt_lang}
        with pass_warnings(warn):
            answers = self.pipes[options.task](inputs, return_scores=True, batch_size=BATCH_SIZE, **arguments)
        # With one candidate, the pipeline returns a flat list.
        candidates = [answer if isinstance(answer, list) else [answer] for answer in answers]
        return [[Output(*answer.values()) for answer in answers] for answers in candidates]

    def tokenize(self, text: str) -> list[Token]:
        """Return the tokens of a text, without special tokens."""
        encoded = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)
        return mark_unknown(encoded.tokens(), encoded["input_ids"], self.tokenizer.unk_token_id)

    @torch.inference_mode()
    def attend(self, text: str, options: Options) -> Attention:
        """Return the attention of the best text to its source: the mean over all layers and heads."""
        parts, languages = join_question(text, options), {"src_lang": options.src_lang}
        source = self.tokenizer(*parts, split_special_tokens=True, return_tensors="pt", **languages)
        source = source.to(self.model.device)
        tag = self.tokenizer.get_lang_id(options.tgt_lang) if self.languages else None
        ids = self.model.generate(**source, num_beams=options.num_beams, forced_bos_token_id=tag)
        output = self.model(**source, decoder_input_ids=ids[:, :-1], output_attentions=True, use_cache=False)
        weights = torch.stack(output.cross_attentions).float().mean((0, 2))[0]  # (target_len, source_len)
        # The language tag is forced, so the map leaves out its row.
        start = int(tag is not None)
        target = self.tokenizer.convert_ids_to_tokens(ids[0, 1 + start :].tolist())
        is_joint = self.model.config.has_prefix_decoder
        return Attention(source.tokens(), target, weights[start:].tolist(), is_joint)


@contextlib.contextmanager
def pass_warnings(warn: WarnOfTexts) -> Iterator[None]:
    """Pass the warnings of the pipeline in this thread to `warn`."""
    thread = threading.get_ident()

    class Handler(logging.Handler):
        def emit(self, record):
            if record.thread == thread and record.name.endswith("pipeline_xlm_swcm"):
                # The code of an older model on the Hub does not name the texts.
                warn(record.getMessage(), getattr(record, "texts", ()))

    handler, logger = Handler(logging.WARNING), logging.getLogger("transformers")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def load_from_hub(source: str) -> TransformersModel:
    """Load a model, as `owner/name` or `owner/name@branch`, from the Hub with the code in its repository."""
    repo_id, _, branch = source.partition("@")
    revision = branch or None
    task: Any = "translation"  # a task that only remote code knows
    options: dict[str, Any] = {"revision": revision, "trust_remote_code": True, "model_kwargs": EAGER}
    pipe = pipeline(task, model=repo_id, **options)
    tasks = list(pipe.model.config.custom_pipelines)
    try:
        path = hf_hub_download(repo_id, "metrics.json", revision=revision)
        task = json.loads(Path(path).read_text(encoding="utf-8"))["task"]
    # Without a result of fine-tuning, the model can have any task.
    except (EntryNotFoundError, ValueError, KeyError, TypeError):
        return TransformersModel(pipe, tasks)
    return TransformersModel(pipe, [task] if task in tasks else tasks)
