"""llama.cpp says of a text what the model says."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from archsearch.errors import ExportError
from archsearch.export.gguf import gguf
from archsearch.genome import Gene, Genome
from archsearch.train import generator
from tests.export.native_genomes import genome_for, model_of

VOCAB, END, LENGTH = 300, 0, 24
TEXT = "the rain in spain stays mainly in the plain, and the train to the main plane is late. " * 4
MAMBA = Gene.of("mamba2", d_state=8, head_dim=8)
NOPE = Gene.of("attention", heads=2, pos="none")
RELU2 = Gene.of("swiglu", act="relu2")

ASK = """
import json, sys
import xllamacpp as llama

for line in sys.stdin:
    path, prompts, vocab = json.loads(line)
    params = llama.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel = path, 256, 1
    params.cpuparams.n_threads, params.verbosity, params.warmup = 1, 0, False
    params.cache_type_k = params.cache_type_v = llama.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = llama.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    server, said = llama.Server(params), []
    for prompt in prompts:
        asked = {"prompt": prompt, "n_probs": vocab, "max_tokens": 1, "temperature": 0}
        answer = server.handle_completions(asked)
        tokens = (answer["choices"][0]["logprobs"] or {"content": []})["content"]
        best = {p["id"]: p["logprob"] for p in tokens[0]["top_logprobs"]} if tokens else {}
        said.append({"best": best, "read": answer["timings"]["prompt_n"]})
    print("SAID", json.dumps(said), flush=True)
    del server
"""
"""What a process of its own asks: an assertion of llama.cpp ends the process."""


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


def asked(questions):
    """What llama.cpp answers, file by file."""
    pytest.importorskip("xllamacpp", reason="xllamacpp (pip install xllamacpp) runs llama.cpp")
    lines = "".join(json.dumps(question) + "\n" for question in questions)
    ran = subprocess.run(
        [sys.executable, "-c", ASK], input=lines, capture_output=True, text=True, timeout=600
    )
    said = [line for line in ran.stdout.splitlines() if line.startswith("SAID ")]
    assert len(said) == len(questions), ran.stderr[-2000:]
    return [json.loads(line.removeprefix("SAID ")) for line in said]


@torch.no_grad()
def off(model, ids, best):
    """The largest difference of log-probabilities, over the largest logit."""
    logits_V = model(torch.tensor([ids]))[0, -1]
    want_V, found = logits_V.log_softmax(-1), {int(i): value for i, value in best.items()}
    assert len(found) == VOCAB
    got_V = torch.tensor([found[i] for i in range(VOCAB)])
    # below this llama.cpp rounds a probability to 0
    seen = want_V > -80
    return float((got_V - want_V)[seen].abs().max() / max(1.0, logits_V.abs().max()))


@torch.no_grad()
def prompts_for(model):
    """A row of random tokens, then one and two more, all of which go on with a letter.

    llama.cpp shows no probabilities of the end, nor of a byte that is a part of a letter.
    """
    rows_BT = torch.randint(1, VOCAB - 20, (64, LENGTH + 2), generator=generator("gguf"))
    last_BT = model(rows_BT)[:, LENGTH - 1 :].argmax(-1)
    good_B = ((last_BT >= 34) & (last_BT <= 94)).all(1)
    row = rows_BT[good_B.to(torch.uint8).argmax()].tolist() if good_B.any() else None
    return row and [row[: LENGTH + more] for more in range(3)]


def letters(model):
    """The model, with a liking for the tokens of single letters."""
    with torch.no_grad():
        model.readout.weight[:34] *= 0.3
        model.readout.weight[95:] *= 0.3
    return model


def compare(numbers, write):
    """The largest differences at a prefill and at a single token, over random genomes."""
    genomes = {number: genome_for("NemotronH", number) for number in numbers}
    models = [letters(model_of(genome, n, VOCAB)) for n, genome in genomes.items()]
    chosen = [(m, p) for m in models if (p := prompts_for(m))]
    files = [(str(write(m, str(i))), p, VOCAB) for i, (m, p) in enumerate(chosen)]
    worst = {"prefill": 0.0, "decode": 0.0}
    for (model, prompts), said in zip(chosen, asked(files), strict=True):
        assert [answer["read"] for answer in said] == [LENGTH, 1, 1]
        for kind, prompt, answer in zip(
            ("prefill", "decode", "decode"), prompts, said, strict=True
        ):
            worst[kind] = max(worst[kind], off(model, prompt, answer["best"]))
    return len(chosen), worst


def test_log_probabilities_are_those_of_the_model(write):
    count, worst = compare(range(30), write)
    assert count >= 20
    assert max(worst.values()) < 1e-5


def test_text_is_cut_into_the_same_tokens_and_a_swapped_head_is_noticed(write, tokenizer):
    model = model_of(Genome(32, (MAMBA, NOPE, RELU2)), 0, VOCAB)
    texts = [
        "the rain, mainly in the plain",
        "A train? 12 trains\n\nand <|endoftext|>",
        "caf\u00e9",
    ]
    (said,) = asked([(str(write(model)), texts, VOCAB)])
    ids = [tokenizer.encode(text).ids for text in texts]
    assert [answer["read"] for answer in said] == [len(row) for row in ids]
    heard = [(row, answer["best"]) for row, answer in zip(ids, said, strict=True) if answer["best"]]
    assert heard
    assert max(off(model, *one) for one in heard) < 1e-5
    with torch.no_grad():
        rows = model.stack.branches["1"].block.qkv.weight
        rows.copy_(rows.roll(16, 0))
    assert max(off(model, *one) for one in heard) > 1e-3


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
