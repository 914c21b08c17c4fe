"""An exported model generates as if it computed every text anew, whatever stands beside it."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from archsearch.export.write import fill
from archsearch.genome import Gene, Genome
from archsearch.model import build
from archsearch.train import generator
from tests.export.models import EXPERTS, GENOMES, HYDRA, SWIGLU, VOCAB, named, origin, stirred

transformers = pytest.importorskip("transformers", minversion="5.5")
pytestmark = pytest.mark.filterwarnings("ignore")
EVERY = pytest.mark.parametrize("name", GENOMES)
GREEDY = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Directories of exported models, and code of models in a place of the test's own."""
    folder = tmp_path_factory.mktemp("exported")
    with pytest.MonkeyPatch.context() as patch:
        modules = "transformers.dynamic_module_utils.HF_MODULES_CACHE"
        patch.setattr(modules, str(folder / "modules"))
        yield folder


@pytest.fixture(scope="module")
def exported(place):
    """The model of one of `GENOMES`, or of another genome, as transformers loads it."""
    known = {}

    def load(name, genome=None):
        if name not in known:
            folder = place / name.replace(" ", "-")
            folder.mkdir()
            made = named(name) if genome is None else model_of(genome)
            fill(origin(made), folder, "hf", name)
            known[name] = transformers.AutoModelForCausalLM.from_pretrained(
                folder, trust_remote_code=True
            )
        return known[name].eval()

    return load


def model_of(genome):
    return stirred(build(genome, VOCAB, generator=generator("export", "generation")))


def tokens(rows, length, name="tokens"):
    return torch.randint(1, VOCAB, (rows, length), generator=generator("generation", name))


def padded(texts, left=True):
    """One batch of texts of several lengths, and its mask."""
    longest = max(map(len, texts))
    sides = [(longest - len(text), 0) if left else (0, longest - len(text)) for text in texts]
    rows = [F.pad(text, side) for text, side in zip(texts, sides, strict=True)]
    masks = [F.pad(torch.ones_like(text), side) for text, side in zip(texts, sides, strict=True)]
    return torch.stack(rows), torch.stack(masks)


@EVERY
def test_a_cache_changes_no_token(exported, name):
    model, text_BT = exported(name), tokens(2, 7)
    # longer than the room that a cache begins with
    cached = model.generate(text_BT, max_new_tokens=70, **GREEDY)
    assert torch.equal(
        cached, model.generate(text_BT, max_new_tokens=70, use_cache=False, **GREEDY)
    )


@EVERY
def test_rows_that_are_padded_are_what_they_are_alone(exported, name):
    model, texts = exported(name), [tokens(1, n, f"row {n}")[0] for n in (9, 3, 6, 6)]
    batch_BT, mask_BT = padded(texts)
    together = model.generate(batch_BT, attention_mask=mask_BT, max_new_tokens=8, **GREEDY)
    whole_BTV = model(batch_BT, attention_mask=mask_BT).logits
    right_BT, right_mask = padded(texts, left=False)
    right_BTV = model(right_BT, attention_mask=right_mask).logits
    for row, text in enumerate(texts):
        alone = model.generate(text[None], max_new_tokens=8, **GREEDY)
        assert torch.equal(together[row, 9:], alone[0, len(text) :])
        want_TV = model(text[None]).logits[0]
        torch.testing.assert_close(whole_BTV[row, 9 - len(text) :], want_TV, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(right_BTV[row, : len(text)], want_TV, rtol=1e-4, atol=1e-4)


@EVERY
def test_beams_reorder_the_cache(exported, name):
    model, text_BT = exported(name), tokens(2, 5)
    asked = {"num_beams": 3, "num_return_sequences": 2, "max_new_tokens": 6, **GREEDY}
    cached = model.generate(text_BT, **asked)
    assert torch.equal(cached, model.generate(text_BT, use_cache=False, **asked))


@EVERY
def test_a_text_goes_on_from_its_cache_and_in_pieces(exported, name):
    model, text_BT = exported(name), tokens(1, 11)
    want = model.generate(text_BT, max_new_tokens=12, **GREEDY)
    first = model.generate(text_BT, max_new_tokens=5, return_dict_in_generate=True, **GREEDY)
    cache = first.past_key_values
    more = model.generate(first.sequences, past_key_values=cache, max_new_tokens=7, **GREEDY)
    assert torch.equal(more, want)
    assert torch.equal(
        model.generate(text_BT, max_new_tokens=12, prefill_chunk_size=4, **GREEDY), want
    )


@EVERY
def test_a_saved_model_is_the_same(exported, name, place, tmp_path):
    model, text_BT = exported(name), tokens(2, 9)
    model.save_pretrained(tmp_path)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=True)
    assert torch.equal(again(text_BT).logits, model(text_BT).logits)
    assert again.config.genome == model.config.genome
    shared = {id(p) for p in again.parameters()}
    assert len(shared) == len(list(model.parameters()))


def test_drafts_are_taken_where_attention_is_all_and_refused_elsewhere(exported):
    text_BT = tokens(1, 6).repeat(1, 3)
    model = exported("attention")
    want = model.generate(text_BT, max_new_tokens=20, **GREEDY)
    for asked in ({"prompt_lookup_num_tokens": 3}, {"assistant_early_exit": 2}):
        assert torch.equal(model.generate(text_BT, max_new_tokens=20, **asked, **GREEDY), want)
    assert model.config.num_hidden_layers == 4
    for name in ("recurrent", "hybrid"):
        with pytest.raises(ValueError, match="not supported with stateful models"):
            exported(name).generate(text_BT, prompt_lookup_num_tokens=3, **GREEDY)


def test_an_early_exit_is_the_model_without_its_last_branches(exported):
    model, text_BT = exported("attention"), tokens(2, 9)
    with torch.no_grad():
        model.config.num_hidden_layers = 2
        early_BTV = model(text_BT).logits
        model.config.num_hidden_layers = 4
        assert not torch.allclose(early_BTV, model(text_BT).logits)
        cut = model.model.stack.nodes
        model.model.stack.nodes = cut[:2]
        torch.testing.assert_close(model(text_BT).logits, early_BTV)
        model.model.stack.nodes = cut


def test_labels_give_the_loss_of_the_next_token_and_training_adds_that_of_blocks(exported):
    genome = Genome(16, (Gene.of("moe", experts=4, mult=0.5, z_loss=1.0), SWIGLU))
    model, text_BT = exported("experts", genome), tokens(2, 9)
    labels_BT = text_BT.clone()
    labels_BT[:, :3] = -100
    out = model(text_BT, labels=labels_BT)
    want = F.cross_entropy(out.logits[:, :-1].flatten(0, 1), labels_BT[:, 1:].flatten())
    torch.testing.assert_close(out.loss, want)
    trained = model.train()(text_BT, labels=labels_BT)
    assert trained.loss > want + 0.1
    trained.loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    model.eval()


def test_logits_are_made_where_they_are_wanted(exported):
    model, text_BT = exported("hybrid"), tokens(2, 9)
    every = model(text_BT).logits
    torch.testing.assert_close(model(text_BT, logits_to_keep=2).logits, every[:, -2:])
    some = torch.tensor([0, 5])
    torch.testing.assert_close(model(text_BT, logits_to_keep=some).logits, every[:, some])
    loss, logits = model(text_BT, labels=text_BT, return_dict=False)[:2]
    torch.testing.assert_close(logits, every)
    assert loss.ndim == 0


def test_what_looks_ahead_gives_logits_and_does_not_generate(exported):
    genome = Genome(16, (HYDRA, SWIGLU))
    model, texts = exported("ahead", genome), [tokens(1, n, f"row {n}")[0] for n in (9, 4)]
    batch_BT, mask_BT = padded(texts)
    got_BTV = model(batch_BT, attention_mask=mask_BT).logits
    for row, text in enumerate(texts):
        want_TV = model(text[None]).logits[0]
        torch.testing.assert_close(got_BTV[row, 9 - len(text) :], want_TV, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="looks ahead"):
        model.generate(batch_BT, **GREEDY)


def test_weights_are_drawn_where_none_are_loaded(exported, place):
    genome = Genome(16, (EXPERTS, Gene.of("mamba2", d_state=8, head_dim=8)), norm="layer")
    exported("drawn", genome)
    config = transformers.AutoConfig.from_pretrained(place / "drawn", trust_remote_code=True)
    first, second, third = (fresh(config, seed) for seed in (0, 0, 1))
    for (name, one), two in zip(first.named_parameters(), second.parameters(), strict=True):
        assert torch.equal(one, two), name
        assert one.isfinite().all(), name
    assert not torch.equal(first.model.embedding.weight, third.model.embedding.weight)
    ones = {n for n, p in first.named_parameters() if p.shape == (16,) and bool((p == 1).all())}
    assert "model.final_norm.weight" in ones
    a = first.model.get_parameter("stack.branches.1.block.A_log").exp()
    assert bool(((a >= 1) & (a <= 16)).all())


def fresh(config, seed):
    """A model of random weights."""
    transformers.set_seed(seed)
    return transformers.AutoModelForCausalLM.from_config(config, trust_remote_code=True)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"attention_mask": torch.tensor([[1, 0, 1]])}, "padding inside its text"),
        ({"attention_mask": torch.ones(1, 1, 3, 3)}, "has shape"),
        ({"attention_mask": torch.tensor([[1, 1, 0]]), "use_cache": True}, "padding_side='left'"),
        ({"past_key_values": transformers.DynamicCache()}, "what it returns with use_cache=True"),
    ],
)
def test_what_would_go_wrong_is_refused(exported, asked, words):
    with pytest.raises(ValueError, match=words):
        exported("hybrid")(tokens(1, 3), **asked)


def test_caches_of_other_kinds_are_refused(exported):
    for kind in ("static", "quantized"):
        with pytest.raises(ValueError, match="cannot hold the states of this model"):
            exported("hybrid").generate(tokens(1, 3), cache_implementation=kind, **GREEDY)


def test_states_that_cannot_go_back_say_so(exported):
    model = exported("hybrid")
    cache = model(tokens(1, 5), use_cache=True).past_key_values
    assert (cache.get_seq_length(), cache.is_croppable) == (5, False)
    with pytest.raises(ValueError, match="cannot be taken back"):
        cache.crop(-1)
    cache.crop(0)
    cache.reset()
    assert cache.get_seq_length() == 0


def test_the_byte_tokenizer_has_bytes_for_ids(place, exported):
    exported("hybrid")
    tokenizer = transformers.AutoTokenizer.from_pretrained(place / "hybrid", trust_remote_code=True)
    for text in ("plain", "Grüße,\n\t日本語 🙂", "a b  c", "".join(map(chr, range(1, 256)))):
        assert tokenizer(text).input_ids == list(text.encode())
        assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert tokenizer("a\0b<|endoftext|>").input_ids == [97, 0, 98, 0]
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id, len(tokenizer)) == (0, 0, 256)
    batch = tokenizer(["ab", "c"], padding=True, return_tensors="pt")
    assert batch.attention_mask.tolist() == [[1, 1], [0, 1]]
