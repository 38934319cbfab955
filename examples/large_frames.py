"""Large frames go from process to process without a copy of their own.

The camera fills each frame where it will be read (claim), and the viewer reads it
where it lies (lease): 6 MB a frame, of which the ring itself carries 24 bytes. When a
viewer is killed with a frame in hand, the next viewer gets that frame.

    pip install numpy
    python examples/large_frames.py
"""

import os
import signal
import sys

import numpy as np

from ipcmap import ClosedError, Process, Ring

SHAPE = (1080, 1920, 3)
NBYTES = 1080 * 1920 * 3
FRAMES = 12
FATAL = 5  # the frame over which the first viewer is killed


def record(frames: Ring) -> None:
    """Fill frames in place."""
    with frames.attach_producer():
        for number in range(FRAMES):
            with frames.claim(NBYTES) as view:
                image = np.frombuffer(view, np.uint8).reshape(SHAPE)
                image[:] = number
                del image  # no array may outlive the block


def watch(frames: Ring, seen: Ring, *, mortal: bool) -> None:
    """Read frames in place."""
    while True:
        try:
            with frames.lease() as view:
                image = np.frombuffer(view, np.uint8).reshape(SHAPE)
                number, even = int(image[0, 0, 0]), bool((image == image[0, 0, 0]).all())
                del image
                if mortal and number == FATAL:
                    os.kill(os.getpid(), signal.SIGKILL)
                seen.put(b"%d %d" % (number, even))
        except ClosedError:
            return


def main() -> None:
    """One camera, one viewer that is killed, and one that takes over."""
    frames, seen = Ring(), Ring()
    camera = Process(target=record, args=(frames,))
    first = Process(target=watch, args=(frames, seen), kwargs={"mortal": True})
    first.start()
    camera.start()
    first.join()
    assert first.exit_record
    print(f"first viewer: signal {first.exit_record.signal}, over frame {FATAL}")
    second = Process(target=watch, args=(frames, seen), kwargs={"mortal": False})
    second.start()
    camera.join()
    second.join()

    numbers = []
    for line in seen.get_many():
        number, even = map(int, line.split())
        assert even, "every byte of a frame is there"
        numbers.append(number)
    print(f"frames seen: {numbers}, {NBYTES / 1e6:.1f} MB each")
    sys.exit(0 if sorted(numbers) == list(range(FRAMES)) else 1)


if __name__ == "__main__":
    main()
