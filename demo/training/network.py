"""The network under training: bf16 layers over fp32 master weights, and the loss.

Knows M2M100's parameters and one optimizer step; knows nothing of schedules and files.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from batches import Batch
from torch import nn
from transformers import M2M100Config, M2M100ForConditionalGeneration
from vocabulary import BOS, EOS, PAD

EMBEDDING = "model.shared.weight"
LABEL_SMOOTHING = 0.1
SLICE = 512
"""Number of output rows computed at once: small enough to stay in cache."""

SHAPE_KEYS = (
    "vocab_size",
    "d_model",
    "encoder_layers",
    "decoder_layers",
    "encoder_attention_heads",
    "decoder_attention_heads",
    "encoder_ffn_dim",
    "decoder_ffn_dim",
    "max_position_embeddings",
)


def make_config(shape: Mapping[str, Any], dropout: float = 0.0) -> M2M100Config:
    """Returns the model's configuration.

    Args:
        shape: holds `SHAPE_KEYS`. Other entries are ignored, so a configuration written by another
            version of transformers works.
        dropout: for training; the released checkpoint has 0.
    """
    return M2M100Config(
        **{key: shape[key] for key in SHAPE_KEYS},
        activation_function="relu",
        dropout=dropout,
        attention_dropout=0.0,
        activation_dropout=0.0,
        encoder_layerdrop=0.0,
        decoder_layerdrop=0.0,
        scale_embedding=True,
        tie_word_embeddings=True,
        decoder_start_token_id=EOS,
        bos_token_id=BOS,
        pad_token_id=PAD,
        eos_token_id=EOS,
        use_cache=True,
        attn_implementation="eager",
    )


class TiedCrossEntropy(torch.autograd.Function):
    """Label-smoothed cross-entropy of `h @ W.T`: output layer and loss in one function.

    Works in slices and computes the gradient in the same pass. The `(tokens, vocabulary)` scores
    never exist as a whole.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, target: torch.Tensor, smoothing: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns (smoothed loss, negative log-likelihood), both as means per token."""
        tokens, vocab = len(hidden), len(weight)
        hidden_bf16, weight_bf16 = hidden.bfloat16(), weight.bfloat16()
        hidden_grad = torch.empty_like(hidden_bf16)
        weight_grad = torch.zeros(vocab, hidden.shape[1])
        loss = nll = 0.0
        for start in range(0, tokens, SLICE):
            part = slice(start, start + SLICE)
            labels = target[part, None]
            scores = F.linear(hidden_bf16[part], weight_bf16)
            log_probs = F.log_softmax(scores, 1, dtype=torch.float32)
            label_nll = -log_probs.gather(1, labels).sum().item()
            uniform_nll = -log_probs.sum().item() / vocab
            loss += (1 - smoothing) * label_nll + smoothing * uniform_nll
            nll += label_nll
            # The gradient of the scores is softmax minus the smoothed label distribution.
            grad = log_probs.exp_()
            grad.scatter_add_(1, labels, torch.full((len(labels), 1), smoothing - 1))
            grad = grad.sub_(smoothing / vocab).bfloat16()
            hidden_grad[part] = grad @ weight_bf16
            weight_grad += grad.t() @ hidden_bf16[part]
        ctx.save_for_backward(hidden_grad, weight_grad)
        ctx.tokens = tokens
        ctx.dtype = hidden.dtype
        return torch.tensor(loss / tokens), torch.tensor(nll / tokens)

    @staticmethod
    def backward(  # type: ignore[override]
        ctx: Any, grad: torch.Tensor, _: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, None, None]:
        """Returns the gradients that `forward` computed, scaled."""
        hidden_grad, weight_grad = ctx.saved_tensors
        scale = grad / ctx.tokens
        return (hidden_grad.float() * scale).to(ctx.dtype), weight_grad * scale, None, None


class Step(NamedTuple):
    """Statistics of one optimizer step: summed loss, tokens and gradient norm."""

    nll: float
    target_tokens: int
    source_tokens: int
    grad_norm: float


class Network:
    """M2M100 with its optimizer.

    The optimizer keeps fp32 weights (`master`); the layers compute with a bf16 copy of them. The
    embedding stays in fp32, because bf16 would lose most of the sum of a frequent token's
    gradients.

    Args:
        config: the model's configuration.
        threads: number of batches computed in parallel.
    """

    def __init__(self, config: M2M100Config, threads: int) -> None:
        self.config = config
        self.model = M2M100ForConditionalGeneration(config)
        for name, weight in self.model.named_parameters():
            if name == EMBEDDING:
                nn.init.normal_(weight, std=config.d_model**-0.5)
                weight.data[PAD].zero_()
            elif weight.dim() == 2:
                nn.init.xavier_uniform_(weight)
        self.embedding = nn.Parameter(self.model.model.shared.weight.detach().clone())
        self.model.bfloat16()
        self.model.train()
        self.layers = {n: p for n, p in self.model.named_parameters() if n != EMBEDDING}
        self.master = {n: nn.Parameter(p.detach().float()) for n, p in self.layers.items()}
        self.weights = [self.embedding, *self.master.values()]
        self.optimizer = torch.optim.Adam(self.weights, betas=(0.9, 0.98), eps=1e-8, fused=True)
        self._workers = ThreadPoolExecutor(threads)
        self._push()

    def _push(self) -> None:
        """Copies the master weights into the bf16 layers."""
        with torch.no_grad():
            torch._foreach_copy_(list(self.layers.values()), list(self.master.values()))

    def state(self) -> dict[str, torch.Tensor]:
        """Returns a copy of the fp32 weights: `shared`, and the layers by their names."""
        named = {"shared": self.embedding, **self.master}
        return {name: weight.detach().clone() for name, weight in named.items()}

    def load_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Loads weights in the form of `state`, in any float type."""
        with torch.no_grad():
            self.embedding.copy_(state["shared"])
            for name, weight in self.master.items():
                weight.copy_(state[name])
        self._push()

    def _embed(self, ids: torch.Tensor) -> torch.Tensor:
        scale = math.sqrt(self.config.d_model)
        return (F.embedding(ids, self.embedding, padding_idx=PAD) * scale).bfloat16()

    def loss(self, batch: Batch, smoothing: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns (smoothed loss, negative log-likelihood), both as means per target token."""
        mask = (batch.source != PAD).long()
        encoded = self.model.model.encoder(
            inputs_embeds=self._embed(batch.source), attention_mask=mask
        )[0]
        hidden = self.model.model.decoder(
            inputs_embeds=self._embed(batch.decoder_input),
            encoder_hidden_states=encoded,
            encoder_attention_mask=mask,
            use_cache=False,
        )[0]
        keep = batch.target != PAD
        return TiedCrossEntropy.apply(hidden[keep], self.embedding, batch.target[keep], smoothing)

    def train_step(self, batches: Sequence[Batch], rate: float) -> Step:
        """Makes one optimizer step over several batches.

        Each worker computes one batch, forward and backward, on one core. This is faster than two
        cores inside every operation, and another program on one core slows only that core's
        batch. Gradients add up under autograd's locks.
        """
        counts = [int((batch.target != PAD).sum()) for batch in batches]
        total = sum(counts)
        self.embedding.grad = None
        self.model.zero_grad(set_to_none=True)

        def compute(batch: Batch, count: int) -> float:
            loss, nll = self.loss(batch, LABEL_SMOOTHING)
            (loss * (count / total)).backward()
            return nll.item() * count

        nll = sum(self._workers.map(compute, batches, counts))
        for name, weight in self.layers.items():
            self.master[name].grad = weight.grad.float()
        norm = torch.nn.utils.clip_grad_norm_(self.weights, 1.0, foreach=True)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self._push()
        sources = sum(int((batch.source != PAD).sum()) for batch in batches)
        return Step(nll, total, sources, float(norm))

    def mean_nll(self, batches: Sequence[Batch]) -> float:
        """Returns the negative log-likelihood per target token. Does not train."""
        self.model.eval()
        nll, tokens = 0.0, 0
        with torch.no_grad():
            for batch in batches:
                count = int((batch.target != PAD).sum())
                nll += self.loss(batch, 0.0)[1].item() * count
                tokens += count
        self.model.train()
        return nll / tokens
