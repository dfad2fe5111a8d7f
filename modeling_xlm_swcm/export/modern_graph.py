"""Build the OpenVINO graph of a model with the layers of ModernBERT."""

from typing import Any

import numpy as np
from openvino import Node
from openvino import opset15 as op
from torch import nn
from transformers.models.modernbert.modeling_modernbert import ModernBertEncoderLayer

from modeling_xlm_swcm import XLMSWCMConfig, XLMSWCMForConditionalGeneration, XLMSWCMModernConfig
from modeling_xlm_swcm.modern_layers_xlm_swcm import XLMSWCMModernAttention, XLMSWCMModernFeedForward

from .graph import ACTIVATIONS, GraphBuilder, make_additive_mask


# Cosines and sines of positions, each of shape (batch or 1, 1, length, head_dim).
Rotation = tuple[Node, Node]


class ModernGraphBuilder(GraphBuilder):
    """
    Build the layers of ModernBERT: pre-norm, rotary positions, and local attention in most layers.

    The graph computes the positions, and ignores its inputs with positions.
    """

    activation_fields = ("hidden_activation", "classifier_activation")

    def __init__(self, model: XLMSWCMForConditionalGeneration, int8: bool):
        super().__init__(model, int8)
        self.head_activation = ACTIVATIONS[self.config.classifier_activation]
        self.kinds = self.config.layer_types

    def embed(self, tokens: Node, positions: Node) -> Node:
        """Look up word embeddings, and apply their LayerNorm."""
        embeddings = self.encoder_modules.embeddings
        return self.normalise(op.gather(self.matrix(embeddings.tok_embeddings.weight), tokens, 0), embeddings.norm)

    def encoder_context(self, mask: Node) -> dict[str, tuple[Node, Rotation, Rotation]]:
        """Return the mask, the rotation of the encoder, and the rotation of source keys for each kind of layer."""
        length = op.gather(op.shape_of(mask), 1, 0)
        columns = op.range(np.int64(0), length, np.int64(1), "i64")
        distance = op.abs(op.subtract(op.unsqueeze(columns, [0]), op.unsqueeze(columns, [1])))
        is_far = op.convert(op.greater(distance, np.int64(self.config.sliding_window)), np.float32)
        full = make_additive_mask(mask)
        masks = {"full_attention": full, "sliding_attention": op.add(full, op.multiply(is_far, np.float32(-1e30)))}
        # Scores depend on differences of positions. The target starts at 0. In global layers the target follows the
        # source, so the last token of the source has position -1.
        places = op.subtract(op.cum_sum(mask, np.int64(1)), np.int64(1))
        sources = {
            "full_attention": op.subtract(places, op.reduce_sum(mask, np.int64(1), True)),
            "sliding_attention": places,
        }
        columns = op.unsqueeze(columns, [0])
        return {
            kind: (masks[kind], self.make_rotation(columns, kind), self.make_rotation(sources[kind], kind))
            for kind in set(self.kinds)
        }

    def encoder_layer(self, index: int, x: Node, context: Any) -> Node:
        """Apply an encoder layer."""
        layer, (mask, rotation, _) = self.encoder_modules.layers[index], context[self.kinds[index]]
        query, key, value = self.project(layer, x)
        query, key = self.rotate(query, rotation), self.rotate(key, rotation)
        attended = self.merge_heads(op.scaled_dot_product_attention(query, key, value, mask))
        return self.finish_layer(x, layer, attended)

    def source_keys_and_values(self, x: Node, attention: XLMSWCMModernAttention) -> tuple[Node, Node]:
        """Return keys and values of the source for a cross-attention, which has no positions."""
        projected = self.linear(x, attention.Wqkv, slice(self.config.hidden_size, None))
        key, value = op.split(projected, 2, 2).outputs()
        return self.split_heads(key), self.split_heads(value)

    def prefix_keys_and_values(self, index: int, x: Node, context: Any) -> tuple[Node, Node]:
        """Return keys and values of the source for a layer of the decoder."""
        _, key, value = self.project(self.prefix_layer(index), x)
        return self.rotate(key, context[self.kinds[index]][2]), value

    def decoder_context(self, source_mask: Node) -> tuple[Node, dict[str, Rotation]]:
        """Return the mask of the source, and the rotation of the last token of the target for each kind of layer."""
        # OpenVINO cannot run this graph with a state of integers.
        place = op.read_value(op.constant(np.zeros((1, 1), np.float32)), "place", np.float32, [1, 1])
        self.states.append(op.assign(op.add(place, np.float32(1)), "place"))
        return make_additive_mask(source_mask), {kind: self.make_rotation(place, kind) for kind in set(self.kinds)}

    def decoder_layer(self, index: int, x: Node, source: tuple[Node, Node], context: Any) -> Node:
        """Apply a decoder layer to the last token of the target."""
        mask, rotations = context
        if not self.config.has_prefix_decoder:
            layer = self.decoder_modules.layers[index]
            x = self.add_attended(x, self.attend_to_target(index, x, rotations), layer.self_attn)
            return self.rest_of_layer(x, layer, source, mask)
        layer, kind = self.prefix_layer(index), self.kinds[index]
        query, key, value = self.project(layer, x)
        target = self.append_to_cache(index, self.rotate(key, rotations[kind]), value)
        target = self.drop_far(kind, target)
        attended = self.attend_jointly(self.rotate(query, rotations[kind]), source, target, mask)
        return self.finish_layer(x, layer, attended)

    def attend_to_target(self, index: int, x: Node, rotations: dict[str, Rotation]) -> Node:
        """Attend to the target in a decoder layer of the paper."""
        attention = self.decoder_modules.layers[index].self_attn
        rotation = rotations[attention.attention_type]
        query, key, value = self.split_projection(self.normalise(x, attention.layer_norm), attention.Wqkv)
        target = self.append_to_cache(index, self.rotate(key, rotation), value)
        target = self.drop_far(attention.attention_type, target)
        return self.merge_heads(op.scaled_dot_product_attention(self.rotate(query, rotation), *target))

    def drop_far(self, kind: str, target: list[Node]) -> list[Node]:
        """Return the keys and values of the target that a layer reads. A local layer reads the last ones."""
        if kind != "sliding_attention":
            return target
        start, stop = np.array([-self.config.sliding_window - 1]), np.array([np.iinfo(np.int64).max])
        return [op.slice(cached, start, stop, np.array([1]), np.array([2])) for cached in target]

    def cross_query(self, x: Node, attention: XLMSWCMModernAttention) -> Node:
        """Return the queries of a cross-attention, before the heads are split."""
        return self.linear(self.normalise(x, attention.layer_norm), attention.Wqkv, slice(self.config.hidden_size))

    def add_attended(self, x: Node, attended: Node, attention: Any) -> Node:
        """Add the output of an attention."""
        return op.add(x, self.linear(attended, attention.Wo))

    def final_norm(self, x: Node, part: Any) -> Node:
        """Apply the final norm. A tied decoder has the final norm of the encoder."""
        return self.normalise(x, part.final_norm or self.encoder_modules.final_norm)

    def prefix_layer(self, index: int) -> ModernBertEncoderLayer:
        """Return the layer with the weights of a decoder layer."""
        is_tied = self.config.weight_sharing == "tied"
        return (self.encoder_modules if is_tied else self.decoder_modules).layers[index]

    def project(self, layer: ModernBertEncoderLayer, x: Node) -> tuple[Node, Node, Node]:
        """Return queries, keys and values of shape `(batch, heads, length, head_dim)`."""
        return self.split_projection(self.normalise(x, layer.attn_norm), layer.attn.Wqkv)

    def split_projection(self, normed: Node, module: Any) -> tuple[Node, Node, Node]:
        """Return queries, keys and values of shape `(batch, heads, length, head_dim)`."""
        query, key, value = op.split(self.linear(normed, module), 2, 3).outputs()
        return self.split_heads(query), self.split_heads(key), self.split_heads(value)

    def normalise(self, x: Node, norm: Any) -> Node:
        """Apply a LayerNorm. The first layer has none."""
        return x if isinstance(norm, nn.Identity) else super().normalise(x, norm)

    def finish_layer(self, x: Node, layer: ModernBertEncoderLayer, attended: Node) -> Node:
        """Add the output of the attention, and a feed-forward network with a gate."""
        x = self.add_attended(x, attended, layer.attn)
        return op.add(x, self.apply_gate(self.normalise(x, layer.mlp_norm), layer.mlp))

    def feed_forward(self, x: Node, modules: XLMSWCMModernFeedForward) -> Node:
        """Add a feed-forward network with a gate, after its norm."""
        return op.add(x, self.apply_gate(self.normalise(x, modules.layer_norm), modules))

    def apply_gate(self, normed: Node, modules: Any) -> Node:
        """Return the output of a feed-forward network with a gate."""
        inner, gate = op.split(self.linear(normed, modules.Wi), 2, 2).outputs()
        return self.linear(op.multiply(self.activation(inner), gate), modules.Wo)

    def make_rotation(self, positions: Node, kind: str) -> Rotation:
        """Return the rotation of positions of shape `(batch, length)`."""
        embedding = self.encoder_modules.rotary_emb
        frequencies, scale = getattr(embedding, f"{kind}_inv_freq"), getattr(embedding, f"{kind}_attention_scaling")
        angles = op.multiply(op.unsqueeze(op.convert(positions, np.float32), [1, 3]), op.constant(frequencies.numpy()))
        angles = op.concat([angles, angles], -1)
        return op.multiply(op.cos(angles), np.float32(scale)), op.multiply(op.sin(angles), np.float32(scale))

    def rotate(self, x: Node, rotation: Rotation) -> Node:
        """Rotate queries or keys by their positions."""
        first, second = op.split(x, 3, 2).outputs()
        turned = op.concat([op.negative(second), first], -1)
        return op.add(op.multiply(x, rotation[0]), op.multiply(turned, rotation[1]))


# Builder for each model type.
BUILDERS: dict[str, type[GraphBuilder]] = {
    XLMSWCMConfig.model_type: GraphBuilder,
    XLMSWCMModernConfig.model_type: ModernGraphBuilder,
}
