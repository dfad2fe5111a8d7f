"""The report of a conversion, as JSON and as a table."""

import json
import re
from collections import defaultdict
from dataclasses import dataclass, field

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from modeling_xlm_swcm import XLMSWCMTokenizer

from .plan import ConversionPlan


@dataclass
class ConversionReport:
    """
    Report of a conversion: how each tensor was copied, initialised or dropped.

    Attributes:
        source (`str`):
            Folder, Hub id or class of the encoder.
        revision (`str` or `None`):
            Hub revision of the encoder.
        options (`dict`):
            Options of the conversion with their defaults.
        commit (`str` or `None`):
            Hub commit of the encoder. It is `None` for a folder or model.
        license (`str` or `None`):
            Licence of the encoder.
        copied (`dict[str, str]`):
            For each copied tensor of the model, the tensor of the source. Both are equal bit by bit, except the new
            rows.
        new (`dict[str, str]`):
            For each new tensor of the model, how it was initialised.
        new_rows (`dict[str, str]`):
            For each copied tensor with rows for new language tags, how these rows were initialised.
        dropped (`dict[str, str]`):
            For each tensor of the source that was not copied, the reason.
        language_ids (`dict[str, int]`):
            Id of the tag of each language.
        new_ids (`list[int]`):
            Ids of the tags that were added to the tokenizer of the encoder.
        parameters (`dict[str, int]`):
            Number of parameters of the model with each `weight_sharing` that its decoder allows.
        not_finite (`list[str]`):
            Tensors of the source that hold NaN or infinity.
        dtype (`str` or `None`):
            Data type of the copies if a tensor of the source has another data type.
        family (`str`):
            Family of the encoder, for example `"XLM-R"` or `"BERT"`.
        notes (`list[str]`):
            Sentences about information that the tokenizer of the encoder loses. The model cannot generate it.
        tokenizer ([`XLMSWCMTokenizer`] or `None`):
            Tokenizer of the encoder with the language tags. It is not in the JSON. `convert` saves it and returns
            `None` here.
    """

    source: str
    revision: str | None
    options: dict
    commit: str | None = None
    license: str | None = None
    copied: dict[str, str] = field(default_factory=dict, repr=False)
    new: dict[str, str] = field(default_factory=dict, repr=False)
    new_rows: dict[str, str] = field(default_factory=dict, repr=False)
    dropped: dict[str, str] = field(default_factory=dict, repr=False)
    language_ids: dict[str, int] = field(default_factory=dict)
    new_ids: list[int] = field(default_factory=list)
    parameters: dict[str, int] = field(default_factory=dict)
    not_finite: list[str] = field(default_factory=list)
    dtype: str | None = None
    family: str = ""
    notes: list[str] = field(default_factory=list)
    tokenizer: XLMSWCMTokenizer | None = field(default=None, repr=False)

    @classmethod
    def from_plan(cls, plan: ConversionPlan, license: str | None = None) -> "ConversionReport":
        """Return the report of a finished plan. `license` replaces the licence of the source."""
        is_same = all(plan.source.tensors[name].dtype == plan.dtype for name in plan.copied.values())
        return cls(
            plan.source.name,
            plan.revision,
            plan.options,
            plan.source.commit,
            license or plan.source.license,
            plan.copied,
            plan.new,
            plan.new_rows,
            plan.dropped,
            plan.language_ids,
            plan.new_ids,
            plan.parameters,
            plan.not_finite,
            None if is_same else str(plan.dtype).removeprefix("torch."),
            plan.source.family.name,
            plan.notes,
            plan.tokenizer,
        )

    def to_dict(self) -> dict:
        """Return the content of `conversion_report.json`."""
        counts = {kind: len(getattr(self, kind)) for kind in ("copied", "new", "new_rows", "dropped")}
        return {"counts": counts} | {name: value for name, value in vars(self).items() if name != "tokenizer"}

    def to_json(self) -> str:
        """Return the text of `conversion_report.json`."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n"

    def print(self, console: Console):
        """Print a table with one row for each module of an encoder layer, and the totals."""
        table = Table(title=Text(f"{self.source} ({self.family}) → XLM-SWCM"), title_justify="left", box=box.SIMPLE)
        for column in ("", "tensors", "from", "to"):
            table.add_column(column, justify="right" if column == "tensors" else "left")
        for source, targets in self._group_copied().items():
            source = source.removeprefix("encoder.layer.{}.")
            table.add_row("copied", str(len(targets)), source, ", ".join(dict.fromkeys(targets)))
        table.add_section()
        for target, how in self.new_rows.items():
            table.add_row("new rows", "1", how, target.removeprefix("model."))
        for how, targets in self._group_new().items():
            table.add_row("new", str(len(targets)), how, ", ".join(dict.fromkeys(targets)))
        table.add_section()
        for why, sources in self._group_dropped().items():
            table.add_row("dropped", str(len(sources)), ", ".join(dict.fromkeys(sources)), why)
        console.print(table)

        this_model = self.options.get("weight_sharing")
        parameters = (
            f'{count:,} with weight_sharing "{sharing}"{" (this model)" if sharing == this_model else ""}'
            for sharing, count in self.parameters.items()
        )
        in_dtype = f" in {self.dtype}" if self.dtype else ""
        new_rows = f" Copied tensors with new rows: {len(self.new_rows)}." if self.new_rows else ""
        console.print(
            f"{len(self.copied)} tensors copied, each bit-equal to its source{in_dtype}.{new_rows} "
            f"New tensors: {len(self.new)}. Dropped tensors of the source: {len(self.dropped)}."
        )
        console.print(f"Parameters: {', '.join(parameters)}.")
        for note in self.notes:
            console.print(note, markup=False)

    def _group_copied(self) -> dict[str, list[str]]:
        """Return the modules of the model for each module of the source."""
        groups = defaultdict(list)
        for target, source in self.copied.items():
            groups[_module_of(source)].append(_shorten(target))
        return groups

    def _group_new(self) -> dict[str, list[str]]:
        """Return the modules or whole layers of the model for each initialisation."""
        groups = defaultdict(list)
        for target, how in self.new.items():
            layer = re.match(r"model\.(decoder\.layers\.\d+)", target)
            if layer is None:
                groups[how].append(target.removeprefix("model."))
            elif not self.new.keys().isdisjoint(f"{layer[0]}.ffn.{name}.weight" for name in ("fc1", "Wi")):
                groups[how].append(layer[1])
            else:
                groups[how].append(_shorten(target))
        return groups

    def _group_dropped(self) -> dict[str, list[str]]:
        """Return the modules of the source for each reason."""
        groups = defaultdict(list)
        for source, why in self.dropped.items():
            groups[why].append(_module_of(source))
        return groups


def _module_of(tensor: str) -> str:
    """Turn `encoder.layer.3.output.dense.weight` into `encoder.layer.{}.output.dense`."""
    return re.sub(r"[._](weight|bias)(\[.\])?$", "", re.sub(r"\.\d+\.", ".{}.", tensor))


def _shorten(tensor: str) -> str:
    """Turn `model.decoder.layers.3.ffn1.fc1.weight` into `ffn1.fc1`, and a tensor of the encoder into `encoder`."""
    module = _module_of(tensor)
    return (
        "encoder"
        if module.startswith("model.encoder.")
        else module.removeprefix("model.decoder.").removeprefix("layers.{}.")
    )
