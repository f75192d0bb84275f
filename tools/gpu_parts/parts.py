"""The parts of `make gpu`: commands with their time limits, the most valuable first."""

from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PARTS = ("tests", "head", "attention", "step")
SECONDS = 520  # of a part: less than nine minutes, with the time to stop what runs then

# Files of tests/gpu, the most valuable first; those that are not named here come last.
TESTS = {
    "test_attention_tile_gpu": 150,
    "test_linear_cross_entropy_gpu": 90,
    "test_ring_attention_gpu": 60,
    "test_cuda_kernels": 60,
    "test_log_probabilities_gpu": 60,
    "test_dpo_gpu": 60,
    "test_generation_gpu": 60,
}
OTHER_TESTS = 60  # seconds of any other file
BENCHMARKS = {
    "head": {"linear_cross_entropy": 330, "sweep_rows": 90},
    "attention": {"ring_attention": 270, "sweep_attention": 120, "decoding_kernels": 60},
    "step": {
        "training_step": 150,
        "generation": 120,
        "dpo": 60,
        "tokenizer_step": 90,
        "tokenizer_encoding": 60,
    },
}


@dataclass(frozen=True)
class Command:
    """A process of a part.

    Attributes:
        name: under which its result stands.
        limit: seconds.
        arguments: of the command line.
        rows: where it writes rows of figures while it runs, JSON; None if it has none.
        before_gpu: it needs all cores and no GPU: such commands run first, beside each other.
    """

    name: str
    limit: int
    arguments: tuple[str, ...]
    rows: Path | None = None
    before_gpu: bool = False


def commands_of(part: str, python: str, quick: bool) -> list[Command]:
    """The commands of a part in their order; `quick` is a dry run on any machine."""
    flags = ("--quick",) if quick else ()
    commands = [Command("precompile", 150, (python, "-m", "gpu_parts.precompile", part, *flags))]
    if part != "step" and not quick:
        commands.append(Command("build", 150, ("make", "csrc", "build/gpu/sanitized")))
    before = [Command(c.name, c.limit, c.arguments, before_gpu=True) for c in commands]
    if part == "tests":
        return (
            [*before, _all_tests(python)] if quick else [*before, *_tests(python), *_sanitizers()]
        )
    return [*before, *(_benchmark(python, *pair, flags) for pair in BENCHMARKS[part].items())]


def _tests(python: str) -> list[Command]:
    """A process for each file: after an illegal access nothing else runs in the same one."""
    found = sorted(path.stem for path in (ROOT / "tests" / "gpu").glob("test_*.py"))
    names = [name for name in TESTS if name in found]
    names += [name for name in found if name not in TESTS]
    return [_test(python, name) for name in names]


def _all_tests(python: str) -> Command:
    """In one process: without a GPU they are skipped."""
    rows = _rows("tests")
    pytest = ("-m", "pytest", "-q", "-m", "gpu", "-p", "gpu_parts.pytest_rows", "--rows", str(rows))
    return Command("tests", 120, (python, *pytest, "tests/gpu"), rows)


def _test(python: str, name: str) -> Command:
    limit, rows = TESTS.get(name, OTHER_TESTS), _rows(name)
    # A test that hangs says where before its file is stopped.
    pytest = ("-m", "pytest", "-v", "-m", "gpu", "-p", "gpu_parts.pytest_rows", "--rows", str(rows))
    hang = ("-o", f"faulthandler_timeout={limit - 10}", "--maxfail=10")
    return Command(name, limit, (python, *pytest, *hang, f"tests/gpu/{name}.py"), rows)


def _sanitizers() -> list[Command]:
    sanitizer = ("compute-sanitizer", "--error-exitcode", "1", "--tool")
    return [
        Command(tool, 60, (*sanitizer, tool, "build/gpu/sanitized"))
        for tool in ("memcheck", "racecheck")
    ]


def _benchmark(python: str, name: str, limit: int, flags: tuple[str, ...]) -> Command:
    rows = _rows(name)
    arguments = (python, f"benchmarks/{name}.py", *flags, "--json", str(rows))
    if flags and name.startswith("sweep"):
        arguments = ("env", "TRITON_INTERPRET=1", *arguments)
    return Command(name, limit, arguments, rows)


def _rows(name: str) -> Path:
    return ROOT / "build" / "gpu" / "rows" / f"{name}.json"
