"""Liquid-S4 over a diagonal state space (S4D-Lin). Hasani et al. 2022, arXiv 2209.12951.

    A = -exp(log_A_real) + i A_imag,   dt = exp(log_dt)
    A' = exp(dt A),   B' = (A' - 1) B / A
    h_t = A' h_(t-1) + B' u_t
    y_t = 2 Re(C h_t) + D u_t + sum over p = 2 .. P of 2 Re(C B'^p) u_t u_(t-1) .. u_(t-p+1)
    o = GLU(W_out GELU(y))

Each channel has N complex states, each of them standing for itself and its conjugate; powers and
products are elementwise and C B'^p sums over the states. The sum over p is the liquid part in the
form that the paper calls PB: products of neighbouring inputs in their order of time. S4D-Lin and
the layer around it are those of Gu et al. 2022, arXiv 2206.11893.

`forward` makes the kernel of the linear part and convolves by FFT.

Shapes: B batch, T time, D model width, N states, P degree, Q time in a stretch, I stretches.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from archsearch.block import Block, Ctx, Role, State, normal
from archsearch.cost import Cost
from archsearch.dims import whole
from archsearch.kernels.fft_convolution import causal_convolution


def draw_log_dt(w: Tensor, g: Generator) -> Tensor:
    """Let exp(w) be log-uniform in [0.001, 0.1]."""
    return w.uniform_(math.log(1e-3), math.log(1e-1), generator=g)


def halves(w: Tensor, g: Generator) -> Tensor:
    """Let exp(w) be 1/2."""
    return w.fill_(math.log(0.5))


def harmonics(w_DN: Tensor, g: Generator) -> Tensor:
    """Fill each row with 0, pi, 2 pi .."""
    return w_DN.copy_(torch.arange(w_DN.shape[1], device=w_DN.device) * math.pi)


def real_ones(w: Tensor, g: Generator) -> Tensor:
    """Fill with the complex number 1, real part first on the last axis."""
    w.zero_()[..., 0] = 1
    return w


class LiquidS4(Block, name="liquid_s4", kind="mixer", paper="2209.12951"):
    """Diagonal state space with products of neighbouring inputs (Liquid-S4, PB)."""

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config:
        """Search dimensions."""

        d_state: int = whole(1, 256, default=16)
        """Complex states per channel; memory at decode grows linearly with it."""
        degree: int = whole(2, 4, default=2)
        """Most neighbouring inputs in one product."""

    roles = {
        "log_dt": Role.vector("model", init=draw_log_dt),
        "log_A_real": Role.vector("model", None, init=halves),
        "A_imag": Role.vector("model", None, init=harmonics),
        "B": Role.vector("model", None, None, init=real_ones),
        "C": Role.vector("model", None, None, init=normal(0.5**0.5)),
        "D": Role.vector("model", init=normal(1.0)),
        "out_proj.weight": Role.hidden("inner", "model"),
    }

    def __init__(self, width: int, config: Config) -> None:
        super().__init__()
        self.degree = config.degree
        self.log_dt, self.D = (nn.Parameter(torch.empty(width)) for _ in range(2))
        states = width, config.d_state
        self.log_A_real, self.A_imag = (nn.Parameter(torch.empty(states)) for _ in range(2))
        self.B, self.C = (nn.Parameter(torch.empty(*states, 2)) for _ in range(2))
        self.out_proj = nn.Linear(width, 2 * width, bias=False)

    def forward(self, x_BTD: Tensor, ctx: Ctx) -> Tensor:
        dtA_DN, B_DN, C_DN = self._discrete()
        u_BDT, time = x_BTD.mT.to(self._wide()), x_BTD.shape[1]
        y_BDT = causal_convolution(u_BDT, _kernel(dtA_DN, B_DN * C_DN, time))
        y_BDT = torch.addcmul(y_BDT, u_BDT, self.D[:, None])
        padded_BDT, product_BDT = F.pad(u_BDT, (self.degree - 1, 0)), u_BDT
        for lag, gain_D in enumerate(self._gains(B_DN, C_DN), 1):
            start = self.degree - 1 - lag
            product_BDT = product_BDT * padded_BDT[..., start : start + time]
            y_BDT = torch.addcmul(y_BDT, product_BDT, gain_D[:, None])
        return F.glu(self.out_proj(F.gelu(y_BDT).mT.to(x_BTD.dtype)))

    def _wide(self) -> torch.dtype:
        return torch.promote_types(self.D.dtype, torch.float32)

    def _discrete(self) -> tuple[Tensor, Tensor, Tensor]:
        """The products dt A, B' and C, complex, in float32 or finer."""
        log_dt_D, log_re_DN, im_DN, B_DN2, C_DN2 = (
            p.to(self._wide()) for p in (self.log_dt, self.log_A_real, self.A_imag, self.B, self.C)
        )
        A_DN = torch.complex(-log_re_DN.exp(), im_DN)
        dtA_DN = log_dt_D.exp()[:, None] * A_DN
        re_DN, im_DN = dtA_DN.real, dtA_DN.imag
        # exp(dt A) - 1 without cancellation for small dt
        grown_DN = torch.complex(
            torch.expm1(re_DN) * im_DN.cos() - 2 * (im_DN / 2).sin().square(),
            re_DN.exp() * im_DN.sin(),
        )
        return dtA_DN, grown_DN / A_DN * torch.view_as_complex(B_DN2), torch.view_as_complex(C_DN2)

    def _gains(self, B_DN: Tensor, C_DN: Tensor) -> list[Tensor]:
        """2 Re(C B'^p) of every channel for p = 2 .. degree."""
        return [2 * (C_DN * B_DN**p).sum(-1).real for p in range(2, self.degree + 1)]

    def init_state(self, batch: int, context: int) -> State:
        return {
            "ssm": self.B.new_zeros(batch, *self.B.shape),
            "past": self.B.new_zeros(batch, len(self.B), self.degree - 1),
        }

    def step(self, x_BD: Tensor, state: State, ctx: Ctx) -> tuple[Tensor, State]:
        dtA_DN, B_DN, C_DN = self._discrete()
        u_BD = x_BD.to(self._wide())
        h_BDN = torch.view_as_complex(state["ssm"].to(u_BD.dtype))
        h_BDN = dtA_DN.exp() * h_BDN + B_DN * u_BD[..., None]
        y_BD = 2 * (C_DN * h_BDN).sum(-1).real + self.D * u_BD
        # newest first
        product_BD, past = u_BD, state["past"].unbind(-1)
        for old_BD, gain_D in zip(past, self._gains(B_DN, C_DN), strict=True):
            product_BD = product_BD * old_BD
            y_BD = y_BD + gain_D * product_BD
        now = torch.stack((u_BD, *past[:-1]), -1)
        o_BD = F.glu(self.out_proj(F.gelu(y_BD).to(x_BD.dtype)))
        return o_BD, {"ssm": torch.view_as_real(h_BDN), "past": now}

    def oracle(self, x_BTD: Tensor, ctx: Ctx) -> Tensor:
        A_DN = -torch.exp(self.log_A_real) + 1j * self.A_imag
        discrete_A_DN = torch.exp(torch.exp(self.log_dt)[:, None] * A_DN)
        B_DN = (discrete_A_DN - 1) / A_DN * (self.B[..., 0] + 1j * self.B[..., 1])
        C_DN = self.C[..., 0] + 1j * self.C[..., 1]
        h_BDN, outputs = torch.zeros_like(B_DN), []
        for t in range(x_BTD.shape[1]):
            u_BD = x_BTD[:, t]
            h_BDN = discrete_A_DN * h_BDN + B_DN * u_BD[..., None]
            y_BD = 2 * torch.einsum("dn,bdn->bd", C_DN, h_BDN).real + self.D * u_BD
            for p in range(2, min(self.degree, t + 1) + 1):
                product_BD = x_BTD[:, t + 1 - p : t + 1].prod(1)
                y_BD = y_BD + 2 * (C_DN * B_DN**p).sum(-1).real * product_BD
            g_BD = y_BD * (1 + torch.erf(y_BD / math.sqrt(2))) / 2
            value_BD, gate_BD = (g_BD @ self.out_proj.weight.T).chunk(2, -1)
            outputs.append(value_BD * torch.sigmoid(gate_BD))
        return torch.stack(outputs, 1)

    @staticmethod
    def cost(width: int, config: Config, seq_len: int) -> Cost:
        """FLOPs are those of the matrix products.

        The kernel is made once for all sequences of a batch; half of that is counted here, as for
        a batch of two. Counters do not see an FFT: with n the power of two from 2T on, three of
        2.5 n log2(n) per channel and sequence.
        """
        N, (stretches, Q) = config.d_state, _stretches(seq_len)
        params = width * (6 * N + 2) + 2 * width**2
        return Cost(
            params=params,
            active_params=params,
            flops=4 * width**2 + 2 * width * N * stretches * Q / seq_len,
            state_bytes=4 * width * (2 * N + config.degree - 1),
        )


def _kernel(dtA_DN: Tensor, CB_DN: Tensor, time: int) -> Tensor:
    """2 Re(sum over n of CB exp(dtA t)) for t = 0 .. time - 1.

    With t = i Q + q the exponential is a product of one in i and one in q, so that about 2 sqrt(T)
    of them do for each state.

    Returns:
        k_DT.
    """
    stretches, Q = _stretches(time)
    device = dtA_DN.device
    starts_I1 = Q * torch.arange(stretches, device=device)[:, None]
    first_DIN = CB_DN[:, None] * torch.exp(dtA_DN[:, None] * starts_I1)
    second_DNQ = torch.exp(dtA_DN[..., None] * torch.arange(Q, device=device))
    first = torch.cat((first_DIN.real, -first_DIN.imag), -1)
    second = torch.cat((second_DNQ.real, second_DNQ.imag), 1)
    return 2 * (first @ second).flatten(1)[:, :time]


def _stretches(time: int) -> tuple[int, int]:
    """How many stretches of which length, both near the root of `time`."""
    length = math.isqrt(time - 1) + 1
    return math.ceil(time / length), length
