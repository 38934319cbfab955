"""Two programs that know nothing of each other can share a table, if its file is the meeting point.

This one writes people into a mapped file: records of one fixed size behind a
header, so that any program which knows the format finds record N by arithmetic,
without parsing. people_reader.py is the other program. What this one writes, the
reader sees at once; flush (msync) is what brings it to the disk.

    python examples/people_writer.py people.table          # then the reader, on the same path
    python examples/people_writer.py people.table --step   # the reader in between, row by row
    python examples/people_writer.py                       # a table that is gone afterwards
"""

import argparse
import struct
import sys
import tempfile
from pathlib import Path

from ipcmap import Mapping

# The format, which both programs must agree on. Header: a mark, and the number of people.
MARK, HEADER_BYTES = b"people 1", 16
PERSON = struct.Struct("<40sH22s")  # name and city in UTF-8, padded with zeros; year of birth
ROOM = 100  # people at most

PEOPLE = [
    ("Ada Lovelace", 1815, "London"),
    ("Emmy Noether", 1882, "Erlangen"),
    ("Srinivasa Ramanujan", 1887, "Erode"),
    ("Grace Hopper", 1906, "New York"),
    ("Andrei Kolmogorov", 1903, "Tambov"),
    ("Maryam Mirzakhani", 1977, "Tehran"),
]


def write(path: Path, *, step: bool = False) -> None:
    """Make the table and add the people, one at a time."""
    # A mapping never changes the size of its file, so the file gets it first.
    with path.open("xb") as file:
        file.truncate(HEADER_BYTES + ROOM * PERSON.size)
    with Mapping.file(path) as table, table.view(8, 8).cast("Q") as count:
        table[: len(MARK)] = MARK
        for number, (name, year, city) in enumerate(PEOPLE):
            if step:
                print("Enter adds the next person, anything else ends: ", end="", flush=True)
                if sys.stdin.readline() != "\n":
                    break
            row = PERSON.pack(name.encode(), year, city.encode())
            # The row first, the count that announces it last: a reader that believes the
            # count never meets half a row, and after a power failure the disk holds no count
            # without its rows. This order serves one writer that only appends, on processors
            # that keep the order of stores (x86-64 does). To change a row while other
            # programs run, all of them need a lock around it.
            table.write(HEADER_BYTES + number * PERSON.size, row)
            table.flush()
            count[0] = number + 1
            table.flush()
            print(f"wrote {number + 1}: {name}, {year}, {city}", flush=True)


def main() -> None:
    """Write to the path of the command line, or to a table that is removed again."""
    parser = argparse.ArgumentParser(description="Write a table of people.")
    parser.add_argument("path", nargs="?", type=Path, help="a new file; without it: a passing one")
    parser.add_argument("--step", action="store_true", help="wait for Enter before each person")
    options = parser.parse_args()

    if options.path is None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "people.table")
            write(path, step=options.step)
            print(f"{path.stat().st_size} bytes, removed again; give a path to keep the table")
        return
    try:
        write(options.path, step=options.step)
    except FileExistsError:
        sys.exit(f"{options.path} exists already: give the path of a new file, or remove it first")
    print(f"{options.path} is ready for people_reader.py")


if __name__ == "__main__":
    main()
