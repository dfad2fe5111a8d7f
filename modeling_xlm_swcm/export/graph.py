"""Build the OpenVINO graph of a model: the encoder, and one decoder step with its cache as a state of the graph."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from openvino import Model, Node, Output, save_model
from openvino import opset15 as op

from modeling_xlm_swcm.checkpoints.errors import ConversionError
from modeling_xlm_swcm.layers_xlm_swcm import (
    AttentionModules,
    FeedForwardModules,
    XLMSWCMAttention,
    XLMSWCMFeedForward,
    modules_of,
)
from modeling_xlm_swcm.modeling_xlm_swcm import XLMSWCMForConditionalGeneration

from .xlm_swcm_search import CORE


ACTIVATIONS = {
    "gelu": lambda x: op.gelu(x, "erf"),
    "gelu_new": lambda x: op.gelu(x, "tanh"),
    "gelu_pytorch_tanh": lambda x: op.gelu(x, "tanh"),
    "relu": op.relu,
}


@torch.no_grad()
def write_graph(builder: "GraphBuilder", path: Path, output: Path):
    """
    Write encoder and decoder as one graph, so that shared weights are stored once.

    The encoder computes the cross-attention cache of each decoder layer N:
    - Inputs: `input_ids`, `attention_mask` and `position_ids` of shape `(batch, source_length)`.
    - Outputs: `source_keys.N` of shape `(batch, heads, head_dim, source_length)` and `source_values.N` of shape
      `(batch, heads, source_length, head_dim)`.

    The decoder computes one step. Its number of rows is a multiple of the batch size:
    - Inputs: `token` and `position` of shape `(rows, 1)`, `source_mask` of shape `(batch, source_length)`, the number
      `k`, and the outputs of the encoder as `keys.N` and `values.N`. `previous_row` of shape `(rows,)` selects the
      row of the cache that each row continues.
    - Outputs: `logits` of shape `(rows, vocab_size)`, and `top_scores` and `top_tokens` of shape `(rows, k)`.

    The positions are the learned positions of XLM-R. Other builders ignore them.

    Args:
        builder (`GraphBuilder`): The builder of the model.
        path (`Path`): The `.xml` file to write. The weights are written to a `.bin` file beside it.
        output (`Path`): The folder that errors name.

    Raises:
        ConversionError: if OpenVINO cannot write the files.
    """
    encoder_results, encoder_inputs = builder.build_encoder()
    decoder_results, states, decoder_inputs = builder.build_decoder()
    graph = Model(encoder_results + decoder_results, states, encoder_inputs + decoder_inputs, "xlm_swcm")
    try:
        save_model(graph, path, compress_to_fp16=False)
        # OpenVINO does not notice if the last bytes do not fit on a full disk.
        CORE.read_model(path)
    except RuntimeError as error:
        raise ConversionError(
            f"Cannot write {output}: OpenVINO failed to save the graph. Free some space, or choose another folder."
        ) from error


def named_parameter(name: str, shape: list[int], dtype: type = np.int64) -> Node:
    """Return an input of the graph."""
    node = op.parameter(shape, dtype)
    node.output(0).set_names({name})
    return node


def named_result(name: str, node: Node | Output) -> Node:
    """Return an output of the graph."""
    output = op.result(node)
    output.output(0).set_names({name})
    return output


def make_additive_mask(mask: Node) -> Node:
    """Return a mask of shape `(batch, 1, 1, length)` that is 0 for tokens and -1e30 for padding."""
    padding = op.subtract(op.convert(mask, np.float32), np.float32(1))
    return op.unsqueeze(op.multiply(padding, np.float32(1e30)), [1, 2])


class GraphBuilder:
    """
    Build the nodes of the graph and store each weight once. This class builds the layers of XLM-R.

    Args:
        model (`XLMSWCMForConditionalGeneration`): The model, in float32.
        int8 (`bool`): Store matrices as int8 with a scale for each row.
    """

    # Config fields whose values must be keys of ACTIVATIONS.
    activation_fields: tuple[str, ...] = ("hidden_act",)

    def __init__(self, model: XLMSWCMForConditionalGeneration, int8: bool):
        self.config, self.model = model.config, model
        self.encoder_modules, self.decoder_modules = model.model.encoder, model.model.decoder
        self.head_dim = self.config.hidden_size // self.config.num_attention_heads
        self.activation = ACTIVATIONS[self.config.hidden_act]
        self.head_activation = ACTIVATIONS["gelu"]
        self.int8 = int8
        self.stored: dict[tuple[int, int], list[Node]] = {}
        self.states: list[Node] = []
        self.previous_row = named_parameter("previous_row", [-1], np.int32)

    def build_encoder(self) -> tuple[list[Node], list[Node]]:
        """Return the results and inputs of the encoder."""
        names = ("input_ids", "attention_mask", "position_ids")
        inputs = [named_parameter(name, [-1, -1]) for name in names]
        tokens, mask, positions = inputs
        x, context = self.embed(tokens, positions), self.encoder_context(mask)
        results = []
        for index in range(self.config.num_hidden_layers):
            if self.config.has_prefix_decoder:
                results += self.source_cache(index, *self.prefix_keys_and_values(index, x, context))
            x = self.encoder_layer(index, x, context)
        if not self.config.has_prefix_decoder:
            x = self.final_norm(x, self.encoder_modules)
            for index, layer in enumerate(self.decoder_modules.layers):
                results += self.source_cache(index, *self.source_keys_and_values(x, layer.cross_attn))
        return results, inputs

    def encoder_context(self, mask: Node) -> Any:
        """Return the mask that all encoder layers read."""
        return make_additive_mask(mask)

    def encoder_layer(self, index: int, x: Node, context: Any) -> Node:
        """Apply an encoder layer."""
        attention, ffn = modules_of(self.encoder_modules.get_layers()[index])
        query, (key, value) = self.split_heads(self.linear(x, attention.q_proj)), self.keys_and_values(x, attention)
        attended = self.merge_heads(op.scaled_dot_product_attention(query, key, value, context))
        x = self.add_and_norm(x, self.linear(attended, attention.out_proj), attention.layer_norm)
        return self.feed_forward(x, ffn)

    def keys_and_values(self, x: Node, attention: XLMSWCMAttention | AttentionModules) -> tuple[Node, Node]:
        """Return keys and values of shape `(batch, heads, length, head_dim)`."""
        key, value = (self.split_heads(self.linear(x, module)) for module in (attention.k_proj, attention.v_proj))
        return key, value

    def source_keys_and_values(self, x: Node, attention: Any) -> tuple[Node, Node]:
        """Return keys and values of the source for a cross-attention."""
        return self.keys_and_values(x, attention)

    def prefix_keys_and_values(self, index: int, x: Node, context: Any) -> tuple[Node, Node]:
        """Return keys and values of the source for a layer of a prefix decoder."""
        return self.keys_and_values(x, self.prefix_weights(index)[0])

    def source_cache(self, index: int, keys: Node, values: Node) -> list[Node]:
        """Return the results with keys and values of the source for a decoder layer."""
        keys = op.transpose(keys, np.array([0, 1, 3, 2]))
        return [named_result(f"source_keys.{index}", keys), named_result(f"source_values.{index}", values)]

    def prefix_weights(
        self, index: int
    ) -> tuple[XLMSWCMAttention | AttentionModules, XLMSWCMFeedForward | FeedForwardModules]:
        """Return the modules of a prefix decoder layer."""
        return self.decoder_modules.layers[index].weights(self.encoder_modules.get_layers()[index])

    def build_decoder(self) -> tuple[list[Node], list[Node], list[Node]]:
        """Return the results, states and inputs of one decoder step."""
        token, position = (named_parameter(name, [-1, 1]) for name in ("token", "position"))
        source_mask, k = named_parameter("source_mask", [-1, -1]), named_parameter("k", [], np.int32)
        inputs = [token, position, self.previous_row, source_mask, k]
        x, context = self.embed(token, position), self.decoder_context(source_mask)
        heads, head_dim = self.config.num_attention_heads, self.head_dim
        for index in range(len(self.decoder_modules.layers)):
            source = (
                named_parameter(f"keys.{index}", [-1, heads, head_dim, -1], np.float32),
                named_parameter(f"values.{index}", [-1, heads, -1, head_dim], np.float32),
            )
            inputs += source
            x = self.decoder_layer(index, x, source, context)
        x, transform = self.final_norm(x, self.decoder_modules), self.model.lm_head_transform
        if transform is not None:
            x = self.normalise(self.head_activation(self.linear(x, transform.dense)), transform.layer_norm)
        logits = op.squeeze(self.linear(x, self.model.lm_head), [1])
        top = op.topk(logits, k, 1, "max", "value", index_element_type="i32")
        outputs = {"logits": logits, "top_scores": top.output(0), "top_tokens": top.output(1)}
        return [named_result(name, node) for name, node in outputs.items()], self.states, inputs

    def decoder_context(self, source_mask: Node) -> Any:
        """Return the mask of the source that all decoder layers read."""
        return make_additive_mask(source_mask)

    def decoder_layer(self, index: int, x: Node, source: tuple[Node, Node], context: Any) -> Node:
        """Apply a decoder layer to the last token of the target."""
        layer, is_prefix = self.decoder_modules.layers[index], self.config.has_prefix_decoder
        attention, ffn = self.prefix_weights(index) if is_prefix else (layer.self_attn, None)
        query = self.split_heads(self.linear(x, attention.q_proj))
        target = self.append_to_cache(index, *self.keys_and_values(x, attention))
        if is_prefix:
            attended = self.attend_jointly(query, source, target, context)
        else:
            attended = self.merge_heads(op.scaled_dot_product_attention(query, *target))
        x = self.add_and_norm(x, self.linear(attended, attention.out_proj), attention.layer_norm)
        return self.feed_forward(x, ffn) if is_prefix else self.rest_of_layer(x, layer, source, context)

    def final_norm(self, x: Node, part: Any) -> Node:
        """Normalise the output of encoder or decoder. Layers with post-LayerNorm have normalised it already."""
        return x

    def append_to_cache(self, index: int, key: Node, value: Node) -> list[Node]:
        """Append to the states of a layer, and return keys and values of all tokens so far."""
        heads, head_dim = self.config.num_attention_heads, self.head_dim
        empty = op.broadcast(
            np.float32(0), op.concat([op.shape_of(self.previous_row), np.array([heads, 0, head_dim])], 0)
        )
        cached = []
        for name, new in ((f"keys.{index}", key), (f"values.{index}", value)):
            before = op.read_value(empty, name, np.float32, [-1, heads, -1, head_dim])
            cached.append(op.concat([op.gather(before, self.previous_row, 0), new], 2))
            self.states.append(op.assign(cached[-1], name))
        return cached

    def rest_of_layer(self, x: Node, layer: Any, source: tuple[Node, Node], mask: Node) -> Node:
        """Apply the sublayers after the self-attention, in a decoder layer of the paper."""
        if hasattr(layer, "ffn1"):
            x = self.feed_forward(x, layer.ffn1)
        query = self.rows_to_sources(self.cross_query(x, layer.cross_attn), source)
        weights = op.softmax(self.source_scores(query, source, mask), -1)
        attended = self.sources_to_rows(op.matmul(weights, source[1], False, False))
        x = self.add_attended(x, attended, layer.cross_attn)
        return self.feed_forward(x, layer.ffn2 if hasattr(layer, "ffn2") else layer.ffn)

    def cross_query(self, x: Node, attention: Any) -> Node:
        """Return the queries of a cross-attention, before the heads are split."""
        return self.linear(x, attention.q_proj)

    def add_attended(self, x: Node, attended: Node, attention: Any) -> Node:
        """Add the output of an attention."""
        return self.add_and_norm(x, self.linear(attended, attention.out_proj), attention.layer_norm)

    def attend_jointly(self, query: Node, source: tuple[Node, Node], target: list[Node], mask: Node) -> Node:
        """Attend to source and target under one softmax."""
        (keys, values), heads = target, self.config.num_attention_heads
        scores = self.source_scores(self.rows_to_sources(self.merge_heads(query), source), source, mask)
        # (sources, heads, rows of a source, source_length) and back, to join the scores of each row
        as_rows = op.transpose(scores, np.array([0, 2, 1, 3]))
        source_scores = op.reshape(as_rows, op.concat([np.array([-1, heads, 1]), self.length(scores)], 0), False)
        scale = np.float32(self.head_dim**-0.5)
        target_scores = op.matmul(op.multiply(query, scale), keys, False, True)
        weights = op.softmax(op.concat([source_scores, target_scores], -1), -1)
        lengths = op.concat([self.length(source_scores), self.length(target_scores)], 0)
        source_weights, target_weights = op.variadic_split(weights, -1, lengths).outputs()
        source_weights = op.transpose(op.reshape(source_weights, op.shape_of(as_rows), False), np.array([0, 2, 1, 3]))
        from_source = self.sources_to_rows(op.matmul(source_weights, source[1], False, False))
        return op.add(from_source, self.merge_heads(op.matmul(target_weights, values, False, False)))

    def length(self, scores: Node) -> Node:
        """Return the last dimension as a tensor of shape (1,)."""
        return op.gather(op.shape_of(scores), [3], 0)

    def source_scores(self, query: Node, source: tuple[Node, Node], mask: Node) -> Node:
        """Return the masked scores of shape (sources, heads, rows of a source, source_length)."""
        scaled = op.multiply(query, np.float32(self.head_dim**-0.5))
        return op.add(op.matmul(scaled, source[0], False, False), mask)

    def rows_to_sources(self, x: Node, source: tuple[Node, Node]) -> Node:
        """Group rows by source: return shape `(sources, heads, rows of a source, head_dim)`."""
        # All rows of a source are queries of one attention, so beams need no copies of the source's keys and values.
        sources = op.gather(op.shape_of(source[0]), [0], 0)
        split = op.concat([sources, np.array([-1, self.config.num_attention_heads, self.head_dim])], 0)
        return op.transpose(op.reshape(x, split, False), np.array([0, 2, 1, 3]))

    def sources_to_rows(self, attended: Node) -> Node:
        """Undo the grouping of `rows_to_sources`."""
        rows = op.transpose(attended, np.array([0, 2, 1, 3]))
        return op.reshape(rows, np.array([-1, 1, self.config.hidden_size]), False)

    def feed_forward(self, x: Node, modules: Any) -> Node:
        """Add a feed-forward network with residual and LayerNorm."""
        inner = self.activation(self.linear(x, modules.fc1))
        return self.add_and_norm(x, self.linear(inner, modules.fc2), modules.layer_norm)

    def embed(self, tokens: Node, positions: Node) -> Node:
        """Add word, position and type embeddings and their LayerNorm."""
        embeddings = self.encoder_modules.embeddings
        # XLM-R has one token type, so its embedding is added to all positions.
        table = embeddings.position_embeddings.weight + embeddings.token_type_embeddings.weight[0]
        words = op.gather(self.matrix(embeddings.word_embeddings.weight), tokens, 0)
        places = op.gather(op.constant(table.numpy()), positions, 0)
        return self.add_and_norm(words, places, embeddings.LayerNorm)

    def split_heads(self, x: Node) -> Node:
        """Split the hidden dimension into heads: return shape `(batch, heads, length, head_dim)`."""
        split = op.reshape(x, np.array([0, -1, self.config.num_attention_heads, self.head_dim]), True)
        return op.transpose(split, np.array([0, 2, 1, 3]))

    def merge_heads(self, x: Node) -> Node:
        """Merge the heads into the hidden dimension."""
        return op.reshape(op.transpose(x, np.array([0, 2, 1, 3])), np.array([0, -1, self.config.hidden_size]), True)

    def add_and_norm(self, x: Node, added: Node, norm: Any) -> Node:
        """Add a residual, and apply a LayerNorm."""
        return self.normalise(op.add(x, added), norm)

    def normalise(self, x: Node, norm: Any) -> Node:
        """Apply a LayerNorm."""
        normed = op.mvn(x, np.array([-1]), True, norm.eps, "INSIDE_SQRT")
        return self.add_bias(op.multiply(normed, self.vector(norm.weight)), norm.bias)

    def linear(self, x: Node, module: Any, rows: slice = slice(None)) -> Node:
        """Apply a linear layer, or some rows of it."""
        bias = None if module.bias is None else module.bias[rows]
        return self.add_bias(op.matmul(x, self.matrix(module.weight[rows]), False, True), bias)

    def add_bias(self, x: Node, bias: torch.Tensor | None) -> Node:
        """Add a bias if the module has one."""
        return x if bias is None else op.add(x, self.vector(bias))

    def vector(self, tensor: torch.Tensor) -> Node:
        """Return a bias or LayerNorm vector as a constant of shape `(1, 1, size)`."""
        return op.constant(tensor.numpy()[None, None])

    def matrix(self, tensor: torch.Tensor) -> Node:
        """Return a weight matrix, as float32 or as int8 with a scale for each row. Tied matrices are stored once."""
        key = (tensor.data_ptr(), len(tensor))
        if key not in self.stored:
            weights = tensor.numpy()
            if self.int8:
                largest = np.maximum(weights.max(axis=1, keepdims=True), -weights.min(axis=1, keepdims=True))
                # A row of zeros must not have a scale of 0.
                scales = np.maximum(largest / 127, np.finfo(np.float32).tiny)
                rounded = weights / scales
                constants = [op.constant(np.rint(rounded, out=rounded).astype(np.int8)), op.constant(scales)]
            else:
                constants = [op.constant(weights, shared_memory=True)]
            self.stored[key] = constants
        weights, *scales = self.stored[key]
        return op.multiply(op.convert(weights, np.float32), scales[0]) if scales else weights
