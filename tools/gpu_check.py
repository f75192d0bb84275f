"""Whether a machine without a network will have every package that `make gpu` needs.

python tools/gpu_check.py WHEELS MACHINE

WHEELS is the folder of wheels that travels ("" for none), MACHINE a file of what the machine has:
`pip list --format=freeze`, and python==VERSION. Every requirement is followed to its end.
"""

import re
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from email.parser import HeaderParser
from pathlib import Path

try:
    from packaging.requirements import InvalidRequirement, Requirement
    from packaging.tags import compatible_tags, cpython_tags
    from packaging.utils import canonicalize_name, parse_wheel_filename
except ImportError:  # every pip brings it along
    from pip._vendor.packaging.requirements import InvalidRequirement, Requirement
    from pip._vendor.packaging.tags import compatible_tags, cpython_tags
    from pip._vendor.packaging.utils import canonicalize_name, parse_wheel_filename

ROOT = Path(__file__).parents[1]
TESTS = ["pytest>=8"]
# What benchmarks compare with; without them they run, and their rows say what is missing.
PEERS = ["liger-kernel>=0.8", "cut-cross-entropy>=25.1"]


@dataclass(frozen=True)
class Package:
    """What the machine will have of a name.

    Attributes:
        version: None if it is not known.
        requires: of a wheel; what a package of the machine needs is there too.
        wheel: None for a package of the machine.
    """

    name: str
    version: str | None
    requires: tuple[str, ...] = ()
    wheel: Path | None = None


def main(wheels: str, machine: str) -> int:
    python, there = read_machine(Path(machine).read_text(encoding="utf-8"))
    travelling = read_wheels(Path(wheels)) if wheels else []
    faults = list(check(travelling, there, python, project_requirements()))
    for fault in faults:
        print(fault)
    absent = sorted({fault.needs for fault in faults if fault.needs})
    if absent:
        print(f"\n{download(absent, python, wheels or 'wheels')}")
    if not faults:
        print(f"all there: {len(travelling)} wheels travel, {len(there)} packages are there")
    return 1 if faults else 0


@dataclass(frozen=True)
class Fault:
    """Something that would fail on the machine.

    Attributes:
        needs: the requirement that a wheel would fulfil; empty where another thing is wrong.
    """

    said: str
    needs: str = ""

    def __str__(self) -> str:
        return self.said


def read_machine(text: str) -> tuple[str, dict[str, Package]]:
    """Python's version, and the packages by name."""
    lines = [line.split("#")[0].strip() for line in text.splitlines()]
    pairs = [re.split(r"==| @ ", line) for line in lines if line]
    found = {canonicalize_name(name): version for name, *version in pairs}
    python = found.pop(canonicalize_name("python"))[0]
    known = {
        name: Package(name, version[0] if version else None) for name, version in found.items()
    }
    return python, known


def read_wheels(folder: Path) -> list[Package]:
    return [_read_wheel(path) for path in sorted(folder.glob("*.whl"))]


def _read_wheel(path: Path) -> Package:
    with zipfile.ZipFile(path) as archive:
        name = next(n for n in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", n))
        metadata = HeaderParser().parsestr(archive.read(name).decode("utf-8"))
    requires = tuple(metadata.get_all("Requires-Dist") or ())
    return Package(canonicalize_name(metadata["Name"]), metadata["Version"], requires, path)


def project_requirements() -> list[str]:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return [*project["dependencies"], *TESTS, *PEERS]


def check(
    wheels: list[Package], there: dict[str, Package], python: str, wanted: list[str]
) -> Iterator[Fault]:
    """What is wrong with wheels and machine, given what is wanted."""
    yield from _unfit(wheels, python)
    have = {**there, **{wheel.name: wheel for wheel in wheels}}
    open_ends = [(text, "the project", ()) for text in wanted]
    seen = set()
    while open_ends:
        text, asker, extras = open_ends.pop()
        requirement = _requirement(text, python, extras)
        if requirement is None or (str(requirement), asker) in seen:
            continue
        seen.add((str(requirement), asker))
        name = canonicalize_name(requirement.name)
        package = have.get(name)
        bare = f"{requirement.name}{requirement.specifier}"
        if package is None:
            yield Fault(f"{bare}: missing; {asker} asks for it", bare)
        elif package.version and not requirement.specifier.contains(package.version, True):
            where = package.wheel.name if package.wheel else "the machine"
            yield Fault(f"{bare}: {where} has {package.version}; {asker} asks for it", bare)
        elif package.version is None and asker != "the project" and requirement.specifier:
            yield Fault(f"{bare}: the machine's version is unknown; {asker} asks for it", bare)
        if package and package.wheel:
            title = f"{package.name} {package.version}"
            open_ends += [(need, title, tuple(requirement.extras)) for need in package.requires]


def _requirement(text: str, python: str, extras: tuple[str, ...]) -> Requirement | None:
    """A requirement that holds on the machine; None if it is for others."""
    try:
        requirement = Requirement(text)
    except InvalidRequirement:
        return None
    machine = {
        "python_version": ".".join(python.split(".")[:2]),
        "python_full_version": python if python.count(".") > 1 else f"{python}.0",
        "platform_system": "Linux",
        "sys_platform": "linux",
        "os_name": "posix",
        "platform_machine": "x86_64",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
    }
    marker = requirement.marker
    holds = marker is None or any(
        marker.evaluate({**machine, "extra": extra}) for extra in extras or ("",)
    )
    return requirement if holds else None


def _unfit(wheels: list[Package], python: str) -> Iterator[Fault]:
    """Two wheels of a name, or one for another Python or machine: pip would refuse them all."""
    version = tuple(int(part) for part in python.split(".")[:2])
    platforms = [f"manylinux_2_{minor}_x86_64" for minor in range(39, 4, -1)]
    platforms += ["manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64"]
    platforms.append("linux_x86_64")
    tags = {*cpython_tags(version, platforms=platforms)}
    tags |= {*compatible_tags(version, f"cp{version[0]}{version[1]}", platforms)}
    names: dict[str, str] = {}
    for wheel in wheels:
        assert wheel.wheel
        if wheel.name in names:
            yield Fault(f"{wheel.wheel.name} beside {names[wheel.name]}: keep one of them")
        names[wheel.name] = wheel.wheel.name
        if not parse_wheel_filename(wheel.wheel.name)[3] & tags:
            yield Fault(f"{wheel.wheel.name}: not for Python {python} on Linux x86_64")


def download(requirements: list[str], python: str, folder: str) -> str:
    """The command that fetches wheels of some requirements."""
    platforms = " ".join(f"--platform manylinux_2_{minor}_x86_64" for minor in (28, 27, 17))
    quoted = " ".join(f"'{requirement}'" for requirement in requirements)
    short = ".".join(python.split(".")[:2])
    return (
        f"python -m pip download --no-deps --only-binary=:all: --python-version {short} "
        f"--implementation cp {platforms} --platform manylinux2014_x86_64 -d {folder} {quoted}"
    )


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    sys.exit(main(*sys.argv[1:]))
