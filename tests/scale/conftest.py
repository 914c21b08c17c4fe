"""Texts and tokenizers for the tests of this directory."""

from __future__ import annotations

import pytest

from archsearch.scale.corpus import Corpus
from tests.scale.helpers import PROSE


@pytest.fixture
def opened(tmp_path):
    """Open sources in a cache of the test's own."""
    return lambda *sources, tokenizer="byte": Corpus.open(
        [str(source) for source in sources], str(tokenizer), tmp_path / "cache"
    )


@pytest.fixture
def prose(tmp_path):
    file = tmp_path / "prose.txt"
    file.write_text(PROSE)
    return file


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A byte-level BPE of 400 ids with a special token, as a tokenizer.json."""
    pytest.importorskip("tokenizers")
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|endoftext|>"],
        show_progress=False,
    )
    made.train_from_iterator([PROSE], trainer)
    made.enable_truncation(8)  # as a file that was saved for training with short rows has it
    file = tmp_path_factory.mktemp("bpe") / "tokenizer.json"
    made.save(str(file))
    return file
