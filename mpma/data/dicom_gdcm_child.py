"""The process that GDCM runs in: frames come in on standard input, pixels go out on standard output.

Decisions: damaged lossless JPEG makes GDCM abort the process that called it, so it is called in one that
holds nothing else and may die. This file is run by its path and imports nothing of this software, so that
the process starts fast and on any machine that has the libraries. No core is dumped, since it would hold
pixels. A request is two lengths, JSON of pydicom's decoding options and the encapsulated frame; an answer
is two lengths, JSON and the array. It ends where its input ends, and by an alarm where a frame takes too
long, also when nobody is left to end it.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import signal
import struct
import sys
import warnings
from typing import Any, BinaryIO

LENGTHS = struct.Struct("<IQ")


def serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer requests until there are none."""
    import numpy as np
    from pydicom.pixels import get_decoder

    while len(head := requests.read(LENGTHS.size)) == LENGTHS.size:
        text_length, data_length = LENGTHS.unpack(head)
        wanted = json.loads(requests.read(text_length))
        source = requests.read(data_length)
        signal.alarm(wanted["seconds"])
        answer: dict[str, Any]
        pixels = b""
        try:
            decoder = get_decoder(wanted["transfer_syntax"])
            values, _ = decoder.as_array(source, index=0, decoding_plugin="gdcm", **wanted["options"])
            array = np.ascontiguousarray(values)
            pixels = array.tobytes()
            answer = {"dtype": array.dtype.str, "shape": array.shape}
        except Exception as error:  # the message may quote the file, so only its kind goes back
            answer = {"error": type(error).__name__}
        signal.alarm(0)
        text = json.dumps(answer).encode()
        answers.write(LENGTHS.pack(len(text), len(pixels)))
        answers.write(text)
        answers.write(pixels)
        answers.flush()


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    logging.disable()
    warnings.simplefilter("ignore")
    with os.fdopen(os.dup(1), "wb") as out:
        # What a library prints must not be taken for an answer.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        serve(sys.stdin.buffer, out)
