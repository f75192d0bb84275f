"""Compiles Triton kernels for Hopper ahead of time, which needs no GPU, and reads the machine code.

The interpreter would take the kernels of a process that runs it, so a test runs `compiled` in a
process of its own: `in_a_process`.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any


def compiled(
    kernel: Any,
    types: dict[str, str],
    constants: dict[str, Any],
    aligned: tuple[str, ...],
    **options: int,
) -> dict[str, Any]:
    """Registers and stack bytes of a thread, shared bytes of a block, and the machine code.

    Args:
        types: of arguments that are neither constants nor 32-bit integers.
        aligned: beginnings of the names of arguments that are multiples of 16.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = kernel.arg_names
    types = types | dict.fromkeys(constants, "constexpr")
    signature = {name: types.get(name, "i32") for name in names}
    attributes = {
        (place,): [["tt.divisibility", 16]]
        for place, name in enumerate(names)
        if name.startswith(aligned) and name not in constants
    }
    source = ASTSource(kernel, signature, constants, attributes)
    done = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(done.asm["cubin"])
        file.flush()
        usage = _run(tools / "cuobjdump", "--dump-resource-usage", file.name)
        code = _run(tools / "nvdisasm", "-c", file.name)
    registers, stack = (
        int(number)
        for name in ("REG", "STACK")
        for number in re.findall(rf"{name}:(\d+)", usage)[-1:]
    )
    return {"registers": registers, "stack": stack, "shared": done.metadata.shared, "code": code}


def in_a_process(code: str, home: Path) -> Any:
    """What Python code prints as JSON, run without the interpreter."""
    tests = str(Path(__file__).parents[1])
    path = os.pathsep.join([tests, os.environ.get("PYTHONPATH", "")])
    environment = {"HOME": str(home), "TRITON_INTERPRET": "0", "PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | environment,
        check=False,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def _run(*command: Path | str) -> str:
    return subprocess.run(
        command, capture_output=True, text=True, check=True, encoding="utf-8"
    ).stdout
