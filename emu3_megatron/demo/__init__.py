from emu3_megatron.demo.script import run_demo

__all__ = ["run_demo"]
