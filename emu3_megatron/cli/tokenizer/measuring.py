"""Measures a tokenizer, and baselines beside it, in all processes: the work of the command."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from emu3_megatron.cli.tokenizer.ranks import Ranks
from emu3_megatron.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from emu3_megatron.evaluation.reconstruction import AtSize
    from emu3_megatron.evaluation.reconstruction_page import Pair
    from emu3_megatron.vision.files import At
    from emu3_megatron.vision.lpips import Lpips
    from emu3_megatron.vision.measures.reconstruction import Codec, Distance, Measured
    from emu3_megatron.vision.tokenizer import VisionTokenizer

_PICTURES = 8  # files whose pictures are kept
_PICTURE_AREA = 256 * 256


@dataclass(frozen=True)
class Networks:
    """Weights of the networks of FID and FVD."""

    fid: Path | None
    fvd: Path | None


@dataclass(frozen=True)
class Job:
    """What is measured, and with what."""

    ranks: Ranks
    tokenizer: "VisionTokenizer"
    files: Sequence[Path]
    independent_groups: bool
    batch: int
    lpips: "Lpips | None"
    networks: Networks
    fitted_to: Sequence[Path]
    seed: int

    @property
    def codes(self) -> int:
        return self.tokenizer.network.codebook_size

    def measure(self, sizes: "Sequence[At]") -> "tuple[list[AtSize], list[Pair]]":
        """At every size; pictures of some files at one of them."""
        small = [at for at in sizes if at.area <= _PICTURE_AREA]
        pictured = small[-1] if small else sizes[0]
        shown = set(self.files[:: max(1, len(self.files) // _PICTURES)][:_PICTURES])
        found, pairs = [], list["Pair"]()
        for at in sizes:
            size, own = self._measure(at, shown if at == pictured else set())
            found.append(size)
            pairs += own
        return found, sorted(pairs, key=lambda pair: pair.path)

    def _measure(self, at: "At", shown: set[Path]) -> "tuple[AtSize, list[Pair]]":
        from emu3_megatron.evaluation.reconstruction import AtSize
        from emu3_megatron.vision.measures.reconstruction import codec_of

        watching = _Watching(self.networks, self.ranks, shown)
        codec = codec_of(self.tokenizer, self.independent_groups)
        measured = self._measured(codec, self.files, at, watching)
        _refuse_broken(measured)
        fid, fvd = watching.distances()
        size = AtSize(at, measured, self._baselines(at), fid, fvd)
        return size, [pair for own in self.ranks.gather(watching.pairs) for pair in own]

    def _measured(
        self, codec: "Codec", files: Sequence[Path], at: "At", watching: "_Watching | None" = None
    ) -> "Measured":
        from emu3_megatron.vision.measures.reconstruction import joined, measure

        own = measure(
            codec,
            self.ranks.share(files),
            at,
            batch=self.batch,
            lpips=self._distance() if self.lpips else None,
            watch=watching.see if watching else None,
        )
        return joined(self.ranks.gather(own))

    def _distance(self) -> "Distance":
        lpips, device = self.lpips, self.ranks.device
        assert lpips is not None

        def distance(one: "Tensor", other: "Tensor") -> "Tensor":
            import torch

            with torch.inference_mode():
                return lpips(one.to(device), other.to(device)).cpu()

        return distance

    def _baselines(self, at: "At") -> "Mapping[str, Measured]":
        from emu3_megatron.vision.files import kind_of
        from emu3_megatron.vision.measures.baselines import fit_baselines, mean_colour

        baselines = [mean_colour()]
        if self.fitted_to:
            fit = lambda: fit_baselines(self.fitted_to, at, self.codes, self.seed)
            baselines += self.ranks.on_first(fit)
        return {
            baseline.name: self._measured(
                baseline.codec(), [f for f in self.files if kind_of(f) in baseline.by_kind], at
            )
            for baseline in baselines
        }


class _Watching:
    """Sees what went into the tokenizer and what came out, for FID, FVD and the page."""

    def __init__(self, networks: Networks, ranks: Ranks, shown: set[Path]):
        from emu3_megatron.evaluation.fid import open_metric
        from emu3_megatron.evaluation.fvd import VideoFeatures

        self.pairs: list[Pair] = []
        self._ranks, self._shown, self._images = ranks, shown, 0
        self._fid = open_metric(networks.fid, ranks.device) if networks.fid else None
        self._fvd = VideoFeatures(networks.fvd, ranks.device) if networks.fvd else None

    def see(self, path: Path, given: "Tensor", rebuilt: "Tensor") -> None:
        from emu3_megatron.evaluation.reconstruction_page import Pair
        from emu3_megatron.vision.files import kind_of

        if path in self._shown:
            self.pairs.append(Pair(path, given, rebuilt))
        if kind_of(path) == "clip":
            if self._fvd:
                self._fvd.add(given, rebuilt)
        elif self._fid:
            self._images += 1
            self._fid.update(given.to(self._ranks.device), real=True)
            self._fid.update(rebuilt.to(self._ranks.device), real=False)

    def distances(self) -> tuple[float | None, float | None]:
        """FID and FVD over the files of all processes; None where there are too few."""
        from emu3_megatron.evaluation.fvd import video_distance

        fid = fvd = None
        if self._fid and sum(self._ranks.gather(self._images)) > 1:
            fid = self._fid.compute().item()
        if self._fvd:
            fvd = video_distance(self._ranks.gather(self._fvd.collected()))
        return fid, fvd


def _refuse_broken(measured: "Measured") -> None:
    if measured.broken:
        first, others = measured.broken[0], len(measured.broken) - 1
        raise InputError(
            f"{first.path}: {first.reason} ({others:,} other files alike): the tokenizer's weights "
            "or its precision are at fault"
        )
    if not measured.kept:
        first = measured.failed[0]
        raise InputError(
            f"no file could be measured; the first of {len(measured.failed):,}: {first.path}: "
            f"{first.reason}"
        )
