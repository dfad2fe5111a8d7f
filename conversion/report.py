"""What a conversion did with every tensor, as JSON and as a table."""

import json
import re
from collections import defaultdict
from dataclasses import dataclass, field

from rich import box
from rich.console import Console
from rich.table import Table

from modeling_xlm_swcm import XLMSWCMTokenizer


@dataclass
class ConversionReport:
    """
    Attributes:
        source (`str`): the encoder's folder, Hub id or class.
        revision (`str` or `None`): the Hub revision that was asked for.
        commit (`str` or `None`): the Hub commit that was read; None for a folder.
        license (`str` or `None`): the encoder's licence, as given or as its own card names it.
        options (`dict`): the options of the conversion, defaults filled in.
        copied (`dict[str, str]`): tensor of the model -> tensor of the source that it is bit-equal to.
        new (`dict[str, str]`): tensor of the model -> how it was initialised; a "fresh" LayerNorm changes no scale.
        dropped (`dict[str, str]`): tensor of the source -> why it is not used.
        language_ids (`dict[str, int]`): language -> id of its tag.
        new_ids (`list[int]`): ids of the tags that the source did not have.
        parameters (`dict[str, int]`): parameter counts of the model with `weight_sharing` "init" and "tied".
        not_finite (`list[str]`): tensors of the source that hold NaN or infinity.
        tokenizer: the source's tokenizer with its language tags, or None; not part of the JSON.
    """

    source: str
    revision: str | None
    options: dict
    commit: str | None = None
    license: str | None = None
    copied: dict[str, str] = field(default_factory=dict)
    new: dict[str, str] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    language_ids: dict[str, int] = field(default_factory=dict)
    new_ids: list[int] = field(default_factory=list)
    parameters: dict[str, int] = field(default_factory=dict)
    not_finite: list[str] = field(default_factory=list)
    tokenizer: XLMSWCMTokenizer | None = None

    def to_dict(self) -> dict:
        counts = {kind: len(getattr(self, kind)) for kind in ("copied", "new", "dropped")}
        return {"counts": counts} | {name: value for name, value in vars(self).items() if name != "tokenizer"}

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n"

    def print(self, console: Console):
        """A row per module of an encoder layer, and the totals."""
        copied, new, dropped = defaultdict(list), defaultdict(list), defaultdict(list)
        for target, source in self.copied.items():
            copied[_module(source)].append(_place(target))
        for target, how in self.new.items():
            layer = re.match(r"model\.(decoder\.layers\.\d+)", target)
            if layer is None:
                new[how].append(target.removeprefix("model."))
            elif f"{layer[0]}.ffn.fc1.weight" in self.new:
                new[how].append(layer[1])
            else:
                new[how].append(_place(target))
        for source, why in self.dropped.items():
            dropped[why].append(_module(source))

        table = Table(title=f"{self.source} → XLM-SWCM", title_justify="left", box=box.SIMPLE)
        for column, justify in (("", "left"), ("tensors", "right"), ("from", "left"), ("to", "left")):
            table.add_column(column, justify=justify)
        for source, targets in copied.items():
            source = source.removeprefix("encoder.layer.{}.")
            table.add_row("copied", str(len(targets)), source, ", ".join(dict.fromkeys(targets)))
        table.add_section()
        for how, targets in new.items():
            table.add_row("new", str(len(targets)), how, ", ".join(dict.fromkeys(targets)))
        table.add_section()
        for why, sources in dropped.items():
            table.add_row("dropped", str(len(sources)), ", ".join(dict.fromkeys(sources)), why)
        console.print(table)

        written = self.options.get("weight_sharing")
        parameters = (
            f'{count:,} with weight_sharing "{sharing}"{" (this model)" if sharing == written else ""}'
            for sharing, count in self.parameters.items()
        )
        console.print(
            f"{len(self.copied)} tensors copied, each bit-equal to its source; {len(self.new)} new; "
            f"{len(self.dropped)} of the source dropped.\nParameters: {', '.join(parameters)}."
        )


def _module(tensor: str) -> str:
    """`encoder.layer.3.output.dense.weight` -> `encoder.layer.{}.output.dense`."""
    return re.sub(r"[._](weight|bias)(\[.\])?$", "", re.sub(r"\.\d+\.", ".{}.", tensor))


def _place(tensor: str) -> str:
    """`model.decoder.layers.3.ffn1.fc1.weight` -> `ffn1.fc1`, and what is not in the decoder by where it is."""
    module = _module(tensor)
    return "encoder" if module.startswith("model.encoder.") else module.removeprefix("model.decoder.layers.{}.")
