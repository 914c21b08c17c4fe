import random
import xml.etree.ElementTree as ET
from itertools import pairwise

import pytest

from archsearch.drawing import draw_svg
from archsearch.genome import Gene, Genome, runs

SVG = "{http://www.w3.org/2000/svg}"


def draw(genes):
    return ET.fromstring(draw_svg(Genome(64, genes)))


def texts(root):
    return [node.text for node in root.iter(f"{SVG}text")]


@pytest.mark.parametrize("seed", range(20))
def test_every_motif_is_drawn_once_with_its_count_and_inside_the_picture(seed):
    rng = random.Random(seed)
    kinds = [
        Gene.of("attention"),
        Gene.of("mamba2"),
        Gene.of("swiglu"),
        Gene.of("attention", window=8),
    ]
    genes = tuple(rng.choice(kinds) for _ in range(rng.randint(1, 9)))
    root = draw(genes)
    boxes = sum(len(motif) for _, motif in runs(genes)) + 2
    rects = [r for r in root.iter(f"{SVG}rect") if r.get("rx")]
    assert len(rects) == boxes
    counts = sorted(f"x{n}" for n, _ in runs(genes) if n > 1)
    assert sorted(t for t in texts(root) if t.startswith("x")) == counts
    assert max(float(r.get("y")) + float(r.get("height")) for r in rects) <= float(
        root.get("height")
    )


def test_no_two_boxes_overlap():
    root = draw((Gene.of("mamba2"), Gene.of("swiglu")) * 3 + (Gene.of("attention"),))
    tops = sorted(float(r.get("y")) for r in root.iter(f"{SVG}rect") if r.get("rx"))
    assert all(b - a >= 40 for a, b in pairwise(tops))


def test_shared_weights_carry_their_letter():
    shared = Gene.of("shared_attention", "any name")
    root = draw((shared, Gene.of("mamba2"), shared, Gene.of("swiglu")))
    assert texts(root).count("shared attention *A") == 2


def test_text_is_at_least_13_pixels():
    root = draw((Gene.of("attention", heads=2), Gene.of("swiglu")))
    assert min(int(node.get("font-size")) for node in root.iter(f"{SVG}text")) >= 13
