"""Pipelines for translation, summarization and question answering, which Transformers 5 no longer has."""

import itertools
from collections.abc import Iterable, Iterator
from types import GeneratorType

import torch
from torch.utils.data import Dataset
from transformers import LogitsProcessorList, Pipeline
from transformers.utils import ModelOutput, logging

from .scores_xlm_swcm import score_sequences
from .sentences_xlm_swcm import Output, join_outputs, list_sentences, split_texts
from .terms_xlm_swcm import Terms


logger = logging.get_logger(f"transformers.{__name__}")

# Each task has the output key that it had in Transformers 4.
TASKS = {"translation": "translation_text", "summarization": "summary_text", "question-answering": "answer"}

# Options of `generate` that end a sequence before its maximum length.
STOPPING = {"stopping_criteria", "stop_strings", "max_time"}


class XLMSWCMPipeline(Pipeline):
    r"""
    Pipeline for translation, summarization and question answering.

    Load it with `pipeline(task, model=..., trust_remote_code=True)`. If this package is imported, you can use
    `pipeline(task, model="folder or Hub id", pipeline_class=XLMSWCMPipeline)` instead. For a loaded model, use
    `XLMSWCMPipeline(model=model, tokenizer=tokenizer, task=task)`.

    The input is a text or a list of texts. For `"question-answering"` it is a dict with `question` and `context`, or a
    list of such dicts. You can also pass `question=` and `context=`, each a text or each a list. The source is the
    question, then the context. Special tokens and language tags inside an input are ordinary text.

    A text is translated sentence by sentence, longest sentences first. Its line breaks, tabs and list markers
    stay. With `num_return_sequences`, translation *k* of a text joins translation *k* of each sentence.

    Set these arguments when you make the pipeline, or in a call. Other arguments go to `generate`.

    Args:
        src_lang (`str`, *optional*):
            Language of the inputs. By default `tokenizer.src_lang`.
        tgt_lang (`str`, *optional*):
            Language of the outputs. By default the language of `forced_bos_token_id` if you set it, or else
            `tokenizer.tgt_lang`. If both are missing, tasks other than translation use the language of the inputs.
        split (`bool`, *optional*):
            Whether to translate sentence by sentence. By default `True` for translation without `truncation`. If
            `False`, a text is one input, and a long text is an error.
        truncation (`bool` or `str`, *optional*, defaults to `False`):
            Whether to truncate long inputs, with a warning. Also accepts a truncation strategy of the tokenizer, for
            example `"only_second"`.
        batch_size (`int`, *optional*, defaults to 1):
            Number of inputs, or of sentences of a translation, in a batch.
        return_scores (`bool`, *optional*, defaults to `False`):
            Whether to add `score` and `num_tokens` to each output. The score is the mean log probability of the
            generated tokens. The language tag does not count. `num_tokens` is the number of counted tokens.
        terms (`dict` or `str`, *optional*):
            Target terms for source terms: a dict, or a file with a source term, a tab and a target term in each line.
            If an input or sentence has a source term, its target term becomes more probable. It is not forced.
        terms_strength (`float`, *optional*, defaults to 2.0):
            Bias of each token of a target term, in nats.

    Returns:
        `list`: for each input, a list of dicts, one for each returned sequence. The key is `translation_text`,
        `summary_text` or `answer`. A list of inputs with one sequence each gives one flat list. One question with one
        sequence gives a dict.

    Raises:
        ValueError: if the input does not fit the task or is too long, or if a language is unknown or not set.
    """

    _load_tokenizer = True
    _load_processor = _load_image_processor = _load_video_processor = _load_feature_extractor = False

    def __init__(self, *args, task: str = "translation", **kwargs):
        if task not in TASKS:
            raise ValueError(f'Unknown task "{task}". Choose one of: {", ".join(TASKS)}.')
        super().__init__(*args, task=task, **kwargs)
        if not hasattr(self.tokenizer, "get_lang_id"):
            raise ValueError(
                f"tokenizer must be an XLMSWCMTokenizer (got {type(self.tokenizer).__name__}). Load the tokenizer "
                "of the model."
            )

    def __call__(self, inputs=None, *args, question=None, context=None, **kwargs):
        """Generate a text for each input."""
        if args:
            raise ValueError(
                f"A call takes one input (got {1 + len(args)}). Pass several texts as one list, and a question as "
                "question= and context=."
            )
        if inputs is None and self.task == "question-answering":
            several = isinstance(question, list) and isinstance(context, list) and len(question) == len(context)
            if not several and not (isinstance(question, str) and isinstance(context, str)):
                raise ValueError("question and context do not match. Pass two texts, or two lists of the same length.")
            pairs = zip(question, context, strict=True) if several else [(question, context)]
            inputs = [{"question": question, "context": context} for question, context in pairs]
            inputs = inputs if several else inputs[0]
        if isinstance(inputs, list) and not inputs:
            return []
        if kwargs.get("terms") is not None:
            # The terms are read once, and not for each batch of a stream.
            kwargs["terms"] = Terms(kwargs["terms"], self.tokenizer)
        source = self._preprocess_params | self._sanitize_parameters(**kwargs)[0]
        if kwargs.get("terms_strength") is not None and "terms" not in source:
            raise ValueError("terms_strength has no effect without terms. Pass terms too.")
        answers = self._translate(inputs, **kwargs) if self._is_split(source) else self._generate(inputs, **kwargs)
        if isinstance(inputs, list) and all(len(answer) == 1 for answer in answers):
            return [answer[0] for answer in answers]
        return answers[0] if isinstance(inputs, dict) and len(answers) == 1 else answers

    def _generate(self, inputs, *, text_of=None, **kwargs):
        """
        Generate a text for each input, and warn once if outputs are incomplete.

        `text_of` has the index of the text of each input. By default, each input is a text.
        """
        # A stream is read after this call, so its incomplete outputs are reported one by one.
        cut = [] if isinstance(inputs, str | dict | list) else None
        answers = super().__call__(inputs, cut_lengths=cut, **kwargs)
        texts = {text_of[index] if text_of else index for index, lengths in enumerate(cut or ()) if lengths}
        if texts:
            self._warn_of_cut(list(itertools.chain(*cut)), sorted(texts))
        return answers

    def _is_split(self, source: dict) -> bool:
        """Return True if a call with these source options generates sentence by sentence."""
        is_translation, truncation = self.task == "translation", source.get("truncation")
        if source.get("split") and not is_translation:
            raise ValueError(f"split=True is for translation only, not for {self.task}. Set truncation=True instead.")
        return source.get("split", is_translation and truncation in (None, False, "do_not_truncate"))

    def _translate(self, inputs, **kwargs):
        """Translate a text, a list of texts or a stream of texts sentence by sentence."""
        if isinstance(inputs, Dataset) and hasattr(inputs, "__len__"):
            # `iter` would read a dataset without `__iter__` until an IndexError.
            return self._translate_stream(map(inputs.__getitem__, range(len(inputs))), **kwargs)
        if isinstance(inputs, GeneratorType | Dataset):
            return self._translate_stream(iter(inputs), **kwargs)
        answers = self._translate_texts(inputs if isinstance(inputs, list) else [inputs], **kwargs)
        return answers if isinstance(inputs, list) else answers[0]

    def _translate_stream(self, texts: Iterator, **kwargs) -> Iterator[list[dict]]:
        """Translate a stream of texts in groups of `batch_size` texts."""
        batch_size = kwargs.get("batch_size") or self._batch_size or 1
        while batch := list(itertools.islice(texts, batch_size)):
            yield from self._translate_texts(batch, **kwargs)

    def _translate_texts(self, texts: Iterable, **kwargs) -> list[list[dict]]:
        """Return the translations of each text."""
        source, target, _ = self._sanitize_parameters(**kwargs)
        params = self._forward_params | target
        src_lang = (self._preprocess_params | source).get("src_lang")
        for code in filter(None, (src_lang, params.get("tgt_lang"))):
            # A text without sentences is not tokenized.
            self.tokenizer.get_lang_id(code)

        def count_tokens(sentences: list[str]) -> list[int]:
            encoded = self.tokenizer(sentences, src_lang=src_lang, split_special_tokens=True, verbose=False)
            return [len(ids) for ids in encoded["input_ids"]]

        def warn(index: int, message: str):
            logger.warning(message, extra={"texts": [index]})

        limit, key = self.tokenizer.model_max_length, TASKS[self.task]
        documents = split_texts(map(read_text, texts), count_tokens, limit, warn)
        sentences = list_sentences(documents)
        order = sorted(range(len(sentences)), key=lambda number: -len(sentences[number]))
        text_of = [index for index, parts in enumerate(documents) for _ in parts[1::2]]
        inputs, owners = [sentences[number] for number in order], [text_of[number] for number in order]
        answers = self._generate(inputs, text_of=owners, **kwargs) if order else []
        outputs = dict(zip(order, answers, strict=True))
        config = params.get("generation_config") or self.model.generation_config
        num_sequences = params.get("num_return_sequences") or config.num_return_sequences or 1
        # Without sentences, all sequences are empty.
        sequences = list(zip(*(outputs[number] for number in range(len(sentences))), strict=True))
        sequences, has_scores = sequences or [()] * num_sequences, params.get("return_scores")
        answers = []
        for sequence in sequences:
            joined = join_outputs(documents, [Output(*output.values()) for output in sequence])
            answers.append([make_answer(key, output, has_scores) for output in joined])
        return [list(candidates) for candidates in zip(*answers, strict=True)]

    def _warn_of_cut(self, lengths: list[int], texts: Iterable[int] = ()):
        # The default limit counts the start token.
        is_last = max(lengths) >= self.model.config.longest_input - 1
        advice = (
            "Split long inputs. If outputs repeat themselves, train the model longer."
            if is_last
            else "Pass a larger max_new_tokens, or split the inputs."
        )
        message = f"Number of incomplete outputs: {len(lengths)}. The maximum is {max(lengths)} tokens. {advice}"
        # The page of `xlm-swcm try` names these texts.
        logger.warning(message, extra={"texts": texts})

    def _sanitize_parameters(
        self,
        src_lang=None,
        tgt_lang=None,
        split=None,
        truncation=None,
        terms=None,
        cut_lengths=None,
        **generate_kwargs,
    ):
        if terms is not None and not isinstance(terms, Terms):
            terms = Terms(terms, self.tokenizer)
        source = {"src_lang": src_lang, "split": split, "truncation": truncation, "terms": terms}
        target = {"src_lang": src_lang, "tgt_lang": tgt_lang, "terms": terms} | generate_kwargs
        # An argument that a call leaves out must not replace the argument of the pipeline.
        parts = (source, target, {"cut_lengths": cut_lengths})
        source, target, cut = ({name: value for name, value in part.items() if value is not None} for part in parts)
        if tgt_lang is None and "forced_bos_token_id" in target:
            # The tag of a call replaces the `tgt_lang` of the pipeline.
            target["tgt_lang"] = None
        for limit, other in (("max_length", "max_new_tokens"), ("max_new_tokens", "max_length")):
            if limit in target and other not in target:
                # The limit of a call replaces both limits of the pipeline.
                target[other] = None
        return source, target, cut

    def preprocess(self, inputs, src_lang=None, split=None, truncation=False, terms=None):
        """Tokenize one input."""
        if self.task == "question-answering":
            given = inputs if isinstance(inputs, dict) else {}
            texts = given.get("question"), given.get("context")
            if not all(isinstance(text, str) for text in texts):
                raise ValueError(f"Cannot read the input {inputs!r}. Pass a dict of two texts, question and context.")
        else:
            texts = (read_text(inputs),)
        options = {"src_lang": src_lang, "split_special_tokens": True, "return_tensors": "pt", "verbose": False}
        source = self.tokenizer(*texts, **options)
        length, limit = source["input_ids"].shape[1], self.tokenizer.model_max_length
        if length > limit:
            if not truncation or truncation == "do_not_truncate":
                raise ValueError(
                    f"The input has {length} tokens, but the maximum is {limit}. Shorten it, or set truncation=True."
                )
            logger.warning(f"The input has {length} tokens. It is truncated to {limit} tokens.")
            try:
                source = self.tokenizer(*texts, truncation=truncation, **options)
            except Exception as error:
                # The tokenizers library raises no narrower class. Other errors have another cause.
                if type(error) is not Exception:
                    raise
                raise ValueError(
                    f"truncation={truncation!r} cannot shorten this input to {limit} tokens: {error}. Shorten the "
                    "question or the context."
                ) from error
        if terms is not None:
            source["terms"] = terms.find("\n".join(texts))
        return source

    def _forward(
        self,
        inputs,
        src_lang=None,
        tgt_lang=None,
        return_scores=False,
        terms=None,
        terms_strength=None,
        **generate_kwargs,
    ):
        inputs = dict(inputs)
        if terms is not None:
            processors = terms.processors(inputs.pop("terms"), terms_strength)
            given = generate_kwargs.get("logits_processor") or ()
            generate_kwargs["logits_processor"] = LogitsProcessorList([*given, *processors])
        given = generate_kwargs.get("generation_config")
        forced = generate_kwargs.get("forced_bos_token_id", given and given.forced_bos_token_id)
        language = tgt_lang
        if language is None and forced is None:
            language = self.tokenizer.tgt_lang
            if language is None and self.task != "translation":
                language = src_lang or self.tokenizer.src_lang
        if language is not None:
            generate_kwargs["forced_bos_token_id"] = self.tokenizer.get_lang_id(language)
        elif forced is None and self.tokenizer.languages and self.model.generation_config.forced_bos_token_id is None:
            raise ValueError(f"tgt_lang is not set. Set it to one of: {', '.join(self.tokenizer.languages)}.")
        generated = self.model.generate(**inputs, **generate_kwargs)
        generated = generated.sequences if isinstance(generated, ModelOutput) else generated
        generated = generated.unflatten(0, (len(inputs["input_ids"]), -1))  # (batch, sequences, target_len)
        outputs = {"generated": generated, "is_cut": self._is_cut(generated, generate_kwargs)}
        if return_scores:
            default = self.model.generation_config.forced_bos_token_id
            is_forced = language is not None or forced is not None or default is not None
            ends = self._end_ids(generate_kwargs, generated.device)
            outputs["score"], outputs["num_tokens"] = score_sequences(self.model, inputs, generated, ends, is_forced)
        return outputs

    def _end_ids(self, generate_kwargs: dict, device: torch.device) -> torch.Tensor | None:
        configs = generate_kwargs.get("generation_config"), self.model.generation_config
        ends = [generate_kwargs.get("eos_token_id"), *(getattr(config, "eos_token_id", None) for config in configs)]
        end = next((end for end in ends if end is not None), None)
        return None if end is None else torch.as_tensor(end, device=device)

    def _is_cut(self, generated: torch.Tensor, generate_kwargs: dict) -> torch.Tensor:
        """Return which sequences end at the maximum length, of shape (batch, sequences)."""
        configs = generate_kwargs.get("generation_config"), self.model.generation_config
        ends = self._end_ids(generate_kwargs, generated.device)
        stops = any(getattr(config, name, None) is not None for config in configs for name in STOPPING)
        if ends is None or stops or not STOPPING.isdisjoint(generate_kwargs):
            return torch.zeros(generated.shape[:2], dtype=torch.bool)
        # The start token can be an end token.
        return ~torch.isin(generated[:, :, 1:], ends).any(-1)

    def postprocess(self, outputs, cut_lengths=None):
        """Decode the generated sequences of one input."""
        lengths = [outputs["generated"].shape[-1] - 1] * int(outputs["is_cut"].sum()) if "is_cut" in outputs else []
        if cut_lengths is not None:
            cut_lengths.append(lengths)
        elif lengths:
            self._warn_of_cut(lengths)
        texts = self.tokenizer.batch_decode(
            outputs["generated"][0], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        numbers = [outputs[name][0].tolist() for name in ("score", "num_tokens") if name in outputs]
        answers = [Output(text.strip(), *pair) for text, *pair in zip(texts, *numbers, strict=True)]
        return [make_answer(TASKS[self.task], answer, "score" in outputs) for answer in answers]


def make_answer(key: str, output: Output, has_scores: bool) -> dict:
    """Return an output as the pipeline returns it."""
    scores = {"score": output.score if output.num_tokens else None, "num_tokens": output.num_tokens}
    return {key: output.text} | (scores if has_scores else {})


def read_text(text) -> str:
    """Return a text, or refuse another input."""
    if not isinstance(text, str):
        raise ValueError(f"Cannot read the input {text!r}. Pass a text or a list of texts.")
    return text


__all__ = ["XLMSWCMPipeline"]
