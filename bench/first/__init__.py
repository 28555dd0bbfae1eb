"""The numbers of the first release; see docs/performance.md. `python -m bench.first` makes all of them again."""
