"""Studies of adapters that comparisons have trained: what becomes of them when they are merged."""
