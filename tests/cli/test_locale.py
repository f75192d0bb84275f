"""Commands under a locale that knows no umlaut."""

import os
import subprocess
import sys

import yaml

ASCII = {"LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}


def test_a_recipe_is_read_and_printed_in_utf_8_whatever_the_locale(tmp_path):
    path = tmp_path / "recipe.yaml"
    values = {"sample": {"every": 1, "tokenizer": "t"}, "model": {"preset": "emu3-tiny"}}
    values["sample"]["prompts"] = [{"caption": "ein Bär …", "height": 2, "width": 2}]
    values |= {"run": {"dir": "run", "steps": 1}, "optimizer": {"lr": 1e-3}, "batch": {"size": 1}}
    values["data"] = {"context": 64, "sources": [{"pack": "none.pack"}]}
    path.write_text(yaml.safe_dump(values, allow_unicode=True), encoding="utf-8")

    command = [sys.executable, "-m", "emu3_megatron", "recipe", str(path)]
    done = subprocess.run(command, env={**os.environ, **ASCII}, capture_output=True)

    assert done.returncode == 0, done.stderr
    assert "ein Bär …" in done.stdout.decode("utf-8")
