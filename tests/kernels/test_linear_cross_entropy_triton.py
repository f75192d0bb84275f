"""The Triton row passes: run by the interpreter where there is no GPU, and compiled for Hopper."""

from support import triton_interpreter

# isort: split
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from emu3_kernels.linear_cross_entropy import IGNORE
from emu3_kernels.linear_cross_entropy.chunks import merge
from support.heads import HeadCase, error

triton = pytest.importorskip("triton")
from emu3_kernels.linear_cross_entropy import triton_rows  # noqa: E402

DEVICE = triton_interpreter.DEVICE


@pytest.fixture
def case():
    """Labels in the first, a whole and the last block, and one token left out."""
    case = HeadCase.random(17, 1000, 8, torch.float32, DEVICE)
    labels = case.labels.clone()
    labels[:5] = torch.tensor([0, 255, 256, 999, IGNORE])
    return replace(case, labels=labels)


@pytest.fixture(params=[256, 8192], ids=["four blocks", "one block"])
def block(request, monkeypatch):
    monkeypatch.setattr(triton_rows, "BLOCK", request.param)


@pytest.mark.usefixtures("block")
@pytest.mark.parametrize(("dtype", "times"), [(torch.float32, 8), (torch.float16, 2)])
def test_errors_are_those_of_plain_torch(case, dtype, times):
    case = case.to(dtype)

    sums, *gradients = case(backend="triton", z_loss=0.1, chunk_size=8)

    exact = case.to(torch.float64).by_torch(z_loss=0.1)
    plain = case.by_torch(z_loss=0.1)
    assert sums.loss.item() == pytest.approx(exact[0].item(), rel=torch.finfo(dtype).eps)
    for found, torchs, wanted in zip(gradients, plain[1:3], exact[1:3], strict=True):
        assert error(found, wanted) <= times * error(torchs, wanted)


@pytest.mark.usefixtures("block")
def test_sums_by_class(case):
    found, *_ = case(backend="triton")
    wanted, *_ = case.to(torch.float64)(backend="reference")

    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.usefixtures("block")
def test_shares_of_the_columns_merge_to_the_whole(case):
    logits = case.hidden @ case.head.T
    shares = [logits[:, :700], logits[:, 700:], logits[:, :0]]  # the last holds only padding
    labels = case.labels.where(case.labels != IGNORE, 0)

    found = [
        triton_rows.statistics(share, labels - first)
        for share, first in zip(shares, (0, 700, 1000), strict=True)
    ]

    wanted = [logits.amax(1), logits.logsumexp(1), logits.gather(1, labels[:, None])[:, 0]]
    torch.testing.assert_close(merge(torch.stack(found)), torch.stack(wanted))


@pytest.mark.usefixtures("block")
def test_a_block_of_nothing_counts_nothing(case):
    logits = case.hidden @ case.head.T
    logits[:, :256] = -torch.inf

    statistics = triton_rows.statistics(logits, case.labels)

    torch.testing.assert_close(merge(statistics[None])[1], logits.logsumexp(1))


@pytest.mark.usefixtures("block")
@pytest.mark.parametrize(("dtype", "times"), [(torch.float32, 8), (torch.float16, 1.5)])
def test_log_probabilities_have_the_errors_of_plain_torch(case, dtype, times):
    case = case.to(dtype)

    found = case.log_probabilities(backend="triton", chunk_size=8)

    exact = case.to(torch.float64).log_probabilities_by_torch()
    plain = case.log_probabilities_by_torch()
    assert torch.equal(found[1], plain[1])
    for member in (0, 2, 3, 4):
        wanted = exact[member]
        assert error(found[member], wanted) <= times * error(plain[member], wanted)


@pytest.mark.usefixtures("block")
def test_entropies_of_shares_of_the_columns_merge_to_that_of_the_whole(case):
    logits = case.hidden @ case.head.T
    logits[:, :256] = -torch.inf  # a block of nothing
    shares = [logits[:, :700], logits[:, 700:], logits[:, :0]]

    found = [triton_rows.statistics_with_entropy(share, case.labels) for share in shares]

    p = logits.double().softmax(1)
    entropy = -torch.special.xlogy(p, p).sum(1)
    torch.testing.assert_close(merge(torch.stack(found))[3].double(), entropy, rtol=1e-6, atol=1e-6)


@pytest.mark.usefixtures("block")
def test_the_entropy_changes_no_other_statistic(case):
    logits = case.hidden @ case.head.T

    without, with_it = (
        function(logits, case.labels)
        for function in (triton_rows.statistics, triton_rows.statistics_with_entropy)
    )

    assert torch.equal(without, with_it[:3])


COMPILE = """
import pathlib, re, subprocess, tempfile
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from emu3_kernels.linear_cross_entropy import triton_rows

integers = {"columns": "i32", "stride": "i32"}
statistics = {"labels_ptr": "*i64", "statistics_ptr": "*fp32", **integers, "tokens": "i32"}
gradient = {"labels_ptr": "*i64", "weights_ptr": "*fp32", "lse_ptr": "*fp32", "out_ptr": "*bf16"}
gradient |= {"z_loss": "fp32", **integers}
kernels = [
    (triton_rows.statistics_kernel, statistics, {"ENTROPY": False}),
    (triton_rows.statistics_kernel, statistics, {"ENTROPY": True}),
    (triton_rows.gradient_kernel, gradient, {}),
]
tool = pathlib.Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
for kernel, arguments, constants in kernels:
    constants = {"BLOCK": triton_rows.BLOCK, **constants}
    signature = {"logits_ptr": "*fp16", **arguments, **dict.fromkeys(constants, "constexpr")}
    # What Triton finds at a launch: pointers and the stride are multiples of 16.
    names = list(signature)
    aligned = [name for name in names if name.endswith("_ptr") or name == "stride"]
    attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in aligned}
    source = ASTSource(kernel, signature, constants, attributes)
    options = {"num_warps": triton_rows.WARPS}
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    wide = "ld.global.v4.b32" in compiled.asm["ptx"]
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [tool, "--dump-resource-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    registers, stack = (re.search(name + r":(\\d+)", usage).group(1) for name in ("REG", "STACK"))
    print(kernel.__name__, wide, registers, stack)
"""


def test_kernels_compile_for_hopper_with_wide_loads_and_without_spills(tmp_path):
    """Ahead of time, in a process of its own: the interpreter would take the kernels here."""
    environment = {**os.environ, "HOME": str(tmp_path), "TRITON_INTERPRET": "0"}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
        check=False,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert len(lines) == 3
    for name, wide, registers, stack in lines:
        assert (wide, stack) == ("True", "0"), name
        # 80 let three programs of 256 threads share a multiprocessor.
        assert int(registers) <= 80, name
