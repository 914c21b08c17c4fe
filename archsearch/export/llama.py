"""Run by path in a process of its own: what llama.cpp says of what comes after some tokens.

    python llama.py < QUESTIONS

A line of QUESTIONS is `[FILE, PROMPTS, VOCAB]` in JSON: a GGUF file, texts or lists of ids, and how
many tokens there are. Its answer is a line of JSON after `MARK`: for each prompt how many of its
tokens were read, those that the last one did not have, and the log-probability of every token that
may come next. An assertion of llama.cpp ends the process.
"""

import json
import sys
from typing import Any

MARK = "SAID "
LETTER = "a"
"""What is to come next: llama.cpp hides all probabilities before an end and a part of a letter."""


def server(file: str) -> Any:
    """llama.cpp with a model, in float32 throughout."""
    import xllamacpp as llama

    params = llama.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel = file, 256, 1
    params.cpuparams.n_threads, params.verbosity, params.warmup = 1, 0, False
    params.cache_type_k = params.cache_type_v = llama.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = llama.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    return llama.Server(params)


def answer(asked: Any, prompt: str | list[int], vocab: int) -> dict[str, Any]:
    """What comes after one prompt."""
    said = asked.handle_completions({
        "prompt": prompt, "n_probs": vocab, "max_tokens": 1, "temperature": 0,
        "logit_bias": [[LETTER, 1e3]],
    })  # fmt: skip
    (token,) = said["choices"][0]["logprobs"]["content"]
    likely = {best["id"]: best["logprob"] for best in token["top_logprobs"]}
    return {"read": said["timings"]["prompt_n"], "next": [likely[i] for i in range(vocab)]}


if __name__ == "__main__":
    for line in sys.stdin:
        file, prompts, vocab = json.loads(line)
        asked = server(file)
        answers = [answer(asked, prompt, vocab) for prompt in prompts]
        print(MARK + json.dumps(answers), flush=True)  # noqa: T201
        del asked
