"""The JSON Schema against the validator that has the last word."""

import json
import random
import string

import jsonschema
import pytest
import yaml
from hypothesis import HealthCheck, given, settings

from archsearch.catalogue import block_info, block_names, found
from archsearch.errors import SpaceError
from archsearch.library import shipped
from archsearch.schema import json_schema
from archsearch.space_yaml import dump, parse
from archsearch.yaml_source import read

from .strategies import genomes, rewritings, spaces
from .test_damaged_files import damaged
from .test_space_yaml import BASES, ZAMBA

SCHEMA = json_schema()
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
some = settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))


def accepted_by_python(text):
    try:
        parse(text)
    except SpaceError:
        return False
    return True


def accepted_by_schema(text):
    return VALIDATOR.is_valid(read(text, "f").data)


def why(text):
    return [error.message[:200] for error in VALIDATOR.iter_errors(read(text, "f").data)]


def test_the_schema_is_a_schema():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert json.loads(json.dumps(SCHEMA)) == SCHEMA


@pytest.mark.parametrize("name", sorted(shipped()))
def test_shipped_spaces_are_accepted_by_both(name):
    text = shipped()[name].read_text(encoding="utf-8")
    assert accepted_by_python(text)
    assert why(text) == []


@some
@given(genomes())
def test_genome_files_are_accepted_by_both(genome):
    assert why(dump(genome)) == []


@some
@given(genomes().flatmap(rewritings))
def test_other_words_for_a_genome_are_accepted_by_both(data):
    text = yaml.safe_dump(data)
    assert accepted_by_python(text)
    assert why(text) == []


@some
@given(spaces())
def test_random_spaces_are_accepted_by_both(experiment):
    assert why(experiment.text) == []


SLOT = "model: {stack: [{pattern: [%s]}]}\n"
OK = SLOT % "{mixer: swiglu}"
SPELLINGS = [
    OK + "recipe: {steps: 600K, lr: 1e-4, warmup: 3%, solved: 1/3, batch: 1e2, betas: [90%, 0.5]}",
    OK + "match: {params: 1M, tolerance: 3%}",
    OK + "match: {flops: 2.5G}",
    OK + "search: {time: 24h, trials: 1K, seed: 0}",
    OK + "search: {time: null, start_from: []}",
    OK + "require: [layers < 3, {when: layers < 3, then: params < 3K}]",
    OK + "objectives: [{maximize: score}, {minimize: flops(4096)}]",
    OK + "objectives: []\nnotes: ''\nversion: 1\nname: a.b-c_1",
    OK + "tasks: {use: [mad/*, {mad/selective-copying: {seq_len: 1K, copy: 4}}]}",
    OK + "tasks: {use: [mad/compression: null]}",
    OK + "tasks: {use: ['mad/c*': {vocab: 9}]}",
    "model: {d_model: [1K, 2K], norm: [rms, layer], stack: [{pattern: [{m: none}]}]}",
    "model: {d_model: {from: 64, to: 1K, powers_of: 2}, stack: [{pattern: [{m: none}]}]}",
    "model: {d_model: 64.0, tie_embeddings: [true, false], stack: [{pattern: [{m: none}]}]}",
    SLOT % "{mixer: {attention: {window: [none, 128], kv_heads: none, heads: '4'}}}",
    SLOT % "{mixer: {attention: {window: null}}}",
    SLOT % "{mixer: {attention: {theta: {from: 100, to: 1M, log: true}}}}",
    SLOT % "{mixer: {attention: null}}, {ffn: {none: {}}}, {ffn: {none: null}}",
    SLOT % "{mixer: [none, {mamba2: {d_state: {from: 16, to: 64, step: 16}}}], repeat: [1, 2]}",
    SLOT % "{slot: s, one_of: [swiglu, none], repeat: {from: 0, to: 2}, prior: {none: 3}}",
    SLOT % "{mixer: swiglu, prior: null, repeat: 2.0}",
    "define: {a: {shared: true, swiglu: {mult: 2}}, b: [swiglu, none], c: {one_of: [attention]}, "
    "d: {shared: true, one_of: swiglu}, e: {use: b}, f: swiglu}\n" + OK,
]  # fmt: skip


@pytest.mark.parametrize("text", SPELLINGS, ids=map(str, range(len(SPELLINGS))))
def test_what_may_be_written_is_accepted_by_both(text):
    assert accepted_by_python(text)
    assert why(text) == []


BROKEN = [
    "{}", "[]", "3", "model: {}", "model: {stack: []}", "model: {stack: [{pattern: []}]}",
    "model: {stack: [{repeat: 2}]}", OK + "nam: x", OK + "name: 5", OK + "name: my space",
    OK + "version: 2", OK + "notes: [a]", OK + "define: []", OK + "define: {1a: swiglu}",
    OK + "recipe: {step: 3}", OK + "recipe: {steps: 0}", OK + "recipe: {steps: 1.5}",
    OK + "recipe: {lr: 11}", OK + "recipe: {lr: fast}", OK + "recipe: {lr: [1e-3, 1e-2]}",
    OK + "recipe: {betas: [0.9]}", OK + "recipe: {betas: [0.9, 1]}", OK + "recipe: 3",
    OK + "recipe: {schedule: linear}", OK + "recipe: {steps: 600k}", OK + "recipe: {steps: true}",
    OK + "search: {strategy: magic}", OK + "search: {time: 3}", OK + "search: {time: 3 weeks}",
    OK + "search: {start_from: quickstart}", OK + "search: {prune: [none]}",
    OK + "match: {}", OK + "match: {params: 1M, flops: 3}", OK + "match: {params: 1, tolerance: 2}",
    OK + "match: {params: 1M, solve: heads}", OK + "match: {params: [1M]}",
    OK + "require: layers < 3", OK + "require: [{when: layers < 3}]", OK + "require: [3]",
    OK + "require: [{when: layers < 3, then: layers > 1, else: x}]",
    OK + "objectives: [{}]", OK + "objectives: [score]", OK + "objectives: [{best: score}]",
    OK + "objectives: [{maximize: score, minimize: params}]", OK + "objectives: [{maximize: 3}]",
    OK + "tasks: {use: []}", OK + "tasks: {use: [mad/nothing]}", OK + "tasks: {use: mad/*}",
    OK + "tasks: {use: [mad/compression: {vocabulary: 3}]}", OK + "tasks: [mad/*]",
    OK + "tasks: {use: [mad/compression: {vocab: many}]}", OK + "tasks: {use: [3]}",
    OK + "tasks: {use: [{mad/compression: {}, mad/memorization: {}}]}",
    "model: {d_model: 7, stack: [{pattern: [{m: none}]}]}",
    "model: {d_model: [], stack: [{pattern: [{m: none}]}]}",
    "model: {d_model: [64, 64], stack: [{pattern: [{m: none}]}]}",
    "model: {d_model: [[64]], stack: [{pattern: [{m: none}]}]}",
    "model: {d_model: {from: 64}, stack: [{pattern: [{m: none}]}]}",
    "model: {d_model: {from: 64, to: 128, by: 2}, stack: [{pattern: [{m: none}]}]}",
    "model: {d_model: {from: a, to: 128}, stack: [{pattern: [{m: none}]}]}",
    "model: {norm: batch, stack: [{pattern: [{m: none}]}]}",
    "model: {tie_embeddings: yes, stack: [{pattern: [{m: none}]}]}",
    "model: {width: 64, stack: [{pattern: [{m: none}]}]}",
    "model: {stack: [{pattern: [{m: none}], repeat: 65}]}",
    "model: {stack: [{pattern: [{m: none}], repeat: -1}]}",
    "model: {stack: [{pattern: [{m: none}], choose: always}]}",
    "model: {stack: [{pattern: [{m: none}], stage: a.b}]}",
    "model: {stack: [{pattern: [{m: none}], stage: 3}]}",
    SLOT % "swiglu", SLOT % "{}", SLOT % "{repeat: 2}", SLOT % "{a: swiglu, b: swiglu}",
    SLOT % "{slot: a}", SLOT % "{slot: a, one_off: swiglu}", SLOT % "{slot: [a], one_of: none}",
    SLOT % "{one_of: swiglu, b: none}", SLOT % "{1a: swiglu}", SLOT % "{m: mamba3}",
    SLOT % "{m: []}", SLOT % "{m: null}", SLOT % "{m: [swiglu, swiglu]}", SLOT % "{m: [[swiglu]]}",
    SLOT % "{m: {swiglu: {mul: 2}}}", SLOT % "{m: {swiglu: {mult: 17}}}", SLOT % "{m: use}",
    SLOT % "{m: {swiglu: {mult: []}}}", SLOT % "{m: {swiglu: {act: relu}}}",
    SLOT % "{m: {swiglu: {mult: none}}}", SLOT % "{m: {attention: {qk_norm: 1}}}",
    SLOT % "{m: {swiglu: 3}}", SLOT % "{m: {swiglu: {}, none: {}}}", SLOT % "{m: {none: {a: 1}}}",
    SLOT % "{m: {use: 3}}", SLOT % "{m: none, prior: {none: 0}}", SLOT % "{m: none, prior: 3}",
    SLOT % "{m: swiglu, prior: {swiglu: many}}", SLOT % "{m: swiglu, repeat: [0, 1, 1]}",
    SLOT % "{m: {attention: {pos: {from: 1, to: 2}}}}",
    "define: {a: {shared: 1, swiglu: {}}}\n" + OK, "define: {a: {shared: true}}\n" + OK,
    "define: {a: {}}\n" + OK, "define: {a: {swiglu: {}, attention: {}}}\n" + OK,
    "define: {a: {one_of: []}}\n" + OK, "define: {a: 3}\n" + OK,
]  # fmt: skip


@pytest.mark.parametrize("text", BROKEN, ids=map(str, range(len(BROKEN))))
def test_what_is_broken_in_structure_is_refused_by_both(text):
    assert not accepted_by_python(text)
    assert not accepted_by_schema(text)


@pytest.mark.parametrize("base", sorted(BASES))
def test_an_editor_never_complains_of_a_file_that_is_right(base):
    rng, right = random.Random(f"schema {base}"), 0
    for _ in range(150):
        text = damaged(BASES[base], rng)
        if accepted_by_python(text):
            right += 1
            assert why(text) == [], text
    assert right > 1


def test_most_damage_to_structure_is_seen_in_the_editor_too():
    rng, seen = random.Random(0), []
    for _ in range(200):
        lines = ZAMBA.split("\n")
        i = rng.choice([i for i, line in enumerate(lines) if ": " in line and "#" not in line])
        at = lines[i].index(":")
        lines[i] = lines[i][: at - 1] + rng.choice(string.ascii_uppercase) + lines[i][at:]
        text = "\n".join(lines)
        if not accepted_by_python(text):
            seen.append(not accepted_by_schema(text))
    assert sum(seen) / len(seen) > 0.9


def test_every_block_parameter_and_task_is_described():
    shapes = SCHEMA["$defs"]
    forms = {
        name: body
        for form in shapes["block"]["anyOf"]
        for name, body in form.get("properties", {}).items()
    }
    for name in block_names():
        info = block_info(name)
        assert forms[name]["description"] == f"{info.summary}. arXiv {info.paper}."
        assert set(forms[name]["properties"]) == set(info.dims) | ({"of"} if info.wraps else set())
        assert all(p["description"] for p in forms[name]["properties"].values())
    tasks = shapes["TasksSection"]["properties"]["use"]["items"]["anyOf"]
    assert set(found("tasks")) <= set(tasks[0]["enum"])
    assert set(tasks[-1]["properties"]) == set(found("tasks"))
