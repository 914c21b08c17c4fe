"""What `archsearch doctor` says, with little and with much installed."""

import json
import os
import subprocess
import sys

import pytest
import torch
from rich.console import Console

from archsearch.cli import SPINS
from archsearch.kernels import backends, dispatch
from archsearch.kernels.backends import OPS
from archsearch.report import doctor


def run(*args, unset=(), **environment):
    inherited = {name: value for name, value in os.environ.items() if name not in unset}
    return subprocess.run(
        [sys.executable, "-m", "archsearch", "doctor", *args],
        capture_output=True, text=True, check=False,
        env={**inherited, "COLUMNS": "80", **environment},
    )  # fmt: skip


def shown(capsys):
    Console(width=80).print(doctor.page(doctor.examine()))
    page = capsys.readouterr().out
    assert all(len(line) <= 80 for line in page.splitlines())
    return " ".join(page.split())


@pytest.fixture
def gpu(monkeypatch):
    """A machine with an H100, as far as the doctor looks, and these versions of packages."""

    def have(**versions):
        class About:
            name, total_memory = "NVIDIA H100", 80 << 30

        cuda = torch.device("cuda:0")
        monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **named: cuda)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: About)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
        names = {"fla": "fla-core", "mamba_ssm": "mamba-ssm", "triton": "triton"}
        monkeypatch.setattr(backends, "find_spec", lambda name: names[name] in versions or None)
        monkeypatch.setattr(dispatch, "_load", lambda place: torch.add)
        for module in (backends, dispatch, doctor):
            monkeypatch.setattr(module, "version", lambda name: versions.get(name, ""))

    return have


def test_on_a_cpu_it_says_that_nothing_is_faster_there_and_what_a_gpu_needs():
    done = run()
    assert done.returncode == 0, done.stderr
    assert all(len(line) <= 80 for line in done.stdout.splitlines())
    assert "archsearch[cuda]" in done.stdout
    for name in OPS:
        begins = [name, "torch", "-" if OPS[name].exact else "torch"]
        assert any(line.split()[:3] == begins for line in done.stdout.splitlines())


def test_as_json_it_says_the_same():
    told = json.loads(run("--json").stdout)
    assert set(told["chosen"]) == set(OPS)
    assert told["chosen"]["ssd"]["float32"] == {"backend": "torch", "why": "on cpu", "refused": {}}
    assert set(told["chosen"]["ttt_linear"]) == {"float32"}
    assert told["versions"]["torch"] == torch.__version__


def test_a_wish_that_cannot_be_met_is_shown_and_no_crash():
    done = run(ARCHSEARCH_BACKEND="ttt_linear:fla")
    assert done.returncode == 0, done.stderr
    assert "ttt_linear none -" in " ".join(done.stdout.split())
    assert done.stdout.count("fla (ttt_linear)") == 1
    done = run(ARCHSEARCH_BACKEND="ttt_liner:fla")
    assert (done.returncode, "did you mean 'ttt_linear'?" in done.stderr) == (6, True), done.stderr


def test_on_a_gpu_with_nothing_installed_it_says_what_to_install(gpu, capsys):
    gpu()
    page = shown(capsys)
    assert "NVIDIA H100, sm_90, 80 GiB" in page
    assert "fla (ssd, gla, gated_deltanet, rwkv7, ttt_linear): fla-core is not installed" in page
    assert "triton (our own kernels and those of fla-core): pip install 'archsearch[cuda]'" in page


def test_on_a_gpu_with_libraries_it_says_what_they_do_not_do(gpu, capsys):
    gpu(**{"triton": "3.7.1", "fla-core": "0.6.0"})
    page = shown(capsys)
    assert "ssd torch fla" in page
    assert "it rounds fp32 to TF32" in page
    assert "not yet compared with torch on sm_90 with Triton 3.7.1" in page


@pytest.mark.parametrize(
    ("said", "spins"),
    [({}, str(SPINS)), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "PASSIVE"}, "0")],
    ids=["by default", "asked for", "another policy"],
)
def test_idle_threads_sleep_soon_unless_the_user_says_otherwise(said, spins):
    """As GNU OpenMP tells it when torch is imported."""
    asked = {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} - {*said}
    done = run(OMP_DISPLAY_ENV="VERBOSE", **said, unset=asked)
    if "GOMP_SPINCOUNT" not in done.stderr:
        pytest.skip("this torch has another OpenMP")
    assert f"GOMP_SPINCOUNT = '{spins}'" in done.stderr
