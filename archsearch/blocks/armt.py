"""Associative memory over segments. Rodkin et al. 2024, arXiv 2407.04841 (ARMT), section 3.

Segment s of S tokens reads from the memory (A, z) that the segments before it left:

    y_t = A_(s-1)^T phi(W_q x_t) / (z_(s-1) . phi(W_q x_t) + 1e-5),   A_0 = 0, z_0 = 0

and M memory tokens m_i write at its end, all of them from the old memory, by the delta rule:

    k_i = W_k m_i,  v_i = W_v m_i,  beta_i = sigmoid(w_b . m_i + b)
    v'_i = A^T phi(k_i) / (z . phi(k_i) + 1e-5)            what the memory holds under the key
    gamma_i = clip(1 - z . phi(k_i) / (|phi(k_i)|^2 + 1e-5), 0, 1)    no gradient
    A += sum_i phi(k_i) beta_i (v_i - v'_i)^T,   z += sum_i gamma_i phi(k_i)

phi is DPFP (Schlag et al. 2021, arXiv 2102.11174): r = relu([k, -k]), phi = [r * roll(r, j)] for
j = 1 .. nu. W_v starts at 0, so that the block starts silent.

What differs from the published model, which is a recurrence around a whole transformer:

* A block sees the stream alone and cannot add tokens to it. The published memory tokens are learned
  tokens at the end of the segment, which gather it by the attention of the layers below. Here
  m_i = (input at the i-th of the last M tokens of the segment) + (learned slot i): they carry what
  the mixers before this block have gathered there.
* In the paper each transformer layer has a memory: tokens read before the layer, memory tokens
  write what the layer made of them. Here reading and writing both see the input of this block, so a
  read of this segment is not part of what the segment writes.
* Attention inside a segment, and its cut at the border of segments, is left to other blocks.

Many writers can overshoot, as published: M of them under one key, each from the old memory, change
what it holds by up to M beta times the error, and above 2 that diverges. It takes segments of equal
tokens, after others that have filled z under their key. Slots make it rare: of 120 random starts
none diverged at 4 writers, 6 at 8 and 36 at 16, where half did at 8 writers without slots.

Shapes: B batch, T time, D model width, I segments, S time in a segment, M writers in a segment,
K key width, P features (2 nu K), V columns of the memory (D + 1: A and z side by side).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from archsearch.block import Block, Ctx, Role, State, normal, require, zeros
from archsearch.cost import Cost
from archsearch.dims import whole

EPS = 1e-5
"""Added to what is divided by."""


class ARMT(Block, name="armt", kind="mixer", paper="2407.04841"):
    """Associative memory that each segment of the sequence leaves to those after it."""

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config:
        """Search dimensions."""

        segment: int = whole(1, 4096, default=32)
        """Tokens in a segment; none of them reads what another one of them wrote."""
        writers: int = whole(1, 256, default=4)
        """Tokens at the end of each segment that write: the memory tokens of the paper."""
        d_mem: int = whole(1, 256, default=32)
        """Width of keys and queries; the memory has 2 x nu x d_mem rows."""
        nu: int = whole(1, 8, default=3)
        """Products per element of a key in its features (DPFP-nu)."""

    spans = ("segment",)
    roles = {
        "slots": Role.embedding(None, "model", init=normal(1.0)),
        "q.weight": Role.hidden(None, "model"),
        "k.weight": Role.hidden(None, "model"),
        "v.weight": Role.hidden("model", "model", init=zeros),
        "beta.weight": Role.readout(None, "model"),
        "beta.bias": Role.small(None, init=zeros),
    }

    def __init__(self, width: int, config: Config) -> None:
        super().__init__()
        self.config = config
        self.slots = nn.Parameter(torch.empty(config.writers, width))
        self.q = nn.Linear(width, config.d_mem, bias=False)
        self.k = nn.Linear(width, config.d_mem, bias=False)
        self.v = nn.Linear(width, width, bias=False)
        self.beta = nn.Linear(width, 1)

    def forward(self, x_BTD: Tensor, ctx: Ctx) -> Tensor:
        (B, T, _), S = x_BTD.shape, self.config.segment
        query_BTP = dpfp(self.q(x_BTD), self.config.nu)
        writing = (T - 1) // S
        memory_BPV = self._empty(B)
        memories = [memory_BPV]
        if writing:
            whole_BISD = x_BTD[:, : writing * S].unflatten(1, (writing, S))
            parts = self._writes(whole_BISD[:, :, S - self.config.writers :])
            # unbind: indexing in the loop would make the backward pass quadratic in segments
            for key_BMP, value_BMD, beta_BM1 in zip(*(p.unbind(1) for p in parts), strict=True):
                memory_BPV = write(memory_BPV, key_BMP, value_BMD, beta_BM1)
                memories.append(memory_BPV)
        past_BTP, last_BTP = query_BTP.split([writing * S, T - writing * S], 1)
        y_BTV = last_BTP @ memory_BPV
        if writing:
            query_BISP = past_BTP.unflatten(1, (writing, S))
            y_BISV = query_BISP @ torch.stack(memories[:-1], 1)
            y_BTV = torch.cat((y_BISV.flatten(1, 2), y_BTV), 1)
        return divided(y_BTV).to(x_BTD.dtype)

    def init_state(self, batch: int, context: int) -> State:
        last = self.v.weight.new_zeros(batch, self.config.writers, len(self.v.weight))
        return {"memory": self._empty(batch), "last": last}

    def step(self, x_BD: Tensor, state: State, ctx: Ctx) -> tuple[Tensor, State]:
        memory_BPV, last_BMD = state["memory"], state["last"]
        if ctx.seen and ctx.seen % self.config.segment == 0:
            memory_BPV = write(memory_BPV, *self._writes(last_BMD))
        query_B1P = dpfp(self.q(x_BD), self.config.nu)[:, None]
        y_BD = divided(query_B1P @ memory_BPV)[:, 0].to(x_BD.dtype)
        last_BMD = torch.cat((last_BMD[:, 1:], x_BD[:, None]), 1)
        return y_BD, {"memory": memory_BPV, "last": last_BMD}

    def _empty(self, batch: int) -> Tensor:
        """The memory before the first segment, at least in float32."""
        features = 2 * self.config.nu * self.config.d_mem
        memory_BPV = self.v.weight.new_zeros(batch, features, len(self.v.weight) + 1)
        return memory_BPV.to(torch.promote_types(memory_BPV.dtype, torch.float32))

    def _writes(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features of the keys, values and betas of the writers, at least in float32.

        x is the input at the last M tokens of a segment, (..., M, D).
        """
        x = x + self.slots
        key, value = F.linear(x, self.k.weight), F.linear(x, self.v.weight)
        beta = F.linear(x, self.beta.weight, self.beta.bias)
        dtype = torch.promote_types(x.dtype, torch.float32)
        return dpfp(key, self.config.nu), value.to(dtype), beta.to(dtype).sigmoid()

    def oracle(self, x_BTD: Tensor, ctx: Ctx) -> Tensor:
        B, T, D = x_BTD.shape
        S, M, nu = self.config.segment, self.config.writers, self.config.nu

        def phi(k_BK: Tensor) -> Tensor:
            r = [torch.where(s * k_BK > 0, s * k_BK, 0.0) for s in (1, -1)]
            r_BR = torch.cat(r, 1)
            size = r_BR.shape[1]
            rolled = [[(i - j) % size for i in range(size)] for j in range(1, nu + 1)]
            return torch.cat([r_BR * r_BR[:, index] for index in rolled], 1)

        A_BPD = x_BTD.new_zeros(B, 2 * nu * self.config.d_mem, D)
        z_BP = A_BPD[:, :, 0]
        outputs = []
        for t in range(T):
            if t and t % S == 0:
                new_A, new_z = A_BPD, z_BP
                for i in range(t - M, t):
                    m_BD = x_BTD[:, i] + self.slots[i - t]
                    f_BP, v_BD = phi(m_BD @ self.k.weight.T), m_BD @ self.v.weight.T
                    beta_B1 = 1 / (1 + torch.exp(-(m_BD @ self.beta.weight.T + self.beta.bias)))
                    zf_B1 = (z_BP * f_BP).sum(1, keepdim=True)
                    held_BD = torch.einsum("bpd,bp->bd", A_BPD, f_BP) / (zf_B1 + 1e-5)
                    gamma_B1 = 1 - zf_B1 / ((f_BP**2).sum(1, keepdim=True) + 1e-5)
                    gamma_B1 = gamma_B1.detach().clip(0, 1)
                    new_A = new_A + torch.einsum("bp,bd->bpd", f_BP, beta_B1 * (v_BD - held_BD))
                    new_z = new_z + gamma_B1 * f_BP
                A_BPD, z_BP = new_A, new_z
            f_BP = phi(x_BTD[:, t] @ self.q.weight.T)
            read_BD = torch.einsum("bpd,bp->bd", A_BPD, f_BP)
            outputs.append(read_BD / ((z_BP * f_BP).sum(1, keepdim=True) + 1e-5))
        return torch.stack(outputs, 1)

    @staticmethod
    def cost(width: int, config: Config, seq_len: int) -> Cost:
        features, writers = 2 * config.nu * config.d_mem, config.writers
        keys, values, memory = width * config.d_mem, width**2, features * (width + 1)
        params = 2 * keys + values + width + 1 + writers * width
        writing = (seq_len - 1) // config.segment * writers / seq_len
        return Cost(
            params=params,
            active_params=params,
            flops=2 * (keys + memory) + 2 * writing * (keys + values + width + 2 * memory),
            state_bytes=4 * (memory + writers * width),
        )

    @staticmethod
    def check(width: int, config: Config) -> None:
        why = f"is more than the {config.segment} tokens of a segment"
        require(ARMT.info, "writers", config.writers, range(1, config.segment + 1), why)


def dpfp(k: Tensor, nu: int) -> Tensor:
    """The features [r * roll(r, j) for j = 1 .. nu] of r = relu([k, -k]), at least in float32."""
    k = k.to(torch.promote_types(k.dtype, torch.float32))
    r = F.relu(torch.cat((k, -k), -1))
    return torch.cat([r * r.roll(j, -1) for j in range(1, nu + 1)], -1)


def write(memory_BPV: Tensor, key_BMP: Tensor, value_BMD: Tensor, beta_BM1: Tensor) -> Tensor:
    """The memory after M tokens have written, each from the memory as it was."""
    held_BMV = key_BMP @ memory_BPV
    with torch.no_grad():
        norm_BM1 = key_BMP.square().sum(-1, keepdim=True)
        gamma_BM1 = (1 - held_BMV[..., -1:] / (norm_BM1 + EPS)).clamp(0, 1)
    change_BMD = beta_BM1 * (value_BMD - divided(held_BMV))
    return torch.baddbmm(memory_BPV, key_BMP.mT, torch.cat((change_BMD, gamma_BM1), -1))


def divided(read: Tensor) -> Tensor:
    """What was read from A over what was read from z, its last column."""
    return read[..., :-1] / (read[..., -1:] + EPS)
