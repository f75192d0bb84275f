"""Compiles a part's Triton kernels for Hopper on all cores, into Triton's cache; needs no GPU.

python -m gpu_parts.precompile PART ... [--quick]

The kernels' own launch code runs under a driver that names the chip and launches nothing, so that
what is compiled is what a run asks for. What is missing here is compiled when it is first used.
"""

import argparse
import os
import time
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from gpu_parts.launches import Launch, launches_of, pretend_a_gpu
from gpu_parts.parts import PARTS


class NamedChip:
    """A driver for compiling: what Triton asks of one before it launches."""

    target = GPUTarget("cuda", 90, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_active_torch_device(self) -> str:
        return "cuda"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("parts", nargs="+", choices=PARTS)
    parser.add_argument("--quick", action="store_true", help="name what would be compiled")
    arguments = parser.parse_args()
    prepare(compiles=not arguments.quick)
    launches = [launch for part in arguments.parts for launch in launches_of(part)]
    begun, kernels = time.monotonic(), 0
    for name, seconds, found in _compiled(launches, 1 if arguments.quick else _cores()):
        kernels += len(found)
        print(f"{name}: {', '.join(found)} {seconds:.1f} s", flush=True)
    print(f"{kernels} kernels in {time.monotonic() - begun:.0f} s", flush=True)


def prepare(compiles: bool) -> None:
    """Whoever launches a kernel from now on only compiles it, or names it alone."""
    driver.set_active(NamedChip())
    pretend_a_gpu()
    JITFunction.run = _instead_of_launching(JITFunction.run, compiles)


_only: str | None = None
_found: list[str] = []


def _instead_of_launching(run: Callable[..., Any], compiles: bool) -> Callable[..., Any]:
    def only_compile(kernel: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        name = kernel.fn.__name__
        if _only not in (None, name):
            return None
        _found.append(name)
        return run(kernel, *args, grid=grid, warmup=True, **kwargs) if compiles else None

    return only_compile


def compile_one(launch: Launch) -> tuple[str, float, list[str]]:
    """Its name, seconds, and the kernels that it launched; why where one does not compile."""
    global _only
    _only, begun = launch.only, time.monotonic()
    _found.clear()
    try:
        launch.run()
    except Exception as error:  # a shape of a sweep may ask for too much
        _found.append(f"{type(error).__name__}: {str(error).splitlines()[0][:100]}")
    return launch.name, time.monotonic() - begun, list(_found)


def _compiled(launches: list[Launch], processes: int) -> Iterator[tuple[str, float, list[str]]]:
    if processes == 1:
        yield from map(compile_one, launches)
        return
    global _launches
    _launches = launches  # forked processes inherit it
    with get_context("fork").Pool(processes) as pool:
        yield from pool.imap_unordered(_compile_number, range(len(launches)))


_launches: list[Launch] = []


def _compile_number(number: int) -> tuple[str, float, list[str]]:
    return compile_one(_launches[number])


def _cores() -> int:
    return len(os.sched_getaffinity(0))


if __name__ == "__main__":
    assert "TRITON_INTERPRET" not in os.environ, f"triton {triton.__version__} would interpret"
    main()
