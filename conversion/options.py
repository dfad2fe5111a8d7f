"""The options of a conversion and the decoder layers that they describe."""

import json
import re
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import torch

from modeling_xlm_swcm.checkpoints.arguments import as_list, check_seed
from modeling_xlm_swcm.checkpoints.errors import ConversionError, check_choice
from modeling_xlm_swcm.checkpoints.languages import check_codes
from modeling_xlm_swcm.checkpoints.reading import FLOAT_DTYPES
from modeling_xlm_swcm.configuration_xlm_swcm import plan_decoder_blocks


Decoder = Literal["paper", "prefix"]
LayerMap = Literal["same", "interleaved"]
DecoderInit = Literal["silent", "shared", "random"]
NormalLayers = Literal["random", "copy", "none"]
WeightSharing = Literal["init", "tied"]

CHOICES = {
    "decoder": get_args(Decoder),
    "layer_map": get_args(LayerMap),
    "decoder_init": get_args(DecoderInit),
    "normal_layers": get_args(NormalLayers),
    "weight_sharing": get_args(WeightSharing),
}

# Values of other options that an option can be combined with.
FITS_SILENT: dict[str, tuple] = {
    "decoder": ("paper",),
    "layer_map": ("same",),
    "weight_sharing": ("init",),
    "normal_layers": ("random", "none"),
}
FITS_TIED: dict[str, tuple] = {
    "decoder_init": ("shared",),
    "layer_map": ("same",),
    "normal_layers": ("random", "none"),
}
FITS_PREFIX: dict[str, tuple] = {
    "layer_map": ("same",),
    "normal_layers": ("none",),
    "normal_layer_interval": (None,),
}

# Default of `normal_layer_interval`. The value None means no normal layers.
UNSET: Any = object()

# For each decoder layer, the encoder layers of its two halves, or None for a normal layer.
DecoderPlan = list[tuple[int, int] | None]


@dataclass
class ConversionOptions:
    """
    Options of a conversion.

    Args:
        languages (`list[str]`, *optional*, defaults to `()`):
            Language codes that get a tag. The embedding of a tag starts at the mean of all embeddings, plus noise.
        decoder (`str`, *optional*):
            Kind of decoder. `"prefix"`: each decoder layer is an encoder layer that also reads the source, so the
            decoder has no new kind of layer. `"paper"`: the decoder of the paper, with cross-attention in each layer.
            Default: `"prefix"`, or `"paper"` if an option is given that only the paper's decoder has. These options
            are `normal_layer_interval`, `normal_layers`, `layer_map="interleaved"` and `decoder_init="silent"`.
        normal_layer_interval (`int` or `None`, *optional*):
            Insert a normal layer after every N custom layers (X in the paper). `None` inserts no normal layers.
            Default: 3 for the paper's decoder.
        layer_map (`str`, *optional*, defaults to `"same"`):
            Encoder layers of a custom layer. `"same"`: custom layer k is copied from encoder layer k. `"interleaved"`
            (DeltaLM): self-attention and FFN1 of custom layer k are copied from encoder layer 2k, cross-attention and
            FFN2 from encoder layer 2k + 1. The decoder has one custom layer for every two encoder layers.
        decoder_init (`str`, *optional*):
            How to initialise the decoder. `"silent"`: copied weights, and cross-attention, second FFNs and normal
            layers start with an output of zero. The untrained decoder then computes the output of the encoder with a
            causal mask. If the encoder has a masked-LM head, the model computes the output of the masked LM.
            `"shared"`: copied weights in all sublayers, as in the paper. `"random"`: no copied weights, as in the
            paper's ablation. Default: `"shared"` for the prefix decoder, and `"silent"` for the paper's decoder if
            the other options allow it.
        normal_layers (`str`, *optional*):
            Layers that are inserted into the paper's decoder. `"random"`: normal layers with new weights. `"copy"`:
            copies of the previous custom layer (BASE-B in the paper). `"none"`: no layers (BASE-A). Default:
            `"random"` for the paper's decoder.
        weight_sharing (`str`, *optional*, defaults to `"init"`):
            `"init"` or `"tied"`, see [`XLMSWCMConfig`].
        dtype (`torch.dtype` or `str`, *optional*):
            Data type of the model, for example `torch.bfloat16` or its name. Default: the data type of the source.
        seed (`int`, *optional*, defaults to 0):
            Random seed for new weights.

    Raises:
        ConversionError: if a value, or a combination of values, is not allowed.
    """

    languages: list[str] | tuple[str, ...] = ()
    decoder: str | None = None
    normal_layer_interval: int | None = UNSET
    layer_map: str = "same"
    decoder_init: str | None = None
    normal_layers: str | None = None
    weight_sharing: str = "init"
    dtype: torch.dtype | str | None = None
    seed: int = 0

    def __post_init__(self):
        if isinstance(self.languages, str):
            raise ConversionError(
                f'`languages` must be a list of codes (got "{self.languages}"). Use `languages=["{self.languages}"]`.'
            )
        self.languages = as_list("languages", self.languages)
        check_seed(self.seed)
        self.seed = int(self.seed)
        self.dtype = None if self.dtype is None else str(self.dtype).removeprefix("torch.")
        self._set_defaults()
        goes_silent = self.decoder == "paper" and (self.layer_map, self.weight_sharing) == ("same", "init")
        goes_silent = goes_silent and self.normal_layers != "copy"
        if self.decoder_init is None:
            self.decoder_init = "silent" if goes_silent else "shared"
        for name, choices in CHOICES.items():
            check_choice(name, getattr(self, name), choices)
        for code in self.languages:
            if not re.fullmatch(r"[A-Za-z]{2,3}(-[A-Za-z0-9]{1,8})*", code):
                raise ConversionError(
                    f'"{code}" is not a language code. Use BCP-47 codes, for example bo, kk or zh-Hans.'
                )
            if self.languages.count(code) > 1:
                raise ConversionError(f'The language "{code}" is given twice. Remove one.')
        check_codes(self.languages)
        interval = self.normal_layer_interval
        if interval is not None and (not isinstance(interval, int) or interval < 1):
            raise ConversionError(
                f"`normal_layer_interval` must be a whole number above 0 (got {interval!r}). Use 3, as in the paper."
            )
        if self.decoder_init == "silent" and not goes_silent:
            self._require('`decoder_init="silent"`', FITS_SILENT, 'Use `decoder_init="shared"`.')
        if self.weight_sharing == "tied":
            self._require('`weight_sharing="tied"`', FITS_TIED)
        if self.decoder == "prefix":
            self._require(
                '`decoder="prefix"`',
                FITS_PREFIX,
                "A prefix decoder has one layer for each encoder layer. Leave out this option.",
            )

    def _set_defaults(self):
        """Choose the decoder and its normal layers if they are not given."""
        for_paper = self.normal_layer_interval is not UNSET or self.normal_layers is not None
        for_paper = for_paper or self.layer_map != "same" or self.decoder_init == "silent"
        if self.decoder is None:
            self.decoder = "paper" if for_paper else "prefix"
        is_prefix = self.decoder == "prefix"
        if self.normal_layer_interval is UNSET:
            self.normal_layer_interval = None if is_prefix else 3
        if self.normal_layers is None:
            self.normal_layers = "none" if is_prefix else "random"

    def _require(self, option: str, allowed: dict[str, tuple], remedy: str | None = None):
        """Raise an error if an option has a value that does not fit `option`."""
        for name, values in allowed.items():
            if (value := getattr(self, name)) not in values:
                choices = " or ".join(f'`{name}="{choice}"`' for choice in values)
                raise ConversionError(
                    f"{option} cannot be combined with `{name}={json.dumps(value)}`. {remedy or f'Use {choices}.'}"
                )

    def to_dict(self) -> dict:
        """Return the options as a dict."""
        return asdict(self)

    def resolve_dtype(self, default: torch.dtype) -> torch.dtype:
        """Return the data type of the model, which is `default` if no data type is set."""
        dtype = default if self.dtype is None else getattr(torch, str(self.dtype), None)
        if not isinstance(dtype, torch.dtype) or dtype not in FLOAT_DTYPES.values():
            raise ConversionError(
                f"A model cannot have the dtype {self.dtype or dtype}. Use float32, bfloat16 or float16."
            )
        return dtype

    def plan_decoder(self, num_layers: int) -> DecoderPlan:
        """Return the layers of the decoder for an encoder with `num_layers` layers."""
        if self.decoder == "prefix":
            return [(index, index) for index in range(num_layers)]
        if self.layer_map == "same":
            sources = [(index, index) for index in range(num_layers)]
        elif num_layers % 2 == 0:
            sources = [(index, index + 1) for index in range(0, num_layers, 2)]
        else:
            raise ConversionError(
                f'`layer_map="interleaved"` needs an even number of encoder layers (got {num_layers}). Use '
                '`layer_map="same"`.'
            )
        interval = None if self.normal_layers == "none" else self.normal_layer_interval
        plan: DecoderPlan = []
        remaining = iter(sources)
        for block in plan_decoder_blocks(len(sources), interval):
            if block == "custom":
                plan.append(next(remaining))
            else:
                plan.append(plan[-1] if self.normal_layers == "copy" else None)
        if self.normal_layers == "copy" and len(plan) == len(sources):
            raise ConversionError(
                f'`normal_layers="copy"` needs at least one normal layer. `normal_layer_interval={interval}` inserts '
                f"no normal layer between {len(sources)} custom layers. Use a smaller `normal_layer_interval`."
            )
        return plan
