"""Every block that a space may name, held to every law."""

import pytest

from archsearch.block import block_class
from archsearch.catalogue import block_names
from archsearch.testing.blocks import BLOCK_LAWS, CASE_LAWS, cases

BLOCKS = [block_class(name) for name in block_names()]


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.info.name)
@pytest.mark.parametrize("law", BLOCK_LAWS, ids=lambda law: law.__name__)
def test_block(law, block):
    law(block)


@pytest.mark.parametrize("case", [c for block in BLOCKS for c in cases(block)], ids=str)
@pytest.mark.parametrize("law", CASE_LAWS, ids=lambda law: law.__name__)
def test_case(law, case):
    law(case)


@pytest.mark.slow
@pytest.mark.parametrize("case", [c for b in BLOCKS for c in cases(b, drawn=60)[-60:]], ids=str)
@pytest.mark.parametrize("law", CASE_LAWS, ids=lambda law: law.__name__)
def test_many_more_cases(law, case):
    law(case)
