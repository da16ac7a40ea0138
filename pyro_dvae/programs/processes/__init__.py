"""Programs of which each process runs some rows of the data, and the record of all rows.

- `sharding`: plates of some rows, with the random numbers of all;
- `gathering`: the record of all rows, put together before an algorithm sees it.
"""
