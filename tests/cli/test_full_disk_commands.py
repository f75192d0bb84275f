"""A full disk is one line in commands that write, whoever's writer finds it full."""

import errno
import os
import shutil
import subprocess
import sys

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from support.processes import run_processes
from support.steps import losses
from support.tiny import VOCABULARY, make_packs, tiny_recipe

from emu3_megatron.config.tokenizer import TokenizerNetwork
from emu3_megatron.files import replacing
from emu3_megatron.vision.tokenizer import VisionTokenizer


@pytest.fixture(scope="module")
def disk(tmp_path_factory):
    """Runs a command line with a disk of some kilobytes at ./disk."""
    folder = tmp_path_factory.mktemp("full")
    (folder / "disk").mkdir()
    mount = "mount -t tmpfs -o size={}k,mode=700 tmpfs disk"

    def run(size, *command):
        line = f"{mount.format(size)} && exec {' '.join(map(str, command))}"
        if not shutil.which("unshare") or _in_a_namespace(mount.format(4), folder).returncode:
            pytest.skip("this machine lets nobody mount a tmpfs in a namespace of its own")
        return _in_a_namespace(line, folder)

    run.folder = folder
    return run


def _in_a_namespace(command, folder):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    unshare = ["unshare", "--mount", "--map-root-user", "sh", "-c", command]
    return subprocess.run(
        unshare, cwd=folder, env=environment, capture_output=True, text=True, encoding="utf-8"
    )


@pytest.fixture(scope="module")
def trained(disk):
    """A run of one step, and a vision tokenizer beside it."""
    recipe = tiny_recipe(make_packs(disk.folder), disk.folder / "run")
    run_processes(losses, 1, recipe, 1, None, disk.folder / "run" / "checkpoints")
    network = TokenizerNetwork(
        codebook_size=VOCABULARY.num_codes,
        base_channels=32,
        channel_multiplier=(1, 1, 1, 1),
        num_res_blocks=1,
    )
    VisionTokenizer(network).save(disk.folder / "tokenizer")


EXPORT = ["convert", "export", "--from", "run", "--to"]
DRAW = ["generate", "image", "run", "'a cat'", "--tokenizer", "tokenizer", "--grid", "60x60"]
COMMANDS = {
    "export": [*EXPORT, "disk/out"],
    "export to Megatron-LM": [*EXPORT, "disk/out", "--layout", "megatron"],
    "export to a file": [*EXPORT, "disk/out.pt", "--layout", "megatron-file"],
    "generate": [*DRAW, "--context", "4000", "--top-k", "1", "--out", "disk/a.png"],
}


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_a_full_disk_is_one_line(command, disk, trained):
    done = disk(4, sys.executable, "-m", "emu3_megatron", *command)

    last = done.stderr.splitlines()[-1]
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert last.startswith(f"emu3: disk/{'a.png' if 'generate' in command else 'out'}"), last
    assert "No space left on device" in last or "is the disk full?" in last


WRITES = {
    "torch": lambda path: torch.save({"a": torch.rand(99_000)}, path),
    "safetensors": lambda path: save_file({"a": torch.rand(99_000)}, path),
    "Pillow": lambda path: Image.effect_noise((400, 400), 90).save(path, "PNG"),
    "Python": lambda path: path.write_bytes(bytes(99_000)),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_whoever_writes_a_full_disk_is_an_error_that_names_the_file(write, tmp_path):
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4_096, hard))
    try:
        refused = pytest.raises(OSError, match=r"too large|full\?")
        with refused as failed, replacing(tmp_path / "a.file") as beside:
            write(beside)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert failed.value.filename == str(tmp_path / "a.file")
    assert not list(tmp_path.iterdir())


def test_a_disk_that_names_no_file_is_still_one_line(monkeypatch, capsys):
    from emu3_megatron.cli import app

    def fail(arguments, settings):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(app, "_run", fail)
    with pytest.raises(SystemExit) as exit:
        app.main([])

    assert exit.value.code == 2
    assert capsys.readouterr().err == "emu3: No space left on device\n"
