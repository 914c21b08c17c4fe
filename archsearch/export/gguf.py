"""A model as one GGUF file for llama.cpp, where it is a NemotronH.

Written with the package `gguf` alone: the converter of llama.cpp takes a dense NemotronH of
transformers 5 for a mixture of experts.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from archsearch.errors import ExportError
from archsearch.export.native import fitting
from archsearch.export.native.source import read

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from torch import Tensor

    from archsearch.export.native.source import Weights
    from archsearch.model import Model

TARGET, ARCHITECTURE = "NemotronH", "nemotron_h"
FILE = "model.gguf"
NEEDED = ("mamba2", "attention")
"""llama.cpp makes a cache for layers of both kinds, and stops where one has nothing to hold."""
AROUND = {
    "model.embeddings.weight": "token_embd.weight",
    "model.norm_f.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
IN_LAYER = {
    "norm.weight": "attn_norm.weight",
    "mixer.in_proj.weight": "ssm_in.weight",
    "mixer.conv1d.weight": "ssm_conv1d.weight",
    "mixer.conv1d.bias": "ssm_conv1d.bias",
    "mixer.dt_bias": "ssm_dt.bias",
    "mixer.A_log": "ssm_a",
    "mixer.D": "ssm_d",
    "mixer.norm.weight": "ssm_norm.weight",
    "mixer.out_proj.weight": "ssm_out.weight",
    "mixer.q_proj.weight": "attn_q.weight",
    "mixer.k_proj.weight": "attn_k.weight",
    "mixer.v_proj.weight": "attn_v.weight",
    "mixer.o_proj.weight": "attn_output.weight",
    "mixer.up_proj.weight": "ffn_up.weight",
    "mixer.down_proj.weight": "ffn_down.weight",
}
"""Names in transformers, and in llama.cpp after `blk.0.` and so on."""
NORMAL, CONTROL, USER, UNUSED = 1, 3, 4, 5
"""Kinds of tokens."""
IDLE_MERGE = "\u00ff \u00ff"
"""Of two bytes 255, which no text has: llama.cpp wants at least one merge."""


def gguf(
    model: Model, folder: Path, tokenizer_files: Mapping[str, str], end: int | None = None
) -> Path:
    """Write a model as `model.gguf`, in float32.

    Args:
        model: With its weights.
        folder: Where.
        tokenizer_files: Texts of files by name; `tokenizer.json`, a byte-level BPE, is among them.
        end: The token between documents; None if there is none.

    Returns:
        The file.

    Raises:
        ExportError: if the model is no NemotronH that llama.cpp can run, it does not know the
            tokenizer, or the package `gguf` is missing.
    """
    target = fitting(model.genome, TARGET)
    for block in NEEDED:
        if all(gene.block != block for gene in model.genome.genes):
            raise ExportError(f"no layer is {block}; llama.cpp needs one in a {TARGET}")
    if model.readout_kind != "token":
        raise ExportError("a model that rebuilds its input from a code is no language model")
    try:
        from gguf import GGUFWriter
    except ImportError:
        raise ExportError("this format needs gguf: pip install 'archsearch[gguf]'") from None
    fields = target.fields(model.genome)
    writer = GGUFWriter(folder / FILE, ARCHITECTURE)
    writer.add_name(model.genome.key)
    _shape(writer, fields)
    _tokenizer(writer, tokenizer_files, model.vocab, end)
    for name, tensor in _tensors(target.weights(read(model)), fields["n_groups"]):
        writer.add_tensor(name, tensor.float().cpu().contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder / FILE


def _shape(writer: Any, fields: Mapping[str, Any]) -> None:
    """What a layer is, by its sizes: only attention has key heads, only an MLP a hidden width."""
    kinds, head = fields["layers_block_type"], fields["head_dim"]
    hidden, kv_heads = fields.get("intermediate_size", 0), fields["num_key_value_heads"]
    writer.add_block_count(len(kinds))
    writer.add_embedding_length(fields["hidden_size"])
    writer.add_context_length(fields["max_position_embeddings"])
    writer.add_feed_forward_length([hidden if kind == "mlp" else 0 for kind in kinds])
    writer.add_head_count(fields["num_attention_heads"])
    writer.add_head_count_kv([kv_heads if kind == "full_attention" else 0 for kind in kinds])
    writer.add_key_length(head)
    writer.add_value_length(head)
    # the loader of llama.cpp reads the one, its norms the other
    writer.add_layer_norm_eps(fields["layer_norm_epsilon"])
    writer.add_layer_norm_rms_eps(fields["layer_norm_epsilon"])
    writer.add_ssm_conv_kernel(fields["conv_kernel"])
    writer.add_ssm_inner_size(fields["mamba_num_heads"] * fields["mamba_head_dim"])
    writer.add_ssm_state_size(fields["ssm_state_size"])
    writer.add_ssm_time_step_rank(fields["mamba_num_heads"])
    writer.add_ssm_group_count(fields["n_groups"])


def _tensors(weights: Weights, groups: int) -> Iterator[tuple[str, Tensor]]:
    """The weights as llama.cpp has them: A itself, and an axis more for what it broadcasts."""
    for name, tensor in weights.items():
        if name in AROUND:
            yield AROUND[name], tensor
            continue
        _, _, layer, own = name.split(".", 3)
        if own == "mixer.conv1d.weight":
            tensor = tensor[:, 0]
        elif own == "mixer.A_log":
            tensor = -tensor.exp()[:, None]
        elif own == "mixer.D":
            tensor = tensor[:, None]
        elif own == "mixer.norm.weight":
            tensor = tensor.unflatten(0, (groups, -1))
        yield f"blk.{layer}.{IN_LAYER[own]}", tensor


def _tokenizer(writer: Any, files: Mapping[str, str], vocab: int, end: int | None) -> None:
    """The tokens of a `tokenizer.json`, filled up to as many as the model has."""
    if "tokenizer.json" not in files:
        raise ExportError("this format needs the tokenizer.json that the model was trained with")
    data = json.loads(files["tokenizer.json"])
    rule, merges = data.get("pre_tokenizer") or {}, data["model"].get("merges", [])
    cuts = rule.get("type") == "ByteLevel" and not rule.get("add_prefix_space")
    if data["model"].get("type") != "BPE" or not cuts or (merges and not rule.get("use_regex")):
        raise ExportError("this format takes a byte-level BPE that cuts text into words as GPT-2's")
    kinds = {number: (text, NORMAL) for text, number in data["model"]["vocab"].items()}
    for token in data.get("added_tokens", ()):
        kinds[token["id"]] = token["content"], CONTROL if token.get("special") else USER
    if max(kinds) >= vocab:
        raise ExportError(f"the tokenizer has ids up to {max(kinds)}, the model {vocab} tokens")
    found = [kinds.get(number, (f"[PAD{number}]", UNUSED)) for number in range(vocab)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([text for text, _ in found])
    writer.add_token_types([kind for _, kind in found])
    spelled = [merge if isinstance(merge, str) else " ".join(merge) for merge in merges]
    writer.add_token_merges(spelled or [IDLE_MERGE])
    writer.add_add_bos_token(False)
    if end is not None:
        writer.add_eos_token_id(end)
        writer.add_bos_token_id(end)
