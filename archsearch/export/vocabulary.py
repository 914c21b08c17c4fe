"""The tokenizer of a model, as the files that transformers reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from archsearch.errors import ExportError
from archsearch.scale.tokens import BYTE, ENDS

END = ENDS[0]


def tokenizer_files(name: str, vocab: int, separator: int) -> dict[str, str]:
    """The files of a tokenizer, by name, and the special tokens that they give.

    Args:
        name: `byte`, a `tokenizer.json`, or a directory that holds one.
        vocab: Tokens of the model.
        separator: The id that stands before every document.

    Raises:
        ExportError: if it cannot be read, or has more tokens than the model.
    """
    tokens = _byte_level() if name == BYTE else _read(Path(name).expanduser())
    ids = _ids(tokens)
    if max(ids.values(), default=0) >= vocab:
        raise ExportError(
            f"the tokenizer {name} has ids up to {max(ids.values())}, the model {vocab}"
        )
    end = next((content for content, number in ids.items() if number == separator), None)
    special = {f"{part}_token": end for part in ("bos", "eos", "pad")} if end else {}
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "padding_side": "left",
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": 10**30,
        **special,
    }
    return {
        "tokenizer.json": json.dumps(tokens, ensure_ascii=False) + "\n",
        "tokenizer_config.json": json.dumps(config, indent=2) + "\n",
    }


def _read(path: Path) -> dict[str, Any]:
    file = path / "tokenizer.json" if path.is_dir() else path
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        _ids(found)
    except OSError as error:
        raise ExportError(f"the tokenizer {file} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ExportError(f"{file} is no tokenizer.json") from None
    return found


def _ids(tokens: dict[str, Any]) -> dict[str, int]:
    """The id of every token. A unigram model numbers its tokens by their place."""
    vocab = tokens["model"]["vocab"]
    known = vocab if isinstance(vocab, dict) else {t: i for i, (t, _) in enumerate(vocab)}
    return known | {token["content"]: token["id"] for token in tokens.get("added_tokens", ())}


def _byte_level() -> dict[str, Any]:
    """Each byte is its own id. Byte 0, which no text holds, is the end of a document."""
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False}
    # the alphabet of byte-level BPE: printable bytes as they are, others from U+0100 on
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in plain]
    letters = {b: chr(b) for b in plain} | {b: chr(256 + i) for i, b in enumerate(others)}
    end = {"id": 0, "content": END, "single_word": False, "lstrip": False, "rstrip": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [end | {"normalized": False, "special": True}],
        "normalizer": None,
        "pre_tokenizer": level | {"use_regex": False},
        "post_processor": None,
        "decoder": level | {"use_regex": False},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": END,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {END: 0} | {letters[b]: b for b in range(1, 256)},
            "merges": [],
        },
    }
