"""This engine and others on the same machine, in turns: what `lightvllm bench compare` does.

Each contender runs in a process of its own, with its own Python where it needs one, and answers one JSON line with
another: `drivers/` are the programs on the far side, `process.py` is the near one. `turns.py` runs them, `limits.py`
says what the machine allows, `report.py` and `plot.py` show it.
"""
