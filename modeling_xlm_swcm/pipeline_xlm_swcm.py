"""Translation, summarization and question answering with `transformers.pipeline`, which no longer has them."""

from transformers import Pipeline
from transformers.utils import ModelOutput


# task -> name of the written text in an answer, as it was in Transformers 4
TASKS = {"translation": "translation_text", "summarization": "summary_text", "question-answering": "answer"}


class XLMSWCMPipeline(Pipeline):
    r"""
    `pipeline(task, model=..., trust_remote_code=True)`, or with the plugin `pipeline_class=XLMSWCMPipeline`.

    Inputs: a text, or a list of texts; for `"question-answering"` a dict with `question` and `context`, or a list of
    such dicts, or the two as keyword arguments, each a text or a list. The question is the first part of the source
    and the context the second.

    Args, of the pipeline or of a call:
        src_lang (`str`, *optional*): language of the inputs; by default the tokenizer's `src_lang`.
        tgt_lang (`str`, *optional*):
            language to write; by default that of a given `forced_bos_token_id`, or else the tokenizer's `tgt_lang`,
            and without one, for tasks other than translation, that of the inputs.
        truncation (`bool` or `str`, *optional*): as for the tokenizer, such as `True` or `"only_second"`.
        batch_size (`int`, *optional*): inputs that are written at once.
        Everything else goes to `generate`.

    Returns:
        For each input a list of `{"translation_text": ...}` or `{"summary_text": ...}`, one for each sequence returned
        by `generate`; a list of inputs with one sequence each gives one flat list. For `"question-answering"`
        `{"answer": ...}` per input, or a list of them.

    Raises:
        `ValueError`: a language not known or not given, inputs that are not those of the task, or too long ones.
    """

    _load_tokenizer = True
    _load_processor = _load_image_processor = _load_video_processor = _load_feature_extractor = False

    def __init__(self, *args, task: str = "translation", **kwargs):
        if task not in TASKS:
            raise ValueError(f'Unknown task "{task}"; the known ones are: {", ".join(TASKS)}.')
        super().__init__(*args, task=task, **kwargs)

    def __call__(self, inputs=None, *args, question=None, context=None, **kwargs):
        if inputs is None and self.task == "question-answering":
            several = isinstance(question, list) and isinstance(context, list) and len(question) == len(context)
            if not several and not (isinstance(question, str) and isinstance(context, str)):
                raise ValueError("Give question and context, both a text or both a list of the same length.")
            pairs = zip(question, context, strict=True) if several else [(question, context)]
            inputs = [{"question": question, "context": context} for question, context in pairs]
            inputs = inputs if several else inputs[0]
        if isinstance(inputs, list) and not inputs:
            return []
        answers = super().__call__(inputs, *args, **kwargs)
        if isinstance(inputs, list) and all(len(answer) == 1 for answer in answers):
            return [answer[0] for answer in answers]
        return answers[0] if isinstance(inputs, dict) and len(answers) == 1 else answers

    def _sanitize_parameters(self, src_lang=None, tgt_lang=None, truncation=None, **generate_kwargs):
        source = {"src_lang": src_lang, "truncation": truncation}
        target = {"src_lang": src_lang, "tgt_lang": tgt_lang} | generate_kwargs
        # what a call does not give must not replace what the pipeline was made with
        return *({name: value for name, value in part.items() if value is not None} for part in (source, target)), {}

    def preprocess(self, inputs, src_lang=None, truncation=False):
        if self.task == "question-answering":
            given = inputs if isinstance(inputs, dict) else {}
            texts = given.get("question"), given.get("context")
            if not all(isinstance(text, str) for text in texts):
                raise ValueError(
                    f"An input of question answering is a dict of two texts, question and context; got {inputs!r}."
                )
        elif isinstance(inputs, str):
            texts = (inputs,)
        else:
            raise ValueError(f"An input of {self.task} is a text; got {inputs!r}.")
        before = self.tokenizer.src_lang
        self.tokenizer.src_lang = before if src_lang is None else src_lang
        try:
            source = self.tokenizer(*texts, truncation=truncation, return_tensors="pt")
        finally:
            self.tokenizer.src_lang = before
        length, limit = source["input_ids"].shape[1], self.tokenizer.model_max_length
        if length > limit:
            raise ValueError(
                f"An input has {length} tokens and may have {limit}: shorten it, or give truncation=True."
            )
        return source

    def _forward(self, inputs, src_lang=None, tgt_lang=None, **generate_kwargs):
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
            raise ValueError(f"tgt_lang is not set; give one of: {', '.join(self.tokenizer.languages)}.")
        written = self.model.generate(**inputs, **generate_kwargs)
        written = written.sequences if isinstance(written, ModelOutput) else written
        return {"written": written.unflatten(0, (len(inputs["input_ids"]), -1))}  # (batch, sequences, target_len)

    def postprocess(self, outputs):
        texts = self.tokenizer.batch_decode(outputs["written"][0], skip_special_tokens=True)
        return [{TASKS[self.task]: text.strip()} for text in texts]


__all__ = ["XLMSWCMPipeline"]
