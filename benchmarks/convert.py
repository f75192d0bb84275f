"""Time and memory of `emu3 convert` on a random folder of the 8B shape, in bf16.

python benchmarks/convert.py [--quick] [--folder DIR] --json FILE

Needs about 52 GB of disk at full size; all of it is removed at the end. Peaks are the kernel's:
largest resident set, mapped pages of files included. To it a child begins as large as its parent
has ever been, so this process stays small: another makes the folder.
"""

import argparse
import json
import multiprocessing
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from harness import describe_machine

from emu3_megatron import parallel
from emu3_megatron.config import ModelConfig
from emu3_megatron.interchange.configs import decoder_config
from emu3_megatron.interchange.decoder import DecoderTable
from emu3_megatron.interchange.layouts import LAYOUTS
from emu3_megatron.interchange.weights import Weights, write_weights


def make_folder(model: ModelConfig, folder: Path) -> None:
    """Random bits of bf16 under the names of BAAI's decoder, in files as transformers cuts them."""
    parallel.start()
    specs = DecoderTable(model, LAYOUTS["baai"].decoder, torch.bfloat16).export_specs()
    generator = torch.Generator().manual_seed(0)

    def tensors() -> Iterator[tuple[str, torch.Tensor]]:
        for name, spec in specs.items():
            bits = torch.empty(spec.shape, dtype=torch.int16)
            yield name, bits.random_(generator=generator).view(torch.bfloat16)

    folder.mkdir()
    config = decoder_config(model, torch.bfloat16, 9216, "baai")
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    write_weights(folder, specs, tensors(), "random")
    parallel.stop()


def run(case: str, *arguments: str | Path) -> dict[str, Any]:
    """Run `emu3` in a process of its own and look at what it took."""
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "emu3_megatron", *map(str, arguments)])
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, case
    assert usage.ru_maxrss > own, "the peak may be this process's own"
    row = {
        "case": case,
        "seconds": time.perf_counter() - began,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_rss_bytes": usage.ru_maxrss * 1024,
    }
    print(row, flush=True)
    return row


def bit_equal(one: Path, other: Path) -> bool:
    ones, others = Weights(one), Weights(other)
    return ones.specs == others.specs and all(
        torch.equal(ones[name].view(torch.int16), others[name].view(torch.int16))
        for name in ones.specs
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="emu3-mini instead of emu3-8b")
    parser.add_argument("--folder", type=Path, help="where to work (default: the system's)")
    parser.add_argument("--json", type=Path, help="write device, versions and rows to this file")
    arguments = parser.parse_args()
    preset = "emu3-mini" if arguments.quick else "emu3-8b"
    model = ModelConfig.model_validate({"preset": preset})
    work = Path(tempfile.mkdtemp(dir=arguments.folder))
    try:
        maker = multiprocessing.get_context("spawn").Process(
            target=make_folder, args=(model, work / "hf")
        )
        maker.start()
        maker.join()
        assert maker.exitcode == 0, "no folder to convert"
        sizes = [file.stat().st_size for file in (work / "hf").glob("*.safetensors")]
        rows = [
            run("import", "convert", "import", "--from", work / "hf", "--to", work / "ours"),
            run("export", "convert", "export", "--from", work / "ours", "--to", work / "back"),
        ]
        result = {
            **describe_machine(),
            "model": preset,
            "bytes": sum(sizes),
            "largest_file_bytes": max(sizes),
            "bit_equal": bit_equal(work / "hf", work / "back"),
            "rows": rows,
        }
    finally:
        shutil.rmtree(work)
    print(result["bit_equal"])
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
