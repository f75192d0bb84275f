"""What Triton makes of the kernels for Hopper, counted in the compiled code: this needs no GPU.

python benchmarks/compiled.py [--quick] --json FILE

`--quick` compiles only attention's dq kernel without dropout. Rows of further kernels come from
further functions like `attention_kernels`, which `kernels` yields from. How programs fill a GPU is
replayed, see sm_use.py. `benchmarks/results/compiled_before_*.json` are the counts of the kernels
before dk/dv was split and dropout's hash became cheaper, by this file put into that commit.
"""

import os

os.environ.pop("TRITON_INTERPRET", None)  # an interpreted kernel cannot be compiled

import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import triton
from harness import write_rows
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
REGISTERS, SHARED, WARPS = 65_536, 227 * 1024, 64  # of a multiprocessor of sm_90


@dataclass(frozen=True)
class Kernel:
    """A Triton kernel as a recipe launches it.

    Attributes:
        case: group/kernel, with what sets it apart.
        function: the kernel, written with `triton.jit`.
        constants: its `tl.constexpr` arguments.
        num_warps: warps of a program.
        num_stages: blocks that are loaded ahead.
        types: of arguments that are neither int32 nor a pointer to int32, as Triton writes them.
    """

    case: str
    function: Any
    constants: dict[str, Any]
    num_warps: int
    num_stages: int
    types: dict[str, str] = field(default_factory=dict)


class Loop(NamedTuple):
    """An innermost loop of the compiled code: its instructions, one a line."""

    instructions: list[str]

    def count(self, pattern: str) -> int:
        return sum(bool(re.search(pattern, line)) for line in self.instructions)


def attention_kernels() -> Iterator[Kernel]:
    """Of the published recipes: 32 / 8 heads over TP 4 (stage 1) are 8 / 2, head dimension 128."""
    from emu3_kernels.attention_tile import triton_backward, triton_forward, triton_tile

    pointers = dict.fromkeys(("q_ptr", "k_ptr", "v_ptr", "dout_ptr"), "*bf16")
    wide = ("out_ptr", "lse_ptr", "delta_ptr", "dq_ptr", "dk_ptr", "dv_ptr", "parts_ptr")
    pointers |= dict.fromkeys(wide, "*fp32")
    numbers = dict.fromkeys(("scale", "scale_log2", "dropout_factor"), "fp32")
    functions = {
        "forward": triton_forward.forward_kernel,
        "dq": triton_backward.dq_kernel,
        "dkdv": triton_backward.dkdv_kernel,
    }
    for name, function in functions.items():
        launch = triton_tile.HALF[name]
        for dropout in (False, True):
            constants = {
                "HEADS": 8, "KV_HEADS": 2, "GROUP": 4, "DIM": 128, "RUNNING": False,
                "BLOCK_M": launch.block_m, "BLOCK_N": launch.block_n, "DROPOUT": dropout,
                "SPLIT": True, "ADD": False, "INTERPRETED": False, "PRECISION": "tf32x3",
            }  # fmt: skip
            yield Kernel(
                f"attention/{name}" + "/dropout" * dropout,
                function,
                {key: value for key, value in constants.items() if key in function.arg_names},
                launch.num_warps,
                launch.num_stages,
                pointers | numbers,
            )


def head_kernels() -> Iterator[Kernel]:
    """The row passes of the head: fp16 logits, whose gradient is bf16."""
    from emu3_kernels.linear_cross_entropy import triton_rows

    statistics, gradient = triton_rows.statistics_kernel, triton_rows.gradient_kernel
    wide = ("statistics_ptr", "weights_ptr", "lse_ptr")
    types = dict.fromkeys(wide, "*fp32") | {"z_loss": "fp32", "labels_ptr": "*i64"}
    types |= {"logits_ptr": "*fp16", "out_ptr": "*bf16"}
    block = {"BLOCK": triton_rows.BLOCK}
    for case, function, constants in (
        ("statistics", statistics, {"ENTROPY": False}),
        ("statistics/entropy", statistics, {"ENTROPY": True}),
        ("gradient", gradient, {}),
    ):
        yield Kernel(f"head/{case}", function, block | constants, triton_rows.WARPS, 3, types)


def kernels() -> Iterator[Kernel]:
    """All kernels that are counted."""
    yield from attention_kernels()
    yield from head_kernels()


def compiled(kernel: Kernel) -> dict[str, Any]:
    """One row of counts."""
    function, constants = kernel.function, kernel.constants
    types = kernel.types | dict.fromkeys(constants, "constexpr")
    kind = lambda name: types.get(name, "*i32" if name.endswith("_ptr") else "i32")
    signature = {name: kind(name) for name in function.arg_names}
    loose = getattr(function, "do_not_specialize", None) or ()
    multiples = [
        place
        for place, name in enumerate(function.arg_names)
        if name.endswith(("_ptr", "_t", "_h", "stride"))
        and name not in loose
        and place not in loose
    ]
    result = triton.compile(
        ASTSource(
            function,
            signature,
            constexprs=constants,
            attrs={(place,): [["tt.divisibility", 16]] for place in multiples},
        ),
        target=GPUTarget("cuda", 90, 32),
        options={"num_warps": kernel.num_warps, "num_stages": kernel.num_stages},
    )
    shared = result.metadata.shared
    return {
        "case": kernel.case,
        "implementation": f"triton {triton.__version__}",
        "warps": kernel.num_warps,
        "shared_bytes": shared,
        **counts(result.asm["cubin"], kernel.num_warps, shared),
    }


def counts(cubin: bytes, warps: int, shared: int) -> dict[str, Any]:
    """Registers, thread blocks a multiprocessor, and what the hottest loop consists of."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = _run("cuobjdump", "-res-usage", file.name)
        sass = _run("nvdisasm", "-c", file.name)
    found = re.search(r"REG:(\d+)", usage)
    assert found, usage
    registers = int(found[1])
    loop = hottest(loops(sass))
    return {
        "registers": registers,
        "blocks_per_sm": min(
            REGISTERS // (-(-registers // 8) * 8 * 32 * warps),
            WARPS // warps,
            SHARED // (shared + 1024),
        ),
        "loop_instructions": len(loop.instructions),
        "products": sorted(set(re.findall(r"HGMMA\.(\d+x\d+x\d+)", "\n".join(loop.instructions)))),
        "product_instructions": loop.count(r"\bHGMMA"),
        "async_copies_128": loop.count(r"\bLDGSTS\.E\S*\.128"),
        "async_copies_narrow": loop.count(r"\bLDGSTS") - loop.count(r"\bLDGSTS\.E\S*\.128"),
        "barriers": loop.count(r"\bBAR\b"),
        "spills_in_loops": sum(one.count(r"\b(STL|LDL)\b") for one in loops(sass)),
    }


def loops(sass: str) -> list[Loop]:
    """The innermost loops: from a label to a branch back to it, without another loop inside."""
    lines: list[str] = []
    labels: dict[str, int] = {}
    spans: list[tuple[int, int]] = []
    for line in sass.splitlines():
        if label := re.match(r"(\.L_\w+):", line):
            labels[label[1]] = len(lines)
        elif instruction := re.search(r"/\*[0-9a-f]{4,}\*/\s+(.*?);", line):
            lines.append(instruction[1])
            branch = re.search(r"\bBRA\b.*`\((\.L_\w+)\)", instruction[1])
            if branch and branch[1] in labels:
                spans.append((labels[branch[1]], len(lines)))
    inner = [
        span
        for span in spans
        if not any(one != span and span[0] <= one[0] and one[1] <= span[1] for one in spans)
    ]
    return [Loop(lines[start:end]) for start, end in inner]


def hottest(found: list[Loop]) -> Loop:
    """Of the loops with most matrix products the shortest, which masks nothing.

    Without matrix products the longest loop.
    """
    most = max((loop.count(r"\bHGMMA") for loop in found), default=0)
    if most:
        products = [loop for loop in found if loop.count(r"\bHGMMA") == most]
        return min(products, key=lambda loop: len(loop.instructions))
    return max(found, key=lambda loop: len(loop.instructions), default=Loop([]))


def _run(tool: str, *arguments: str) -> str:
    done = subprocess.run(
        [TOOLS / tool, *arguments],
        capture_output=True,
        text=True,
        check=True,
        encoding="utf-8",
    )
    return done.stdout


def rows(quick: bool) -> Iterator[dict[str, Any]]:
    for kernel in kernels():
        if not quick or kernel.case == "attention/dq":
            yield compiled(kernel)
    if not quick:
        import sm_use

        yield from sm_use.rows()


if __name__ == "__main__":
    write_rows(rows)
