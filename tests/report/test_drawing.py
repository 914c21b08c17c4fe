import random
import xml.etree.ElementTree as ET
from itertools import combinations, pairwise

import pytest

from archsearch.catalogue import found
from archsearch.drawing import OTHER, colour, draw_svg
from archsearch.genome import Gene, Genome
from archsearch.space_yaml import parse

SVG = "{http://www.w3.org/2000/svg}"


def draw(genes):
    return ET.fromstring(draw_svg(Genome(64, genes)))


def texts(root):
    return [node.text for node in root.iter(f"{SVG}text")]


SPACE = """
version: 1
name: t
define:
  g: {shared: true, shared_attention: {heads: 4}}
model:
  d_model: 32
  stack:
    - stage: stem
      repeat: [0, 1, 2]
      pattern:
        - mixer: [attention, none, {mamba2: {head_dim: 8, d_state: 8}}]
    - stage: body
      repeat: [2, 3, 4]
      choose: per_repeat
      pattern:
        - layer:
            - mod: {capacity: 0.25, of: [mixer: [attention, none], ffn: swiglu]}
            - loop: {times: 2, of: [mixer: attention]}
            - attention
          inputs: [prev, stage:stem, embedding]
          combine: [add, concat, gate]
        - global: [use: g, none]
        - side:
            parallel:
              of: [mixer: [attention, none], other: {mamba2: {head_dim: 8}}, ffn: swiglu]
"""


def genomes(count):
    space, rng = parse(SPACE).space, random.Random(0)
    return [space.replay(space.sample(rng)) for _ in range(count)]


def rects(root):
    """Left, top, right, bottom of every box, and whether it is a frame."""
    for r in root.iter(f"{SVG}rect"):
        if r.get("rx"):
            x, y, w, h = (float(r.get(k)) for k in ("x", "y", "width", "height"))
            yield x, y, x + w, y + h, r.get("class")


def contains(frame, box):
    return (
        frame[4] == "frame" and frame[0] < box[0] and frame[1] < box[1]
        and box[2] < frame[2] and box[3] < frame[3]
    )  # fmt: skip


@pytest.mark.parametrize("genome", genomes(25), ids=lambda genome: genome.key)
def test_boxes_overlap_only_in_frames_and_all_is_inside_the_picture(genome):
    root = ET.fromstring(draw_svg(genome))
    boxes = list(rects(root))
    for a, b in combinations(boxes, 2):
        apart = a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
        assert apart or contains(a, b) or contains(b, a)
    width, height = float(root.get("width")), float(root.get("height"))
    assert all(min(x, y) > 0 and r < width and b < height for x, y, r, b, _ in boxes)


@pytest.mark.parametrize("genome", genomes(25), ids=lambda genome: genome.key)
def test_every_stream_that_is_read_has_an_edge_that_ends_at_its_readers(genome):
    root = ET.fromstring(draw_svg(genome))
    edges = [p.get("d") for p in root.iter(f"{SVG}path") if p.get("class") == "edge"]
    assert len(edges) == len({n for gene in genome.genes for n in gene.inputs})
    lefts = {(x, (y + b) / 2) for x, y, _, b, kind in rects(root) if kind == "tag"}
    boxes = [box for box in rects(root) if box[4] != "tag"]
    for end in (path for edge in edges for path in edge.split("M")[1:]):
        x, y = float(end.split("H")[-1]) + 5, float(end.split()[-2].split(",")[1])
        assert (x, y) in lefts or any(x == box[0] and box[1] < y < box[3] for box in boxes)


def test_every_block_of_this_package_has_a_colour_and_others_a_neutral_one():
    shipped = {n for n, p in found("blocks").items() if p.value.startswith("archsearch.")}
    assert OTHER not in {colour(name) for name in shipped | {"hydra", "block_recurrent"}}
    assert colour("nobody's") == OTHER


@pytest.mark.parametrize("seed", range(20))
def test_all_that_repeats_is_drawn_once(seed):
    rng = random.Random(seed)
    kinds = [Gene.of("attention"), Gene.of("mamba2"), Gene.of("swiglu")]
    motif = tuple(rng.choice(kinds) for _ in range(rng.randint(1, 4)))
    root = draw(motif * 3)
    boxes = [r for r in rects(root) if r[4] == "box"]
    assert len(boxes) <= len(motif) + 2
    assert any(t.startswith("x") for t in texts(root))


def test_no_two_boxes_overlap():
    root = draw((Gene.of("mamba2"), Gene.of("swiglu")) * 3 + (Gene.of("attention"),))
    tops = sorted(float(r.get("y")) for r in root.iter(f"{SVG}rect") if r.get("rx"))
    assert all(b - a >= 34 for a, b in pairwise(tops))


def test_shared_weights_carry_their_letter():
    shared = Gene.of("shared_attention", "any name")
    root = draw((shared, Gene.of("mamba2"), shared, Gene.of("swiglu")))
    assert texts(root).count("shared attention *A") == 2


def test_text_is_at_least_13_pixels():
    root = draw((Gene.of("attention", heads=2), Gene.of("swiglu")))
    assert min(int(node.get("font-size")) for node in root.iter(f"{SVG}text")) >= 13
