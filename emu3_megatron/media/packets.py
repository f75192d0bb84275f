"""Decodes a video's packets: what damaged ones would have shown is left out, the rest is read."""

from collections.abc import Iterator

import av
from av.container import InputContainer
from av.video.stream import VideoStream


def decode_packets(container: InputContainer, stream: VideoStream) -> Iterator[av.VideoFrame]:
    """The frames of every packet that can be decoded, as players show a damaged file.

    The same file gives the same frames each time, so that frames can be counted.

    Raises:
        Exception: of the first damage, when no frame at all can be decoded.
    """
    first_error, any_frame = None, False
    packets = iter(container.demux(stream))
    while True:
        try:
            packet = next(packets)
        except StopIteration:
            break
        except av.FFmpegError as error:  # the container cannot be read any further
            first_error = first_error or error
            break
        try:
            frames = packet.decode()
        except av.FFmpegError as error:
            first_error = first_error or error
            continue
        for frame in frames:
            any_frame = True
            yield frame

    if first_error is not None and not any_frame:
        raise first_error
