from emu3_megatron.demo.road import run_demo

__all__ = ["run_demo"]
