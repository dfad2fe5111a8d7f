"""The options of a conversion, and the decoder that they describe."""

import re
from dataclasses import asdict, dataclass

import torch

from modeling_xlm_swcm.checkpoints.errors import ConversionError
from modeling_xlm_swcm.configuration_xlm_swcm import plan_decoder_blocks


CHOICES = {
    "layer_map": ("same", "interleaved"),
    "decoder_init": ("silent", "shared", "random"),
    "normal_layers": ("random", "copy", "none"),
    "weight_sharing": ("init", "tied"),
}

# for each decoder layer the encoder layers of its two halves, or None for a normal layer
DecoderPlan = list[tuple[int, int] | None]


@dataclass
class ConversionOptions:
    """
    Args:
        languages: codes that get a tag; its embedding starts at the mean of all word embeddings plus noise.
        normal_layer_interval: X of the paper, a normal layer after every X custom layers; None for none.
        layer_map: "same": the k-th custom layer is made from the k-th encoder layer. "interleaved" (DeltaLM): half as
            many, the k-th with self-attention and FFN1 from layer 2k, cross-attention and FFN2 from layer 2k + 1.
        decoder_init: "silent": the decoder starts as the encoder is, and so as its masked LM where it has that head:
            what the encoder does not have, which is cross-attention, second FFNs and normal layers, adds nothing yet.
            "shared": all is copied, as in the paper. "random": the paper's ablation, the same shape without copies.
            By default "silent", or "shared" with options that it does not go with.
        normal_layers: "random"; "copy" puts a copy of the custom layer before it in its place (the paper's BASE-B);
            "none" leaves it out (BASE-A).
        weight_sharing: "init" or "tied", see [`XLMSWCMConfig`].
        dtype: of the result, such as torch.bfloat16 or its name; by default the source's.
        seed: of everything that starts random.

    Raises:
        ConversionError: a value, or two together, that describe no decoder.
    """

    languages: list[str] | tuple[str, ...] = ()
    normal_layer_interval: int | None = 3
    layer_map: str = "same"
    decoder_init: str | None = None
    normal_layers: str = "random"
    weight_sharing: str = "init"
    dtype: torch.dtype | str | None = None
    seed: int = 0

    def __post_init__(self):
        self.languages = list(self.languages)
        self.dtype = None if self.dtype is None else str(self.dtype).removeprefix("torch.")
        goes_silent = (self.layer_map, self.weight_sharing) == ("same", "init") and self.normal_layers != "copy"
        if self.decoder_init is None:
            self.decoder_init = "silent" if goes_silent else "shared"
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ConversionError(f"{name} must be one of {', '.join(choices)}; got {getattr(self, name)}.")
        for code in self.languages:
            if not re.fullmatch(r"[A-Za-z]{2,3}(-[A-Za-z0-9]{1,8})*", code):
                raise ConversionError(
                    f'"{code}" is not a language code such as bo, kk or kk-Arab; put spaces between codes.'
                )
            if self.languages.count(code) > 1:
                raise ConversionError(f'The language "{code}" is given twice.')
        if self.normal_layer_interval is not None and self.normal_layer_interval < 1:
            raise ConversionError(f"normal_layer_interval must be at least 1; got {self.normal_layer_interval}.")
        if self.decoder_init == "silent" and not goes_silent:
            raise ConversionError(
                'decoder_init "silent" starts as the encoder is, so it goes only with layer_map "same", normal_layers '
                '"random" or "none", and weight_sharing "init".'
            )
        apart = self.layer_map, self.decoder_init, self.normal_layers == "copy"
        if self.weight_sharing == "tied" and apart != ("same", "shared", False):
            raise ConversionError(
                'weight_sharing "tied" gives each custom layer the tensors of one encoder layer, so it goes only with '
                'layer_map "same", decoder_init "shared" and normal_layers "random" or "none".'
            )

    def to_dict(self) -> dict:
        return asdict(self)

    def resolve_dtype(self, default: torch.dtype) -> torch.dtype:
        dtype = default if self.dtype is None else getattr(torch, self.dtype, None)
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
            raise ConversionError(
                f"{self.dtype or dtype} is not a floating-point dtype such as float32, bfloat16 or float16."
            )
        return dtype

    def plan_decoder(self, num_layers: int) -> DecoderPlan:
        """The decoder's layers for an encoder of `num_layers`."""
        if self.layer_map == "same":
            sources = [(index, index) for index in range(num_layers)]
        elif num_layers % 2 == 0:
            sources = [(index, index + 1) for index in range(0, num_layers, 2)]
        else:
            raise ConversionError(
                f"The interleaved layer map needs an even number of encoder layers, not {num_layers}."
            )
        interval = None if self.normal_layers == "none" else self.normal_layer_interval
        plan, remaining = [], iter(sources)
        for block in plan_decoder_blocks(len(sources), interval):
            if block == "custom":
                plan.append(next(remaining))
            else:
                plan.append(plan[-1] if self.normal_layers == "copy" else None)
        if self.normal_layers == "copy" and len(plan) == len(sources):
            raise ConversionError(
                f"There is no normal layer to make a copy: normal_layer_interval is {interval}, and there are "
                f"{len(sources)} custom layers."
            )
        return plan
