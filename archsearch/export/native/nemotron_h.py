"""NemotronH: Mamba-2, attention without positions and squared ReLU, in any order."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from archsearch.export.native.reading import Reader, heads
from archsearch.export.native.source import attention, feed_forward, mamba, under
from archsearch.export.native.target import EPS, LEAST_STEP, Target

if TYPE_CHECKING:
    from archsearch.export.native.source import Part, Source, Weights
    from archsearch.genome import Genome

KINDS = {"mamba2": "linear_attention", "attention": "full_attention", "swiglu": "mlp"}


class NemotronH(Target):
    """Its experts have no gate, so a mixture of SwiGLU experts does not fit.

    It never ties embeddings: tied ones are written twice. A model without attention says
    `use_cache: false`, as its cache counts tokens in the attention layers.
    """

    name = "NemotronH"
    blocks = tuple(KINDS)

    def fields(self, genome: Genome) -> dict[str, Any]:
        reader = Reader(genome, self.name, self.blocks)
        ffn = reader.feed_forward(("relu2",))
        attends = reader.attention(pos=("none",))
        found = {
            "hidden_size": genome.d_model,
            "layers_block_type": [KINDS[layer.gene.block] for layer in reader.layers],
            "layer_norm_epsilon": EPS,
            "time_step_min": LEAST_STEP,
            "use_cache": bool(attends),
        }
        if attends:
            found |= {**heads(attends), "head_dim": genome.d_model // attends["heads"]}
        if ffn:
            found["intermediate_size"] = ffn["hidden"]
        if shape := reader.mamba2():
            found |= {
                "mamba_num_heads": shape["heads"],
                "mamba_head_dim": shape["head_dim"],
                "ssm_state_size": shape["d_state"],
                "n_groups": shape["groups"],
                "conv_kernel": shape["conv"],
                "expand": shape["expand"],
            }
        return found

    def weights(self, source: Source) -> Weights:
        found = source.frame("model.embeddings", "model.norm_f")
        found["lm_head.weight"] = found["lm_head.weight"].clone()
        for i, part in enumerate(source.parts):
            assert part.gain is not None
            found[f"model.layers.{i}.norm.weight"] = part.gain
            found |= under(f"model.layers.{i}.mixer", _mixer(part, source.branch))
        return found


def _mixer(part: Part, multiplier: float) -> Weights:
    if part.gene.block == "mamba2":
        return mamba(part, multiplier)
    if part.gene.block == "attention":
        return attention(part, multiplier)
    return feed_forward(part, multiplier)
