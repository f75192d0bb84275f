"""The demo: every stage on ten photos and a clip, on a CPU."""

from emu3_megatron.demo.script import run_demo

__all__ = ["run_demo"]
