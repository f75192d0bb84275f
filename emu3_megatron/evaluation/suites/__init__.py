"""Folders of samples as the public suites want them: GenEval, T2I-CompBench, DPG-Bench, VBench."""

from emu3_megatron.evaluation.suites.compbench import COMPBENCH
from emu3_megatron.evaluation.suites.dpg_bench import DPG_BENCH
from emu3_megatron.evaluation.suites.geneval import GENEVAL
from emu3_megatron.evaluation.suites.plan import Suite
from emu3_megatron.evaluation.suites.vbench import VBENCH

SUITES: dict[str, Suite] = {s.name: s for s in (GENEVAL, COMPBENCH, DPG_BENCH, VBENCH)}
