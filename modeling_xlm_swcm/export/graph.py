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
    XLMSWCMDecoderLayer,
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
def write_graph(model: XLMSWCMForConditionalGeneration, int8: bool, path: Path, output: Path):
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

    Args:
        model (`XLMSWCMForConditionalGeneration`): The model, in float32.
        int8 (`bool`): Store matrices as int8 with a scale for each row.
        path (`Path`): The `.xml` file to write. The weights are written to a `.bin` file beside it.
        output (`Path`): The folder that errors name.

    Raises:
        ConversionError: if OpenVINO cannot write the files.
    """
    builder = GraphBuilder(model, int8)
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
    Build the nodes of the graph and store each weight once.

    Args:
        model (`XLMSWCMForConditionalGeneration`): The model, in float32.
        int8 (`bool`): Store matrices as int8 with a scale for each row.
    """

    def __init__(self, model: XLMSWCMForConditionalGeneration, int8: bool):
        self.config, self.model = model.config, model
        self.encoder_modules, self.decoder_modules = model.model.encoder, model.model.decoder
        self.head_dim = self.config.hidden_size // self.config.num_attention_heads
        self.activation = ACTIVATIONS[self.config.hidden_act]
        self.int8 = int8
        self.stored: dict[int, list[Node]] = {}

    def build_encoder(self) -> tuple[list[Node], list[Node]]:
        """Return the results and inputs of the encoder."""
        names = ("input_ids", "attention_mask", "position_ids")
        inputs = [named_parameter(name, [-1, -1]) for name in names]
        tokens, mask, positions = inputs
        x, mask = self.embed(tokens, positions), make_additive_mask(mask)
        results = []
        for index, layer in enumerate(self.encoder_modules.encoder.layer):
            if self.config.has_prefix_decoder:
                results += self.source_cache(index, x, self.prefix_weights(index)[0])
            attention, ffn = modules_of(layer)
            query, key, value = (
                self.split_heads(self.linear(x, projection))
                for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
            )
            attended = self.merge_heads(op.scaled_dot_product_attention(query, key, value, mask))
            x = self.add_and_norm(x, self.linear(attended, attention.out_proj), attention.layer_norm)
            x = self.feed_forward(x, ffn)
        if not self.config.has_prefix_decoder:
            for index, layer in enumerate(self.decoder_modules.layers):
                results += self.source_cache(index, x, layer.cross_attn)
        return results, inputs

    def source_cache(self, index: int, x: Node, attention: XLMSWCMAttention | AttentionModules) -> list[Node]:
        """Return the results with keys and values of the source for a decoder layer."""
        keys = self.split_heads(self.linear(x, attention.k_proj), order=(0, 2, 3, 1))
        values = self.split_heads(self.linear(x, attention.v_proj))
        return [named_result(f"source_keys.{index}", keys), named_result(f"source_values.{index}", values)]

    def prefix_weights(
        self, index: int
    ) -> tuple[XLMSWCMAttention | AttentionModules, XLMSWCMFeedForward | FeedForwardModules]:
        """Return the modules of a prefix decoder layer."""
        return self.decoder_modules.layers[index].weights(self.encoder_modules.encoder.layer[index])

    def build_decoder(self) -> tuple[list[Node], list[Node], list[Node]]:
        """Return the results, states and inputs of one decoder step."""
        token, position = (named_parameter(name, [-1, 1]) for name in ("token", "position"))
        previous_row = named_parameter("previous_row", [-1], np.int32)
        source_mask, k = named_parameter("source_mask", [-1, -1]), named_parameter("k", [], np.int32)
        inputs = [token, position, previous_row, source_mask, k]
        states: list[Node] = []
        x, mask = self.embed(token, position), make_additive_mask(source_mask)
        for index, layer in enumerate(self.decoder_modules.layers):
            heads, head_dim = self.config.num_attention_heads, self.head_dim
            source = (
                named_parameter(f"keys.{index}", [-1, heads, head_dim, -1], np.float32),
                named_parameter(f"values.{index}", [-1, heads, -1, head_dim], np.float32),
            )
            inputs += source
            is_prefix = self.config.has_prefix_decoder
            attention, ffn = self.prefix_weights(index) if is_prefix else (layer.self_attn, None)
            query, key, value = (
                self.split_heads(self.linear(x, projection))
                for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
            )
            target = [
                self.append_to_cache(f"{name}.{index}", new, previous_row, states)
                for name, new in (("keys", key), ("values", value))
            ]
            if is_prefix:
                attended = self.attend_jointly(query, source, target, mask)
            else:
                attended = self.merge_heads(op.scaled_dot_product_attention(query, *target))
            x = self.add_and_norm(x, self.linear(attended, attention.out_proj), attention.layer_norm)
            x = self.feed_forward(x, ffn) if is_prefix else self.rest_of_layer(x, layer, source, mask)
        transform = self.model.lm_head_transform
        if transform is not None:
            x = self.normalise(op.gelu(self.linear(x, transform.dense), "erf"), transform.layer_norm)
        logits = op.squeeze(self.linear(x, self.model.lm_head), [1])
        top = op.topk(logits, k, 1, "max", "value", index_element_type="i32")
        outputs = {"logits": logits, "top_scores": top.output(0), "top_tokens": top.output(1)}
        return [named_result(name, node) for name, node in outputs.items()], states, inputs

    def append_to_cache(self, name: str, new: Node, previous_row: Node, states: list[Node]) -> Node:
        """Append keys or values to a state of the graph, and return the keys or values of all tokens so far."""
        rows = op.shape_of(previous_row)
        heads, head_dim = self.config.num_attention_heads, self.head_dim
        empty = op.broadcast(np.float32(0), op.concat([rows, np.array([heads, 0, head_dim])], 0))
        before = op.read_value(empty, name, np.float32, [-1, heads, -1, head_dim])
        states.append(op.assign(after := op.concat([op.gather(before, previous_row, 0), new], 2), name))
        return after

    def rest_of_layer(self, x: Node, layer: XLMSWCMDecoderLayer, source: tuple[Node, Node], mask: Node) -> Node:
        """Add what follows the self-attention of a decoder layer of the paper."""
        if hasattr(layer, "ffn1"):
            x = self.feed_forward(x, layer.ffn1)
        module = layer.cross_attn
        query = self.rows_to_sources(self.linear(x, module.q_proj), source)
        weights = op.softmax(self.source_scores(query, source, mask), -1)
        attended = self.sources_to_rows(op.matmul(weights, source[1], False, False))
        x = self.add_and_norm(x, self.linear(attended, module.out_proj), module.layer_norm)
        return self.feed_forward(x, layer.ffn2 if hasattr(layer, "ffn2") else layer.ffn)

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

    def split_heads(self, x: Node, order: tuple[int, ...] = (0, 2, 1, 3)) -> Node:
        """Split the hidden dimension into heads, and permute the dimensions to `order`."""
        split = op.reshape(x, np.array([0, -1, self.config.num_attention_heads, self.head_dim]), True)
        return op.transpose(split, np.array(order))

    def merge_heads(self, x: Node) -> Node:
        """Merge the heads into the hidden dimension."""
        return op.reshape(op.transpose(x, np.array([0, 2, 1, 3])), np.array([0, -1, self.config.hidden_size]), True)

    def add_and_norm(self, x: Node, added: Node, norm: Any) -> Node:
        """Add a residual, and apply a LayerNorm."""
        return self.normalise(op.add(x, added), norm)

    def normalise(self, x: Node, norm: Any) -> Node:
        """Apply a LayerNorm."""
        normed = op.mvn(x, np.array([-1]), True, norm.eps, "INSIDE_SQRT")
        return op.add(op.multiply(normed, self.vector(norm.weight)), self.vector(norm.bias))

    def linear(self, x: Node, module: Any) -> Node:
        """Apply a linear layer."""
        return op.add(op.matmul(x, self.matrix(module.weight), False, True), self.vector(module.bias))

    def vector(self, tensor: torch.Tensor) -> Node:
        """Return a bias or LayerNorm vector as a constant of shape `(1, 1, size)`."""
        return op.constant(tensor.numpy()[None, None])

    def matrix(self, tensor: torch.Tensor) -> Node:
        """Return a weight matrix, as float32 or as int8 with a scale for each row. Tied matrices are stored once."""
        if tensor.data_ptr() not in self.stored:
            weights = tensor.numpy()
            if self.int8:
                largest = np.maximum(weights.max(axis=1, keepdims=True), -weights.min(axis=1, keepdims=True))
                # A row of zeros must not have a scale of 0.
                scales = np.maximum(largest / 127, np.finfo(np.float32).tiny)
                rounded = weights / scales
                constants = [op.constant(np.rint(rounded, out=rounded).astype(np.int8)), op.constant(scales)]
            else:
                constants = [op.constant(weights, shared_memory=True)]
            self.stored[tensor.data_ptr()] = constants
        weights, *scales = self.stored[tensor.data_ptr()]
        return op.multiply(op.convert(weights, np.float32), scales[0]) if scales else weights
