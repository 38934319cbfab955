"""``ipcmap bench``: ipcmap and whichever peers are installed, on the same work in one run.

What is compared with what, and how it is measured:

    channels.py    a peer: what it can do, how it is opened, how one end of it is used
    installed.py   the peers that are not of the standard library
    pools.py       pools of workers, ipcmap's and the standard library's
    place.py       a process of its own for each measurement, its helpers, its deadline
    goods.py       what is sent, and whether it came as it was
    clock.py       how long, and at what CPU time
    streams.py     records from producers to a consumer
    waits.py       round trips; consumers that wait for nothing
    tasks.py       tasks of a pool, all at once or one by one
    memory.py      what a channel takes before it is used
    rows.py        the rows: which of these, on which points, and which figure counts
    runner.py      peers in turn, medians, ratios
    machine.py     the facts without which no figure means anything
    saved.py       results that were saved, read again
    plot.py        pictures
    command.py     arguments, tables, JSON

A row is an entry in rows.py; a peer is one in channels.py, installed.py or pools.py.
"""
