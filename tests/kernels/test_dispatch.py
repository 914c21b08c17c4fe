"""Which backend an op takes, and what is said about it; no GPU is needed to choose for one."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from archsearch.errors import ModelError
from archsearch.export.bundle import Bundle
from archsearch.kernels import backends, dispatch
from archsearch.kernels.backends import OPS, Backend, Problem
from archsearch.kernels.dispatch import choose, op, parse, recorded, require, using
from archsearch.kernels.ssd import ssd, ssd_ref
from tests.helpers import archsearch


def problem(name, device="cuda", arch="sm_90", dtype=torch.bfloat16, **sizes):
    return Problem(device, arch if device == "cuda" else "", dtype, {**OPS[name].example, **sizes})


@pytest.fixture
def installed(monkeypatch):
    """Let packages of these versions be installed, whose functions are `torch.add`."""

    def install(**versions):
        monkeypatch.setattr(backends, "find_spec", lambda name: name in versions or None)
        for module in (backends, dispatch):
            monkeypatch.setattr(module, "version", lambda name: versions.get(name, ""))
        monkeypatch.setattr(dispatch, "_load", lambda place: torch.add)

    return install


def inputs(time=5):
    generator = torch.Generator().manual_seed(0)
    x_BTHP = torch.randn(2, time, 4, 3, generator=generator)
    dt_BTH, a_BTH = torch.rand(2, 2, time, 4, generator=generator)
    B_BTGN, C_BTGN = torch.randn(2, 2, time, 1, 6, generator=generator)
    return x_BTHP, dt_BTH, a_BTH, B_BTGN, C_BTGN, torch.randn(4, generator=generator)


@pytest.mark.parametrize("name", OPS)
def test_on_a_cpu_every_op_is_plain_torch_whatever_is_installed(name, installed):
    installed(triton="3.7.1", fla="0.6.0", mamba_ssm="2.3.2")
    found = choose(name, problem(name, "cpu"))
    assert (found.backend, found.why, found.function) == ("torch", "on cpu", None)


@pytest.mark.parametrize("name", OPS)
def test_with_nothing_installed_a_gpu_runs_torch_and_every_refusal_says_what_to_install(
    name, installed
):
    installed()
    found = choose(name, problem(name))
    assert found.backend == "torch"
    assert found.refused
    for said in found.refused.values():
        assert "is not installed: " in said


def test_a_library_is_taken_where_it_computes_the_same_in_the_same_precision(installed):
    installed(triton="3.7.1", fla="0.6.0")
    assert choose("ssd", problem("ssd")).backend == "fla"
    signed = choose("ssd", problem("ssd", positive=False))
    assert signed.backend == "torch"
    assert "may be negative" in signed.refused["fla"]
    exact = choose("ssd", problem("ssd", dtype=torch.float32))
    assert exact.backend == "torch"
    assert "TF32" in exact.refused["fla"]
    assert "not that of the paper" in choose("ttt_linear", problem("ttt_linear")).refused["fla"]


@pytest.mark.parametrize(
    ("dtype", "width", "said"),
    [
        (torch.float32, 64, ""),
        (torch.float32, 65, "weights of 65 x 65 do not fit into registers"),
        (torch.bfloat16, 64, "float32 alone"),
        (torch.float64, 64, "float32 alone"),
    ],
)
def test_ttt_in_triton_is_refused_where_it_does_not_fit(dtype, width, said, installed):
    installed(triton="3.7.1")
    asked = problem("ttt_linear", dtype=dtype, k=width)
    if not said:
        assert choose("ttt_linear", asked, "triton").backend == "triton"
    else:
        with pytest.raises(ModelError, match=said):
            choose("ttt_linear", asked, "triton")


def test_where_the_first_library_is_missing_the_next_is_taken(installed):
    installed(triton="3.7.1", mamba_ssm="2.3.2")
    found = choose("ssd", problem("ssd"))
    assert found.backend == "mamba_ssm"
    assert "fla-core is not installed" in found.refused["fla"]


@pytest.mark.parametrize("kind", [ImportError, ValueError])
def test_a_library_that_cannot_be_imported_is_passed_over(kind, installed, monkeypatch):
    installed(triton="3.7.1", mamba_ssm="2.3.2")

    def fails(place):
        raise kind("no selective_scan_cuda")

    monkeypatch.setattr(dispatch, "_load", fails)
    found = choose("ssd", problem("ssd"))
    assert found.backend == "torch"
    assert "no selective_scan_cuda" in found.refused["mamba_ssm"]


@pytest.mark.parametrize(
    ("triton", "arch", "taken"),
    [
        ("3.3.1", "sm_90", "fla"),
        ("3.4.0", "sm_90", "torch"),
        ("3.7.0", "sm_90", "torch"),
        ("3.7.1", "sm_90", "fla"),
        ("3.7.0", "sm_80", "fla"),
    ],
)
def test_what_is_known_to_be_wrong_is_not_taken(triton, arch, taken, installed):
    installed(triton=triton, fla="0.6.0")
    there = replace(problem("gated_deltanet"), arch=arch)
    assert choose("gated_deltanet", there).backend == taken
    if taken == "torch":
        with pytest.raises(ModelError, match="wrong gradients on Hopper"):
            choose("gated_deltanet", there, "fla")


def test_our_own_kernels_are_taken_unasked_only_where_they_were_proven(installed, monkeypatch):
    installed(triton="3.7.1")
    found = choose("peer", problem("peer"))
    assert found.backend == "torch"
    assert "not yet compared with torch on sm_90 with Triton 3.7.1" in found.refused["triton"]
    assert choose("peer", problem("peer"), "triton").backend == "triton"
    monkeypatch.setattr(dispatch, "proven", lambda: {("peer", "3.7.1", "sm_90")})
    assert choose("peer", problem("peer")).backend == "triton"
    assert choose("peer", replace(problem("peer"), arch="sm_100")).backend == "torch"


def test_what_was_proven_of_another_source_does_not_count(tmp_path, monkeypatch):
    file = tmp_path / "proven.json"
    marks = [("peer", dispatch.source_hash("peer")), ("mod", "of another day"), ("gone", "")]
    known = [{"op": op, "triton": "3.7.1", "arch": "sm_90", "source": s} for op, s in marks]
    file.write_text(json.dumps(known))
    monkeypatch.setattr(dispatch, "PROVEN", file)
    assert dispatch.proven.__wrapped__() == {("peer", "3.7.1", "sm_90")}
    assert len({dispatch.source_hash(op) for op in ("peer", "mod", "product_keys")}) == 3


@pytest.mark.parametrize("name", OPS)
def test_the_reference_is_never_taken_unasked(name, installed):
    installed(triton="3.7.1", fla="0.6.0", mamba_ssm="2.3.2")
    for device, arch in (("cpu", ""), ("cuda", "sm_80"), ("cuda", "")):
        assert choose(name, problem(name, device, arch)).backend != "reference"


def test_a_wish_that_cannot_be_met_says_why_and_what_to_install(installed):
    installed()
    with pytest.raises(ModelError, match=r"ssd: .*'fla'.*on cpu.*pip install 'archsearch\[cuda\]'"):
        choose("ssd", problem("ssd", "cpu"), "fla")


@pytest.mark.parametrize(
    ("said", "part"),
    [
        ("sdd:torch", "unknown op 'sdd'; did you mean 'ssd'?"),
        ("ssd:tritn", "unknown backend 'tritn' of ssd"),
        ("ssd", "'ssd' is not OP:BACKEND, e.g. ssd:torch"),
    ],
)
def test_what_is_no_wish_is_refused(said, part):
    with pytest.raises(ModelError) as error:
        parse(said)
    assert part in str(error.value)


def test_wishes_are_read_from_the_environment():
    script = "from archsearch.kernels.dispatch import wanted; print(wanted('ssd'), wanted('peer'))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True,
        env={**os.environ, "ARCHSEARCH_BACKEND": "ssd:reference, "},
    )  # fmt: skip
    assert done.stdout.split() == ["reference", "auto"]


def test_a_wish_lasts_as_long_as_it_is_said_to_and_is_recorded():
    given = inputs()
    with recorded() as seen, using("ssd:reference"):
        assert torch.equal(ssd(*given), ssd_ref(*given))
    assert seen == {"ssd": "reference"}
    with recorded() as seen:
        y_BTHP = ssd(*given)
        with using("ssd:reference"):
            ssd(*given)
    assert seen == {"ssd": "reference+torch"}
    with recorded() as seen:
        torch.testing.assert_close(y_BTHP, ssd(*given), rtol=0, atol=0)
    assert seen == {"ssd": "torch"}
    assert recorded().__enter__() == {}


def test_what_is_compiled_has_no_break_where_a_backend_is_chosen():
    given = inputs()
    run = torch.compile(lambda *xs: ssd(*xs) * 2, backend="eager", fullgraph=True)
    with using("ssd:reference"):
        torch.testing.assert_close(run(*given), ssd_ref(*given) * 2)


def test_a_choice_is_made_once_for_each_shape_and_not_for_each_batch_or_length(monkeypatch):
    asked = []

    def supports(problem):
        asked.append(problem.sizes)
        return ""

    backend = Backend("other", "torch:neg", lambda problem: "", supports)
    monkeypatch.setitem(OPS, "toy", backends.Op("", {}, (backend,)))

    @op("toy")
    def double(x_BD, times=2):
        return x_BD * times

    with using("toy:other"):
        for shape in ((1, 4), (9, 4), (1, 4)):
            assert torch.equal(double(torch.ones(shape)), -torch.ones(shape))
    assert [dict(sizes) for sizes in asked] == [{"x_BD": 4, "times": 2}]
    assert torch.equal(double(torch.ones(1, 4)), 2 * torch.ones(1, 4))


@pytest.mark.parametrize("order", [("high", "highest"), ("highest", "high")])
def test_a_choice_holds_for_the_precision_that_it_was_made_for(order, monkeypatch):
    def supports(problem):
        return "it rounds" if torch.get_float32_matmul_precision() == "highest" else ""

    backend = Backend("other", "torch:neg", lambda problem: "", supports)
    monkeypatch.setitem(OPS, "toy", backends.Op("", {}, (backend,)))

    @op("toy")
    def double(x_D):
        return 2 * x_D

    one_D, before = torch.ones(3), torch.get_float32_matmul_precision()
    try:
        for precision in order:
            torch.set_float32_matmul_precision(precision)
            with using("toy:other"):
                if precision == "high":
                    assert torch.equal(double(one_D), -one_D)
                else:
                    with pytest.raises(ModelError, match="it rounds"):
                        double(one_D)
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize(
    ("name", "packages"), [("gla", {"fla": "0.6.0"}), ("ssd", {"mamba_ssm": "2.3.2"})]
)
def test_libraries_are_not_interpreted(name, packages, installed, monkeypatch):
    installed(triton="3.7.1", **packages)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(ModelError, match="it needs an NVIDIA GPU"):
        choose(name, problem(name, "cpu"), next(iter(packages)))
    assert choose("peer", problem("peer", "cpu"), "triton").backend == "triton"


def test_an_exported_kernel_knows_no_backends():
    bundle = Bundle({}, {})
    bundle.need("archsearch.kernels.ssd", "ssd")
    text = bundle.render(bundle.names())
    assert "def ssd(" in text
    assert "@op" not in text
    assert not any("dispatch" in place.module for place in bundle.imports.values())
    assert "archsearch.kernels.dispatch" not in bundle.modules


def test_a_wish_that_a_device_cannot_meet_is_refused_before_anything_is_trained(tmp_path):
    with using("ssd:torch,peer:torch"):
        require(torch.device("cpu"))
    with using("peer:triton"), pytest.raises(ModelError, match="peer: the backend 'triton'"):
        require(torch.device("cpu"))
    done = archsearch("run", "quickstart", cwd=tmp_path, ARCHSEARCH_BACKEND="mod:triton")
    assert done.returncode != 0
    assert "mod: the backend 'triton' cannot be used on cpu" in done.stderr
    assert [*tmp_path.iterdir()] == []
