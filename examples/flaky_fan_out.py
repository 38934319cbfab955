"""A hundred downloads of which some crash and some hang, and all the rest arrive.

Whoever dies costs its own task, which is done again; whoever hangs is killed in time.

python examples/flaky_fan_out.py
"""

import os
import signal
import time

from ipcmap import ProcessPoolExecutor, Ring, WorkerDied

ITEMS = range(100)
HOPELESS, ENDLESS = 13, 42
crashes = Ring()  # accidents that happen once each
crashes.put_many([b"crash"] * 5)


def download(item: int) -> int:
    """Return a result; or crash now and then, or for good, or hang."""
    if item == HOPELESS or (item % 10 == 0 and len(crashes)):
        if item != HOPELESS:
            crashes.get()
        os.kill(os.getpid(), signal.SIGKILL)
    if item == ENDLESS:
        time.sleep(3600)
    return item * item


def main() -> None:
    """Ask for all of them, and say what came."""
    with ProcessPoolExecutor(4) as executor:
        patient = executor.with_options(retries=5, timeout=0.5)
        futures = {item: patient.submit(download, item) for item in ITEMS}
        arrived = 0
        for item, future in futures.items():
            try:
                assert future.result() == item * item
                arrived += 1
            except WorkerDied as error:
                print(f"item {item}: signal {error.record.signal}, six times in a row")
            except TimeoutError:
                print(f"item {item}: took too long, six times in a row")
    print(
        f"{arrived} of {len(ITEMS)} arrived, after {5 - len(crashes)} crashes that were made good"
    )


if __name__ == "__main__":
    main()
