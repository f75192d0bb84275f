"""T2I-CompBench: a folder a category, `samples/PROMPT_000000.png` in it.

Karine-Huang/T2I-CompBench @ 1b70949: GORS_finetune/inference_eval.py says what is written. The
scorers (BLIPvqa_eval/BLIP_vqa.py, CLIPScore_eval/CLIP_similarity.py, UniDet_eval/*.py) take the
prompt from before the first `_` and the question's id from behind the last, and fail at any other
file in `samples/`. 3_in_1_eval/3_in_1.py needs ten samples of a prompt, with ids one after another.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from emu3_megatron.errors import InputError
from emu3_megatron.evaluation.suites.plan import Plan, Suite, SuiteFile, check_name, read_text


def _read(prompts: Sequence[Path], each: int) -> Plan:
    plan, before = Plan(), Counter[str]()
    if twice := [stem for stem, n in Counter(path.stem for path in prompts).items() if n > 1]:
        raise InputError(f"--prompts: two files named {twice[0]}, which names a folder; rename one")
    for path in prompts:
        question = 0
        for number, line in enumerate(read_text(path).splitlines(), 1):
            prompt = line.split("\t")[0].strip()
            _check(prompt, f"{path}: line {number}")
            for _ in range(each):
                name = Path(path.stem, "samples", f"{prompt}_{question:06}.png")
                plan.files.append(SuiteFile(name, prompt, (before[prompt],)))
                before[prompt] += 1
                question += 1
        if not question:
            raise InputError(f"{path}: no prompts; give a file of examples/dataset")
    return plan


def _check(prompt: str, where: str) -> None:
    if not prompt:
        raise InputError(f"{where}: empty; leave it out")
    if "_" in prompt:
        raise InputError(f"{where}: a '_', at which T2I-CompBench's scorers cut; reword it")
    check_name(f"{prompt}_000000.png", where)


COMPBENCH = Suite(
    name="t2i-compbench",
    title="T2I-CompBench",
    folder="images",
    guidance=5.0,
    each=10,
    is_free=True,
    read=_read,
    next="cd BLIPvqa_eval; python BLIP_vqa.py --out_dir={folder}/CATEGORY, and so on",
)
