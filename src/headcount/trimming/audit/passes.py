"""The two ways to gather statistics: with gradients of the whole model, or layer by layer without backpropagation.

``fisher_batch`` runs a forward and a backward pass. Labels are drawn from the model's own predictions, so G is the
Fisher information of each token's keys and values: the curvature of the loss, in nats per token.

``LocalGradients`` needs no backward pass. It measures sensitivity at the attention output: for o = W_o heads(k, v)
and a random direction z with E[z z'] = I, the gradient of <z, o> with respect to keys and values is
computed in closed form below, and its second moment is G = E[J' J] with J the Jacobian of the layer's attention output.
It is divided by the mean squared norm of the residual stream, so that layers are comparable.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import nn
from transformers import PreTrainedModel

from headcount.core.seeds import torch_generator
from headcount.pretrained.families import base_model
from headcount.pretrained.running.capture import AttentionCall, observed_attention
from headcount.trimming.audit.heads import Rows

LOGIT_CHUNK = 2**25
"""Logits per chunk (128 MiB in float32): bounds memory for large vocabularies."""

Gather = Callable[[AttentionCall, torch.Tensor | None, torch.Tensor | None], None]


@contextlib.contextmanager
def mixed_precision(device: torch.device, dtype: torch.dtype | None) -> Iterator[None]:
    """Compute matrix products in ``dtype`` inside the ``with`` block; ``None``: in the model's own dtype."""
    if dtype is None:
        yield
    else:
        with torch.autocast(device.type, dtype=dtype):
            yield


def sample_labels(logits: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw a label from every row's softmax; returns (probabilities, labels).

    Inverts the cumulative distribution with one uniform number per row, which is an order of magnitude cheaper
    than drawing an exponential for every vocabulary entry. logits (rows, vocabulary) -> labels (rows,).
    """
    probabilities = logits.float().softmax(-1)
    cumulative = probabilities.cumsum(-1)
    uniform = torch.rand(len(logits), 1, generator=generator, device=logits.device)
    # Rounding leaves the last cumulative sum near one, not exactly one: scale the draw by it.
    labels = torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True)
    return probabilities, labels.clamp_max(logits.shape[-1] - 1).squeeze(-1)


def fisher_batch(
    model: PreTrainedModel,
    attentions: list[nn.Module],
    ids: torch.Tensor,
    generator: torch.Generator,
    gather: Gather,
    dtype: torch.dtype | None,
) -> None:
    """Forward and backward over ids (batch, tokens); ``gather`` receives each layer's call and gradients.

    Layers arrive in backward order. Weights get no gradients, and logits are computed in chunks.
    """

    def observe(call: AttentionCall) -> None:
        gradients: dict[str, torch.Tensor] = {}

        def note(side: str) -> Callable[[torch.Tensor], None]:
            def keep(gradient: torch.Tensor) -> None:
                gradients[side] = gradient
                if len(gradients) == 2:
                    gather(call, gradients["k"], gradients["v"])
                    gradients.clear()

            return keep

        call.k.register_hook(note("k"))
        call.v.register_hook(note("v"))

    embedded = model.get_input_embeddings()(ids).detach().requires_grad_(True)
    with (
        torch.enable_grad(),
        mixed_precision(ids.device, dtype),
        observed_attention(model, attentions, observe),
    ):
        hidden = base_model(model)(inputs_embeds=embedded, use_cache=False).last_hidden_state
        rows = hidden[:, :-1].reshape(-1, hidden.shape[-1])
        head = model.get_output_embeddings()
        upstream = torch.zeros_like(rows)
        for part in rows.detach().split(max(1, LOGIT_CHUNK // head.weight.shape[0])):
            leaf = part.requires_grad_(True)
            logits = head(leaf)
            probabilities, labels = sample_labels(logits.detach(), generator)
            # d(-log p(label)) / d logits = p - [label]
            probabilities.scatter_add_(1, labels[:, None], probabilities.new_full((len(labels), 1), -1.0))
            logits.backward(probabilities.to(logits.dtype))
            assert leaf.grad is not None
            start = leaf.storage_offset() // rows.shape[-1]
            upstream[start : start + len(leaf)] = leaf.grad
        rows.backward(upstream)


class LocalGradients:
    """Gradients of a random projection of one layer's attention output, for the sampled queries.

    For query i of head h with weights p, upstream u = (W_o' z) of head h, values v, output o = sum_j p_j v_j:
    dv_j = p_j u, ds_j = p_j <u, v_j - o>, dk_j = scaling * ds_j * q. Each query has an independent z, so
    second moments add over queries; the factor T / R compensates for sampling R of T queries.
    """

    def __init__(self, output_matrix: torch.Tensor, seed: int, layer: int) -> None:
        self.output_matrix = output_matrix
        self.seed, self.layer = seed, layer

    def __call__(self, call: AttentionCall, rows: Rows, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(gradients with respect to keys, values), both (batch, n_kv_heads, tokens, dim), float32."""
        count, n_heads, queries, tokens = rows.weights.shape
        n_kv_heads, v_dim = call.v.shape[1], call.v.shape[3]
        generator = torch_generator(self.seed, "directions", self.layer, batch, device=call.q.device)
        hidden = self.output_matrix.shape[0]
        z = torch.randn(count, queries, hidden, generator=generator, device=call.q.device)
        u = (z @ self.output_matrix.float()).view(count, queries, n_heads, v_dim).transpose(1, 2)
        u = u * (tokens / queries) ** 0.5
        grouped = (count, n_kv_heads, n_heads // n_kv_heads * queries)
        p = rows.weights.reshape(*grouped, tokens)
        u = u.reshape(*grouped, v_dim)
        q = call.q.detach()[:, :, rows.positions].float().reshape(*grouped, -1)
        v = call.v.detach().float()
        ds = u @ v.transpose(-1, -2)
        ds = p * (ds - (p * ds).sum(-1, keepdim=True))
        return call.scaling * ds.transpose(-1, -2) @ q, p.transpose(-1, -2) @ u
