"""Lays out windows of the demo's video, so that a model can learn how it goes on.

python examples/generation/windows.py TOKENIZER FOLDER

The first five seconds are encoded once, at 8 frames a second; the shard FOLDER/windows has a
document for every two seconds of them, half a second apart: what a continuation by a second from a
second sees and draws. FOLDER/first.mp4 is the first second.
"""

import sys
from pathlib import Path

from emu3_megatron.data.shards.writer import block_of, write_shard
from emu3_megatron.demo.material import CLIP
from emu3_megatron.generation.clips import encode_clip
from emu3_megatron.grammar import captioned_clip
from emu3_megatron.media.videos import read_clip
from emu3_megatron.media.writers import write_clip
from emu3_megatron.vision.tokenizer import VisionTokenizer
from emu3_megatron.vocabulary import Vocabulary

FPS, SECONDS = 8.0, 5
AREA = 8 * 14 * 64  # the grid of the demo's clip
WINDOW = 4  # latent frames: two seconds


def main() -> None:
    tokenizer, folder = VisionTokenizer.load(sys.argv[1]), Path(sys.argv[2])
    vocabulary = Vocabulary.tiny(tokenizer.network.codebook_size)
    frames = round(SECONDS * FPS)
    pixels_tchw = read_clip(CLIP.locate(), area=AREA, fps=FPS, num_frames=frames)
    codes_fhw = encode_clip(tokenizer, pixels_tchw, FPS).codes
    documents = [
        captioned_clip(vocabulary, CLIP.caption, codes_fhw[first : first + WINDOW], FPS, 2)
        for first in range(len(codes_fhw) - WINDOW + 1)
    ]
    write_shard(folder / "windows", vocabulary, [block_of(documents)])
    write_clip(folder / "first.mp4", pixels_tchw[: round(FPS)], FPS)


if __name__ == "__main__":
    main()
