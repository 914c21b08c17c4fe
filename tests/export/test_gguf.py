"""llama.cpp says of a text what the model says."""

from __future__ import annotations

import json
from importlib.util import find_spec

import pytest
import torch

from archsearch.errors import ExportError
from archsearch.export.check import check, gguf_deviations, llama, log_probability_deviation
from archsearch.export.gguf import gguf
from archsearch.genome import Gene, Genome
from tests.export.native_genomes import genome_for, model_of

VOCAB, END = 300, 0
TEXT = "the rain in spain stays mainly in the plain, and the train to the main plane is late. " * 4
MAMBA = Gene.of("mamba2", d_state=8, head_dim=8)
NOPE = Gene.of("attention", heads=2, pos="none")
RELU2 = Gene.of("swiglu", act="relu2")
LLAMA = pytest.mark.skipif(
    find_spec("xllamacpp") is None, reason="xllamacpp (pip install xllamacpp) runs llama.cpp"
)


@pytest.fixture(scope="module")
def tokenizer():
    """A byte-level BPE."""
    package = pytest.importorskip("tokenizers", reason="tokenizers needs the extra text")
    bpe = package.Tokenizer(package.models.BPE())
    bpe.pre_tokenizer = package.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    trainer = package.trainers.BpeTrainer(
        vocab_size=280, special_tokens=["<|endoftext|>"], show_progress=False,
        initial_alphabet=package.pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    bpe.train_from_iterator([TEXT], trainer)
    return bpe


@pytest.fixture
def write(tokenizer, tmp_path):
    """Writes a model with the tokenizer."""
    pytest.importorskip("gguf", reason="gguf needs the extra gguf")
    files = {"tokenizer.json": tokenizer.to_str()}

    def write(model, name="0"):
        (tmp_path / name).mkdir()
        return gguf(model, tmp_path / name, files, END)

    return write


@LLAMA
def test_log_probabilities_are_those_of_the_model(write):
    """Read at once, and token by token, for random genomes."""
    models = [model_of(genome_for("NemotronH", n), n, VOCAB) for n in range(20)]
    written = [(write(model, str(n)).parent, model) for n, model in enumerate(models)]
    found = gguf_deviations(written)
    assert {name for one in found for name in one} == {"logits", "decode"}
    assert max(value for one in found for value in one.values()) < 1e-5


@LLAMA
def test_text_is_cut_into_the_same_tokens_and_a_swapped_head_is_noticed(write, tokenizer):
    model = model_of(Genome(32, (MAMBA, NOPE, RELU2)), 0, VOCAB)
    texts = [
        "the rain, mainly in the plain",
        "A train? 12 trains\n\nand <|endoftext|>",
        "caf\u00e9",
    ]
    path = write(model)
    (said,) = llama([(path, texts, VOCAB)])
    ids = [tokenizer.encode(text).ids for text in texts]
    assert [answer["read"] for answer in said] == [len(row) for row in ids]
    heard = [(row, answer["next"]) for row, answer in zip(ids, said, strict=True)]
    assert max(log_probability_deviation(model, *one) for one in heard) < 1e-5
    with torch.no_grad():
        rows = model.stack.branches["1"].block.qkv.weight
        rows.copy_(rows.roll(16, 0))
    assert max(log_probability_deviation(model, *one) for one in heard) > 1e-3
    with pytest.raises(ExportError, match="of what was written are off"):
        check(path.parent, "gguf", model)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ExportError, match="does not load, so nothing was left"):
        check(path.parent, "gguf", model)


def test_the_file_holds_every_weight(write):
    model = model_of(Genome(32, (MAMBA, RELU2, NOPE, MAMBA), tie_embeddings=True), 1, VOCAB)
    path = write(model)
    from gguf import GGUFReader

    reader = GGUFReader(path)
    held = sum(tensor.n_elements for tensor in reader.tensors)
    assert held == sum(p.numel() for p in model.parameters()) + VOCAB * 32
    assert len({tensor.name for tensor in reader.tensors}) == 2 * 9 + 3 + 5 + 3
    assert reader.get_field("nemotron_h.feed_forward_length").contents() == [0, 64, 0, 0]
    assert reader.get_field("nemotron_h.attention.head_count_kv").contents() == [0, 0, 2, 0]
    assert reader.get_field("tokenizer.ggml.eos_token_id").contents() == END


TOKENS = {
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": []},
}


@pytest.mark.parametrize(
    ("genes", "tokens", "why"),
    [
        ((NOPE, RELU2), TOKENS, "no layer is mamba2; llama.cpp needs one in a NemotronH"),
        ((MAMBA, RELU2), TOKENS, "no layer is attention; llama.cpp needs one in a NemotronH"),
        (
            (MAMBA, NOPE, Gene.of("swiglu")),
            TOKENS,
            "layer 3: swiglu with act silu; NemotronH has relu2; --format hf writes any genome",
        ),
        (
            (MAMBA, NOPE),
            None,
            "this format needs the tokenizer.json that the model was trained with",
        ),
        (
            (MAMBA, NOPE),
            TOKENS | {"model": {"type": "Unigram", "vocab": []}},
            "this format takes a byte-level BPE that cuts text into words as GPT-2's",
        ),
        (
            (MAMBA, NOPE),
            TOKENS | {"pre_tokenizer": {"type": "Whitespace"}},
            "this format takes a byte-level BPE that cuts text into words as GPT-2's",
        ),
        (
            (MAMBA, NOPE),
            TOKENS | {"added_tokens": [{"id": 61, "content": "<end>", "special": True}]},
            "the tokenizer has ids up to 61, the model 61 tokens",
        ),
    ],
)
def test_what_llama_cpp_cannot_run_is_refused(genes, tokens, why, tmp_path):
    pytest.importorskip("gguf", reason="gguf needs the extra gguf")
    files = {"tokenizer.json": json.dumps(tokens)} if tokens else {}
    with pytest.raises(ExportError) as error:
        gguf(model_of(Genome(32, genes), 0), tmp_path, files)
    assert str(error.value) == why
    assert not any(tmp_path.iterdir())
