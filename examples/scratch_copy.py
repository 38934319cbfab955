"""A private mapping is a copy of a file to try things on: free to make, and the file cannot change.

Nothing is read or copied when the mapping is made. A page is copied by the kernel
when it is first written to, so a small edit of a large file costs a few pages.
The example blacks out every card number of a log, in place; the log on the disk
stays as it was, and the result could be inspected, saved elsewhere or dropped.

    python examples/scratch_copy.py
"""

import re
import sys
import tempfile
from pathlib import Path

from ipcmap import Mapping

LINES = 20_000
PAID = b"09:15 paid by card 4929 1234 5678 9012\n"
CARD = re.compile(rb"\d{4} \d{4} \d{4} (?=\d{4})")  # all but the last four digits


def black_out(view: memoryview) -> int:
    """Overwrite the card numbers in place, and return how many there were."""
    found = 0
    for match in CARD.finditer(view):
        view[match.start() : match.end()] = b"**** **** **** "
        found += 1
    return found


def main() -> None:
    """Edit a private mapping of a file, and show that only the mapping changed."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "payments.log")
        lines = [b"09:%02d door opened and closed\n" % (number % 60) for number in range(LINES)]
        lines[700:703] = [PAID] * 3
        log.write_bytes(b"".join(lines))
        before = log.read_bytes()

        with Mapping.file(log, private=True) as scratch:
            with scratch.view() as view:
                found = black_out(view)
            start = before.index(PAID)
            line = scratch[start : start + len(PAID)].decode().rstrip()
            # Dropping the changed pages is dropping the changes: they read as the file again.
            scratch.advise("dontneed")
            dropped = scratch[:] == before

        unchanged = log.read_bytes() == before
        print(f"blacked out {found} numbers in {len(before):,} bytes")
        print(f"in the mapping: {line}")
        print(f"in the file:    {PAID.decode().rstrip()}")
        print(f"file unchanged: {'yes' if unchanged else 'NO'}")
        print(f"after the changes were dropped, mapping equals file: {'yes' if dropped else 'NO'}")
    sys.exit(0 if found == 3 and unchanged and dropped else 1)


if __name__ == "__main__":
    main()
