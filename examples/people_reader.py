"""A reader of a mapped table needs no permission to write, no parser, and no word with the writer.

It prints the people that people_writer.py has put into a file. Run it after the
writer, or while the writer is at work (``people_writer.py PATH --step``): it
shows the rows that are complete at that moment, and never half of one.

    python examples/people_reader.py people.table
"""

import struct
import sys

from ipcmap import Mapping

# The format, which both programs must agree on. Header: a mark, and the number of people.
MARK, HEADER_BYTES = b"people 1", 16
PERSON = struct.Struct("<40sH22s")  # name and city in UTF-8, padded with zeros; year of birth


def text(field: bytes) -> str:
    """Return a padded field as text."""
    return field.rstrip(b"\0").decode()


def read(path: str) -> list[tuple[str, int, str]]:
    """Return the people of the table, as far as its count announces them."""
    with Mapping.file(path, writable=False) as table:
        if len(table) < HEADER_BYTES or table[: len(MARK)] != MARK:
            raise ValueError("it does not begin with the mark of a table of people")
        # The count first, then the rows: the writer works in the opposite order.
        # One load of a whole number: read() would copy it byte by byte.
        with table.view(8, 8).cast("Q") as header:
            count = header[0]
        # The bytes came from another program: check them before using them.
        if count > (len(table) - HEADER_BYTES) // PERSON.size:
            raise ValueError(f"its count does not fit the file: count={count}")
        rows = table.read(HEADER_BYTES, count * PERSON.size)
    return [(text(name), year, text(city)) for name, year, city in PERSON.iter_unpack(rows)]


def main() -> None:
    """Print the table of the command line's path."""
    path = sys.argv[1] if len(sys.argv) > 1 else "people.table"
    try:
        people = read(path)
    except FileNotFoundError:
        sys.exit(f"no table at {path}: make it with people_writer.py {path}")
    except ValueError as error:
        sys.exit(f"{path} is no table of people: {error}")

    print(f"{len(people)} people in {path}")
    for name, year, city in people:
        print(f"{name:24} {year}  {city}")


if __name__ == "__main__":
    main()
