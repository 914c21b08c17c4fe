"""Compile every kernel of ours for GPUs that are not here, and print what it takes as JSON.

Triton's own compiler needs no driver: a stand-in names the GPU, the launchers run on tensors of the
CPU, and every launch ends with its compilation. Run by `test_triton.py` in a process of its own;
`python tests/kernels/compiled.py --write` writes the budget anew.
"""

import argparse
import functools
import json
import re
import subprocess
import tempfile
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from archsearch.testing.kernel_cases import CASES, configs, found, launched, triton_of

BUDGET = Path(__file__).with_name("budget.json")
ARCHS = (80, 90, 100)
FULL = 90
TIGHT = {(80, "widest"), (80, "long mini-batch")}
"""Sizes that take nearly all registers there."""
TOOL = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
USED = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:(\d+)")


class Driver:
    """Stands in for that of an NVIDIA GPU; compiled code is kept by the number of the device."""

    def __init__(self, arch):
        self.arch = arch

    def get_current_target(self):
        return GPUTarget("cuda", self.arch, 32)

    def get_current_device(self):
        return self.arch

    def get_current_stream(self, device):
        return 0

    def get_active_torch_device(self):
        return torch.device("cpu")


def resources(kernel):
    """Registers of a thread, bytes of its stack, to which registers are spilled, shared bytes."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        told = subprocess.run(
            [TOOL, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True
        )
    registers, stack, static = map(int, USED.search(told.stdout).groups())
    return {"registers": registers, "stack": stack, "shared": max(static, kernel.metadata.shared)}


def shapes(arch):
    """Ops, sizes and types: everything for one GPU, for others what is tight on them."""
    for op, case in CASES.items():
        for dtype in case.dtypes if arch == FULL else case.dtypes[-1:]:
            yield op, "compile", dtype
        for size in case.compiled:
            if arch == FULL or (arch, size) in TIGHT:
                yield op, size, case.dtypes[0]


def compile_all():
    """What each kernel takes, by GPU and by launch config."""
    launch, taken = JITFunction.run, {}
    known = functools.cache(resources)

    def compile_only(self, *args, grid, warmup, **named):
        kernel = launch(self, *args, grid=grid, warmup=True, **named)
        config = {k: v for k, v in named.items() if k == "num_warps" or k in settings}
        label = " ".join([self.__name__, what, *(f"{k}={v}" for k, v in config.items())])
        taken[f"sm_{arch}"][label] = known(kernel)
        return kernel

    JITFunction.run = compile_only
    for arch in ARCHS:
        triton.runtime.driver.set_active(Driver(arch))
        taken[f"sm_{arch}"] = {}
        for op, size, dtype in shapes(arch):
            what, case = f"{size}, {str(dtype).removeprefix('torch.')}:", CASES[op]
            for which in range(configs(op)):
                with launched(op, which) as now:
                    settings = {k for config in now.values() for k in config}
                    found(case, triton_of(op), case.given(size, dtype))
    return {"triton": triton.__version__, "kernels": taken}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write the budget anew")
    told = json.dumps(compile_all(), indent=1, sort_keys=True)
    told = re.sub(
        r'\{\s+("registers"[^}]*?)\s+\}', lambda m: "{" + " ".join(m[1].split()) + "}", told
    )
    if parser.parse_args().write:
        BUDGET.write_text(told + "\n")
    else:
        print(told)
